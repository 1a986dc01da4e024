package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

func cat(bs ...[]byte) []byte { return bytes.Join(bs, nil) }

// ext is an IPv6 extension header of 8 bytes.
func ext(next byte) []byte { return []byte{next, 0, 0, 0, 0, 0, 0, 0} }

func fragHeader(next byte, off uint16, more bool, id uint32) []byte {
	b := []byte{next, 0, 0, 0, 0, 0, 0, 0}
	if more {
		off |= 1
	}
	binary.BigEndian.PutUint16(b[2:], off)
	binary.BigEndian.PutUint32(b[4:], id)
	return b
}

// What an instance may send: every reason, and everything that is allowed, each as a new flow.
func TestFrom(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	allNodes := [6]byte{0x33, 0x33, 0, 0, 0, 1}
	solicit := [6]byte{0x33, 0x33, 0xff, 0, 0, 1}
	zero4, zero6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	dhcp := func(src, dst string, sport, dport uint16) []byte {
		return v4{src: addr(src), dst: addr(dst), proto: 17}.with(udp(sport, dport))
	}
	for _, c := range []struct {
		name   string
		packet []byte
		want   Reason
	}{
		{"tcp to an allowed port", mine(ip(my4, nb4, 6, tcp(1000, 443, syn))), Allowed},
		{"tcp to an allowed range", mine(ip(my4, nb4, 6, tcp(1000, 50000, syn))), Allowed},
		{"tcp below the range", mine(ip(my4, nb4, 6, tcp(1000, 49151, syn))), NoEgress},
		{"tcp to another port", mine(ip(my4, nb4, 6, tcp(1000, 444, syn))), NoEgress},
		{"udp to any port", mine(ip(my4, nb4, 17, udp(1000, 9)))[:14+28], Allowed},
		{"all to a prefix", mine(ip(my4, out4, 132, udp(1000, 9))), Allowed},
		{"a protocol without ports", mine(ip(my4, out4, 47, nil)), Allowed},
		{"outside the prefix", mine(ip(my4, far4, 6, tcp(1000, 443, syn))), NoEgress},
		{"the gateway's DNS", mine(ip(my4, gw4, 17, udp(1000, 53))), Allowed},
		{"the gateway otherwise", mine(ip(my4, gw4, 17, udp(1000, 54))), NoEgress},
		{"ping", mine(ip(my4, nb4, 1, icmp(8, 0, 7))), Allowed},
		{"ping with number 0", mine(ip(my4, nb4, 1, icmp(8, 0, 0))), Allowed},
		{"ping answer to nothing", mine(ip(my4, nb4, 1, icmp(0, 0, 8))), NoFlow},
		{"timestamp request", mine(ip(my4, nb4, 1, icmp(13, 0, 8))), NoEgress},
		{"redirect", mine(ip(my4, nb4, 1, icmp(5, 0, 8))), ICMPType},
		{"tcp over 6", mine(ip(my6, nb6, 6, tcp(1000, 443, syn))), Allowed},
		{"tcp over 6 to another port", mine(ip(my6, nb6, 6, tcp(1000, 444, syn))), NoEgress},
		{"ping over 6", mine(ip(my6, nb6, 58, icmp(128, 0, 7))), Allowed},
		{"udp over 6 behind options", mine(ip(my6, nb6, 0, cat(ext(60), ext(17), udp(1, 2)))), Allowed},
		{"a prefix over 6 that has no pair", mine(ip(my6, out6, 6, tcp(1000, 443, syn))), NoEgress},
		{"no tcp header", mine(ip(my4, nb4, 6, tcp(1000, 443, syn)))[:14+20+12], Short},
		{"version 5", mine(append([]byte{0x55}, ip(my4, nb4, 6, tcp(1000, 443, syn))[1:]...)), Short},
		{"length below its headers", mine(func() []byte { b := ip(my4, nb4, 6, tcp(1000, 443, syn)); b[3] = 30; return b }()), Short},
		{"neighbour's mac", frame(gwMAC, nbMAC, ip(my4, nb4, 6, tcp(1000, 443, syn))), SourceMAC},
		{"a mac that differs at its end", frame(gwMAC, [6]byte{2, 0, 0, 0, 0, 4}, ip(my4, nb4, 6, tcp(1000, 443, syn))), SourceMAC},
		{"a mac that differs at its begin", frame(gwMAC, [6]byte{6, 0, 0, 0, 0, 5}, ip(my4, nb4, 6, tcp(1000, 443, syn))), SourceMAC},
		{"vlan", eth(gwMAC, myMAC, 0x8100, cat([]byte{0, 5, 8, 0}, ip(my4, nb4, 6, tcp(1000, 443, syn)))), VLAN},
		{"provider's vlan", eth(gwMAC, myMAC, 0x88a8, cat([]byte{0, 5, 8, 0}, ip(my4, nb4, 6, tcp(1000, 443, syn)))), VLAN},
		{"mpls", eth(gwMAC, myMAC, 0x8847, ip(my4, nb4, 6, tcp(1000, 443, syn))), Ethertype},
		{"neighbour's address", mine(ip(nb4, gw4, 17, udp(1000, 53))), Source},
		{"no address", mine(ip(zero4, gw4, 17, udp(1000, 53))), Source},
		{"neighbour's address over 6", mine(ip(nb6, gw6, 17, udp(1000, 53))), Source},
		{"link-local for data", mine(ip(myLL, nb6, 17, udp(1000, 53))), Source},
		{"no address over 6", mine(ip(zero6, nb6, 17, udp(1000, 53))), Source},
		{"multicast", frame([6]byte{1, 0, 0x5e, 0, 0, 5}, myMAC, ip(my4, addr("224.0.0.5"), 17, udp(1000, 53))), Destination},
		{"multicast to one", mine(ip(my4, addr("239.1.1.1"), 17, udp(1000, 53))), Destination},
		{"broadcast", frame(broadcast, myMAC, ip(my4, addr("255.255.255.255"), 17, udp(1000, 53))), Destination},
		{"the network's broadcast", frame(broadcast, myMAC, ip(my4, addr("10.1.255.255"), 17, udp(1000, 53))), Destination},
		{"multicast over 6", frame(allNodes, myMAC, ip(my6, addr("ff02::1"), 17, udp(1000, 5353))), Destination},
		{"listener report", frame(allNodes, myMAC, ip(my6, addr("ff02::16"), 58, icmp(143, 0, 0))), Destination},
		{"link-local destination", mine(ip(my6, addr("fe80::1"), 17, udp(1000, 53))), Destination},
		{"mapped destination", mine(v6{src: my6, dst: netip.AddrFrom16(nb4.As16()), next: 17}.with(udp(1000, 53))), Destination},
		{"ip options", mine(v4{src: my4, dst: nb4, proto: 17, options: 2}.with(udp(1, 2))), Options},
		{"routing header", mine(ip(my6, nb6, 43, cat(ext(17), udp(1, 2)))), Options},
		{"authentication header", mine(ip(my6, nb6, 51, cat(ext(17), udp(1, 2)))), Options},
		{"hop-by-hop not first", mine(ip(my6, nb6, 60, cat(ext(0), ext(17), udp(1, 2)))), Options},
		{"too many extensions", mine(ip(my6, nb6, 60, cat(ext(60), ext(60), ext(60), ext(60), ext(17), udp(1, 2)))), Options},
		{"extension that is cut off", mine(ip(my6, nb6, 60, []byte{17, 9, 0, 0, 0, 0, 0, 0})), Short},

		{"arp request", eth(broadcast, myMAC, 0x0806, arp(1, myMAC, my4, gw4)), Allowed},
		{"arp answer", eth(gwMAC, myMAC, 0x0806, arp(2, myMAC, my4, gw4)), Allowed},
		{"arp probe", eth(broadcast, myMAC, 0x0806, arp(1, myMAC, zero4, my4)), Allowed},
		{"arp answer of nobody", eth(broadcast, myMAC, 0x0806, arp(2, myMAC, zero4, my4)), ARP},
		{"arp for the gateway", eth(broadcast, myMAC, 0x0806, arp(2, myMAC, gw4, nb4)), ARP},
		{"arp with another mac", eth(broadcast, myMAC, 0x0806, arp(2, nbMAC, my4, nb4)), ARP},
		{"reverse arp", eth(broadcast, myMAC, 0x0806, arp(3, myMAC, my4, nb4)), ARP},
		{"arp for another protocol", eth(broadcast, myMAC, 0x0806, append([]byte{0, 1, 0x86, 0xdd}, arp(1, myMAC, my4, nb4)[4:]...)), ARP},
		{"arp cut off", eth(broadcast, myMAC, 0x0806, arp(1, myMAC, my4, nb4)[:20]), Short},

		{"dhcp discover", frame(broadcast, myMAC, dhcp("0.0.0.0", "255.255.255.255", 68, 67)), Allowed},
		{"dhcp discover from another port", frame(broadcast, myMAC, dhcp("0.0.0.0", "255.255.255.255", 69, 67)), Source},
		{"dhcp discover to a neighbour's mac", frame(nbMAC, myMAC, dhcp("0.0.0.0", "255.255.255.255", 68, 67)), Source},
		{"dhcp discover of a neighbour", frame(broadcast, myMAC, dhcp("10.1.0.6", "255.255.255.255", 68, 67)), Source},
		{"dhcp rebinding", frame(broadcast, myMAC, dhcp("10.1.0.5", "255.255.255.255", 68, 67)), Allowed},
		{"dhcp answer from another port", mine(dhcp("10.1.0.5", "10.1.0.6", 6767, 68)), DHCP},
		{"dhcp6 solicit to a neighbour's mac", frame(nbMAC, myMAC, ip(myLL, addr("ff02::1:2"), 17, udp(546, 547))), Source},
		{"dhcp6 answer from another port", mine(ip(my6, nb6, 17, udp(1547, 546))), DHCP},
		{"dhcp answer", mine(dhcp("10.1.0.5", "10.1.0.6", 67, 68)), DHCP},
		{"dhcp6 solicit", frame([6]byte{0x33, 0x33, 0, 1, 0, 2}, myMAC, ip(myLL, addr("ff02::1:2"), 17, udp(546, 547))), Allowed},
		{"dhcp6 solicit to another group", frame([6]byte{0x33, 0x33, 0, 1, 0, 2}, myMAC, ip(myLL, addr("ff02::1:3"), 17, udp(546, 547))), Source},
		{"dhcp6 answer", mine(ip(my6, nb6, 17, udp(547, 546))), DHCP},

		{"neighbour solicitation", frame(solicit, myMAC, v6{my6, addr("ff02::1:ff00:1"), 58, 255}.with(ndmsg(135, gw6))), Allowed},
		{"duplicate address detection", frame(solicit, myMAC, v6{zero6, addr("ff02::1:ff00:5"), 58, 255}.with(ndmsg(135, my6))), Allowed},
		{"solicitation from link-local", frame(solicit, myMAC, v6{myLL, addr("ff02::1:ff00:1"), 58, 255}.with(ndmsg(135, gw6))), Allowed},
		{"solicitation for another", frame(solicit, myMAC, v6{nb6, addr("ff02::1:ff00:1"), 58, 255}.with(ndmsg(135, gw6))), Source},
		{"solicitation from afar", frame(solicit, myMAC, v6{my6, addr("ff02::1:ff00:1"), 58, 64}.with(ndmsg(135, gw6))), ND},
		{"neighbour advertisement", frame(gwMAC, myMAC, v6{my6, gw6, 58, 255}.with(ndmsg(136, my6))), Allowed},
		{"advertisement of a link-local", frame(gwMAC, myMAC, v6{my6, gw6, 58, 255}.with(ndmsg(136, myLL))), Allowed},
		{"advertisement of the gateway", frame(allNodes, myMAC, v6{my6, addr("ff02::1"), 58, 255}.with(ndmsg(136, gw6))), ND},
		{"advertisement of nobody", frame(allNodes, myMAC, v6{zero6, addr("ff02::1"), 58, 255}.with(ndmsg(136, my6))), Source},
		{"router solicitation", frame(allNodes, myMAC, v6{myLL, addr("ff02::2"), 58, 255}.with(icmp(133, 0, 0))), Allowed},
		{"router advertisement", frame(allNodes, myMAC, v6{myLL, addr("ff02::1"), 58, 255}.with(ndmsg(134, my6))), ND},
		{"redirect over 6", frame(gwMAC, myMAC, v6{myLL, nb6, 58, 255}.with(ndmsg(137, my6))), ND},
		{"router advertisement behind options", mine(ip(my6, nb6, 0, cat(ext(58), ndmsg(134, my6)))), ICMPType},
	} {
		if got := w.sent(c.packet); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	w.must(w.DropPort(lo))
	if got := w.sent(mine(ip(my4, nb4, 6, tcp(1000, 443, syn)))); got != NoPort {
		t.Errorf("no port: %v", got)
	}
	if got := w.received(theirs(ip(nb4, my4, 6, tcp(1000, 80, syn))), nbID); got != NoPort {
		t.Errorf("no port: %v", got)
	}
}

// What an instance may be sent.
func TestTo(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	for _, c := range []struct {
		name   string
		packet []byte
		mark   uint32
		want   Reason
	}{
		{"tcp to an allowed port", theirs(ip(nb4, my4, 6, tcp(1000, 80, syn))), nbID, Allowed},
		{"the same of nobody", theirs(ip(nb4, my4, 6, tcp(1001, 80, syn))), 0, NoIdentity},
		{"the same of somebody else", theirs(ip(nb4, my4, 6, tcp(1002, 80, syn))), nbID + 1, NoIngress},
		{"the same of the outside", theirs(ip(far4, my4, 6, tcp(1003, 80, syn))), 2, NoIngress},
		{"another port", theirs(ip(nb4, my4, 6, tcp(1000, 81, syn))), nbID, NoIngress},
		{"anything of the host", theirs(ip(gw4, my4, 17, udp(1, 2))), 1, Allowed},
		{"a prefix over 6", theirs(ip(out6, my6, 6, tcp(1000, 80, syn))), 2, Allowed},
		{"no prefix over 6", theirs(ip(far6, my6, 6, tcp(1000, 80, syn))), 2, NoIngress},
		{"tcp over 6", theirs(ip(nb6, my6, 6, tcp(1000, 80, syn))), nbID, Allowed},
		{"of nobody over 6", theirs(ip(nb6, my6, 6, tcp(1001, 80, syn))), 0, NoIdentity},
		{"ping", theirs(ip(nb4, my4, 1, icmp(8, 0, 3))), nbID, Allowed},
		{"answer to nothing", theirs(ip(nb4, my4, 1, icmp(0, 0, 4))), nbID, NoFlow},
		{"another's mac", frame(nbMAC, gwMAC, ip(nb4, my4, 6, tcp(1000, 80, syn))), nbID, Destination},
		{"another's address", theirs(ip(gw4, nb4, 6, tcp(1000, 80, syn))), 1, Destination},
		{"another's address over 6", theirs(ip(gw6, nb6, 6, tcp(1000, 80, syn))), 1, Destination},
		{"broadcast", frame(broadcast, gwMAC, ip(gw4, my4, 17, udp(1, 2))), 1, Destination},
		{"arp", eth(broadcast, gwMAC, 0x0806, arp(1, gwMAC, gw4, my4)), 0, Allowed},
		{"vlan", eth(myMAC, gwMAC, 0x8100, make([]byte, 60)), 1, VLAN},
		{"pppoe", eth(myMAC, gwMAC, 0x8864, make([]byte, 60)), 1, Ethertype},
		{"mapped source", theirs(v6{src: netip.AddrFrom16(nb4.As16()), dst: my6, next: 17}.with(udp(1, 2))), nbID, Source},
		{"solicitation", frame([6]byte{0x33, 0x33, 0xff, 0, 0, 5}, nbMAC, v6{nb6, addr("ff02::1:ff00:5"), 58, 255}.with(ndmsg(135, my6))), 0, Allowed},
		{"advertisement", frame(myMAC, nbMAC, v6{nb6, my6, 58, 255}.with(ndmsg(136, nb6))), nbID, Allowed},
		{"router advertisement of the host", frame([6]byte{0x33, 0x33, 0, 0, 0, 1}, gwMAC, v6{addr("fe80::1"), addr("ff02::1"), 58, 255}.with(ndmsg(134, gw6))), 1, Allowed},
		{"router advertisement of another", frame([6]byte{0x33, 0x33, 0, 0, 0, 1}, gwMAC, v6{addr("fe80::1"), addr("ff02::1"), 58, 255}.with(ndmsg(134, gw6))), nbID, ND},
		{"dhcp answer of the host", frame(broadcast, gwMAC, ip(gw4, addr("255.255.255.255"), 17, udp(67, 68))), 1, Allowed},
		{"dhcp answer of another", frame(broadcast, gwMAC, ip(gw4, addr("255.255.255.255"), 17, udp(67, 68))), nbID, Destination},
		{"dhcp6 answer of the host", theirs(ip(addr("fe80::1"), myLL, 17, udp(547, 546))), 1, Allowed},
		{"dhcp6 answer of another", theirs(ip(addr("fe80::1"), myLL, 17, udp(547, 546))), nbID, Destination},
	} {
		if got := w.received(c.packet, c.mark); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// The host's own packets get an identity by where they come from.
func TestHost(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	w.furnish()
	for _, c := range []struct {
		src  netip.Addr
		want uint32
	}{
		{gw4, 1}, {gw6, 1}, {nb4, nbID}, {nb6, nbID}, {out4, 2}, {far6, 2},
		{addr("fe80::1"), 1}, {netip.AddrFrom16(nb4.As16()), 2},
	} {
		dst := my4
		if c.src.Is6() {
			dst = my6
		}
		if _, got := w.run(progHost, theirs(ip(c.src, dst, 17, udp(1, 2))), 999); got != c.want {
			t.Errorf("%s is %d, want %d", c.src, got, c.want)
		}
	}
	if _, got := w.run(progHost, eth(broadcast, gwMAC, 0x0806, arp(1, gwMAC, gw4, my4)), 0); got != 1 {
		t.Errorf("ARP is %d", got)
	}
	if _, got := w.run(progVXLAN, theirs(ip(nb4, my4, 17, udp(1, 2))), 7<<16|nbID); got != nbID {
		t.Errorf("from another host: %#x", got)
	}
	w.must(w.DropDevice(lo))
	if _, got := w.run(progHost, theirs(ip(gw4, my4, 17, udp(1, 2))), nbID); got != 0 {
		t.Errorf("a bridge of no network gives %d", got)
	}
	ms, err := w.Members(vni)
	w.must(err)
	if _, there := ms[gw4]; there {
		t.Error("the gateway outlived its bridge")
	}
}
