package fence

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/sys/boot"
	"atoll/internal/sys/cgroup"
)

// The test binary is also the processes that the tests need: a watchdog, and a daemon that
// holds a lease.
const (
	roleVar  = "ATOLL_FENCE_ROLE"
	runVar   = "ATOLL_FENCE_RUN"
	groupVar = "ATOLL_FENCE_GROUP"
	idleVar  = "ATOLL_FENCE_IDLE"
	leaseVar = "ATOLL_FENCE_LEASE"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "":
		os.Exit(m.Run())
	case "watchdog":
		asWatchdog()
	case "daemon":
		asDaemon()
	case "dial":
		c, err := net.Dial("unix", filepath.Join(os.Getenv(runVar), socketName))
		if err == nil {
			_ = writeFrame(c, askStatus, nil) // the answer is what matters
			_, _, err = readFrame(c)
		}
		if err != nil {
			os.Exit(3)
		}
	}
	os.Exit(0)
}

func asWatchdog() {
	idle, _ := time.ParseDuration(os.Getenv(idleVar)) // none: the default
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := Watch(ctx, WatchConfig{Run: os.Getenv(runVar), Group: os.Getenv(groupVar), Idle: idle, Log: os.Stderr, Clock: clock.Real{}}); err != nil && !errors.Is(err, errs.Conflict) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// spawnSelf starts this binary as the watchdog, as Spawn does with the product's.
func spawnSelf() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleVar+"=watchdog")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // it ends when it likes
	return nil
}

// asDaemon guards what it is told on its command line, id=group, and prolongs its lease until it
// is killed. It says every end of the lease.
func asDaemon() {
	lease, err := time.ParseDuration(os.Getenv(leaseVar))
	if err != nil {
		panic(err)
	}
	f := New(Config{Run: os.Getenv(runVar), Group: os.Getenv(groupVar), Clock: clock.Real{}, Start: spawnSelf})
	extend := func() {
		end := boot.Now() + lease
		f.Extend(end)
		fmt.Println("lease", int64(end))
	}
	extend()
	go func() { _ = f.Run(context.Background()) }()
	go func() { // the heart beats, too, while a watchdog starts on a busy machine
		for _, a := range os.Args[1:] {
			id, group, _ := strings.Cut(a, "=")
			if err := f.Guard(context.Background(), id, []string{group}); err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
		}
		fmt.Println("ready")
	}()
	for range time.Tick(lease / 8) {
		extend()
	}
}

// host is a tree of groups on this machine, and a directory for the watchdog.
type host struct {
	t     *testing.T
	cg    *cgroup.Host
	run   string
	group string
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	cg, err := cgroup.Detect()
	if err != nil {
		t.Skip(err)
	}
	run, err := os.MkdirTemp("", "fence") // short: a unix socket is in it
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, cg: cg, run: run, group: fmt.Sprintf("atolltest-fence-%d", os.Getpid())}
	if w, err := cg.Ensure(h.group, cgroup.Limits{Pids: 2000}); err != nil || len(w) > 0 {
		t.Skipf("groups cannot be limited here: %v %v", w, err)
	}
	t.Setenv(runVar, run)
	t.Setenv(groupVar, h.group)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, g := range []string{h.group, OwnGroup(h.group)} {
			if err := cg.Remove(ctx, g); err != nil {
				t.Error(err)
			}
		}
		_ = os.RemoveAll(run) // what is left is in a temporary directory
	})
	return h
}

// put runs a shell script in a group of its own and returns the group.
func (h *host) put(id, script string) string {
	h.t.Helper()
	g := h.group + "/acme.t/" + id
	if _, err := h.cg.Ensure(g, cgroup.Limits{Pids: 400}); err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read go; "+script)
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }() // killed
	h.t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	if err := h.cg.Join(g, cmd.Process.Pid); err != nil {
		h.t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		h.t.Fatal(err)
	}
	return g
}

// lives counts the processes in a group.
func (h *host) lives(g string) int {
	h.t.Helper()
	n := 0
	for _, p := range append(h.cg.List(g), g) {
		pids, err := h.cg.Pids(p)
		if err != nil {
			h.t.Fatal(err)
		}
		n += len(pids)
	}
	return n
}

// daemon is the daemon's side as a process.
type daemon struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	end time.Duration // of the lease, as it last said
}

func (h *host) daemon(lease time.Duration, guarded ...string) *daemon {
	h.t.Helper()
	d := &daemon{cmd: exec.Command(os.Args[0], guarded...)}
	d.cmd.Env = append(os.Environ(), roleVar+"=daemon", leaseVar+"="+lease.String())
	d.cmd.Stderr = os.Stderr
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ready, read := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(read)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			word, arg, _ := strings.Cut(sc.Text(), " ")
			switch word {
			case "lease":
				n, _ := strconv.ParseInt(arg, 10, 64) // our own number
				d.mu.Lock()
				d.end = time.Duration(n)
				d.mu.Unlock()
			default:
				ready <- sc.Text()
			}
		}
	}()
	h.t.Cleanup(func() {
		_ = d.cmd.Process.Signal(syscall.SIGCONT)
		_ = d.cmd.Process.Kill()
		<-read
		_ = d.cmd.Wait() // killed
	})
	select {
	case s := <-ready:
		if s != "ready" {
			h.t.Fatal(s)
		}
	case <-time.After(20 * time.Second):
		h.t.Fatal("the daemon does not get ready")
	}
	return d
}

func (d *daemon) leaseEnd() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.end
}

func (d *daemon) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// busy keeps every core busy until the test ends.
func (h *host) busy() {
	for i := range 2 * runtime.NumCPU() {
		h.put(fmt.Sprint("busy", i), "while :; do :; done")
	}
}

// emptied waits until nothing is in the groups and says when that was.
func (h *host) emptied(patience time.Duration, groups ...string) time.Duration {
	h.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		n := 0
		for _, g := range groups {
			n += h.lives(g)
		}
		now := boot.Now()
		if n == 0 {
			return now
		}
		if time.Now().After(end) {
			h.t.Fatalf("%d processes live on", n)
		}
	}
}

// bound is how late after its deadline the watchdog may stop the last instruction of what it guards; given
// back is for when that has been given back to the kernel, on a machine that others use, too.
const (
	bound     = 200 * time.Millisecond
	givenBack = 2 * time.Second
)

func (h *host) record(ids ...string) []Fenced {
	h.t.Helper()
	var all []Fenced
	for end := time.Now().Add(5 * time.Second); len(all) < len(ids) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		more, done, err := Take(h.run)
		if err != nil {
			h.t.Fatal(err)
		}
		all = append(all, more...)
		if err := done(); err != nil {
			h.t.Fatal(err)
		}
	}
	got := map[string]bool{}
	for _, f := range all {
		got[f.ID] = true
		h.t.Logf("%s: gone %v after the deadline", f.ID, f.Late)
		if f.Late < 0 || f.Late > givenBack {
			h.t.Errorf("%+v: more than %v late", f, givenBack)
		}
	}
	for _, id := range ids {
		if !got[id] {
			h.t.Errorf("%s is not in the record %+v", id, all)
		}
	}
	return all
}

// What must not run twice is dead when the lease ends, whatever became of the daemon, with
// every core busy.
func TestTheDaemonIsGone(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			dir := t.TempDir()
			last := filepath.Join(dir, "bomb")
			one := h.put("one", "while :; do echo >>"+filepath.Join(dir, "one")+"; sleep 0.01; done")
			two := h.put("two", "sleep 1000 & sleep 1000 & wait")
			bomb := h.put("bomb", "while :; do (while :; do echo >>"+last+"; sh -c : & done) & done") // forks without end
			free := h.put("free", "exec sleep 1000")
			h.busy()
			d := h.daemon(2*time.Second, "one="+one, "two="+two, "bomb="+bomb)
			time.Sleep(3 * time.Second) // prolonged several times
			if h.lives(one) == 0 || h.lives(two) < 3 || h.lives(bomb) < 2 {
				t.Fatal("it ended while the lease lasted")
			}
			d.signal(t, sig)
			time.Sleep(50 * time.Millisecond) // what it said is read
			end := d.leaseEnd()
			if boot.Now() > end {
				t.Skip("this machine is too busy to tell")
			}
			at := h.emptied(10*time.Second, one, two, bomb)
			t.Logf("all given back %v before the end of the lease", end-at)
			// Dead is who does nothing any more. To give everything back takes the dying longer, the longer
			// the busier the machine is.
			for _, id := range []string{"one", "bomb"} {
				st, err := os.Stat(filepath.Join(dir, id))
				if err != nil {
					t.Fatal(err)
				}
				did := time.Until(st.ModTime()) + boot.Now()
				t.Logf("the last deed of %s was %v before the end of the lease", id, end-did)
				if did > end || did > end-DefaultMargin+bound {
					t.Errorf("%s still did something %v after the watchdog's deadline", id, did-end+DefaultMargin)
				}
			}
			h.record("one", "two", "bomb")
			if h.lives(free) != 1 {
				t.Error("what is not guarded was stopped")
			}
		})
	}
}

// A new daemon finds the watchdog of the old one, and what is guarded runs on.
func TestTheDaemonIsReplaced(t *testing.T) {
	h := newHost(t)
	g := h.put("one", "exec sleep 1000")
	d := h.daemon(2*time.Second, "one="+g)
	first, err := Status(t.Context(), h.run, clock.Real{})
	if err != nil || first.Guarded != 1 {
		t.Fatal(first, err)
	}
	for range 3 {
		d.signal(t, syscall.SIGKILL)
		time.Sleep(300 * time.Millisecond)
		d = h.daemon(2*time.Second, "one="+g)
	}
	time.Sleep(2500 * time.Millisecond)
	st, err := Status(t.Context(), h.run, clock.Real{})
	if err != nil || st.Pid != first.Pid || st.Fenced != 0 || h.lives(g) != 1 {
		t.Fatalf("%+v, then %+v; %v; %d live", first, st, err, h.lives(g))
	}
	if err := End(t.Context(), h.run, clock.Real{}); err == nil {
		t.Error("it ends while it guards")
	}
	// A second one does not start beside it.
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"=watchdog")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if again, err := Status(t.Context(), h.run, clock.Real{}); err != nil || again.Pid != first.Pid {
		t.Error(again, err)
	}
	d.signal(t, syscall.SIGKILL)
	h.emptied(5*time.Second, g)
	h.record("one")
}

// A watchdog that is killed is started again, with all it must know.
func TestTheWatchdogIsKilled(t *testing.T) {
	h := newHost(t)
	g := h.put("one", "exec sleep 1000")
	d := h.daemon(2*time.Second, "one="+g)
	for range 3 {
		st, err := Status(t.Context(), h.run, clock.Real{})
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(int(st.Pid), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var next State
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if next, err = Status(t.Context(), h.run, clock.Real{}); err == nil && next.Guarded == 1 {
				break
			}
		}
		if next.Pid == st.Pid || next.Guarded != 1 {
			t.Fatalf("%+v after %+v: %v", next, st, err)
		}
	}
	d.signal(t, syscall.SIGSTOP)
	h.emptied(5*time.Second, g)
	h.record("one")
}

// A watchdog that slept through the deadline kills before it listens to the daemon, whose
// lease goes on.
func TestTheWatchdogSleeps(t *testing.T) {
	h := newHost(t)
	g := h.put("one", "exec sleep 1000")
	h.daemon(1200*time.Millisecond, "one="+g)
	st, err := Status(t.Context(), h.run, clock.Real{})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(st.Pid), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1600 * time.Millisecond)
	if h.lives(g) != 1 {
		t.Fatal("who killed it?")
	}
	woke := boot.Now()
	if err := syscall.Kill(int(st.Pid), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	at := h.emptied(5*time.Second, g)
	t.Logf("empty %v after waking", at-woke)
	if at-woke > bound {
		t.Errorf("%v after waking", at-woke)
	}
}

// It ends by itself, and not while it is needed.
func TestTheEndOfAWatchdog(t *testing.T) {
	h := newHost(t)
	t.Setenv(idleVar, "300ms")
	f := New(Config{Run: h.run, Group: h.group, Clock: clock.Real{}, Start: spawnSelf})
	g := h.put("one", "exec sleep 1000")
	if err := f.Guard(t.Context(), "one", []string{g}); !errors.Is(err, errs.Unavailable) {
		t.Fatal("guarded without a lease", err)
	}
	f.Extend(boot.Now() + 20*time.Second)
	if err := f.Guard(t.Context(), "one", []string{"system.slice"}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if err := f.Guard(t.Context(), "one", []string{g}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond)
	st, err := Status(t.Context(), h.run, clock.Real{})
	if err != nil || st.Guarded != 1 || len(f.Guarded()) != 1 {
		t.Fatal(st, err)
	}
	h.refuseOthers()
	// Asked to end, it stays while something of what it guards runs.
	if err := syscall.Kill(int(st.Pid), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if _, err := Status(t.Context(), h.run, clock.Real{}); err != nil {
		t.Fatal("it left what it guards", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := h.cg.Sweep(ctx, []string{g}, func(int) {}); err != nil {
		t.Fatal(err)
	}
	h.gone()
	// The next Guard starts another; that one ends for want of work.
	if err := f.Guard(t.Context(), "two", []string{g}); err != nil {
		t.Fatal(err)
	}
	f.Unguard("one")
	f.Unguard("two")
	rctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- f.Run(rctx) }()
	h.gone()
	stop()
	if err := <-ran; err != nil || f.Err() != nil {
		t.Error(err, f.Err())
	}
}

// refuseOthers: only root talks to it.
func (h *host) refuseOthers() {
	h.t.Helper()
	if err := os.Chmod(h.run, 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(h.run, socketName), 0o666); err != nil { // even then
		h.t.Fatal(err)
	}
	try := func(uid uint32) error {
		cmd := exec.Command("/proc/self/fd/3")
		self, err := os.Open(os.Args[0])
		if err != nil {
			h.t.Fatal(err)
		}
		defer self.Close()
		cmd.ExtraFiles = []*os.File{self}
		cmd.Env = append(os.Environ(), roleVar+"=dial")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd.Run()
	}
	if err := try(0); err != nil {
		h.t.Errorf("root is refused: %v", err)
	}
	var exit *exec.ExitError
	if err := try(65534); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		h.t.Errorf("another user is not refused: %v", err)
	}
}

// gone waits until no watchdog answers.
func (h *host) gone() {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		st, err := Status(h.t.Context(), h.run, clock.Real{})
		if errors.Is(err, errs.NotFound) {
			return
		}
		if time.Now().After(end) {
			h.t.Fatal("it does not end", st, err)
		}
	}
}

// Between two daemons nothing is left out: the watchdog has the list of the first until it
// has all of the second's, and hears of the new lease at once.
func TestTheListIsHandedOver(t *testing.T) {
	h := newHost(t)
	var args []string
	var items []Item
	for _, id := range []string{"one", "two", "three"} {
		g := h.put(id, "exec sleep 1000")
		args, items = append(args, id+"="+g), append(items, Item{ID: id, Groups: []string{g}})
	}
	d := h.daemon(3*time.Second, args...)
	d.signal(t, syscall.SIGKILL)
	f := New(Config{Run: h.run, Group: h.group, Clock: clock.Real{}, Start: spawnSelf})
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = f.Run(ctx) })
	end := boot.Now() + 20*time.Second
	f.Extend(end)
	seen := func(until time.Duration) {
		t.Helper()
		for began := boot.Now(); boot.Now()-began < until; time.Sleep(5 * time.Millisecond) {
			if st, err := Status(ctx, h.run, clock.Real{}); err != nil || st.Guarded != 3 {
				t.Fatalf("%+v %v", st, err)
			}
		}
	}
	seen(4 * time.Second) // longer than the lease of the one before
	if st, err := Status(ctx, h.run, clock.Real{}); err != nil || st.Deadline < boot.Now()+10*time.Second || st.Fenced != 0 {
		t.Fatalf("the new lease: %+v %v", st, err)
	}
	if err := f.GuardAll(ctx, items); err != nil {
		t.Fatal(err)
	}
	seen(time.Second)
	f.Unguard("three")
	if err := f.Settle(ctx); err != nil {
		t.Fatal(err)
	}
	if st, err := Status(ctx, h.run, clock.Real{}); err != nil || st.Guarded != 2 {
		t.Fatalf("%+v %v", st, err)
	}
	f.Extend(boot.Now() + 500*time.Millisecond)
	h.emptied(5*time.Second, items[0].Groups[0], items[1].Groups[0])
	if h.lives(items[2].Groups[0]) != 1 {
		t.Error("what is not guarded any more was stopped")
	}
	h.record("one", "two")
}

// What a daemon found before it had a lease is guarded when it has one.
func TestGuardAllBeforeTheLease(t *testing.T) {
	h := newHost(t)
	g := h.put("one", "exec sleep 1000")
	f := New(Config{Run: h.run, Group: h.group, Clock: clock.Real{}, Start: spawnSelf})
	if err := f.GuardAll(t.Context(), []Item{{ID: "one", Groups: []string{g}}}); err != nil {
		t.Fatal(err) // there is a watchdog; it has no deadline yet
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = f.Run(ctx) })
	f.Extend(boot.Now() + 2*time.Second)
	h.emptied(10*time.Second, g)
	h.record("one")
}

// A deadline that came nearer is the watchdog's when Settle says so.
func TestSettle(t *testing.T) {
	h := newHost(t)
	f := New(Config{Run: h.run, Group: h.group, Clock: clock.Real{}, Start: spawnSelf})
	f.Extend(boot.Now() + time.Hour)
	if err := f.Settle(t.Context()); err != nil {
		t.Fatal("there is no watchdog, so none goes by another deadline:", err)
	}
	if err := f.Guard(t.Context(), "one", []string{h.group + "/one"}); err != nil {
		t.Fatal(err)
	}
	end := boot.Now() + time.Minute
	f.Extend(end)
	if st, err := Status(t.Context(), h.run, clock.Real{}); err != nil || st.Deadline <= end {
		t.Fatal("it knew before:", st, err)
	}
	if err := f.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := Status(t.Context(), h.run, clock.Real{})
	if err != nil || st.Deadline > end || st.Guarded != 1 {
		t.Fatal(st, err)
	}
	if err := syscall.Kill(int(st.Pid), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for b := []byte(nil); !strings.Contains(string(b), ") T "); { // it stops a little later
		if b, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", st.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	f.Extend(boot.Now() + 50*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	if err := f.Settle(ctx); err == nil {
		t.Error("a watchdog that hangs knows")
	}
	cancel()
	f.Extend(boot.Now() + time.Millisecond) // nothing of it runs: it goes when this is over
	if err := syscall.Kill(int(st.Pid), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f.Unguard("one")
	if err := f.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := End(t.Context(), h.run, clock.Real{}); err != nil {
		t.Error(err)
	}
}

// Where no watchdog can be had, nothing is guarded, and the error says what to do.
func TestNoWatchdog(t *testing.T) {
	h := newHost(t)
	for name, start := range map[string]func() error{"none": nil, "fails": func() error { return os.ErrNotExist }, "does not answer": func() error { return nil }} {
		f := New(Config{Run: h.run, Group: h.group, Clock: clock.Real{}, Start: start})
		f.Extend(boot.Now() + time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := f.Guard(ctx, "one", []string{h.group + "/one"})
		cancel()
		if !errors.Is(err, errs.Unsupported) || errs.HintOf(err) == "" || len(f.Guarded()) != 0 {
			t.Errorf("%s: %v, %v guarded", name, err, f.Guarded())
		}
	}
	// Nor by something else that holds the socket.
	l, err := net.Listen("unix", filepath.Join(h.run, socketName))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n") // it hangs up, too
			_ = c.Close()
		}
	}()
	f := New(Config{Run: h.run, Group: h.group, Clock: clock.Real{}})
	f.Extend(boot.Now() + time.Minute)
	if err := f.Guard(t.Context(), "one", []string{h.group + "/one"}); !errors.Is(err, errs.Unsupported) {
		t.Error(err)
	}
	_ = l.Close() // wakes it
	<-served
}

// The product's own binary stays small: it is locked in memory on every host.
func TestTheBinaryIsSmall(t *testing.T) {
	h := newHost(t)
	bin := filepath.Join(h.run, Program)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "atoll/cmd/atoll-watchdog")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := New(Config{Run: h.run, Group: h.group, Clock: clock.Real{}, Start: func() error {
		cmd := exec.Command(bin, "--run", h.run, "--group", h.group, "--idle", "2s")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) // it may have ended
		return nil
	}})
	f.Extend(boot.Now() + time.Minute)
	for i := range 100 {
		id := fmt.Sprint("x", i)
		if err := f.Guard(t.Context(), id, []string{h.group + "/acme.t/" + id}); err != nil {
			t.Fatal(err)
		}
	}
	st, err := f.Find(t.Context())
	if err != nil || st.Guarded != 100 {
		t.Fatal(st, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", st.Pid))
	if err != nil {
		t.Skip(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "Pss:"); ok {
			kb, err := strconv.Atoi(strings.Fields(v)[0])
			t.Logf("%d kB with 100 guarded", kb)
			if err != nil || kb > 8<<10 {
				t.Errorf("%d kB are more than 8 MB (%v)", kb, err)
			}
		}
	}
}
