package shape

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"atoll/internal/sys/systest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shaper is one in the test's own namespace, with a device to bound.
func shaper(t *testing.T) (*Shaper, Port) {
	t.Helper()
	s, err := Open(-1)
	must(t, err)
	t.Cleanup(s.Close)
	if err := probeApart(); err != nil {
		t.Skip(err)
	}
	must(t, s.h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "av0", TxQLen: 1000}, PeerName: "in0"}))
	l, err := s.link("av0")
	must(t, err)
	return s, Port{Index: l.Attrs().Index, Turn: "as0", ID: "x1"}
}

func TestSet(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	s, p := shaper(t)
	for _, c := range []struct{ to, from Band }{
		{Band{Rate: 10e6}, Band{Rate: 20e6}},
		{Band{Rate: 100e6, Burst: 1 << 20}, Band{Rate: 5e9}}, // changed in place
		{Band{}, Band{Rate: 64e3}},
		{Band{Rate: 80e9}, Band{}},
		{Band{Rate: 1e6}, Band{Rate: 1e6}},
		{Band{}, Band{}},
		{Band{}, Band{}}, // there is nothing to remove
	} {
		must(t, s.Set(p, c.to, c.from))
		must(t, s.Set(p, c.to, c.from)) // the same again
		to, from, _, err := s.Bounds(p)
		must(t, err)
		if to.Rate != c.to.Rate || from.Rate != c.from.Rate {
			t.Errorf("set %+v %+v, have %+v %+v", c.to, c.from, to, from)
		}
		for _, b := range []struct{ want, have Band }{{c.to, to}, {c.from, from}} {
			if b.want.Rate != 0 && float64(b.have.Burst) < 0.98*float64(b.want.burst()) {
				t.Errorf("a burst of %d, want %d", b.have.Burst, b.want.burst())
			}
		}
	}
	if out, err := exec.Command("ip", "-br", "link", "show", "type", "ifb").CombinedOutput(); err != nil || strings.Contains(string(out), "as0") {
		t.Errorf("left: %s %v", out, err)
	}
}

// A change of the rate keeps the queue and the counters: nothing that waits is lost.
func TestChangeInPlace(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	s, p := shaper(t)
	must(t, s.Set(p, Band{Rate: 10e6}, Band{Rate: 10e6}))
	for _, c := range []string{"ip link set lo up", "ip link set av0 up", "ip link set in0 up", "ip addr add 192.0.2.1/24 dev av0", "ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:01 dev av0"} {
		f := strings.Fields(c)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", c, err, out)
		}
	}
	c, err := net.Dial("udp", "192.0.2.2:9") // nobody answers
	must(t, err)
	defer c.Close()
	for range 3 {
		if _, err := c.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	_, _, before, err := s.Bounds(p)
	must(t, err)
	must(t, s.Set(p, Band{Rate: 20e6}, Band{Rate: 10e6}))
	_, _, after, err := s.Bounds(p)
	must(t, err)
	if before[0].Bytes < 3*142 || after[0].Bytes < before[0].Bytes {
		t.Errorf("passed %d bytes before the change and %d after it", before[0].Bytes, after[0].Bytes)
	}
}

// Whatever a kill leaves half made is completed, and a turn whose device was removed by others is made anew.
func TestHalfMade(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	s, p := shaper(t)
	must(t, s.h.LinkAdd(&netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: p.Turn}}))
	must(t, s.Set(p, Band{Rate: 1e6}, Band{Rate: 1e6}))
	must(t, s.Clear(p.Turn))
	must(t, s.Set(p, Band{Rate: 1e6}, Band{Rate: 2e6}))
	_, from, _, err := s.Bounds(p)
	must(t, err)
	l, err := s.link(p.Turn)
	must(t, err)
	if l == nil {
		t.Fatal("the device was not made anew")
	}
	if _, at, err := s.signpost(p.Index); err != nil || at != l.Attrs().Index || from.Rate != 2e6 {
		t.Errorf("leads to %d, want %d: %v; %+v", at, l.Attrs().Index, err, from)
	}
	must(t, s.h.LinkSetAlias(l, "somebody's"))
	if err := s.Set(p, Band{}, Band{Rate: 3e6}); err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("another's device was taken: %v", err)
	}
	must(t, s.Clear("none0"))
	if err := s.Clear("av0"); err == nil {
		t.Error("a device of another kind was removed")
	}
}

func TestBand(t *testing.T) {
	for _, c := range []struct {
		b            Band
		burst, queue int64
	}{{Band{Rate: 64e3}, 32 << 10, 128 << 10}, {Band{Rate: 100e6}, 125000, 625000}, {Band{Rate: 1e9}, 1250000, 6250000}, {Band{Rate: 100e9}, 125e6, 8 << 20}, {Band{Rate: 1e6, Burst: 1 << 20}, 1 << 20, 1 << 20}} {
		if fmt.Sprint(c.b.burst(), c.b.queue()) != fmt.Sprint(c.burst, c.queue) {
			t.Errorf("%+v: burst %d queue %d", c.b, c.b.burst(), c.b.queue())
		}
	}
}

// probeApart probes in a namespace that goes with its thread.
func probeApart() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer f.Close()
		done <- Probe(int(f.Fd()))
	}()
	return <-done
}
