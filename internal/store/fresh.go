package store

import (
	"context"
	"encoding/json"

	"atoll/api"
)

// Fresh reads from a Cache what is true now, whoever wrote it: it asks how far to read,
// then lets the mirror come that far (ADR 0009). What it commits goes to the Store
// given. It is what a server of several answers from.
type Fresh struct {
	Store
	cache *Cache
	src   Syncer
}

// NewFresh reads from c, commits to s. src is best a Shared.
func NewFresh(s Store, c *Cache, src Syncer) *Fresh { return &Fresh{Store: s, cache: c, src: src} }

func (f *Fresh) sync(ctx context.Context) (int64, error) { return f.src.Sync(ctx) }

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
