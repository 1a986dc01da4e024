package reconcile

import (
	"container/heap"
	"context"
	"errors"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

const (
	backoffFirst = 20 * time.Millisecond
	backoffMost  = 30 * time.Second
)

// queue holds names to look at: each once, in the order they came, none while it
// is being worked on, some only later.
type queue struct {
	clock clock.Clock
	wake  chan struct{} // a token when something may be ready

	mu      sync.Mutex
	closed  bool
	ready   []api.Ref
	queued  map[api.Ref]bool // in ready
	working map[api.Ref]bool
	dirty   map[api.Ref]bool // came again while being worked on
	fails   map[api.Ref]int
	later   delayHeap
	polls   delayHeap // those of later that only poll, apart
	due     map[api.Ref]*delayed
	seq     int
}

type delayed struct {
	ref   api.Ref
	at    time.Time
	seq   int
	index int
	poll  bool
}

func newQueue(c clock.Clock) *queue {
	return &queue{clock: c, wake: make(chan struct{}, 1), queued: map[api.Ref]bool{}, working: map[api.Ref]bool{},
		dirty: map[api.Ref]bool{}, fails: map[api.Ref]int{}, due: map[api.Ref]*delayed{}}
}

func (q *queue) add(ref api.Ref) {
	q.mu.Lock()
	q.push(ref)
	q.mu.Unlock()
	q.signal()
}

func (q *queue) push(ref api.Ref) {
	if d := q.due[ref]; d != nil {
		heap.Remove(q.heapOf(d.poll), d.index)
		delete(q.due, ref)
	}
	switch {
	case q.working[ref]:
		q.dirty[ref] = true
	case !q.queued[ref]:
		q.queued[ref] = true
		q.ready = append(q.ready, ref)
	}
}

func (q *queue) heapOf(poll bool) *delayHeap {
	if poll {
		return &q.polls
	}
	return &q.later
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

// done ends the work on ref: after an error it comes again with a growing pause
// (a conflict at once: somebody was faster, the new state is there already).
func (q *queue) done(ref api.Ref, res Result, err error) {
	again, poll := res.Again, res.Poll && err == nil
	q.mu.Lock()
	delete(q.working, ref)
	switch {
	case errors.Is(err, errs.Conflict) && q.fails[ref] < 3:
		q.fails[ref]++
		q.push(ref)
	case err != nil:
		n := q.fails[ref]
		q.fails[ref] = n + 1
		again = min(backoffFirst<<min(n, 20), backoffMost)
	default:
		delete(q.fails, ref)
	}
	if q.dirty[ref] {
		delete(q.dirty, ref)
		q.push(ref)
	} else if again > 0 && !q.queued[ref] {
		d := &delayed{ref: ref, at: q.clock.Now().Add(again), seq: q.seq, poll: poll}
		q.seq++
		q.due[ref] = d
		heap.Push(q.heapOf(poll), d)
	}
	q.mu.Unlock()
	q.signal()
}

// try gives the next name that is due now.
func (q *queue) try() (api.Ref, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.take()
}

func (q *queue) take() (api.Ref, bool) {
	now := q.clock.Now()
	for _, h := range []*delayHeap{&q.later, &q.polls} {
		for len(*h) > 0 && !(*h)[0].at.After(now) {
			q.push((*h)[0].ref) // takes it off the heap
		}
	}
	if len(q.ready) == 0 || q.closed {
		return api.Ref{}, false
	}
	ref := q.ready[0]
	q.ready = q.ready[1:]
	delete(q.queued, ref)
	q.working[ref] = true
	return ref, true
}

// next waits for a name; false when the queue is closed or ctx ends.
func (q *queue) next(ctx context.Context) (api.Ref, bool) {
	for {
		q.mu.Lock()
		ref, ok := q.take()
		closed, more := q.closed, len(q.ready) > 0
		var wait time.Duration = time.Hour
		if at, ok := q.earliest(); ok {
			wait = at.Sub(q.clock.Now())
		}
		q.mu.Unlock()
		if ok {
			if more {
				q.signal() // another worker may take the next
			}
			return ref, true
		}
		if closed {
			q.signal() // pass it on to the other workers
			return api.Ref{}, false
		}
		t := q.clock.NewTimer(wait)
		select {
		case <-q.wake:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return api.Ref{}, false
		}
		t.Stop()
	}
}

func (q *queue) nextAt() (time.Time, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ready) > 0 {
		return q.clock.Now(), true
	}
	return q.earliest()
}

// earliest is when the first of what is delayed is due. Called with mu held.
func (q *queue) earliest() (at time.Time, ok bool) {
	for _, h := range []delayHeap{q.later, q.polls} {
		if len(h) > 0 && (!ok || h[0].at.Before(at)) {
			at, ok = h[0].at, true
		}
	}
	return at, ok
}

func (q *queue) nextWork() (time.Time, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ready) > 0 {
		return q.clock.Now(), true
	}
	if len(q.later) == 0 {
		return time.Time{}, false
	}
	return q.later[0].at, true
}

// delayHeap orders by time, then by when it was put off.
type delayHeap []*delayed

func (h delayHeap) Len() int { return len(h) }
func (h delayHeap) Less(i, j int) bool {
	return h[i].at.Before(h[j].at) || h[i].at.Equal(h[j].at) && h[i].seq < h[j].seq
}
func (h delayHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }

// Push implements heap.Interface.
func (h *delayHeap) Push(x any) { d := x.(*delayed); d.index = len(*h); *h = append(*h, d) }

// Pop implements heap.Interface.
func (h *delayHeap) Pop() any {
	old := *h
	d := old[len(old)-1]
	*h = old[:len(old)-1]
	return d
}
