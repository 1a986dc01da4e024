package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"atoll/internal/errs"
	"atoll/test/rig"
)

// hosts are some without daemons: what is tested here is their world.
func hosts(t *testing.T, o Options) *Lab {
	t.Helper()
	if m := rig.Missing(); m != "" {
		t.Skipf("hosts need %s", m)
	}
	bin, err := rig.Build(t.Context())
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

func reaches(from, to *Host) bool {
	return from.Exec("ping", "-c1", "-W1", to.Address).Run() == nil
}

func TestCables(t *testing.T) {
	if _, err := exec.LookPath("ping"); err != nil {
		t.Skip("ping is not installed")
	}
	l := hosts(t, Options{Hosts: 3})
	a, b, c := l.Hosts[0], l.Hosts[1], l.Hosts[2]
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
	nc, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed")
	}
	srv := b.Exec(nc, "nc", "-ll", "-p", port, "-e", nc, "cat")
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = srv.Process.Kill()
		_ = srv.Wait() // killed
	}()
	ask := func() (string, time.Duration) {
		began := time.Now()
		cmd := a.Exec("bash", "-c", "exec 3<>/dev/tcp/"+b.Address+"/"+port+" && echo hello >&3 && read -t 5 x <&3 && echo $x")
		out, _ := cmd.CombinedOutput() // what it said is looked at
		return strings.TrimSpace(string(out)), time.Since(began)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if got, _ := ask(); got == "hello" {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(got)
		}
	}
	if err := a.Slow(b, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	// To connect, there, and back.
	if got, took := ask(); got != "hello" || took < 600*time.Millisecond {
		t.Fatalf("%q after %s", got, took)
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
