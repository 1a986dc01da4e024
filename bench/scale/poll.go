package main

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// How often atolld asks where the servers are, and whether its host shall keep the
// state (cmd/atolld: refreshEvery, partPoll).
const (
	refreshEvery = 5 * time.Second
	partPoll     = 2 * time.Second
)

// poll asks what atolld asks beside its agent.
func (h *host) poll(ctx context.Context, st store.Store) error {
	g, ctx := errgroup.WithContext(ctx)
	every := func(d time.Duration, ask func() error) {
		g.Go(func() error {
			for (clock.Real{}).Sleep(ctx, d) == nil {
				if err := ask(); err != nil && ctx.Err() == nil && errs.KindOf(err) != errs.NotFound {
					h.log.Warn("cannot ask", "error", err)
				}
			}
			return ctx.Err()
		})
	}
	every(refreshEvery, func() error {
		_, _, err := store.List[*api.Member](ctx, st, api.Selector{Kind: api.KindMember})
		return err
	})
	every(partPoll, func() error {
		_, err := store.Get[*api.Member](ctx, st, api.Ref{Kind: api.KindMember, Name: h.name})
		return err
	})
	return g.Wait()
}
