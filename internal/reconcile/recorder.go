package reconcile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Recorder tells stories about objects as api.Event. Record never blocks: events
// are gathered and written together by Run, so that they cost the way of a
// request nothing. A repeat is counted on the event that is there already.
type Recorder struct {
	store  store.Store
	clock  clock.Clock
	log    *slog.Logger
	source string

	mu      sync.Mutex
	pending map[api.Ref]*api.Event
	order   []api.Ref
	wake    chan struct{} // there is something to write
}

const (
	recordEvery = 200 * time.Millisecond
	recordMost  = 1000 // pending events; more are dropped, being news and not state
	recordBatch = 50   // events per commit
)

// NewRecorder makes a recorder that signs as source.
func NewRecorder(s store.Store, c clock.Clock, log *slog.Logger, source string) *Recorder {
	return &Recorder{store: s, clock: c, log: log, source: source, pending: map[api.Ref]*api.Event{}, wake: make(chan struct{}, 1)}
}

// Record notes that something happened to about. typ is "normal" or "warning".
func (r *Recorder) Record(about api.Ref, uid, typ, reason, message string) {
	if about.Tenant == "" {
		return // pool-wide things speak by conditions
	}
	sum := sha256.Sum256([]byte(about.String() + "\x00" + uid + "\x00" + reason + "\x00" + message))
	name := "e" + hex.EncodeToString(sum[:10])
	ref := api.Ref{Kind: api.KindEvent, Tenant: about.Tenant, Name: name}
	now := r.clock.Now().UTC()
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.pending[ref]; e != nil {
		e.Spec.Count++
		e.Spec.Last = now
		return
	}
	if len(r.pending) >= recordMost {
		return
	}
	r.pending[ref] = &api.Event{
		Head: api.Head{K: api.KindEvent, Meta: api.Meta{Name: name, Tenant: about.Tenant, CreatedAt: &now}},
		Spec: api.EventSpec{About: about, Type: typ, Reason: reason, Message: message, Source: r.source, Count: 1, First: now, Last: now},
	}
	r.order = append(r.order, ref)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run writes what was recorded until ctx ends, then once more.
func (r *Recorder) Run(ctx context.Context) error {
	for {
		var err error
		select { // nothing wakes a process that has nothing to tell
		case <-r.wake:
			err = r.clock.Sleep(ctx, recordEvery)
		case <-ctx.Done():
			err = ctx.Err()
		}
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		r.Flush(fctx)
		cancel()
		if err != nil {
			return err
		}
	}
}

// Flush writes what is pending.
func (r *Recorder) Flush(ctx context.Context) {
	for {
		batch := r.take()
		if len(batch) == 0 {
			return
		}
		ops := make([]store.Op, 0, len(batch))
		for _, e := range batch {
			old, err := store.Get[*api.Event](ctx, r.store, api.RefOf(e))
			if err == nil {
				e.Spec.Count += old.Spec.Count
				e.Spec.First, e.CreatedAt = old.Spec.First, old.CreatedAt
			} else if !errors.Is(err, errs.NotFound) {
				r.log.Warn("events are lost", "count", len(batch), "error", err)
				return
			}
			ops = append(ops, store.Set(e))
		}
		if _, err := r.store.Commit(ctx, ops...); err != nil {
			r.log.Warn("events are lost", "count", len(batch), "error", err)
			return
		}
	}
}

func (r *Recorder) take() []*api.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.order), recordBatch)
	out := make([]*api.Event, n)
	for i, ref := range r.order[:n] {
		out[i] = r.pending[ref]
		delete(r.pending, ref)
	}
	r.order = r.order[n:]
	return out
}
