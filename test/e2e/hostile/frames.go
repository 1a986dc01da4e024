package main

import (
	"encoding/binary"
	"net"
	"net/netip"
)

type attack struct {
	name  string
	frame []byte
}

var (
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	gateway   = net.HardwareAddr{0x0a, 0x58, 0, 0, 0, 1}
)

const (
	udp, icmp6 = 17, 58
	ip4, ip6   = 0x0800, 0x86dd
	arp        = 0x0806
)

// attacks are all frames. The one called honest is not: it shows that who watches would see the others.
func attacks(me, victim, other party, host netip.Addr) []attack {
	g4, g6 := gateways(me)
	any4, any6 := netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("ff02::1")
	multi := func(a byte) net.HardwareAddr { return net.HardwareAddr{0x33, 0x33, 0, 0, 0, a} }
	u := func(name string, sport, dport uint16) []byte { return datagram(sport, dport, mark(name)) }
	four := func(name string, src, dst netip.Addr) []byte { return packet4(src, dst, udp, 0, u(name, 5000, 5001)) }
	six := func(name string, src, dst netip.Addr) []byte { return packet6(src, dst, udp, u(name, 5000, 5001)) }
	out := []attack{
		{"honest", eth(victim.mac, me.mac, ip4, four("honest", me.four, victim.four))},
		{"honest6", eth(victim.mac, me.mac, ip6, six("honest6", me.six, victim.six))},
	}
	add := func(name string, frame []byte) { out = append(out, attack{name, frame}) }
	// Somebody else's addresses.
	add("mac", eth(victim.mac, other.mac, ip4, four("mac", me.four, victim.four)))
	add("mac of the gateway", eth(victim.mac, gateway, ip4, four("mac of the gateway", me.four, victim.four)))
	add("address", eth(victim.mac, me.mac, ip4, four("address", other.four, victim.four)))
	add("address of the gateway", eth(victim.mac, me.mac, ip4, four("address of the gateway", g4, victim.four)))
	add("address outside", eth(victim.mac, me.mac, ip4, four("address outside", netip.MustParseAddr("203.0.113.9"), victim.four)))
	add("address6", eth(victim.mac, me.mac, ip6, six("address6", other.six, victim.six)))
	add("mac and address", eth(victim.mac, other.mac, ip4, four("mac and address", other.four, victim.four)))
	// Lies about who is where.
	for _, to := range []struct {
		how string
		mac net.HardwareAddr
	}{{"", victim.mac}, {" to all", everybody}} {
		add("arp answer"+to.how, eth(to.mac, me.mac, arp, cat(arpBody(2, me.mac, other.four, victim.mac, victim.four), mark("arp answer"+to.how))))
		add("arp answer gateway"+to.how, eth(to.mac, me.mac, arp, cat(arpBody(2, me.mac, g4, victim.mac, victim.four), mark("arp answer gateway"+to.how))))
		add("arp question"+to.how, eth(to.mac, me.mac, arp, cat(arpBody(1, me.mac, other.four, make(net.HardwareAddr, 6), victim.four), mark("arp question"+to.how))))
		add("gratuitous arp"+to.how, eth(to.mac, me.mac, arp, cat(arpBody(1, me.mac, g4, everybody, g4), mark("gratuitous arp"+to.how))))
	}
	na := func(name string, target netip.Addr) []byte {
		return packet6(me.six, victim.six, icmp6, icmpMessage(me.six, victim.six, cat([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, target.AsSlice(), []byte{2, 1}, me.mac, mark(name))))
	}
	add("neighbour advert", eth(victim.mac, me.mac, ip6, na("neighbour advert", other.six)))
	add("neighbour advert gateway", eth(victim.mac, me.mac, ip6, na("neighbour advert gateway", g6)))
	add("neighbour solicit", eth(victim.mac, me.mac, ip6, packet6(other.six, victim.six, icmp6,
		icmpMessage(other.six, victim.six, cat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, victim.six.AsSlice(), []byte{1, 1}, me.mac, mark("neighbour solicit"))))))
	ra := cat([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1}, me.mac, mark("router advert"))
	add("router advert", eth(multi(1), me.mac, ip6, packet6(me.six, any6, icmp6, icmpMessage(me.six, any6, ra))))
	ra = cat([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1}, me.mac, mark("router advert to one"))
	add("router advert to one", eth(victim.mac, me.mac, ip6, packet6(me.six, victim.six, icmp6, icmpMessage(me.six, victim.six, ra))))
	redirect := cat([]byte{137, 0, 0, 0, 0, 0, 0, 0}, me.six.AsSlice(), other.six.AsSlice(), mark("redirect6"))
	add("redirect6", eth(victim.mac, me.mac, ip6, packet6(me.six, victim.six, icmp6, icmpMessage(me.six, victim.six, redirect))))
	// Servers that only the pool is.
	add("dhcp offer", eth(everybody, me.mac, ip4, packet4(me.four, any4, udp, 0, u("dhcp offer", 67, 68))))
	add("dhcp offer to one", eth(victim.mac, me.mac, ip4, packet4(me.four, victim.four, udp, 0, u("dhcp offer to one", 67, 68))))
	add("dhcp6 advertise", eth(victim.mac, me.mac, ip6, packet6(me.six, victim.six, udp, u("dhcp6 advertise", 547, 546))))
	// Ways round the network.
	inner := eth(victim.mac, other.mac, ip4, four("vxlan", other.four, victim.four))
	for _, port := range []uint16{4798, 4789} {
		for _, to := range []netip.Addr{host, g4} { // of the first network there is, as somebody whom groups allow much
			add("vxlan", eth(gateway, me.mac, ip4, packet4(me.four, to, udp, 0, datagram(5000, port, cat([]byte{0x88, 0, 1, 0, 1, 0, 0, 0}, inner)))))
		}
	}
	add("vlan", eth(victim.mac, me.mac, 0x8100, cat(be16(1), be16(ip4), four("vlan", me.four, victim.four))))
	add("vlan of vlans", eth(victim.mac, me.mac, 0x88a8, cat(be16(1), be16(0x8100), be16(2), be16(ip4), four("vlan of vlans", me.four, victim.four))))
	for name, typ := range map[string]uint16{"lldp": 0x88cc, "pppoe": 0x8864, "ptp": 0x88f7, "mpls": 0x8847, "macsec": 0x88e5, "ipx": 0x8137, "eapol": 0x888e, "rarp": 0x8035, "profinet": 0x8892, "unknown": 0x1234} {
		add(name, eth(victim.mac, me.mac, typ, mark(name)))
	}
	add("spanning tree", eth(net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0}, me.mac, 38, cat([]byte{0x42, 0x42, 3}, mark("spanning tree"))))
	add("length", eth(victim.mac, me.mac, 60, cat([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, four("length", me.four, victim.four))))
	// Many at once.
	add("multicast", eth(net.HardwareAddr{1, 0, 0x5e, 0, 0, 251}, me.mac, ip4, four("multicast", me.four, netip.MustParseAddr("224.0.0.251"))))
	add("multicast6", eth(multi(0xfb), me.mac, ip6, six("multicast6", me.six, netip.MustParseAddr("ff02::fb"))))
	add("broadcast", eth(everybody, me.mac, ip4, four("broadcast", me.four, any4)))
	add("broadcast to one", eth(everybody, me.mac, ip4, four("broadcast to one", me.four, victim.four)))
	// Parts and oddities.
	add("fragment", eth(victim.mac, me.mac, ip4, packet4(other.four, victim.four, udp, 0x2000, u("fragment", 5000, 5001))))
	add("later fragment", eth(victim.mac, me.mac, ip4, packet4(me.four, victim.four, udp, 100, mark("later fragment"))))
	add("tiny fragment", eth(victim.mac, me.mac, ip4, cat(packet4(me.four, victim.four, 6, 0x2000, []byte{0, 80, 0, 81, 0, 0, 0, 0}), mark("tiny fragment"))))
	add("source route", eth(victim.mac, me.mac, ip4, options4(other.four, victim.four, []byte{131, 7, 4, 10, 1, 0, 1, 0}, u("source route", 5000, 5001))))
	add("routing header", eth(victim.mac, me.mac, ip6, packet6(me.six, victim.six, 43, cat([]byte{udp, 2, 0, 1, 0, 0, 0, 0}, other.six.AsSlice(), u("routing header", 5000, 5001)))))
	add("link local", eth(victim.mac, me.mac, ip4, four("link local", me.four, netip.MustParseAddr("169.254.169.254"))))
	add("loopback", eth(victim.mac, me.mac, ip4, four("loopback", netip.MustParseAddr("127.0.0.1"), victim.four)))
	add("to loopback", eth(victim.mac, me.mac, ip4, four("to loopback", me.four, netip.MustParseAddr("127.0.0.1"))))
	add("short", eth(victim.mac, me.mac, ip4, append([]byte{0x45, 0}, mark("short")...)))
	return out
}

func gateways(me party) (four, six netip.Addr) {
	a := me.four.As4()
	six = netip.PrefixFrom(me.six, 64).Masked().Addr().Next()
	return netip.AddrFrom4([4]byte{a[0], a[1], 0, 1}), six
}

func mark(name string) []byte { return []byte("HOSTILE:" + name + ";") }

func eth(dst, src net.HardwareAddr, typ uint16, body []byte) []byte {
	f := cat(dst, src, be16(typ), body)
	for len(f) < 60 {
		f = append(f, 0)
	}
	return f
}

func arpBody(op byte, sm net.HardwareAddr, si netip.Addr, tm net.HardwareAddr, ti netip.Addr) []byte {
	return cat([]byte{0, 1, 8, 0, 6, 4, 0, op}, sm, si.AsSlice(), tm, ti.AsSlice())
}

func datagram(sport, dport uint16, body []byte) []byte {
	return cat(be16(sport), be16(dport), be16(uint16(8+len(body))), []byte{0, 0}, body) //nolint:gosec // short
}

// packet4 makes an IPv4 packet; frag is the field with flags and offset.
func packet4(src, dst netip.Addr, proto byte, frag uint16, body []byte) []byte {
	h := cat([]byte{0x45, 0}, be16(uint16(20+len(body))), []byte{0, 7}, be16(frag), []byte{64, proto, 0, 0}, src.AsSlice(), dst.AsSlice()) //nolint:gosec // short
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return append(h, body...)
}

func options4(src, dst netip.Addr, opts, body []byte) []byte {
	h := cat([]byte{0x45 + byte(len(opts)/4), 0}, be16(uint16(20+len(opts)+len(body))), []byte{0, 7, 0, 0, 64, udp, 0, 0}, src.AsSlice(), dst.AsSlice(), opts) //nolint:gosec // short
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return append(h, body...)
}

func packet6(src, dst netip.Addr, next byte, body []byte) []byte {
	if next == udp {
		copy(body[6:8], be16(sum(cat(src.AsSlice(), dst.AsSlice(), []byte{0, 0, 0, byte(len(body)), 0, 0, 0, udp}, body))))
	}
	return cat([]byte{0x60, 0, 0, 0}, be16(uint16(len(body))), []byte{next, 255}, src.AsSlice(), dst.AsSlice(), body) //nolint:gosec // short
}

func icmpMessage(src, dst netip.Addr, m []byte) []byte {
	copy(m[2:4], be16(sum(cat(src.AsSlice(), dst.AsSlice(), []byte{0, 0, 0, byte(len(m)), 0, 0, 0, icmp6}, m))))
	return m
}

// sum is the Internet's checksum, RFC 1071.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s) //nolint:gosec // folded above
}
