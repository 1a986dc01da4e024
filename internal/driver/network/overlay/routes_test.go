package overlay

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

// site is a namespace behind a box, such as one that a VPN leads to: 192.168.9.9 and fd99::9.
func (b *box) site(t *testing.T) *netlink.Namespace {
	t.Helper()
	ns := namespace(t)
	h, err := netlink.OpenAt(ns)
	must(t, err)
	defer h.Close()
	must(t, h.LoopbackUp())
	must(t, b.ns.Do(func() error {
		h, err := netlink.OpenAt(b.ns)
		if err != nil {
			return err
		}
		defer h.Close()
		return h.EnsureCable(ns, netlink.Cable{ID: "test", MTU: 1400,
			Near: netlink.CableEnd{Name: "vpn0", MAC: []byte{2, 0, 0, 0, 9, 1}, Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}},
			Far:  netlink.CableEnd{Name: "eth0", MAC: []byte{2, 0, 0, 0, 9, 2}, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.9.0/24"), netip.MustParsePrefix("fd99::/64")}}})
	}))
	l, err := h.Link("eth0")
	must(t, err)
	for _, a := range []string{"192.168.9.9/32", "fd99::9/128"} {
		must(t, h.AddAddr(l.Index, netip.MustParsePrefix(a)))
	}
	return ns
}

func TestRouteByAnInstance(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 2)
	near, far, vpn, other := hs[0].box("near", 2, 256), hs[1].box("far", 3, 256), hs[0].box("vpn", 4, 257), hs[0].box("other", 5, 258)
	l := newLAN(70041, "acme", near, far, vpn, other)
	l.replace(hs...)
	l.attach()
	site := vpn.site(t)
	beyond := &box{t: t, id: "beyond", host: hs[0], ns: site, four: netip.MustParseAddr("192.168.9.9"), six: netip.MustParseAddr("fd99::9")}
	beyond.serve(80)
	near.serve(80)
	far.serve(80)
	near.misses(beyond, 80)
	l.net.Routes = []driver.Route{{To: netip.MustParsePrefix("192.168.8.0/23"), Via: vpn.four}, {To: netip.MustParsePrefix("fd99::/64"), Via: vpn.six}}
	l.replace(hs...) // its kernel is told to forward
	for _, b := range []*box{near, far} {
		b.reaches(beyond, 80)
		beyond.reaches(b, 80)
	}
	if got, err := ask(site, far.four, 80); err != nil || !strings.HasPrefix(got, "far 192.168.9.9:") {
		t.Errorf("from beyond: %q, %v", got, err)
	}
	// Another box has the same address, and nobody listens to it.
	thief := other.site(t)
	if got, err := askFor(thief, near.four, 80, 900*time.Millisecond); err == nil {
		t.Errorf("who is no next hop speaks for others: %q", got)
	}
	// Nor may the next hop speak for anybody else.
	dropped := func() (sum uint64) {
		drops, err := hs[0].d.wall.Drops()
		must(t, err)
		for _, by := range drops {
			sum += by[bpf.Source]
		}
		return sum
	}
	h, err := netlink.OpenAt(site)
	must(t, err)
	defer h.Close()
	lnk, err := h.Link("eth0")
	must(t, err)
	must(t, h.AddAddr(lnk.Index, netip.MustParsePrefix("192.168.10.9/32")))
	was := dropped()
	must(t, site.Do(func() error {
		d := net.Dialer{Timeout: 600 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 168, 10, 9)}}
		if c, err := d.Dial("tcp", near.four.String()+":80"); err == nil {
			c.Close()
			t.Error("outside of the route it is believed")
		}
		return nil
	}))
	if dropped() == was {
		t.Error("what is not of the route was not dropped where it came from")
	}
	// To rules it is outside, known by its address: set 1 lets in 192.168.9.0/24.
	l.table.Prefixes = map[netip.Prefix]uint32{netip.MustParsePrefix("192.168.9.0/24"): driver.FirstPrefix + 1}
	l.table.Pairs = map[driver.PairKey]driver.Pair{{Set: 1, Peer: driver.FirstPrefix + 1}: {All: 5}, {Set: 2, Peer: 257}: {All: 6}}
	l.policy[near.four], l.policy[far.four] = driver.Policy{Ingress: 1}, driver.Policy{Ingress: 2}
	l.replace(hs...)
	if got, err := ask(site, near.four, 80); err != nil || !strings.HasPrefix(got, "near ") {
		t.Errorf("allowed by its address: %q, %v", got, err)
	}
	if got, err := askFor(site, far.four, 80, 900*time.Millisecond); err == nil {
		t.Errorf("it passes for its next hop: %q", got)
	}
	l.net.Routes = []driver.Route{{To: netip.MustParsePrefix("192.168.8.0/23")}}
	l.replace(hs...)
	began := time.Now()
	if _, err := ask(near.ns, beyond.four, 80); err == nil || time.Since(began) > time.Second {
		t.Errorf("a black hole says so at once: %v after %v", err, time.Since(began))
	}
	if got, err := askFor(site, near.four, 80, 900*time.Millisecond); err == nil {
		t.Errorf("after the route is gone: %q", got)
	}
}
