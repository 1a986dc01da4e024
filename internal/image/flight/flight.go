// Package flight is work under way: done once for all who need it at the same time, and
// called off when the last of them has gone.
//
// A Group owns the goroutine of each piece of work; whoever leaves last waits for it. It
// must never give one caller the error of another one's leaving.
package flight

import (
	"context"
	"sync"

	"atoll/api"
)

// Group lets callers that need the same thing at the same time share one
// attempt at it. The work ends when it is done or when the last caller has gone;
// whoever is last waits for it.
type Group[T any] struct {
	mu  sync.Mutex
	now map[string]*flight[T]
}

type flight[T any] struct {
	cancel  context.CancelFunc
	done    chan struct{}
	val     T
	err     error
	waiters int
	left    bool // called off because all had gone

	mu    sync.Mutex
	last  api.Progress
	tells map[int]func(api.Progress)
	next  int
}

// Idle tells whether nothing is under way.
func (f *Group[T]) Idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.now) == 0
}

// Do runs work for key, or joins the run under way. work gets a context that lives
// as long as anybody waits, and a function to report progress to all of them.
func (f *Group[T]) Do(ctx context.Context, key string, tell func(api.Progress), work func(context.Context, func(api.Progress)) (T, error)) (T, error) {
	for {
		val, err, left := f.join(ctx, key, tell, work)
		// A run that was called off because all others left is nobody's answer to us.
		if left && ctx.Err() == nil {
			continue
		}
		return val, err
	}
}

func (f *Group[T]) join(ctx context.Context, key string, tell func(api.Progress), work func(context.Context, func(api.Progress)) (T, error)) (val T, err error, left bool) {
	f.mu.Lock()
	fl := f.now[key]
	if fl == nil {
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight[T]{cancel: cancel, done: make(chan struct{}), tells: map[int]func(api.Progress){}}
		if f.now == nil {
			f.now = map[string]*flight[T]{}
		}
		f.now[key] = fl
		go func() {
			defer cancel()
			fl.val, fl.err = work(run, fl.tell)
			f.mu.Lock()
			delete(f.now, key)
			f.mu.Unlock()
			close(fl.done)
		}()
	}
	fl.waiters++
	f.mu.Unlock()
	defer fl.listen(tell)()
	select {
	case <-fl.done:
	case <-ctx.Done():
	}
	f.mu.Lock()
	fl.waiters--
	last := fl.waiters == 0
	if last {
		select {
		case <-fl.done:
		default:
			fl.left = true
		}
		fl.cancel()
	}
	f.mu.Unlock()
	if last {
		<-fl.done
	}
	select {
	case <-fl.done:
	default:
		return val, ctx.Err(), false
	}
	f.mu.Lock()
	left = fl.left && fl.err != nil
	f.mu.Unlock()
	return fl.val, fl.err, left
}

// listen adds a listener, who first hears where things stand.
func (fl *flight[T]) listen(tell func(api.Progress)) (stop func()) {
	if tell == nil {
		return func() {}
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	id := fl.next
	fl.next++
	fl.tells[id] = tell
	if fl.last.ID != "" {
		tell(fl.last)
	}
	return func() {
		fl.mu.Lock()
		defer fl.mu.Unlock()
		delete(fl.tells, id)
	}
}

func (fl *flight[T]) tell(p api.Progress) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.last = p
	for _, t := range fl.tells {
		t(p)
	}
}
