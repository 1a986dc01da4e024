package lease

import (
	"context"
	"errors"
	"fmt"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Lead takes the lease of the control plane's leader, from whoever has it: that this
// process leads was found out before. It gives the revision that the leader's commits
// expect. Whoever led before can write nothing after it, so what the Store shows from
// here on is everything that was ever decided.
func Lead(ctx context.Context, s store.Store, c clock.Clock, holder string) (rev int64, err error) {
	for {
		next := &api.Lease{Head: api.Head{K: api.KindLease, Meta: api.Meta{Name: api.LeaseLeader}}}
		op := store.Create(next)
		old, err := store.Get[*api.Lease](ctx, s, api.LeaderLease())
		switch {
		case err == nil:
			next = api.Clone(old)
			op = store.Update(next)
		case !errors.Is(err, errs.NotFound):
			return 0, fmt.Errorf("take the lead: %w", err)
		}
		now := c.Now().UTC()
		if next.CreatedAt == nil {
			next.CreatedAt = &now
		}
		next.Spec = api.LeaseSpec{Holder: holder, Epoch: next.Spec.Epoch + 1, State: api.LeaseHeld, Since: now}
		rev, err := s.Commit(ctx, op)
		if errors.Is(err, errs.Conflict) || errors.Is(err, errs.Exists) {
			continue // read before the other's write was seen
		}
		if err != nil {
			return 0, fmt.Errorf("take the lead: %w", err)
		}
		return rev, nil
	}
}

// Replaced returns when the leader's lease has moved on from rev, or with ctx's error.
func Replaced(ctx context.Context, s store.Store, rev int64) error {
	moved := errors.New("moved")
	for {
		err := s.Watch(ctx, api.Selector{Kind: api.KindLease, Name: api.LeaseLeader}, rev, func(ev store.Event) error {
			if ev.Rev > rev {
				return moved
			}
			return nil
		})
		if errors.Is(err, moved) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, errs.Compacted) {
			continue
		}
		l, err := store.Get[*api.Lease](ctx, s, api.LeaderLease())
		if err == nil && l.Revision != rev {
			return nil
		}
	}
}
