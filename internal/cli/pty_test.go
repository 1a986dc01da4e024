package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	kernel "golang.org/x/term"

	"atoll/api"
	"atoll/internal/cli/term"
)

// openPTY gives both ends of a new terminal, or skips where there is none.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	var n, unlock int32
	for _, c := range []struct {
		req uintptr
		arg *int32
	}{{syscall.TIOCGPTN, &n}, {syscall.TIOCSPTLCK, &unlock}} {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), c.req, uintptr(unsafe.Pointer(c.arg))); e != 0 {
			t.Skipf("no pseudo terminals here: %v", e)
		}
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func resize(t *testing.T, f *os.File, cols, rows uint16) {
	t.Helper()
	ws := [4]uint16{rows, cols}
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&ws))); e != 0 {
		t.Fatal(e)
	}
}

// TestRealTerminal runs -it at a kernel's terminal: raw while it lasts, Ctrl-C as a
// byte, the size and its changes passed on, detach keys, and everything given back.
func TestRealTerminal(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	master, slave := openPTY(t)
	resize(t, master, 100, 30)
	before, err := kernel.GetState(int(slave.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	w := r.io()
	w.In, w.Out, w.Term = slave, slave, term.Files{In: slave, Out: slave, Err: slave}
	var seen syncBuffer
	go func() { // ends when the terminal is closed
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			_, _ = seen.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	done := make(chan int)
	go func() {
		done <- Main(context.Background(), w, []string{"run", "-it", "--name", "x", "busybox", "cat"})
	}()
	r.waitRunning(t, "x")
	await := func(want string) {
		t.Helper()
		for range 1000 {
			if strings.Contains(seen.String(), want) {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatalf("%q never came: %q", want, seen.String())
	}
	now, err := kernel.GetState(int(slave.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if *now == *before {
		t.Error("the terminal is not raw")
	}
	if _, err := master.Write([]byte("a\x03b")); err != nil { // Ctrl-C must arrive as a byte
		t.Fatal(err)
	}
	await("a\x03b")
	resize(t, master, 120, 40)
	r.sig <- syscall.SIGWINCH
	await(`size {"cols":120,"rows":40}`)
	if _, err := master.Write([]byte("\x10\x11")); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 {
		t.Fatalf("code %d: %s", code, r.err.String())
	}
	after, err := kernel.GetState(int(slave.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if *after != *before {
		t.Error("the terminal was not given back as it was")
	}
}

func TestTopTables(t *testing.T) {
	r := newRig(t)
	u := api.Usage{PressureCPU: 0.02, PressureMemory: -1, Memory: 88 << 20, MemoryPeak: 100 << 20, Pids: 3}
	r.world.usage = api.UsageReport{
		Nodes: []api.NodeUsage{{Node: "isle1", Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30}, Allocatable: api.Resources{api.CPU: 3800, api.Memory: 7 << 30},
			Requested: api.Resources{api.CPU: 1500}, CPUMilli: 2700, Memory: 1 << 30, Usage: u}},
		Tenants: []api.TenantUsage{{Tenant: "demo", CPUMilli: 200, Memory: 5 << 20}, {Tenant: "acme", Guarantee: api.Resources{api.CPU: 1000, api.Memory: 2 << 30},
			Limit: api.Resources{api.CPU: 4000}, CPUMilli: 2400, Memory: 88 << 20, Instances: 12, Usage: u}},
		Instances: []api.InstanceUsage{{Ref: api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: "db"}, Node: "isle1", CPUMilli: 120, Usage: u}},
	}
	for what, want := range map[string]string{
		"tenants": `TENANT  GUARANTEE  USED          BORROWED      CEILING  PRESSURE (cpu mem io)  INSTANCES
acme    1 CPU 2Gi  2.4 CPU 88Mi  1.4 CPU       4 CPU    0.02 ? 0.00            12
demo    -          200m CPU 5Mi  200m CPU 5Mi  -        0.00 0.00 0.00         0
(idle)  1.1 CPU 6Gi free, 200m CPU 1Gi reserved for hosts
`,
		"nodes": `NODE   CPU USED  REQUESTED  OF   MEMORY USED  REQUESTED  OF   PRESSURE (cpu mem io)
isle1  2.7       1.5        3.8  1Gi          0          7Gi  0.02 ? 0.00
`,
		"instances": `INSTANCE  NODE   CPU   MEMORY  PEAK   THROTTLED  READ  WRITTEN  RECEIVED  SENT  PIDS  PRESSURE (cpu mem io)
acme/db   isle1  120m  88Mi    100Mi  0s         0     0        0         0     3     0.02 ? 0.00
`,
	} {
		if got := r.must(t, "top", what); got != want {
			t.Errorf("top %s:\n%s\nwant\n%s", what, got, want)
		}
	}
	if out := r.must(t, "top", "tenants", "--sort-by", "-used"); !strings.HasPrefix(strings.Split(out, "\n")[1], "acme") {
		t.Errorf("sorted by used:\n%s", out)
	}
}
