package bpf

import (
	"encoding/binary"
	"syscall"
	"testing"
	"time"
)

// Packets whose headers do not lie in one piece are read all the same: here the kernel is made to
// keep all behind the Ethernet header elsewhere.
func TestPaged(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	n := newNetwork(t, w)
	for _, l := range []string{"p0", "p1", "br0"} {
		n.ip("link set " + l + " mtu 9000")
	}
	for i := range n.ns {
		w.must(n.ns[i].Do(func() error { n.ip("link set eth0 mtu 9000"); return nil }))
	}
	n.wall(w.Wall)
	from, to := n.raw(0), n.raw(1)
	const solPacket, vnetHdr = 263, 15
	w.must(syscall.SetsockoptInt(from, solPacket, vnetHdr, 1))
	const mark = "far-from-its-header"
	send := func(linear int, frame []byte) {
		t.Helper()
		h := make([]byte, 10) // struct virtio_net_hdr
		binary.NativeEndian.PutUint16(h[2:], uint16(linear))
		if _, err := syscall.Write(from, append(h, frame...)); err != nil {
			t.Fatal(err)
		}
	}
	load := func(h []byte) []byte { return append(append(h, make([]byte, 6000)...), mark...) }
	for _, c := range []struct {
		name   string
		linear int
		frame  []byte
		want   Reason
	}{
		{"nothing but Ethernet", 14, frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 6}.with(load(tcp(7, 443, syn)))), Allowed},
		{"half of TCP", 14 + 20 + 8, frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 6}.with(load(tcp(8, 443, syn)))), Allowed},
		{"all headers", 14 + 40, frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 6}.with(load(tcp(9, 443, syn)))), Allowed},
		{"another port", 14, frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 6}.with(load(tcp(7, 444, syn)))), NoEgress},
		{"another's address", 14, frame(nbMAC, myMAC, v4{src: gw4, dst: nb4, proto: 6}.with(load(tcp(7, 443, syn)))), Source},
		{"multicast over 6", 14, frame([6]byte{0x33, 0x33, 0, 0, 0, 1}, myMAC, ip(my6, addr("ff02::1"), 17, load(udp(7, 5353)))), Source}, // the port has no IPv6
		{"ARP", 14, eth(broadcast, myMAC, 0x0806, load(arp(2, nbMAC, nb4, my4))), ARP},
	} {
		came(to, mark)
		before := w.total()
		send(c.linear, c.frame)
		time.Sleep(30 * time.Millisecond)
		now := w.total()
		through := 0
		for b := make([]byte, 9000); ; { // came reads less than a whole frame
			m, err := syscall.Read(to, b)
			if err != nil {
				break
			}
			if m > 6000 {
				through++
			}
		}
		switch {
		case c.want == Allowed && through != 1:
			t.Errorf("%s: %d came through; dropped before %v, now %v", c.name, through, before, now)
		case c.want != Allowed && (through != 0 || now[c.want] != before[c.want]+1):
			t.Errorf("%s: %d came through, want %v; dropped before %v, now %v", c.name, through, c.want, before, now)
		}
	}
}
