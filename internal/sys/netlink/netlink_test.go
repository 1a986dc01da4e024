package netlink

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// host is a handle into a fresh namespace that plays the host.
func host(t *testing.T) (*Handle, *Namespace) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ns := fresh(t)
	h, err := OpenAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h, ns
}

func fresh(t *testing.T) *Namespace {
	t.Helper()
	ns, err := NewNamespace()
	if errors.Is(err, errs.Denied) || errors.Is(err, errs.Unsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

var (
	gw     = netip.MustParseAddr("10.9.0.1")
	bridge = Bridge{Name: "atoll0", ID: "bridge", MAC: PortMAC(gw), MTU: 1400, Addr: netip.PrefixFrom(gw, 16)}
)

func port(id string, n byte, bridge int) Port {
	a := netip.AddrFrom4([4]byte{10, 9, 0, n})
	return Port{Name: "av" + id, ID: id, Bridge: bridge, MTU: 1400, Peer: "eth0", MAC: PortMAC(a), Addr: netip.PrefixFrom(a, 16), GW: gw}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEnsureBridgeConverges(t *testing.T) {
	h, _ := host(t)
	first, err := h.EnsureBridge(bridge)
	must(t, err)
	again, err := h.EnsureBridge(bridge)
	must(t, err)
	if first != again {
		t.Errorf("made twice: %d, %d", first, again)
	}
	changed := bridge
	changed.MTU, changed.Addr = 1300, netip.MustParsePrefix("10.9.0.1/24")
	_, err = h.EnsureBridge(changed)
	must(t, err)
	l, err := h.Link("atoll0")
	must(t, err)
	addrs, err := h.Addrs(first)
	must(t, err)
	var four []netip.Prefix
	for _, a := range addrs {
		if a.Addr().Is4() {
			four = append(four, a)
		}
	}
	if l.MTU != 1300 || l.ID() != "bridge" || !l.Up || l.Kind != "bridge" || fmt.Sprint(four) != "[10.9.0.1/24]" {
		t.Errorf("bridge is %+v with %v", l, four)
	}
}

func TestForeignLinksStay(t *testing.T) {
	h, _ := host(t)
	foreign := bridge
	foreign.ID = "somebody"
	_, err := h.EnsureBridge(foreign)
	must(t, err)
	if _, err := h.EnsureBridge(bridge); !errors.Is(err, errs.Conflict) {
		t.Errorf("took over a bridge with another name: %v", err)
	}
	for what, err := range map[string]error{"delete": h.Delete("atoll0", "bridge"), "delete bridge": h.DeleteBridge(bridge), "lo": h.Delete("lo", "bridge")} {
		if !errors.Is(err, errs.Conflict) {
			t.Errorf("%s of what is not ours: %v", what, err)
		}
	}
	must(t, h.Delete("nothere", "x"))
	if _, err := h.Link("nothere"); !errors.Is(err, errs.NotFound) {
		t.Errorf("missing link: %v", err)
	}
	if _, err := h.Link("a-name-that-is-far-too-long"); !errors.Is(err, errs.Invalid) {
		t.Errorf("long name: %v", err)
	}
}

func TestEnsurePort(t *testing.T) {
	h, _ := host(t)
	guest := fresh(t)
	b, err := h.EnsureBridge(bridge)
	must(t, err)
	p := port("a", 2, b)
	must(t, h.EnsurePort(guest, p))
	before, err := h.Link("ava")
	must(t, err)
	must(t, h.EnsurePort(guest, p))
	after, err := h.Link("ava")
	must(t, err)
	if before.Index != after.Index || before.Master != b || !before.Up || before.ID() != "a" {
		t.Errorf("port was %+v and is %+v", before, after)
	}
	g, err := OpenAt(guest)
	must(t, err)
	defer g.Close()
	in, err := g.Link("eth0")
	must(t, err)
	lo, err := g.Link("lo")
	must(t, err)
	up, err := g.Uplinks()
	must(t, err)
	if !in.Up || !lo.Up || in.MAC.String() != p.MAC.String() || in.MTU != 1400 || len(up) != 1 || up[0].Name != "eth0" {
		t.Errorf("inside: %+v %+v, default routes by %+v", in, lo, up)
	}
	// Another namespace: the cable moves there.
	other := fresh(t)
	must(t, h.EnsurePort(other, p))
	if _, err := g.Link("eth0"); !errors.Is(err, errs.NotFound) {
		t.Errorf("the old end is still there: %v", err)
	}
	// Its name is taken inside by something of the runtime's: an error, and nothing is left here.
	third := fresh(t)
	must(t, h.EnsurePort(third, port("b", 3, b)))
	if err := h.EnsurePort(third, port("c", 4, b)); !errors.Is(err, errs.Exists) {
		t.Errorf("eth0 is taken: %v", err)
	}
	must(t, h.DeleteBridge(bridge))
	if err := h.EnsurePort(fresh(t), port("d", 5, b)); !errors.Is(err, errs.NotFound) {
		t.Errorf("the bridge is gone: %v", err)
	}
}

func TestNamespaces(t *testing.T) {
	ns := fresh(t)
	if _, err := OpenNamespace(ns.Path()); err != nil {
		t.Error(err)
	}
	for _, p := range []string{"/proc/self/ns/uts", "/proc/self/status", "/dev/null"} {
		if _, err := OpenNamespace(p); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s passes for a network namespace: %v", p, err)
		}
	}
	id := func() string { s, _ := os.Readlink("/proc/thread-self/ns/net"); return s }
	outside := id()
	for range 50 { // whatever thread we get afterwards, it is in the right place
		must(t, ns.Do(func() error {
			if id() == outside {
				t.Error("not in the namespace")
			}
			return nil
		}))
		if id() != outside {
			t.Fatal("a thread was left in the wrong namespace")
		}
	}
	want := errors.New("x")
	if err := ns.Do(func() error { return want }); err != want {
		t.Errorf("error is lost: %v", err)
	}
}

func TestSysctl(t *testing.T) {
	if _, err := Sysctl("../../../etc/passwd"); err == nil {
		t.Error("left /proc/sys/net")
	}
	v, err := Sysctl("ipv4/ip_forward")
	must(t, err)
	if wrote, err := SetSysctl("ipv4/ip_forward", v); wrote || err != nil {
		t.Errorf("wrote what was so already: %v %v", wrote, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(make([]byte, 40))
	f.Add([]byte{2, 16, 0, 0, 3, 0, 0, 0, 8, 0, 2, 0, 10, 9, 0, 1})
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 0, 'a', 'v', 0, 0, 0xff, 0xff, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeLink(b); err == nil && len(b) < unix.SizeofIfInfomsg {
			t.Errorf("a link from %d bytes: %+v", len(b), l)
		}
		if p, _, ok := decodeAddr(b); ok && !p.IsValid() {
			t.Errorf("invalid prefix %v", p)
		}
		if oif, _, ok := decodeDefault(b); ok && oif == 0 {
			t.Error("a route without a link")
		}
	})
}
