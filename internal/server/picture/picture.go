// Package picture keeps package auth's picture of users, roles, bindings, tokens and
// hosts as the store has it. It starts goroutines only inside Follow, which waits for them.
package picture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Picture follows the store for an Authority.
type Picture struct {
	Store store.Store
	Auth  *auth.Authority
	Clock clock.Clock
	Log   *slog.Logger
}

const retry = 200 * time.Millisecond

// Follow keeps the picture current until ctx ends, which is no error. loaded is closed when it is
// complete for the first time.
func (p *Picture) Follow(ctx context.Context, loaded chan<- struct{}) error {
	first := true
	for {
		revs, err := p.load(ctx)
		if err == nil {
			if first {
				close(loaded)
				first = false
			}
			err = p.watch(ctx, revs)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, errs.Compacted) {
			p.Log.Warn("following users and roles", slog.Any("error", err))
		}
		if p.Clock.Sleep(ctx, retry) != nil {
			return nil
		}
	}
}

// Load reads everything once.
func (p *Picture) Load(ctx context.Context) error {
	_, err := p.load(ctx)
	return err
}

func (p *Picture) load(ctx context.Context) (map[api.Kind]int64, error) {
	var all []api.Object
	revs := map[api.Kind]int64{}
	for _, k := range auth.Kinds() {
		objs, rev, err := p.Store.List(ctx, api.Selector{Kind: k})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", k, err)
		}
		all, revs[k] = append(all, objs...), rev
	}
	p.Auth.Reset(all)
	return revs, nil
}

func (p *Picture) watch(ctx context.Context, revs map[api.Kind]int64) error {
	g, ctx := errgroup.WithContext(ctx)
	for k, rev := range revs {
		g.Go(func() error {
			return p.Store.Watch(ctx, api.Selector{Kind: k}, rev, func(ev store.Event) error {
				p.Learn(ev)
				return nil
			})
		})
	}
	return g.Wait()
}

// Learn takes in one change.
func (p *Picture) Learn(ev store.Event) {
	if ev.Deleted {
		p.Auth.Delete(api.RefOf(ev.Object), ev.Rev)
		return
	}
	p.Auth.Put(ev.Object)
}
