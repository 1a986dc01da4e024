package bridge

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/systest"
)

const floatIP = "192.0.2.50"

func (w *world) floats(all ...driver.Floating) {
	w.t.Helper()
	w.must(w.d.Float(context.Background(), all))
}

func floating(addr, inside string) driver.Floating {
	return driver.Floating{Addr: netip.MustParseAddr(addr), Inside: netip.MustParseAddr(inside)}
}

func TestFloating(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	w := newWorld(t, Config{})
	web := w.start(spec("web", "acme", "10.88.0.2"), 80)
	peer := w.start(spec("peer", "acme", "10.88.0.3"), 80)
	foe := w.start(spec("foe", "evil", "10.88.0.4"))
	w.serve(w.outside, "outside", "0.0.0.0:7000")
	w.serve(nil, "host", "0.0.0.0:7001")
	w.floats(floating(floatIP, "10.88.0.2"), floating("192.0.2.51", "10.88.0.2"))
	arrives := func() {
		t.Helper()
		w.reach(w.outside, floatIP+":80", "web "+outIP)
		w.reach(w.outside, "192.0.2.51:80", "web "+outIP)
		w.reach(w.outside, floatIP+":7001", "") // the host's services are not there
		w.reach(nil, floatIP+":80", "web "+gwIP)
		w.reach(peer, floatIP+":80", "web "+gwIP)
		w.reach(foe, floatIP+":80", "web "+gwIP)
		w.reach(web, floatIP+":80", "web "+gwIP)
		w.reach(web, outIP+":7000", "outside "+floatIP) // and goes out under the first
		w.reach(peer, outIP+":7000", "outside "+hostIP)
		w.reach(foe, "10.88.0.2:80", "")
	}
	arrives()
	if !w.ping(w.outside, floatIP) {
		t.Error("a ping to a floating address is not answered")
	}
	// Another life, and somebody who flushes everything.
	w.reopen()
	w.reach(w.outside, floatIP+":80", "web "+outIP)
	w.floats(floating(floatIP, "10.88.0.2"), floating("192.0.2.51", "10.88.0.2"))
	sh(t, "", "nft", "flush", "ruleset")
	sh(t, "", "ip", "route", "del", floatIP)
	w.must(w.d.Reconcile(context.Background()))
	arrives()
	// It leads to another instance, and then nowhere.
	w.floats(floating(floatIP, "10.88.0.3"))
	w.reach(w.outside, floatIP+":80", "peer "+outIP)
	w.reach(w.outside, "192.0.2.51:80", "")
	w.reach(web, outIP+":7000", "outside "+hostIP)
	if ids, err := w.d.Observe(context.Background()); err != nil || strings.Join(ids, " ") != "foe peer web" {
		t.Errorf("%v, %v", ids, err)
	}
	for _, c := range []struct {
		f    driver.Floating
		kind errs.Kind
	}{{floating(hostIP, "10.88.0.2"), errs.Conflict}, {floating("10.88.0.9", "10.88.0.2"), errs.Invalid}, {floating("2001:db8::1", "10.88.0.2"), errs.Invalid}} {
		if err := w.d.Float(context.Background(), []driver.Floating{c.f}); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", c.f.Addr, err)
		}
	}
	w.reach(w.outside, floatIP+":80", "peer "+outIP)
	w.reopen()
	w.floats()
	w.reach(w.outside, floatIP+":80", "")
	for _, c := range []string{"ip route", "ip neigh show proxy", "nft list ruleset"} {
		if out := sh(t, "", strings.Fields(c)...); strings.Contains(out, floatIP) {
			t.Errorf("%s:\n%s", c, out)
		}
	}
}
