package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"atoll/internal/fence"
)

// warden guards what must not run twice as soon as this host is not the only one: alone,
// nothing of it can be started elsewhere, and no watchdog is needed.
type warden struct {
	fence *fence.Fence
	log   *slog.Logger
	wake  chan struct{}

	mu    sync.Mutex
	alone bool
	known bool                // what runs here has been told
	items map[string][]string // groups by instance
}

func newWarden(f *fence.Fence, log *slog.Logger) *warden {
	return &warden{fence: f, log: log, wake: make(chan struct{}, 1), alone: true, items: map[string][]string{}}
}

// extend is told of every heartbeat that was acknowledged.
func (w *warden) extend(end time.Duration, alone bool) {
	if !alone {
		w.fence.Extend(end)
	}
	w.mu.Lock()
	grown := w.alone && !alone
	w.alone = alone
	w.mu.Unlock()
	if grown {
		poke(w.wake)
	}
}

// settle returns nil when the watchdog, if there is one, knows what extend was told last.
func (w *warden) settle(ctx context.Context) error {
	w.mu.Lock()
	alone := w.alone
	w.mu.Unlock()
	if alone {
		return nil
	}
	return w.fence.Settle(ctx)
}

// Guard has an instance stopped when the lease ends.
func (w *warden) Guard(ctx context.Context, id string, groups []string) error {
	w.mu.Lock()
	w.items[id] = groups
	alone := w.alone
	w.mu.Unlock()
	if alone {
		return nil
	}
	err := w.fence.Guard(ctx, id, groups)
	if err != nil {
		w.mu.Lock()
		delete(w.items, id)
		w.mu.Unlock()
	}
	return err
}

// GuardAll is told, once and before anything else, what runs here already.
func (w *warden) GuardAll(ctx context.Context, groups map[string][]string) error {
	w.mu.Lock()
	for id, g := range groups {
		w.items[id] = g
	}
	w.known = true
	w.mu.Unlock()
	return w.all(ctx)
}

// Unguard is told that an instance has ended.
func (w *warden) Unguard(id string) {
	w.mu.Lock()
	_, had := w.items[id]
	delete(w.items, id)
	w.mu.Unlock()
	if had {
		w.fence.Unguard(id)
	}
}

// run keeps the watchdog current, and guards what runs already when a second host comes.
func (w *warden) run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = each(ctx, w.wake, func() {
			if err := w.all(ctx); err != nil {
				w.log.Error("what must not run twice is not guarded", "error", err)
			}
		})
	}) // ends with ctx
	err := w.fence.Run(ctx)
	wg.Wait()
	return err
}

// all has everything guarded at once, unless this host is alone.
func (w *warden) all(ctx context.Context) error {
	w.mu.Lock()
	if w.alone || !w.known {
		w.mu.Unlock()
		return nil
	}
	items := make([]fence.Item, 0, len(w.items))
	for id, g := range w.items {
		items = append(items, fence.Item{ID: id, Groups: g})
	}
	w.mu.Unlock()
	return w.fence.GuardAll(ctx, items)
}
