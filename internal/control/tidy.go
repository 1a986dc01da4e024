package control

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Tidy removes what has served its time: events that are old or too many, images, budgets
// and workloads of tenants that are gone, tokens that expired long ago, and drop rules whose time is over.
type Tidy struct {
	clock clock.Clock
}

const (
	eventLife       = 24 * time.Hour
	eventsPerTenant = 1000
	tokenAfterlife  = 7 * 24 * time.Hour // an expired token is shown as expired so long
	tidyEvery       = 10 * time.Minute
)

// NewTidy makes the controller.
func NewTidy(d Deps) *Tidy { return &Tidy{clock: d.Clock} }

// Name is "tidy".
func (t *Tidy) Name() string { return "tidy" }

// Watches tenants and tokens; events are looked at per tenant, not one by one.
func (t *Tidy) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindTenant}, {Kind: api.KindToken}, {Kind: api.KindJoinToken}, {Kind: api.KindDropRule}}
}

// left is what tenants leave behind. A workload of a tenant that is gone has no instances:
// a tenant with instances cannot be removed.
var left = []api.Kind{api.KindImage, api.KindAddress, api.KindNetwork, api.KindPeering, api.KindRoute, api.KindSecurityGroup, api.KindDisruptionBudget, api.KindDeployment, api.KindRevision, api.KindJob, api.KindCronJob}

// Owns events, tokens, and what tenants leave behind.
func (t *Tidy) Owns() []api.Kind {
	return append([]api.Kind{api.KindEvent, api.KindToken, api.KindJoinToken, api.KindDropRule}, left...)
}

// Reconcile looks at one tenant's events, or at one token.
func (t *Tidy) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if ref.Kind == api.KindToken || ref.Kind == api.KindJoinToken || ref.Kind == api.KindDropRule {
		return t.token(ctx, s, ref)
	}
	events, _, err := store.List[*api.Event](ctx, s, api.Selector{Kind: api.KindEvent, Tenant: ref.Name})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list events of %s: %w", ref.Name, err)
	}
	sort.Slice(events, func(i, j int) bool { return events[i].Spec.Last.After(events[j].Spec.Last) })
	oldest := t.clock.Now().Add(-eventLife)
	_, terr := s.Get(ctx, ref)
	gone := errors.Is(terr, errs.NotFound)
	for i, e := range events {
		if i < eventsPerTenant && e.Spec.Last.After(oldest) && !gone {
			continue
		}
		if _, err := s.Commit(ctx, store.Remove(api.RefOf(e), store.Any)); err != nil && !errors.Is(err, errs.NotFound) {
			return reconcile.Result{}, fmt.Errorf("remove %s: %w", api.RefOf(e), err)
		}
	}
	if gone {
		return reconcile.Result{}, forgetAll(ctx, s, ref.Name)
	}
	return reconcile.Result{Again: tidyEvery}, nil
}

// forgetAll removes what a tenant that is gone has left.
func forgetAll(ctx context.Context, s store.Store, tenant string) error {
	for _, k := range left {
		list, _, err := s.List(ctx, api.Selector{Kind: k, Tenant: tenant})
		if err != nil {
			return fmt.Errorf("list %s of %s: %w", k, tenant, err)
		}
		for _, o := range list {
			if _, err := s.Commit(ctx, store.Remove(api.RefOf(o), store.Any)); err != nil && !errors.Is(err, errs.NotFound) {
				return fmt.Errorf("remove %s: %w", api.RefOf(o), err)
			}
		}
	}
	return nil
}

func expiry(o api.Object) *time.Time {
	switch o := o.(type) {
	case *api.Token:
		return o.Spec.ExpiresAt
	case *api.JoinToken:
		return o.Spec.ExpiresAt
	case *api.DropRule:
		return o.Spec.ExpiresAt
	}
	return nil
}

func (t *Tidy) token(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	tok, err := s.Get(ctx, ref)
	if errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	end := expiry(tok)
	if end == nil {
		return reconcile.Result{}, nil
	}
	afterlife := tokenAfterlife
	if ref.Kind == api.KindDropRule {
		afterlife = 0
	}
	if left := end.Add(afterlife).Sub(t.clock.Now()); left > 0 {
		return reconcile.Result{Again: left}, nil
	}
	if _, err := s.Commit(ctx, store.Remove(ref, tok.Metadata().Revision)); err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("remove %s: %w", ref, err)
	}
	return reconcile.Result{}, nil
}
