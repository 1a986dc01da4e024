package main

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/store"
)

var errChanged = errors.New("something changed")

// members follows what atolld follows beside its agent: which servers there are, whether
// its host shall keep the state (cmd/atolld: onChange), and what upgrades want of it.
func (h *host) members(ctx context.Context, st store.Store) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range []struct {
		st  store.Store
		sel api.Selector
	}{{st, api.Selector{Kind: api.KindMember}}, {h.rs, api.Selector{Kind: api.KindMember, Name: h.name}}, {h.rs, api.Selector{Kind: api.KindUpgrade, Name: api.PoolName}}} {
		st, sel := w.st, w.sel
		g.Go(func() error {
			for {
				_, rev, err := st.List(ctx, sel)
				if err == nil {
					err = st.Watch(ctx, sel, rev, func(store.Event) error { return errChanged })
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if !errors.Is(err, errChanged) {
					return err
				}
			}
		})
	}
	return g.Wait()
}
