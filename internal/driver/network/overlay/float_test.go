package overlay

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

func (x *host) floats(late bool, all ...driver.Floating) {
	x.t.Helper()
	x.do(func(d *Driver) error {
		err := driver.Beside(x.out, d).(driver.Floater).Float(x.t.Context(), all)
		if late && errs.KindOf(err) == errs.Unavailable {
			return nil
		}
		return err
	})
}

// A floating address leads to an instance on a network, is what it goes out with, and moves to another host.
func TestFloating(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	hs := hosts(t, 2)
	a, b, c := hs[0].box("a", 2, 256), hs[0].box("b", 3, 257), hs[1].box("c", 4, 258)
	l := newLAN(70001, "acme", a, b, c)
	fa := driver.Floating{Addr: netip.MustParseAddr("192.0.2.60"), VNI: 70001, Inside: a.four}
	fb := driver.Floating{Addr: netip.MustParseAddr("192.0.2.61"), VNI: 70001, Inside: b.four}
	hs[0].floats(true, fa, fb) // before the network is there
	l.replace(hs...)
	l.attach()
	hs[0].floats(false, fa, fb)
	for _, x := range []*box{a, b, c} {
		x.serve(80)
	}
	reach := func(who string, ns *netlink.Namespace, at netip.Addr, want string) {
		t.Helper()
		got, err := ask(ns, at, 80)
		if err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%s asks %s: %q, %v; want %s", who, at, got, err, want)
		}
	}
	arrives := func() {
		t.Helper()
		reach("outside", hostNS(t), fa.Addr, "a 192.0.2.254:")
		reach("outside", hostNS(t), fb.Addr, "b 192.0.2.254:")
		reach("the host", hs[0].ns, fa.Addr, "a 10.88.0.1:")
		reach("the other host", hs[1].ns, fa.Addr, "a 192.0.2.2:")
		reach("itself", a.ns, fa.Addr, "a ")
		reach("a neighbour with one", b.ns, fa.Addr, "a 192.0.2.61:")
		reach("a neighbour elsewhere", c.ns, fa.Addr, "a 192.0.2.2:")
		if got := outside(t, hs[0], a); got != fa.Addr.String() {
			t.Errorf("a goes out under %s", got)
		}
		if got := outside(t, hs[1], c); got != hs[1].addr.String() {
			t.Errorf("c goes out under %s", got)
		}
	}
	arrives()
	hs[0].do(func(*Driver) error { hs[0].reopen(); return nil })
	reach("outside, while the daemon is away", hostNS(t), fa.Addr, "a 192.0.2.254:")
	l.replace(hs[0])
	reach("outside, before it was told", hostNS(t), fa.Addr, "a 192.0.2.254:")
	hs[0].floats(false, fa, fb)
	arrives()
	// It moves: those who had it in their tables go to the other host at once.
	fc := driver.Floating{Addr: fa.Addr, VNI: 70001, Inside: c.four}
	hs[0].floats(false, fb)
	hs[1].floats(false, fc)
	if got, err := askFor(hostNS(t), fc.Addr, 80, 900*time.Millisecond); err != nil || !strings.HasPrefix(got, "c 192.0.2.254:") {
		t.Errorf("after it moved: %q, %v", got, err)
	}
	if got := outside(t, hs[0], a); got != hs[0].addr.String() {
		t.Errorf("a goes out under %s", got)
	}
	hs[0].floats(false)
	hs[1].floats(false)
	if got, err := askFor(hostNS(t), fc.Addr, 80, 900*time.Millisecond); err == nil {
		t.Errorf("after it was taken away: %q", got)
	}
}
