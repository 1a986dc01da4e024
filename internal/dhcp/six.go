package dhcp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// DHCPv6, RFC 8415, and its options for names, RFC 3646.
const (
	solicit     = 1
	advertise   = 2
	request6    = 3
	confirm     = 4
	renew       = 5
	rebind      = 6
	reply       = 7
	release     = 8
	decline     = 9
	information = 11

	opt6Client   = 1
	opt6Server   = 2
	opt6Addrs    = 3 // IA_NA
	opt6Temps    = 4 // IA_TA
	opt6Addr     = 5
	opt6Prefer   = 7
	opt6Status   = 13
	opt6Rapid    = 14
	opt6DNS      = 23
	opt6Search   = 24
	opt6Prefixes = 25 // IA_PD

	noAddrs    = 2
	notOnLink  = 4
	noPrefixes = 6

	iasMost     = 8 // in one question
	addrsMost   = 16
	clientPort6 = 546
	serverPort6 = 547
)

var allServers = netip.MustParseAddr("ff02::1:2")

// linkLocal is the address that an interface makes of its hardware address, RFC 4291 appendix A.
func linkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// serverID is a DUID of the hardware address: the same on every host, as the gateway is.
func serverID(mac [6]byte) []byte { return append([]byte{0, 3, 0, 1}, mac[:]...) }

// ia is a collection of addresses that a client has or wants.
type ia struct {
	option uint16
	id     [4]byte
	addrs  []netip.Addr
}

// question6 is what a client says.
type question6 struct {
	kind           byte
	xid            [3]byte
	client, server []byte
	rapid          bool
	ias            []ia
}

// options6 calls fn with each option; false: they do not end where they should, or fn says so.
func options6(b []byte, fn func(option uint16, v []byte) bool) bool {
	for len(b) > 0 {
		if len(b) < 4 {
			return false
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		if len(b) < 4+n || !fn(binary.BigEndian.Uint16(b), b[4:4+n]) {
			return false
		}
		b = b[4+n:]
	}
	return true
}

// read6 takes a message of a client apart.
func read6(b []byte) (q question6, ok bool) {
	if len(b) < 4 {
		return q, false
	}
	q.kind, q.xid = b[0], [3]byte(b[1:])
	ok = options6(b[4:], func(option uint16, v []byte) bool {
		switch option {
		case opt6Client:
			q.client = v
		case opt6Server:
			q.server = v
		case opt6Rapid:
			q.rapid = true
		case opt6Addrs, opt6Temps, opt6Prefixes:
			head := 12
			if option == opt6Temps {
				head = 4
			}
			if len(v) < head || len(q.ias) == iasMost {
				return false
			}
			i := ia{option: option, id: [4]byte(v)}
			if !options6(v[head:], func(option uint16, v []byte) bool {
				if option == opt6Addr {
					if len(v) < 24 || len(i.addrs) == addrsMost {
						return false
					}
					i.addrs = append(i.addrs, netip.AddrFrom16([16]byte(v)))
				}
				return true
			}) {
				return false
			}
			q.ias = append(q.ias, i)
		}
		return true
	})
	return q, ok && len(q.client) <= 130 // RFC 8415, section 11.1
}

// answer6 is the answer to a frame that came from the interface of a lease; nil: none is due.
func (l lease) answer6(a asked, gatewayMAC [6]byte) []byte {
	if !l.six.IsValid() || !a.src.IsLinkLocalUnicast() {
		return nil
	}
	if a.proto == protoICM {
		if a.hops != 255 || len(a.body) < 8 || a.body[0] != 133 || a.body[1] != 0 {
			return nil
		}
		return l.advert(gatewayMAC)
	}
	if a.dst != allServers {
		return nil
	}
	q, ok := read6(a.body)
	if !ok {
		return nil
	}
	body := l.message6(q, serverID(gatewayMAC))
	if body == nil {
		return nil
	}
	return way{from: gatewayMAC, to: l.mac, src: linkLocal(gatewayMAC), dst: a.src, sport: serverPort6, dport: clientPort6}.frame(body)
}

// due reports whether a question is to be answered: RFC 8415, section 16.
func (q question6) due(server []byte) bool {
	chosen := bytes.Equal(q.server, server)
	switch q.kind {
	case solicit, confirm, rebind:
		return len(q.client) > 0 && q.server == nil
	case request6, renew, release, decline:
		return len(q.client) > 0 && chosen
	case information:
		return len(q.ias) == 0 && (q.server == nil || chosen)
	}
	return false
}

// message6 is an answer without its headers.
func (l lease) message6(q question6, server []byte) []byte {
	if !q.due(server) {
		return nil
	}
	kind := byte(reply)
	if q.kind == solicit && !q.rapid {
		kind = advertise
	}
	b := append([]byte{kind}, q.xid[:]...)
	if q.client != nil {
		b = option6(b, opt6Client, q.client)
	}
	b = option6(b, opt6Server, server)
	switch q.kind {
	case confirm:
		code, some := uint16(0), false
		for _, i := range q.ias {
			for _, a := range i.addrs {
				some = true
				if !l.six.Contains(a) {
					code = notOnLink
				}
			}
		}
		if !some {
			return nil
		}
		return option6(b, opt6Status, status(code))
	case release, decline:
		return option6(b, opt6Status, status(0)) // the address stays the instance's
	}
	if kind == advertise {
		b = option6(b, opt6Prefer, []byte{255}) // nobody else answers here: there is nothing to wait for
	}
	if q.kind == solicit && q.rapid {
		b = option6(b, opt6Rapid, nil)
	}
	given := false
	for _, i := range q.ias {
		b = option6(b, i.option, l.give(i, given))
		given = given || i.option == opt6Addrs
	}
	if d := l.resolver(l.six); d.IsValid() {
		b = option6(b, opt6DNS, d.AsSlice())
		if n := wireName(l.domain); n != nil {
			b = option6(b, opt6Search, n)
		}
	}
	return b
}

// give fills a client's collection: the first of addresses with the interface's own, the others with why not.
func (l lease) give(i ia, given bool) []byte {
	b := append([]byte(nil), i.id[:]...)
	seconds := uint32(leaseTime.Seconds())
	switch {
	case i.option == opt6Temps:
		return option6(b, opt6Status, status(noAddrs))
	case i.option == opt6Prefixes:
		return option6(append(b, 0, 0, 0, 0, 0, 0, 0, 0), opt6Status, status(noPrefixes))
	case given:
		return option6(append(b, 0, 0, 0, 0, 0, 0, 0, 0), opt6Status, status(noAddrs))
	}
	b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, seconds/2), seconds/5*4)
	b = option6(b, opt6Addr, lasting(l.six.Addr(), seconds))
	for _, a := range i.addrs {
		if a != l.six.Addr() {
			b = option6(b, opt6Addr, lasting(a, 0)) // it has no other
		}
	}
	return b
}

func lasting(a netip.Addr, seconds uint32) []byte {
	b := a.As16()
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b[:], seconds), seconds)
}

func status(code uint16) []byte { return binary.BigEndian.AppendUint16(nil, code) }

func option6(b []byte, option uint16, v []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, option)
	b = binary.BigEndian.AppendUint16(b, uint16(len(v))) //nolint:gosec // what a frame holds
	return append(b, v...)
}

// Router advertisements, RFC 4861 section 4.2, with RFC 8106 for names.
const (
	// routerTime is the longest there is (RFC 8319): the gateway is the kernel's, and there also while the daemon is not.
	routerTime  = 65535
	onLink      = 0x80
	managed     = 0x80 | 0x40 // addresses and all else by DHCPv6
	optSource   = 1
	optPrefix   = 3
	optLinkMTU  = 5
	optRDNSS    = 25
	optDNSSL    = 31
	advertCount = 64 // hop limit
)

var allNodes = netip.MustParseAddr("ff02::1")

// advert is the router advertisement for one interface, nil where there is nothing to say. Nobody makes an address of it:
// addresses are the pool's.
func (l lease) advert(gatewayMAC [6]byte) []byte {
	if !l.six.IsValid() {
		return nil
	}
	life, seconds := uint16(0), uint32(leaseTime.Seconds())
	if l.first {
		life = routerTime
	}
	b := []byte{134, 0, 0, 0, advertCount, managed}
	b = binary.BigEndian.AppendUint16(b, life)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // how long neighbours are believed is theirs to decide
	b = append(append(b, optSource, 1), gatewayMAC[:]...)
	if l.mtu > 0 {
		b = binary.BigEndian.AppendUint32(append(b, optLinkMTU, 1, 0, 0), uint32(l.mtu)) //nolint:gosec // positive
	}
	b = append(b, optPrefix, 4, byte(l.six.Bits()), onLink) //nolint:gosec // at most 128
	b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, seconds), seconds)
	b = append(append(b, 0, 0, 0, 0), l.six.Masked().Addr().AsSlice()...)
	if d := l.resolver(l.six); d.IsValid() {
		b = append(binary.BigEndian.AppendUint32(append(b, optRDNSS, 3, 0, 0), seconds), d.AsSlice()...)
		if n := wireName(l.domain); n != nil {
			n = append(n, make([]byte, (8-len(n)%8)%8)...)
			b = append(binary.BigEndian.AppendUint32(append(b, optDNSSL, byte(1+len(n)/8), 0, 0), seconds), n...) //nolint:gosec // a domain has at most 200 bytes
		}
	}
	return way{from: gatewayMAC, to: l.mac, src: linkLocal(gatewayMAC), dst: allNodes, longestWay: true}.frame(b)
}
