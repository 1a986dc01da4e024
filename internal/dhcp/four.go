package dhcp

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"atoll/api"
)

// DHCP, RFC 2131 and 2132.
const (
	bootLen    = 240 // with the cookie
	bootMost   = 548 // of an answer, which every client takes
	bootLeast  = 300 // some want as much as BOOTP had
	cookie     = 0x63825363
	flagAll    = 0x8000 // the client hears broadcasts only
	discover   = 1
	offer      = 2
	request    = 3
	ack        = 5
	nak        = 6
	inform     = 8
	optMask    = 1
	optRouter  = 3
	optDNS     = 6
	optHost    = 12
	optDomain  = 15
	optMTU     = 26
	optAll     = 28
	optWanted  = 50
	optTime    = 51
	optType    = 53
	optServer  = 54
	optT1      = 58
	optT2      = 59
	optClient  = 61
	optSearch  = 119
	optEnd     = 255
	clientPort = 68
	serverPort = 67
)

var everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// question4 is what a client says.
type question4 struct {
	kind           byte
	xid            [4]byte
	flags          uint16
	ciaddr         netip.Addr
	chaddr         [6]byte
	wanted, server netip.Addr // the zero Addr: not said
	client         []byte
}

// read4 takes a message apart; false: it is no question of a client on Ethernet that asks for itself.
func read4(b []byte) (q question4, ok bool) {
	if len(b) < bootLen || b[0] != 1 || b[1] != 1 || b[2] != 6 || binary.BigEndian.Uint32(b[236:]) != cookie || binary.BigEndian.Uint32(b[24:]) != 0 {
		return q, false
	}
	q.xid, q.flags = [4]byte(b[4:]), binary.BigEndian.Uint16(b[10:])
	q.ciaddr, q.chaddr = netip.AddrFrom4([4]byte(b[12:])), [6]byte(b[28:])
	for o := b[bootLen:]; len(o) > 0 && o[0] != optEnd; {
		if o[0] == 0 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return q, false
		}
		v := o[2 : 2+int(o[1])]
		switch {
		case o[0] == optType && len(v) == 1:
			q.kind = v[0]
		case o[0] == optWanted && len(v) == 4:
			q.wanted = netip.AddrFrom4([4]byte(v))
		case o[0] == optServer && len(v) == 4:
			q.server = netip.AddrFrom4([4]byte(v))
		case o[0] == optClient && len(v) >= 2:
			q.client = v
		}
		o = o[2+len(v):]
	}
	return q, q.kind != 0
}

// answer4 is the answer to a frame that came from the interface of a lease; nil: none is due.
func (l lease) answer4(a asked, gatewayMAC [6]byte) []byte {
	if !l.four.IsValid() || a.proto != protoUDP {
		return nil
	}
	gateway, own := api.Gateway(l.four), l.four.Addr()
	if a.dst != everybody && a.dst != gateway {
		return nil // it passes by, on its way out
	}
	q, ok := read4(a.body)
	if !ok || q.chaddr != l.mac || q.server.IsValid() && q.server != gateway {
		return nil // for another interface than its own nobody asks; or another server was chosen
	}
	kind, to := byte(ack), everybody
	switch {
	case q.kind == discover:
		kind = offer
	case q.kind == inform:
		if q.ciaddr != own {
			return nil
		}
	case q.kind != request:
		return nil // a lease is neither given back nor refused
	case q.ciaddr != own && q.ciaddr != netip.IPv4Unspecified(), q.wanted.IsValid() && q.wanted != own, !q.wanted.IsValid() && q.ciaddr != own:
		kind = nak
	}
	if kind != nak && (q.ciaddr == own || q.flags&flagAll == 0) {
		to = own
	}
	w := way{from: gatewayMAC, to: l.mac, src: gateway, dst: to, sport: serverPort, dport: clientPort}
	return w.frame(l.message4(q, kind))
}

// message4 is an answer without its headers.
func (l lease) message4(q question4, kind byte) []byte {
	b := make([]byte, bootLen, bootMost)
	b[0], b[1], b[2] = 2, 1, 6
	copy(b[4:], q.xid[:])
	binary.BigEndian.PutUint16(b[10:], q.flags)
	if kind == ack {
		copy(b[12:], q.ciaddr.AsSlice())
	}
	copy(b[28:], l.mac[:])
	binary.BigEndian.PutUint32(b[236:], cookie)
	gateway := api.Gateway(l.four)
	b = option4(b, optType, []byte{kind})
	b = option4(b, optServer, gateway.AsSlice())
	if kind != nak {
		if q.kind != inform {
			copy(b[16:], l.four.Addr().AsSlice())
			for _, t := range []struct {
				option byte
				part   uint32 // in eighths, as RFC 2131 has it
			}{{optTime, 8}, {optT1, 4}, {optT2, 7}} {
				b = option4(b, t.option, binary.BigEndian.AppendUint32(nil, uint32(leaseTime.Seconds())/8*t.part))
			}
		}
		mask := ^uint32(0) << (32 - l.four.Bits())
		b = option4(b, optMask, binary.BigEndian.AppendUint32(nil, mask))
		b = option4(b, optAll, binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(l.four.Addr().AsSlice())|^mask))
		if l.first {
			b = option4(b, optRouter, gateway.AsSlice())
			b = option4(b, optDNS, gateway.AsSlice())
		}
		if l.mtu > 0 {
			b = option4(b, optMTU, binary.BigEndian.AppendUint16(nil, uint16(min(l.mtu, 65535)))) //nolint:gosec // bounded
		}
	}
	b = option4(b, optClient, q.client) // RFC 6842
	if kind != nak {
		b = option4(b, optHost, []byte(l.host))
		if l.first {
			b = option4(b, optDomain, []byte(l.domain))
			b = option4(b, optSearch, wireName(l.domain))
		}
	}
	b = append(b, optEnd)
	return append(b, bytes.Repeat([]byte{0}, max(0, bootLeast-len(b)))...)
}

// option4 adds one, if it says something and there is room: those without which nothing works come first.
func option4(b []byte, option byte, v []byte) []byte {
	if len(v) == 0 || len(v) > 255 || len(b)+2+len(v)+1 > bootMost {
		return b
	}
	return append(append(b, option, byte(len(v))), v...)
}
