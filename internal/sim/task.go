package sim

import (
	"container/heap"
	"context"
	"iter"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

// skewed is the pool's clock as one machine reads it. Its Sleep does not wait: it
// puts the call that sleeps aside until the simulated time has come.
type skewed struct {
	*clock.Manual
	offset time.Duration
	crew   *crew
}

// Now is what the machine believes.
func (c *skewed) Now() time.Time { return c.Manual.Now().Add(c.offset) }

// Sleep lets the rest of the world go on for d.
func (c *skewed) Sleep(ctx context.Context, d time.Duration) error { return c.crew.sleep(ctx, d) }

// crew runs calls that may take simulated time. Each call is a coroutine: at any
// moment one of them runs, in the goroutine of the simulation, and it runs until it
// ends or sleeps. So nothing is concurrent, and everything happens in a fixed order.
type crew struct {
	clk      *clock.Manual
	cur      *task
	idle     []*task
	sleepers sleepHeap
	seq      int
}

// task is a coroutine that does one call after the other.
type task struct {
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	job   func()
	owner *host
	dead  bool
}

type sleeper struct {
	at   time.Time
	seq  int
	task *task
}

func newTask() *task {
	t := &task{}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		for !t.dead {
			t.job()
			t.job = nil
			if t.dead || !yield(struct{}{}) {
				return
			}
		}
	})
	return t
}

// maxIdle bounds the coroutines that are kept for the next call.
const maxIdle = 1024

// run begins a call for a host; it returns when the call ends or sleeps.
func (c *crew) run(h *host, job func()) {
	var t *task
	if n := len(c.idle); n > 0 {
		t, c.idle = c.idle[n-1], c.idle[:n-1]
	} else {
		t = newTask()
	}
	t.job, t.owner = job, h
	c.resume(t)
}

func (c *crew) resume(t *task) {
	outer := c.cur
	c.cur = t
	t.next()
	c.cur = outer
	switch {
	case t.job != nil || t.dead:
	case len(c.idle) < maxIdle:
		t.owner = nil
		c.idle = append(c.idle, t)
	default:
		c.end(t)
	}
}

func (c *crew) sleep(ctx context.Context, d time.Duration) error {
	t := c.cur
	if t == nil {
		return errs.New(errs.Internal, "something slept outside of a call; nobody would wake it")
	}
	if t.dead {
		return context.Canceled
	}
	if d <= 0 || ctx.Err() != nil {
		return ctx.Err()
	}
	c.seq++
	heap.Push(&c.sleepers, sleeper{at: c.clk.Now().Add(d), seq: c.seq, task: t})
	if !t.yield(struct{}{}) {
		t.dead = true
		return context.Canceled
	}
	return ctx.Err()
}

// wake resumes one call whose time has come and gives its host; nil when none is due.
func (c *crew) wake(now time.Time) *host {
	if len(c.sleepers) == 0 || c.sleepers[0].at.After(now) {
		return nil
	}
	t := heap.Pop(&c.sleepers).(sleeper).task
	h := t.owner
	c.resume(t)
	return h
}

// kill ends the sleeping calls of a host, as when it loses power; nil: of all.
func (c *crew) kill(h *host) {
	var keep sleepHeap
	var doomed []*task
	for _, s := range c.sleepers {
		if h == nil || s.task.owner == h {
			doomed = append(doomed, s.task)
		} else {
			keep = append(keep, s)
		}
	}
	if len(doomed) == 0 {
		return
	}
	c.sleepers = keep
	heap.Init(&c.sleepers)
	for _, t := range doomed {
		c.end(t)
	}
}

func (c *crew) end(t *task) {
	outer := c.cur
	c.cur, t.dead = t, true
	t.stop()
	c.cur = outer
}

// close ends all coroutines.
func (c *crew) close() {
	c.kill(nil)
	for _, t := range c.idle {
		c.end(t)
	}
	c.idle = nil
}

// sleepHeap orders by time, then by who slept first.
type sleepHeap []sleeper

func (h sleepHeap) Len() int { return len(h) }
func (h sleepHeap) Less(i, j int) bool {
	return h[i].at.Before(h[j].at) || h[i].at.Equal(h[j].at) && h[i].seq < h[j].seq
}
func (h sleepHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *sleepHeap) Push(x any) { *h = append(*h, x.(sleeper)) }

// Pop implements heap.Interface.
func (h *sleepHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	*h = old[:len(old)-1]
	return s
}

// agenda is what will happen, in order of time and then of being noted.
type agenda struct {
	items []event
	seq   int
}

type event struct {
	at  time.Time
	seq int
	do  func(ctx context.Context) error
}

func (a *agenda) note(at time.Time, do func(ctx context.Context) error) {
	a.seq++
	heap.Push(a, event{at, a.seq, do})
}

func (a *agenda) Len() int { return len(a.items) }
func (a *agenda) Less(i, j int) bool {
	x, y := &a.items[i], &a.items[j]
	return x.at.Before(y.at) || x.at.Equal(y.at) && x.seq < y.seq
}
func (a *agenda) Swap(i, j int) { a.items[i], a.items[j] = a.items[j], a.items[i] }

// Push implements heap.Interface.
func (a *agenda) Push(x any) { a.items = append(a.items, x.(event)) }

// Pop implements heap.Interface.
func (a *agenda) Pop() any {
	n := len(a.items) - 1
	e := a.items[n]
	a.items[n] = event{}
	a.items = a.items[:n]
	return e
}

// wakeups is when hosts have something to do by themselves; entries may be stale.
type wakeups []wakeup

type wakeup struct {
	at time.Time
	h  *host
}

func (w wakeups) Len() int { return len(w) }
func (w wakeups) Less(i, j int) bool {
	return w[i].at.Before(w[j].at) || w[i].at.Equal(w[j].at) && w[i].h.idx < w[j].h.idx
}
func (w wakeups) Swap(i, j int) { w[i], w[j] = w[j], w[i] }

// Push implements heap.Interface.
func (w *wakeups) Push(x any) { *w = append(*w, x.(wakeup)) }

// Pop implements heap.Interface.
func (w *wakeups) Pop() any {
	old := *w
	x := old[len(old)-1]
	*w = old[:len(old)-1]
	return x
}
