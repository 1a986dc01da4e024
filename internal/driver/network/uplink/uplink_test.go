package uplink

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/systest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sh(t *testing.T, cmd string) string {
	t.Helper()
	f := strings.Fields(cmd)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, out)
	}
	return string(out)
}

// yard is a host with an uplink, and a machine behind it that has many addresses.
func yard(t *testing.T) *netlink.Namespace {
	t.Helper()
	out, err := netlink.NewNamespace()
	must(t, err)
	t.Cleanup(func() { out.Close() })
	h, err := netlink.Open()
	must(t, err)
	defer h.Close()
	must(t, h.LoopbackUp())
	bridge, err := h.EnsureBridge(netlink.Bridge{Name: "up0", ID: "test", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 1}, MTU: 1500, Addr: netip.MustParsePrefix("192.0.2.1/24")})
	must(t, err)
	must(t, h.EnsurePort(out, netlink.Port{Name: "upv0", ID: "test", Bridge: bridge, MTU: 1500, Peer: "eth0", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 9}, Addr: netip.MustParsePrefix("192.0.2.9/24"), GW: netip.MustParseAddr("192.0.2.1")}))
	must(t, h.AddDefaultRoute(bridge, netip.MustParseAddr("192.0.2.254")))
	for _, a := range []string{"203.0.113.7/32", "203.0.114.7/32", "2001:db8:1::7/128", "2001:db8:2::7/128"} {
		must(t, out.Do(func() error {
			return exec.Command("ip", "addr", "add", a, "dev", "eth0", "nodad").Run()
		}))
	}
	sh(t, "ip -6 addr add 2001:db8::1/64 dev up0 nodad")
	must(t, out.Do(func() error {
		return exec.Command("ip", "-6", "addr", "add", "2001:db8::9/64", "dev", "eth0", "nodad").Run()
	}))
	return out
}

// come sends packets from an address of the machine outside and counts those that arrive.
func come(t *testing.T, out *netlink.Namespace, from string, n int) int {
	t.Helper()
	to := "192.0.2.1:0"
	if strings.Contains(from, ":") {
		to = "[2001:db8::1]:0"
	}
	l, err := net.ListenPacket("udp", to)
	must(t, err)
	defer l.Close()
	must(t, out.Do(func() error {
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, l.LocalAddr().(*net.UDPAddr))
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		return nil
	}))
	got := 0
	must(t, l.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	for buf := make([]byte, 8); got < n; got++ {
		if _, _, err := l.ReadFrom(buf); err != nil {
			break
		}
	}
	return got
}

func TestDrop(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	out, ctx := yard(t), context.Background()
	l := New()
	list := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:1::/48")}
	if err := l.Drop(ctx, list); errors.Is(err, errs.Unsupported) {
		t.Skip(err)
	} else {
		must(t, err)
	}
	check := func(what string, want map[string]int) {
		t.Helper()
		for from, n := range want {
			if got := come(t, out, from, 5); got != n {
				t.Errorf("%s: %d of 5 arrive from %s, want %d", what, got, from, n)
			}
		}
	}
	come(t, out, "2001:db8::9", 1) // so that both know each other's hardware address
	check("listed", map[string]int{"203.0.113.7": 0, "203.0.114.7": 5, "2001:db8:1::7": 0, "2001:db8:2::7": 5, "192.0.2.9": 5})
	// A later life finds the list and its counters, and a prefix that stays goes on to be counted.
	l = New()
	list[1] = netip.MustParsePrefix("203.0.114.7/32")
	must(t, l.Drop(ctx, list))
	check("changed", map[string]int{"203.0.113.7": 0, "203.0.114.7": 0, "2001:db8:1::7": 5})
	counts, err := l.Dropped(ctx)
	must(t, err)
	if len(counts) != 2 || counts[list[0]] != 10 || counts[list[1]] != 5 {
		t.Errorf("counted %v", counts)
	}
	own, err := l.Own(ctx)
	must(t, err)
	for _, a := range []string{"192.0.2.1", "192.0.2.254", "2001:db8::1", "127.0.0.1"} {
		found := false
		for _, o := range own {
			found = found || o == netip.MustParseAddr(a)
		}
		if !found {
			t.Errorf("%s is not among the host's own: %v", a, own)
		}
	}
	must(t, l.Drop(ctx, nil))
	check("empty", map[string]int{"203.0.113.7": 5})
	if got := sh(t, "ip -d link show dev up0"); strings.Contains(got, "xdp") {
		t.Errorf("the program is left: %s", got)
	}
	must(t, l.Drop(ctx, nil))
}

// A program of another owner stays.
func TestForeignProgram(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	yard(t)
	h, err := netlink.Open()
	must(t, err)
	defer h.Close()
	x, err := h.Link("up0")
	must(t, err)
	p, err := loadNew()
	if errors.Is(err, errs.Unsupported) {
		t.Skip(err)
	}
	must(t, err)
	defer p.close()
	other := foreign(t)
	defer other.Close()
	must(t, h.SetXDP(x.Index, other.FD(), false, false))
	err = New().Drop(context.Background(), []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")})
	if errs.KindOf(err) != errs.Conflict {
		t.Errorf("another's program: %v", err)
	}
	if id, _, err := h.XDP(x.Index); err != nil || id == 0 {
		t.Errorf("another's program is gone: %v", err)
	}
}

func TestKey(t *testing.T) {
	for _, s := range []string{"0.0.0.0/0", "203.0.113.0/24", "203.0.113.7/32", "2001:db8::/32", "::/0", "fe80::1/128"} {
		p := netip.MustParsePrefix(s)
		if got := keyOf(p).prefix(); got != p {
			t.Errorf("%s became %s", p, got)
		}
	}
}
