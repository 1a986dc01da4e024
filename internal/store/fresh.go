package store

import (
	"context"
	"encoding/json"
	"sync"

	"atoll/api"
)

// Syncer tells how far a reader must have come to have missed nothing.
type Syncer interface {
	// Sync gives a revision not older than anything acknowledged before the call, by
	// whichever server.
	Sync(ctx context.Context) (rev int64, err error)
	// Sole reports whether nobody else writes: then there is nothing to ask.
	Sole() bool
}

// Fresh reads from a Cache what is true now, whoever wrote it: it asks once for all
// reads that wait, then lets the mirror come that far (ADR 0009). What it commits goes
// to the Store given. It is what a server of several answers from.
type Fresh struct {
	Store
	cache *Cache
	src   Syncer

	mu   sync.Mutex
	busy bool
	next *question // is asked when the present one is answered
}

// question is one Sync, for all who came before it was asked.
type question struct {
	turn, done chan struct{}
	rev        int64
	err        error
}

// NewFresh reads from c, commits to s.
func NewFresh(s Store, c *Cache, src Syncer) *Fresh { return &Fresh{Store: s, cache: c, src: src} }

// sync gives the revision to read at. A question that was asked before the call cannot
// answer it, so those who come meanwhile share the next one; the first of them asks it.
func (f *Fresh) sync(ctx context.Context) (int64, error) {
	if f.src.Sole() {
		return 0, nil
	}
	f.mu.Lock()
	q, mine := f.next, false
	if q == nil {
		q, mine = &question{turn: make(chan struct{}), done: make(chan struct{})}, true
		if f.busy {
			f.next = q
		} else {
			f.busy = true
			close(q.turn)
		}
	}
	f.mu.Unlock()
	if mine {
		<-q.turn                                              // bounded, as the question before it is
		q.rev, q.err = f.src.Sync(context.WithoutCancel(ctx)) // others wait for it, too
		f.answered(q)
		return q.rev, q.err
	}
	select {
	case <-q.done:
		return q.rev, q.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// answered lets those go who waited for q, and gives the turn to the next.
func (f *Fresh) answered(q *question) {
	close(q.done)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		f.busy = false
		return
	}
	close(f.next.turn)
	f.next = nil
}

// Get reads one object as it is now.
func (f *Fresh) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	rev, err := f.sync(ctx)
	if err != nil {
		return nil, err
	}
	if ok, err := f.cache.reach(ctx, ref.Kind, rev); err != nil {
		return nil, err
	} else if !ok {
		return f.cache.src.Get(ctx, ref)
	}
	return f.cache.Get(ctx, ref)
}

// List reads the chosen objects as they are now.
func (f *Fresh) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	rev, err := f.sync(ctx)
	if err != nil {
		return nil, 0, err
	}
	sel.MinRev = max(sel.MinRev, rev)
	return f.cache.List(ctx, sel)
}

// ListEncoded is List giving each object's JSON; see Cache.ListEncoded.
func (f *Fresh) ListEncoded(ctx context.Context, sel api.Selector) ([]json.RawMessage, int64, error) {
	rev, err := f.sync(ctx)
	if err != nil {
		return nil, 0, err
	}
	sel.MinRev = max(sel.MinRev, rev)
	return f.cache.ListEncoded(ctx, sel)
}
