package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"atoll/internal/errs"
	"atoll/internal/sys/proc"
	"atoll/test/rig"
)

// built are the binaries; linking them takes longer than all that is tested here.
var built = sync.OnceValues(func() (string, error) { return rig.Build(context.Background()) })

// hosts are some without daemons: what is tested here is their world.
func hosts(t *testing.T, o Options) *Lab {
	t.Helper()
	if m := rig.Missing(); m != "" {
		t.Skipf("hosts need %s", m)
	}
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(t.Context(), bin, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for _, h := range l.Hosts {
			if s := rig.FindSpace(h.Group); s != nil {
				t.Errorf("%s is held by %d", h.Name, s.Pid())
			}
		}
		if _, err := os.Stat(l.Dir); err == nil {
			t.Errorf("%s is left", l.Dir)
		}
	})
	return l
}

// echo answers on the API's port of a host with what it is told.
func echo(t *testing.T, h *Host) {
	t.Helper()
	var l net.Listener
	if err := proc.InNetNS(h.space.Path(), func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(h.Address, port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second)) // a TCP connection takes one
				_, _ = io.Copy(c, c)                                // ends with the other side
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

// ask says a word from one host to another and takes it back.
func ask(from, to *Host, patience time.Duration) (took time.Duration, err error) {
	began := time.Now()
	var c net.Conn
	if err := proc.InNetNS(from.space.Path(), func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(to.Address, port), patience)
		return err
	}); err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience)) // a TCP connection takes one
	if _, err := c.Write([]byte("hello")); err != nil {
		return 0, err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		return 0, fmt.Errorf("%q: %w", b, err)
	}
	return time.Since(began), nil
}

func reaches(from, to *Host) bool {
	_, err := ask(from, to, 500*time.Millisecond)
	return err == nil
}

func TestCables(t *testing.T) {
	l := hosts(t, Options{Hosts: 3})
	a, b, c := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	for _, h := range l.Hosts {
		echo(t, h)
	}
	want := func(when string, ab, ac, bc bool) {
		t.Helper()
		if got := [3]bool{reaches(a, b), reaches(a, c), reaches(b, c)}; got != [3]bool{ab, ac, bc} {
			t.Errorf("%s: 1-2, 1-3, 2-3 reach each other: %v", when, got)
		}
	}
	want("at first", true, true, true)
	if err := a.Cut(); err != nil || !a.Unplugged() || b.Unplugged() {
		t.Fatal(err)
	}
	want("1 is cut off", false, false, true)
	if err := errors.Join(a.Mend(), b.CutFrom(a, false)); err != nil || a.Unplugged() {
		t.Fatal(err)
	}
	want("2 hears nothing of 1", false, true, true)
	if err := b.Mend(); err != nil {
		t.Fatal(err)
	}
	want("all is mended", true, true, true)
	if out, err := exec.Command("ip", "link", "show", bridge).CombinedOutput(); err == nil {
		t.Errorf("the machine's own network has the bridge: %s", out)
	}
}

func TestSlow(t *testing.T) {
	l := hosts(t, Options{Hosts: 2})
	a, b := l.Hosts[0], l.Hosts[1]
	echo(t, b)
	if _, err := ask(a, b, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := a.Slow(b, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	// To connect, there, and back.
	if took, err := ask(a, b, 10*time.Second); err != nil || took < 600*time.Millisecond {
		t.Fatalf("%v after %s", err, took)
	}
}

func TestDiskFills(t *testing.T) {
	l := hosts(t, Options{Hosts: 1, Disk: 32 << 20})
	h := l.Hosts[0]
	put := func() error { return os.WriteFile(filepath.Join(h.State, "x"), make([]byte, 1<<20), 0o600) }
	if err := put(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(h.State, "x")), h.FillDisk(64<<10)); err != nil {
		t.Fatal(err)
	}
	if err := put(); err == nil {
		t.Fatal("a full disk took a megabyte")
	}
	if err := errors.Join(h.FreeDisk(), put()); err != nil {
		t.Fatal(err)
	}
}

func TestOptionsAreRefused(t *testing.T) {
	if _, err := New(t.Context(), "", Options{Hosts: 1000}); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	if _, err := Open("nobody"); !errors.Is(err, errs.NotFound) || errs.HintOf(err) == "" {
		t.Fatal(err)
	}
	if _, err := ownHub(); err == nil {
		t.Fatal("the machine's own network may be used")
	}
}

// What a process leaves that was killed is gone when the next lab is made; that of one that lives stays.
func TestOrphansAreSwept(t *testing.T) {
	mine := hosts(t, Options{Hosts: 1})
	lost, err := New(t.Context(), mine.Bin, Options{Hosts: 2})
	if err != nil {
		t.Fatal(err)
	}
	// As if another process of the number had begun since.
	if err := os.WriteFile(filepath.Join(lost.Dir, "owner"), fmt.Appendf(nil, "%d 1\n", os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Sweep(ctx, mine.Bin); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lost.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the orphan's directory is there")
	}
	if !alive(mine.Hosts[0].space.Pid()) {
		t.Error("a lab that is in use was taken away")
	}
	for _, h := range lost.Hosts {
		h.space.Close() // collects the children of this process
		if rig.FindSpace(h.Group) != nil {
			t.Errorf("%s is there", h.Name)
		}
	}
	lost.hub.Close()
}

func alive(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil
}

// What is begun is there from then on, although its process does not bear the daemon's name yet: a second one
// would wait for the first one's lock and live on when that is killed.
func TestOneDaemonAtATime(t *testing.T) {
	l := hosts(t, Options{Hosts: 1})
	h := l.Hosts[0]
	for i := range 6 {
		if err := errors.Join(h.Begin(), h.Begin()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i*i) * 10 * time.Millisecond)
		end := h.Kill
		if i%2 == 1 {
			end = func() error { return errors.Join(h.PowerOff(), h.Mend()) }
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		if pid := h.Pid(); pid != 0 {
			t.Fatalf("after round %d process %d runs", i, pid)
		}
	}
}
