package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

var world6 = netip.MustParseAddr("2001:db8::fe")

// speak6 gives hosts and what is beyond them IPv6: 2001:db8::1 and so on, and the others ::fe.
func speak6(t *testing.T, hs ...*host) {
	t.Helper()
	h, err := netlink.Open()
	must(t, err)
	defer h.Close()
	l, err := h.Link("lan")
	must(t, err)
	must(t, h.AddAddr(l.Index, netip.PrefixFrom(world6, 64)))
	for i, x := range hs {
		in, err := netlink.OpenAt(x.ns)
		must(t, err)
		defer in.Close()
		wan, err := in.Link("wan0")
		must(t, err)
		must(t, in.AddAddr(wan.Index, netip.PrefixFrom(addr6(i), 64)))
		must(t, in.AddDefaultRoute(wan.Index, world6))
	}
}

func addr6(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)) }

// mirror answers, in the namespace of the test itself, with the address from which it is asked.
func mirror(t *testing.T, at string) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprint(c, h)
			c.Close()
		}
	}()
}

func TestIPv6LeadsOut(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 1)
	x := hs[0]
	a1, y1 := x.box("a1", 2, 256), x.box("y1", 2, 256)
	l, o := newLAN(70021, "acme", a1), newLAN(70022, "other", y1) // of the same addresses
	l.replace(x)
	o.replace(x)
	l.attach()
	o.attach()
	a1.serve(80)
	// Where the host has no way, who sends is told so at once.
	if _, err := ask(a1.ns, world6, 81); !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("without a way out: %v", err)
	}
	speak6(t, x)
	mirror(t, "["+world6.String()+"]:81")
	x.do(func(d *Driver) error { return d.Reconcile(t.Context()) })
	for _, b := range []*box{a1, y1} {
		if got, err := ask(b.ns, world6, 81); err != nil || got != addr6(0).String() {
			t.Errorf("%s is seen from outside as %q, %v", b.id, got, err)
		}
	}
	must(t, x.ns.Do(func() error {
		if v, err := netlink.Sysctl(forward6Key); err != nil || v != "1" {
			t.Errorf("the host forwards %q, %v", v, err)
		}
		return nil
	}))
	// A published port leads in by IPv6, too, and sees who asks; nothing else does.
	x.do(func(d *Driver) error {
		return d.Attach(t.Context(), a1.ns.Path(), a1.spec(70021, "acme", api.Port{Port: 80, Publish: 8080}))
	})
	here := namespace0(t)
	if got, err := ask(here, addr6(0), 8080); err != nil || !strings.HasPrefix(got, "a1 ["+world6.String()+"]:") {
		t.Errorf("published: %q, %v", got, err)
	}
	if got, err := askFor(here, addr6(0), 80, 900*time.Millisecond); err == nil {
		t.Errorf("not published: %q", got)
	}
	// A new life writes the same rules: what goes on does so.
	x.do(func(*Driver) error { x.reopen(); return nil })
	l.replace(x)
	o.replace(x)
	if got, err := ask(y1.ns, world6, 81); err != nil || got != addr6(0).String() {
		t.Errorf("after a new life: %q, %v", got, err)
	}
	l.net.Egress = driver.EgressNone
	l.replace(x)
	if got, err := askFor(a1.ns, world6, 81, 900*time.Millisecond); err == nil {
		t.Errorf("with egress none: %q", got)
	}
	if got, err := ask(y1.ns, world6, 81); err != nil {
		t.Errorf("the other network: %q, %v", got, err)
	}
}

// namespace0 is that of the test itself.
func namespace0(t *testing.T) *netlink.Namespace {
	t.Helper()
	ns, err := netlink.OpenNamespace("/proc/thread-self/ns/net")
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// A network whose addresses are not translated, on two hosts; the test itself is the physical network and routes it to the first.
func TestDirect(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 2)
	speak6(t, hs...)
	a1, a2, open := hs[0].box("a1", 2, 256), hs[1].box("a2", 3, 256), hs[1].box("open", 4, 257)
	l := newLAN(70031, "acme", a1, a2, open)
	l.net.Egress = driver.EgressDirect
	// Set 1 lets in whoever is outside.
	l.table.Pairs = map[driver.PairKey]driver.Pair{{Set: 1, Peer: driver.IdentityOutside}: {All: 5}}
	l.policy[open.four] = driver.Policy{Ingress: 1}
	l.replace(hs...)
	l.attach()
	for _, b := range l.boxes {
		b.serve(80)
	}
	h, err := netlink.Open()
	must(t, err)
	defer h.Close()
	lan, err := h.Link("lan")
	must(t, err)
	for i, via := range []netip.Addr{hs[0].addr, addr6(0)} {
		must(t, h.SetRoute(netlink.Route{To: l.net.Prefixes[i], Via: via, Index: lan.Index}))
	}
	mirror(t, "192.0.2.254:81")
	mirror(t, "["+world6.String()+"]:81")
	for _, b := range l.boxes {
		for out, own := range map[netip.Addr]netip.Addr{netip.MustParseAddr("192.0.2.254"): b.four, world6: b.six} {
			// The answers come back by the first host, wherever it went out.
			if got, err := ask(b.ns, out, 81); err != nil || got != own.String() {
				t.Errorf("%s to %s: seen as %q, %v", b.id, out, got, err)
			}
		}
	}
	here := namespace0(t)
	for _, b := range []*box{a1, a2} {
		for _, a := range []netip.Addr{b.four, b.six} {
			if got, err := askFor(here, a, 80, 900*time.Millisecond); err == nil {
				t.Errorf("from outside to %s, which nothing allows: %q", a, got)
			}
		}
	}
	for _, a := range []netip.Addr{open.four, open.six} {
		if got, err := ask(here, a, 80); err != nil || !strings.HasPrefix(got, "open ") {
			t.Errorf("from outside to %s, as a group allows: %q, %v", a, got, err)
		}
	}
	a1.reaches(a2, 80)
	hs[0].do(func(d *Driver) error {
		return d.Attach(t.Context(), a1.ns.Path(), a1.spec(70031, "acme", api.Port{Port: 80, Publish: 8080}))
	})
	for at, port := range map[netip.Addr]int{a1.four: 80, a1.six: 80, hs[0].addr: 8080, addr6(0): 8080} {
		if got, err := ask(here, at, port); err != nil || !strings.HasPrefix(got, "a1 ") {
			t.Errorf("published, at %s: %q, %v", at, got, err)
		}
	}
	// The host's own addresses are nobody else's.
	bad := newLAN(70032, "acme")
	bad.net.Egress, bad.net.Prefixes, bad.net.Gateways = driver.EgressDirect, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}, []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	hs[0].do(func(d *Driver) error {
		if err := d.Replace(t.Context(), bad.net, nil, driver.Table{}); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "192.0.2.0/25") {
			t.Errorf("addresses of the host: %v", err)
		}
		return d.Forget(t.Context(), 70032)
	})
}
