// Package fence stops what must not run twice when the host's right to run it ends, also when
// the daemon is killed, stopped or hangs, and switches lost hosts off (fence/bmc).
//
// A watchdog is a small process of its own (Watch; cmd/atoll-watchdog). It holds a deadline
// on the time since boot and a list of resource groups, and empties them when the deadline
// passes. The daemon's side is Fence: it starts a watchdog when there is first something to
// guard, finds the one that an earlier daemon left, and tells it every new deadline.
//
// Watch owns its goroutines and waits for them; Fence owns none, Run blocks. Neither may ever let a
// late word of the daemon go before a deadline that has passed, kill outside of its root,
// or make the watchdog wait for anybody.
package fence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/sys/boot"
	"atoll/internal/sys/peer"
)

// Config is how a daemon works with its watchdog.
type Config struct {
	Run   string // directory of the watchdog's socket
	Group string // root of the groups that may be guarded
	// Start starts a watchdog that outlives the daemon, and returns when it has been started:
	// it need not answer yet. See Spawn.
	Start func() error
	// Margin is how long before the end of the lease the watchdog begins: killing takes time, and
	// what it kills must be gone by the end. Default 400 ms.
	Margin time.Duration
	Clock  clock.Clock
	Log    *slog.Logger
	// OnFenced is called when the watchdog has stopped something since it was last asked. Take says what.
	OnFenced func()
}

// DefaultMargin is what the watchdog is given to empty the groups: measured on a machine with
// far too much to do, it needs half of it (see docs/fencing.md).
const DefaultMargin = 400 * time.Millisecond

// Patience with a watchdog that was started, and with one that is asked.
const (
	startPatience = 2 * time.Second
	askPatience   = time.Second
	retry         = 200 * time.Millisecond
)

// Fence is the daemon's side.
type Fence struct {
	cfg  Config
	wake chan struct{}

	talk   sync.Mutex // held during a conversation; taken before mu
	conn   net.Conn   // under talk
	fenced uint64     // under talk: what this watchdog had stopped when it was last asked

	mu       sync.Mutex
	deadline time.Duration // end of the lease, less the margin; 0: none yet
	items    map[string]Item
	// listed is set when it is known what is to be guarded: until then a watchdog goes on
	// with the list of an earlier daemon, and hears of deadlines only.
	listed bool
	stale  bool // the watchdog does not know the list
	err    error
}

// New makes a Fence that guards nothing, and starts nothing. What a watchdog of an earlier
// daemon guards stays so until the first call of GuardAll or Guard.
func New(c Config) *Fence {
	if c.Margin <= 0 {
		c.Margin = DefaultMargin
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Fence{cfg: c, wake: make(chan struct{}, 1), items: map[string]Item{}}
}

// Extend says until when the host may run what it guards, on the clock of boot.Now. It does
// not wait: Run passes it on. The caller works it out from when it sent the heartbeat that
// was acknowledged, not from when the answer came.
func (f *Fence) Extend(leaseEnd time.Duration) {
	f.mu.Lock()
	f.deadline = leaseEnd - f.cfg.Margin
	f.mu.Unlock()
	f.nudge()
}

// Settle returns nil when no watchdog of this host goes by a later deadline than the one of
// the last Extend: it was told, or there is none.
func (f *Fence) Settle(ctx context.Context) error {
	f.talk.Lock()
	defer f.talk.Unlock()
	if f.conn == nil {
		if err := f.dial(); errors.Is(err, os.ErrNotExist) || errors.Is(err, errRefused) {
			return nil
		} else if err != nil {
			return err
		}
	}
	err := f.tell(ctx)
	if err != nil {
		f.hangUpLocked()
	}
	return err
}

// Guard has all processes in the groups stopped before the lease ends, from when it
// returns until Unguard. It is called before the first of them runs. errs.Unsupported: no
// watchdog can be had on this host, so what must not run twice must not run here;
// errs.Unavailable: there is no lease now.
func (f *Fence) Guard(ctx context.Context, id string, groups []string) error {
	it := Item{ID: id, Groups: groups}
	if err := it.check(f.cfg.Group); err != nil {
		return err
	}
	f.mu.Lock()
	if f.deadline <= boot.Now() {
		f.mu.Unlock()
		return errs.New(errs.Unavailable, "guard %s: the host has no lease that lasts", id).WithHint("it takes one when it reaches the pool's leader: atoll get nodes")
	}
	old, had := f.items[id]
	if _, known := f.items[id]; !known && len(f.items) >= maxItems {
		f.mu.Unlock()
		return errs.New(errs.NoCapacity, "guard %s: %d instances that must not run twice are the most for a host", id, maxItems)
	}
	f.items[id], f.listed, f.stale = it, true, true
	f.mu.Unlock()
	err := f.sync(ctx, true)
	if err == nil {
		return nil
	}
	f.mu.Lock()
	if had {
		f.items[id] = old
	} else {
		delete(f.items, id)
	}
	f.stale = true
	f.mu.Unlock()
	f.nudge()
	return unguarded(ctx, id, err)
}

func unguarded(ctx context.Context, what string, err error) error {
	if errors.Is(err, errs.Unavailable) || ctx.Err() != nil {
		return fmt.Errorf("guard %s: %w", what, err)
	}
	return errs.New(errs.Unsupported, "guard %s: the watchdog does not run: %w", what, err).
		WithHint("atoll-watchdog must be installed beside atolld; what must not run twice is not started on this host without it. Try it: atolld watchdog --status")
}

// GuardAll is Guard for what runs already when a daemon begins, or when its host gets company:
// the watchdog has the list of before until it has all of this one, so that nothing is left
// out in between. Unlike Guard's, what is said here stays also when the watchdog cannot be
// told now, and there is an error: Run tells it as soon as it can.
func (f *Fence) GuardAll(ctx context.Context, items []Item) error {
	for _, it := range items {
		if err := it.check(f.cfg.Group); err != nil {
			return err
		}
	}
	f.mu.Lock()
	for _, it := range items {
		f.items[it.ID] = it
	}
	n := len(f.items)
	f.listed, f.stale = true, true
	f.mu.Unlock()
	err := f.sync(ctx, n > 0)
	if err == nil {
		return nil
	}
	f.nudge()
	return unguarded(ctx, fmt.Sprintf("%d instances", len(items)), err)
}

// Unguard is called when nothing of it runs any more. The watchdog learns it soon, and
// until then would only empty what is empty.
func (f *Fence) Unguard(id string) {
	f.mu.Lock()
	if _, ok := f.items[id]; ok {
		delete(f.items, id)
		f.stale = true
	}
	f.mu.Unlock()
	f.nudge()
}

// Guarded lists what is guarded.
func (f *Fence) Guarded() []Item {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Item, 0, len(f.items))
	for _, i := range f.items {
		out = append(out, i)
	}
	sort.Slice(out, func(a, b int) bool { return out[a].ID < out[b].ID })
	return out
}

// Err says why the watchdog does not know what it should; nil when it does. While it is
// not nil the daemon alone keeps the deadline.
func (f *Fence) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Run keeps the watchdog informed and starts it again when it is gone while there is something
// to guard, until ctx ends. The watchdog stays, with the last deadline it was told.
func (f *Fence) Run(ctx context.Context) error {
	defer f.hangUp()
	for {
		f.mu.Lock()
		needed := len(f.items) > 0
		f.mu.Unlock()
		err := f.sync(ctx, needed)
		if ctx.Err() != nil {
			return nil
		}
		f.note(err)
		if err := f.rest(ctx, err != nil); err != nil {
			return nil //nolint:nilerr // only ctx ends it
		}
	}
}

// lookAgain is how often a watchdog that is not told anything is asked whether it is there.
const lookAgain = time.Second

func (f *Fence) rest(ctx context.Context, failed bool) error {
	d := lookAgain
	if failed {
		d = retry
	}
	t := f.cfg.Clock.NewTimer(d)
	defer t.Stop()
	wake := f.wake
	if failed {
		wake = nil // the next try comes soon enough
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wake:
	case <-t.C:
	}
	return nil
}

// note keeps the state for Err and logs when it changes.
func (f *Fence) note(err error) {
	f.mu.Lock()
	was := f.err
	f.err = err
	f.mu.Unlock()
	switch {
	case err != nil && was == nil:
		f.cfg.Log.Error("the watchdog does not run; what must not run twice depends on the daemon alone", "error", err)
	case err == nil && was != nil:
		f.cfg.Log.Info("the watchdog runs again")
	}
}

func (f *Fence) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Find tells whether a watchdog of an earlier daemon is there, and what it last heard.
func (f *Fence) Find(ctx context.Context) (State, error) {
	f.talk.Lock()
	defer f.talk.Unlock()
	if err := f.dial(); err != nil {
		return State{}, err
	}
	return f.ask(ctx, askStatus, nil)
}

// sync tells the watchdog the deadline, and the list when it does not know it. Without
// start, one that is not there is not missed.
func (f *Fence) sync(ctx context.Context, start bool) error {
	f.talk.Lock()
	defer f.talk.Unlock()
	var err error
	for range 3 { // one may just be ending for want of work
		if f.conn == nil {
			if err = f.connect(ctx, start); err != nil {
				if !start {
					return nil
				}
				if ctx.Err() != nil {
					return err
				}
				continue
			}
		}
		if err = f.tell(ctx); err == nil || ctx.Err() != nil {
			return err
		}
		f.hangUpLocked()
	}
	return err
}

// tell is one conversation.
func (f *Fence) tell(ctx context.Context) error {
	f.mu.Lock()
	deadline, stale, listed := f.deadline, f.stale, f.listed
	items := make([]Item, 0, len(f.items))
	for _, i := range f.items {
		items = append(items, i)
	}
	f.stale = false
	f.mu.Unlock()
	if !stale && len(items) == 0 {
		return nil
	}
	st, err := f.told(ctx, deadline, items, stale && listed)
	if err != nil || !listed || deadline <= 0 {
		f.mu.Lock()
		f.stale = true
		f.mu.Unlock()
	}
	if err != nil {
		return err
	}
	if st.Fenced > f.fenced && f.cfg.OnFenced != nil {
		f.cfg.OnFenced()
	}
	f.fenced = st.Fenced
	return nil
}

func (f *Fence) told(ctx context.Context, deadline time.Duration, items []Item, stale bool) (State, error) {
	if deadline <= 0 {
		return f.ask(ctx, askStatus, nil)
	}
	st, err := f.ask(ctx, askSet, encodeTime(deadline))
	if err != nil || !stale {
		return st, err
	}
	if len(items) > 0 && deadline <= boot.Now() {
		return st, errs.New(errs.Unavailable, "the lease has ended")
	}
	return f.ask(ctx, askReplace, encodeItems(items))
}

// ask sends a question and reads the answer.
func (f *Fence) ask(ctx context.Context, k kind, body []byte) (State, error) {
	until := f.cfg.Clock.Now().Add(askPatience)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	if err := f.conn.SetDeadline(until); err != nil {
		return State{}, err
	}
	if err := writeFrame(f.conn, k, body); err != nil {
		return State{}, fmt.Errorf("tell the watchdog: %w", err)
	}
	k, body, err := readFrame(f.conn)
	switch {
	case errors.Is(err, io.EOF):
		return State{}, errs.New(errs.Conflict, "the watchdog has hung up")
	case err != nil:
		return State{}, errs.New(errs.Conflict, "hear the watchdog: %w", err) // whatever kind it was of the frame
	case k == sayRefused:
		return State{}, errs.New(errs.Conflict, "the watchdog refuses: %q", string(body))
	case k != sayState:
		return State{}, errs.New(errs.Conflict, "the watchdog answers with %d", k)
	}
	return decodeState(body)
}

// connect finds the watchdog, or starts one; f.talk is held.
func (f *Fence) connect(ctx context.Context, start bool) error {
	err := f.dial()
	if err == nil || !start {
		return err
	}
	if f.cfg.Start == nil {
		return err
	}
	if err := f.cfg.Start(); err != nil {
		return fmt.Errorf("start the watchdog: %w", err)
	}
	for waited := time.Duration(0); waited < startPatience; waited += 5 * time.Millisecond {
		if err = f.dial(); err == nil {
			return nil
		}
		if serr := f.cfg.Clock.Sleep(ctx, 5*time.Millisecond); serr != nil {
			return errors.Join(serr, err)
		}
	}
	return fmt.Errorf("the watchdog was started and does not answer: %w", err)
}

func (f *Fence) dial() error {
	if f.conn != nil {
		return nil
	}
	c, err := net.DialTimeout("unix", filepath.Join(f.cfg.Run, socketName), askPatience)
	if err != nil {
		return err
	}
	cred, err := peer.Of(c)
	if err == nil && cred.UID != 0 {
		err = errs.New(errs.Denied, "the watchdog's socket is held by user %d", cred.UID)
	}
	if err != nil {
		return errors.Join(err, c.Close())
	}
	f.conn, f.fenced = c, 0
	f.mu.Lock()
	f.stale = true
	f.mu.Unlock()
	return nil
}

func (f *Fence) hangUp() {
	f.talk.Lock()
	defer f.talk.Unlock()
	f.hangUpLocked()
}

func (f *Fence) hangUpLocked() {
	if f.conn != nil {
		_ = f.conn.Close() // nothing is buffered
		f.conn = nil
	}
}

// Status asks the watchdog of a directory, for people. errs.NotFound when there is none.
func Status(ctx context.Context, run string, clk clock.Clock) (State, error) {
	f := New(Config{Run: run, Clock: clk})
	defer f.hangUp()
	st, err := f.Find(ctx)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errRefused) {
		return st, errs.New(errs.NotFound, "no watchdog runs with %s", run).WithHint("one is started with the first instance that must not run twice, in a pool of several hosts")
	}
	return st, err
}

// End asks the watchdog of a directory to end; it does when nothing is guarded. Nil when there is none.
func End(ctx context.Context, run string, clk clock.Clock) error {
	f := New(Config{Run: run, Clock: clk})
	defer f.hangUp()
	f.talk.Lock()
	defer f.talk.Unlock()
	if err := f.dial(); err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errRefused) {
			return nil
		}
		return err
	}
	_, err := f.ask(ctx, askEnd, nil)
	return err
}
