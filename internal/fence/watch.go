package fence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/sys/boot"
	"atoll/internal/sys/cgroup"
	"atoll/internal/sys/peer"
	"atoll/internal/sys/proc"
)

// WatchConfig is how a watchdog lives.
type WatchConfig struct {
	Run   string // directory of the socket, the lock and the record
	Group string // root of the groups it may empty; its own is beside it: OwnGroup
	Idle  time.Duration
	Log   io.Writer
	Clock clock.Clock // wall clock, for the record
}

// DefaultIdle is how long a watchdog stays when there is nothing to guard.
const DefaultIdle = time.Minute

// The names below Run.
const (
	socketName = "watchdog.sock"
	lockName   = "watchdog.lock"
)

// OwnGroup is the watchdog's resource group: beside the tenants', and not the daemon's,
// whose end must not be its own.
func OwnGroup(root string) string { return root + "-watchdog" }

// watchdog is the process. Whoever notices that the deadline has passed, the timer or a
// frame that comes in, kills first and goes on then.
type watchdog struct {
	cfg    WatchConfig
	groups *cgroup.Host
	timer  *boot.Timer
	lines  chan string

	mu      sync.Mutex
	guard   guard
	dying   []string      // groups that were not empty after the first blow
	tick    time.Duration // when loop looks at these again; frames that come in must not put it off
	leaving bool          // it was told to end and does so when what it guards has
	ended   bool
	serial  int64
	conns   map[net.Conn]bool
}

// again is how soon it looks again at what has not died yet, or at what it waits for before it leaves.
const again = 50 * time.Millisecond

// blow is how long one attempt to empty the groups may take.
const blow = 500 * time.Millisecond

// maxConns bounds who may talk to it at once: a daemon and its successor, and some more.
const maxConns = 8

// Watch is the watchdog: it serves its socket until there is nothing to guard. It returns
// errs.Conflict when another one is there. ctx's end, like a signal that asks it to end, is
// heeded when nothing that it guards is running any more.
func Watch(ctx context.Context, c WatchConfig) error {
	if c.Idle <= 0 {
		c.Idle = DefaultIdle
	}
	if err := c.check(); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP) // where the daemon's log went may be gone
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	debug.SetGCPercent(20)
	lock, err := lockRun(c.Run)
	if err != nil {
		return err
	}
	defer lock.Close()
	w := &watchdog{cfg: c, lines: make(chan string, 64), conns: map[net.Conn]bool{}, guard: guard{idle: c.Idle, since: boot.Now()}}
	if w.groups, err = cgroup.Detect(); err != nil {
		return errs.New(errs.Unsupported, "watchdog: %w", err)
	}
	if w.timer, err = boot.NewTimer(); err != nil {
		return errs.New(errs.Unsupported, "watchdog: %w", err)
	}
	defer w.timer.Close()
	printed := make(chan struct{})
	go w.print(printed)
	defer func() {
		close(w.lines)
		t := c.Clock.NewTimer(answerPatience) // whoever reads the log may hang; the lock must not wait for that
		defer t.Stop()
		select {
		case <-printed:
		case <-t.C:
		}
	}()
	w.settle()
	l, err := listen(filepath.Join(c.Run, socketName))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, w.leave)
	defer stop()
	var serving sync.WaitGroup
	serving.Go(func() { w.accept(l, &serving) })
	err = w.loop()
	_ = l.Close() // removes the socket
	w.mu.Lock()
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	serving.Wait()
	return err
}

func (c WatchConfig) check() error {
	var f []errs.Field
	if !filepath.IsAbs(c.Run) {
		f = append(f, errs.Field{Field: "run", Value: c.Run, Rule: "must be an absolute directory", Example: "/run/atoll"})
	}
	if !cgroup.Valid(c.Group) || filepath.Base(c.Group) != c.Group {
		f = append(f, errs.Field{Field: "group", Value: c.Group, Rule: "must be the name of a resource group", Example: "atoll"})
	}
	return errs.InvalidFields("watchdog", f)
}

// lockRun keeps a second watchdog away; the kernel lets go of the lock whatever way this one ends.
func lockRun(run string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(run, lockName), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "watchdog: make the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(errs.New(errs.Conflict, "another watchdog runs with %s: %w", run, err), f.Close())
	}
	return f, nil
}

// listen makes the socket; one that is there was left behind, as the lock is ours.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.Unavailable, "watchdog: %w", err)
	}
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "watchdog: %w", err)
	}
	return l, nil
}

// settle makes it likely that this process gets to run when it must. What this host
// refuses is named, and it goes on without.
func (w *watchdog) settle() {
	own := OwnGroup(w.cfg.Group)
	if _, err := w.groups.Ensure(own, cgroup.Limits{CPUWeight: 10000, IOWeight: 10000}); err != nil {
		w.say("it shares the processor with everything else: %v", err)
	} else if err := w.groups.Join(own, os.Getpid()); err != nil {
		w.say("it shares the processor with everything else: %v", err)
	}
	if err := proc.GoFirst(); err != nil {
		w.say("%v", err)
	}
	if proc.LiveLongest() > 0 {
		w.say("when memory is short it may be killed as early as anything")
	}
	// A rehearsal on a group that is not there: what the blow needs is in memory afterwards.
	ctx, cancel := context.WithTimeout(context.Background(), blow)
	defer cancel()
	if _, err := w.groups.Sweep(ctx, []string{own + "/none"}, func(int) {}); err != nil {
		w.say("%v", err)
	}
	if err := proc.LockMemory(); err != nil {
		w.say("%v", err)
	}
}

// loop waits for the deadline and for the end.
func (w *watchdog) loop() error {
	for {
		w.kill()
		w.again()
		w.mu.Lock()
		w.leaveIfEmpty()
		now := boot.Now()
		if (w.guard.done(now) || w.leaving && len(w.guard.items) == 0) && len(w.dying) == 0 {
			w.ended = true
			w.mu.Unlock()
			return nil
		}
		w.tick = now + again
		err := w.arm()
		w.mu.Unlock()
		if err == nil {
			err = w.timer.Wait()
		}
		if err != nil {
			return errs.New(errs.Internal, "watchdog: %w", err)
		}
	}
}

// arm sets the timer for whatever comes next; w.mu is held.
func (w *watchdog) arm() error {
	next := w.guard.next()
	if len(w.dying) > 0 || w.leaving {
		next = min(next, w.tick)
	}
	return w.timer.Set(max(next, 1))
}

// kill stops what must not run any more. It is called before anything else, by whoever wakes.
func (w *watchdog) kill() {
	w.mu.Lock()
	due, deadline := w.guard.expired(boot.Now()), w.guard.deadline
	w.mu.Unlock()
	if len(due) == 0 {
		return
	}
	var paths []string
	var of []int // which item a path belongs to
	claimed := addressesOf(w.cfg.Group, due)
	if err := disclaim(claimed); err != nil {
		w.say("it may still answer for %v: %v", claimed, err)
	}
	rec := make([]Fenced, len(due))
	open := make([]int, len(due))
	for n, i := range due {
		rec[n] = Fenced{ID: i.ID, Groups: i.Groups, Deadline: deadline, Left: true}
		for _, g := range i.Groups {
			paths, of = append(paths, g), append(of, n)
			open[n]++
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), blow)
	left, err := w.groups.Sweep(ctx, paths, func(i int) {
		n := of[i]
		if open[n]--; open[n] == 0 {
			rec[n].Late, rec[n].Left = boot.Now()-deadline, false
		}
	})
	cancel()
	if err != nil {
		w.mu.Lock()
		w.dying = append(w.dying, paths...)
		w.mu.Unlock()
	}
	took := boot.Now() - deadline
	for n := range rec {
		rec[n].At = w.cfg.Clock.Now().UTC()
		if rec[n].Left {
			rec[n].Late = took
		}
		w.say("the host's lease has ended: stopped %s", rec[n].ID)
	}
	w.say("stopped %d instances, all done %s after the deadline; %d processes left", len(due), took.Round(time.Microsecond), left)
	if err != nil {
		w.say("it goes on until nothing is left: %v", err)
	}
	if err := addRecord(w.cfg.Run, rec); err != nil {
		w.say("%v", err)
	}
}

// again hits what was not empty after the first blow: the kernel may hold a process
// that waits for a disk, and lets it go when the disk answers.
func (w *watchdog) again() {
	w.mu.Lock()
	paths := w.dying
	w.mu.Unlock()
	if len(paths) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), again)
	_, err := w.groups.Sweep(ctx, paths, func(int) {})
	cancel()
	if err != nil {
		return
	}
	w.mu.Lock()
	w.dying = w.dying[len(paths):] // a handler may have added some meanwhile
	w.mu.Unlock()
	w.say("nothing is left of what was stopped")
}

// leave is the wish that it ends.
func (w *watchdog) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving, w.tick = true, boot.Now()
	_ = w.arm() // loop says when the timer is broken
}

// leaveIfEmpty lets it go when all that it guards has ended by itself, as when the host
// is shut down. w.mu is held.
func (w *watchdog) leaveIfEmpty() {
	if !w.leaving {
		return
	}
	for _, i := range w.guard.items {
		for _, g := range i.Groups {
			for _, p := range append(w.groups.List(g), g) {
				if pids, err := w.groups.Pids(p); err != nil || len(pids) > 0 {
					return
				}
			}
		}
	}
	w.guard.items = nil
}

func (w *watchdog) accept(l net.Listener, serving *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of files or memory: it must still be there at the deadline.
			_ = clock.Real{}.Sleep(context.Background(), again) // never ends early
			continue
		}
		w.mu.Lock()
		if w.ended || len(w.conns) >= maxConns {
			w.mu.Unlock()
			_ = c.Close()
			continue
		}
		w.conns[c] = true
		w.serial++
		n := w.serial
		w.mu.Unlock()
		serving.Go(func() {
			if err := w.serve(c, n); err != nil {
				w.say("a connection was closed: %v", err)
			}
			w.mu.Lock()
			delete(w.conns, c)
			w.mu.Unlock()
			_ = c.Close()
		})
	}
}

// answerPatience is how long one who asked may take to read the answer.
const answerPatience = time.Second

// serve answers one connection until it ends.
func (w *watchdog) serve(c net.Conn, n int64) error {
	cred, err := peer.Of(c)
	if err != nil {
		return err
	}
	if cred.UID != 0 {
		return errs.New(errs.Denied, "process %d of user %d is not root", cred.PID, cred.UID)
	}
	for {
		k, body, err := readFrame(c)
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		var st State
		if err == nil {
			st, err = w.answer(k, body, n)
		}
		if derr := c.SetWriteDeadline(w.cfg.Clock.Now().Add(answerPatience)); derr != nil {
			return derr
		}
		if err != nil {
			text := err.Error()
			if werr := writeFrame(c, sayRefused, []byte(text[:min(len(text), maxText)])); werr != nil {
				return nil //nolint:nilerr // nobody waits for the answer any more
			}
			return err
		}
		if err := writeFrame(c, sayState, st.encode()); err != nil {
			return nil //nolint:nilerr // as above
		}
	}
}

// answer does what a frame asks.
func (w *watchdog) answer(k kind, body []byte, n int64) (State, error) {
	var items []Item
	var deadline time.Duration
	var err error
	switch k {
	case askSet:
		deadline, err = decodeTime(body)
	case askReplace:
		items, err = decodeItems(body, w.cfg.Group)
	case askStatus, askEnd:
	default:
		err = errs.New(errs.Unsupported, "this watchdog does not know the question %d", k)
	}
	if err != nil {
		return State{}, err
	}
	w.kill() // what was due before this came
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return State{}, errs.New(errs.Unavailable, "this watchdog has ended")
	}
	now := boot.Now()
	switch k {
	case askSet:
		err = w.guard.set(now, deadline, n)
	case askReplace:
		err = w.guard.replace(now, items, n)
	case askEnd:
		if len(w.guard.items) > 0 {
			return State{}, errs.New(errs.Conflict, "%d instances are guarded", len(w.guard.items))
		}
		w.leaving, w.tick = true, now
	}
	if err != nil {
		return State{}, err
	}
	return w.guard.state(os.Getpid()), w.arm()
}

// say logs without ever waiting for whoever reads the log.
func (w *watchdog) say(format string, args ...any) {
	select {
	case w.lines <- fmt.Sprintf(format, args...):
	default:
	}
}

func (w *watchdog) print(done chan<- struct{}) {
	defer close(done)
	for l := range w.lines {
		_, _ = fmt.Fprintf(w.cfg.Log, "%s watchdog: %s\n", w.cfg.Clock.Now().UTC().Format(time.RFC3339), l) // nowhere else to say it
	}
}
