package dhcp

import (
	"encoding/binary"
	"net/netip"
)

const (
	etherLen = 14
	protoUDP = 17
	protoICM = 58 // ICMPv6
)

// asked is a frame with a question, as far as it is the same for all kinds.
type asked struct {
	mac      [6]byte // of who asks: the wall has seen to it that it is the port's
	src, dst netip.Addr
	hops     byte
	proto    byte
	body     []byte // behind UDP's header; of ICMPv6 all
}

// readFrame takes a frame apart; false: it is none that could be a question. Checksums are
// not looked at: what comes over a cable inside a host often has none yet.
func readFrame(b []byte) (asked, bool) {
	if len(b) < etherLen {
		return asked{}, false
	}
	a := asked{mac: [6]byte(b[6:12])}
	p := b[etherLen:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		if len(p) < 20 || p[0]>>4 != 4 {
			return a, false
		}
		head, size := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		if head < 20 || size < head || size > len(p) || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			return a, false
		}
		a.proto, a.hops = p[9], p[8]
		a.src, a.dst = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
		p = p[head:size]
	case 0x86dd:
		if len(p) < 40 || p[0]>>4 != 6 {
			return a, false
		}
		size := 40 + int(binary.BigEndian.Uint16(p[4:]))
		if size > len(p) {
			return a, false
		}
		a.proto, a.hops = p[6], p[7]
		a.src, a.dst = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
		p = p[40:size]
	default:
		return a, false
	}
	if a.proto == protoUDP {
		if len(p) < 8 {
			return a, false
		}
		size := int(binary.BigEndian.Uint16(p[4:]))
		if size < 8 || size > len(p) {
			return a, false
		}
		p = p[8:size]
	}
	a.body = p
	return a, true
}

// way is how an answer is sent.
type way struct {
	from, to   [6]byte
	src, dst   netip.Addr
	sport      uint16 // 0: not UDP, but ICMPv6
	dport      uint16
	longestWay bool // hop limit 255, by which ICMPv6 knows that it came over no router
}

// frame is an answer with all its headers. It goes to one hardware address, whatever the address of IP.
func (w way) frame(body []byte) []byte {
	b := append(append(make([]byte, 0, etherLen+48+len(body)), w.to[:]...), w.from[:]...)
	proto, size := byte(protoICM), len(body)
	if w.sport != 0 {
		proto, size = protoUDP, 8+len(body)
	}
	if w.src.Is4() {
		b = binary.BigEndian.AppendUint16(b, 0x0800)
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+size)) //nolint:gosec // answers are small
		b = append(b, 0, 0, 0, 0, 64, proto, 0, 0)
		b = append(append(b, w.src.AsSlice()...), w.dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[etherLen+10:], ^sum(0, b[etherLen:]))
	} else {
		hops := byte(64)
		if w.longestWay {
			hops = 255
		}
		b = append(binary.BigEndian.AppendUint16(b, 0x86dd), 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(size)) //nolint:gosec // answers are small
		b = append(append(append(b, proto, hops), w.src.AsSlice()...), w.dst.AsSlice()...)
	}
	at, pseudo := len(b), uint32(proto)+uint32(size) //nolint:gosec // answers are small
	pseudo = uint32(sum(sum32(pseudo), append(w.src.AsSlice(), w.dst.AsSlice()...)))
	check := at + 2
	if w.sport != 0 {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, w.sport), w.dport)
		b = append(binary.BigEndian.AppendUint16(b, uint16(size)), 0, 0) //nolint:gosec // answers are small
		check = at + 6
	}
	b = append(b, body...)
	c := ^sum(sum32(pseudo), b[at:])
	if c == 0 && proto == protoUDP {
		c = 0xffff // 0 says that there is none
	}
	binary.BigEndian.PutUint16(b[check:], c)
	return b
}

// sum32 is a sum that sum goes on from.
type sum32 uint32

// sum is that of the Internet's checksums, RFC 1071.
func sum(s sum32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		s += sum32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += sum32(b[0]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s) //nolint:gosec // folded
}
