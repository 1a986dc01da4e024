package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// approve takes groups of proposals that have stood long enough, whole, in their
// order, as far as the hour's budget goes.
func (r *Rebalance) approve(ctx context.Context, s store.Store, now time.Time) error {
	ms, err := listMoves(ctx, s)
	if err != nil {
		return err
	}
	left := r.c.PerHour
	size, ripe := map[int64]int{}, map[int64]bool{}
	for _, m := range ms {
		if m.Spec.BegunAt != nil && now.Sub(*m.Spec.BegunAt) < time.Hour {
			left--
		}
		if m.Spec.State == api.MoveProposed {
			if size[m.Spec.Group]++; size[m.Spec.Group] == 1 {
				ripe[m.Spec.Group] = true
			}
			ripe[m.Spec.Group] = ripe[m.Spec.Group] && m.CreatedAt != nil && now.Sub(*m.CreatedAt) >= r.c.MinAge
		}
	}
	taken := map[int64]bool{}
	for _, m := range ms {
		g := m.Spec.Group
		if m.Spec.State != api.MoveProposed || !ripe[g] {
			continue
		}
		if !taken[g] {
			if size[g] > r.c.PerHour {
				continue // advice only: it would never fit
			}
			if size[g] > left {
				return nil // the first comes first; smaller groups must not overtake it for ever
			}
			taken[g] = true
			left -= size[g]
		}
		next := api.Clone(m)
		next.Spec.State = api.MoveApproved
		if err := commit(ctx, s, store.Update(next)); err != nil {
			return fmt.Errorf("approve %s: %w", api.RefOf(m), err)
		}
	}
	return nil
}

// follow looks at the approved moves: it ends those that have come to an end, and
// begins the next, in their turn. busy: some are left.
func (r *Rebalance) follow(ctx context.Context, s store.Store, now time.Time) (busy bool, err error) {
	ms, err := listMoves(ctx, s)
	if err != nil {
		return false, err
	}
	under := 0
	failed := map[int64]bool{}
	for _, m := range ms {
		if m.Spec.State != api.MoveApproved {
			continue
		}
		if failed[m.Spec.Group] && m.Spec.BegunAt == nil {
			if err := r.end(ctx, s, m, api.MoveDropped, "another move of its group was not possible"); err != nil {
				return false, err
			}
			continue
		}
		state, note, err := r.look(ctx, s, m, now)
		if err != nil {
			return false, err
		}
		switch {
		case state == api.MoveApproved && m.Spec.BegunAt != nil:
			under, busy = under+1, true
		case state == api.MoveApproved:
			busy = true
			if under >= r.c.AtOnce {
				continue
			}
			under++
			if err := r.begin(ctx, s, m, now); err != nil {
				return false, err
			}
		default:
			failed[m.Spec.Group] = failed[m.Spec.Group] || state == api.MoveDropped
			if err := r.end(ctx, s, m, state, note); err != nil {
				return false, err
			}
		}
	}
	return busy, nil
}

// look tells what has become of an approved move.
func (r *Rebalance) look(ctx context.Context, s store.Store, m *api.Move, now time.Time) (api.MoveState, string, error) {
	in, err := store.Get[*api.Instance](ctx, s, api.Ref{Kind: api.KindInstance, Tenant: m.Tenant, Name: m.Spec.Instance})
	if errors.Is(err, errs.NotFound) {
		return api.MoveDropped, "the instance is gone", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("read instance of %s: %w", api.RefOf(m), err)
	}
	a, err := store.Get[*api.Assignment](ctx, s, api.Ref{Kind: api.KindAssignment, Tenant: m.Tenant, Name: m.Spec.Instance})
	if err != nil && !errors.Is(err, errs.NotFound) {
		return "", "", fmt.Errorf("read assignment of %s: %w", api.RefOf(m), err)
	}
	begun := m.Spec.BegunAt != nil
	switch {
	case in.UID != m.Spec.InstanceUID || in.DeletedAt != nil || err != nil:
		return api.MoveDropped, "the instance is gone", nil
	case in.Spec.Stopped && !begun:
		return api.MoveDropped, "the instance is stopped", nil
	case begun && a.Spec.Evict == nil && a.Spec.Node == m.Spec.To:
		return api.MoveDone, "", nil
	case begun && a.Spec.Evict == nil && a.Spec.Node != "":
		return api.MoveDropped, fmt.Sprintf("it was placed on %s instead", a.Spec.Node), nil
	case begun && now.Sub(*m.Spec.BegunAt) > moveTimeout:
		return api.MoveDropped, fmt.Sprintf("did not end within %s", moveTimeout), nil
	case !begun && (a.Spec.Node != m.Spec.From || a.Spec.Evict != nil):
		return api.MoveDropped, "it has left " + m.Spec.From + " for another reason", nil
	}
	return api.MoveApproved, "", nil
}

// begin asks the instance to leave, if nothing speaks against it now.
func (r *Rebalance) begin(ctx context.Context, s store.Store, m *api.Move, now time.Time) error {
	f, err := r.read(ctx, s)
	if err != nil {
		return err
	}
	p := f.byUID[m.Spec.InstanceUID]
	to := f.view.Node(m.Spec.To)
	why := "the node " + m.Spec.To + " is gone"
	if p == nil {
		why = "the instance is gone"
	} else if to != nil {
		if why = r.fixed(f, p); why == "" {
			why = newLift(f, r.chain).refusal(p, to)
		}
	}
	if why != "" {
		return r.end(ctx, s, m, api.MoveDropped, why)
	}
	next := api.Clone(m)
	at := now.UTC()
	next.Spec.BegunAt = &at
	if _, err := s.Commit(ctx, store.Update(next)); err != nil {
		if errors.Is(err, errs.Conflict) || errors.Is(err, errs.NotFound) {
			return nil
		}
		return fmt.Errorf("begin %s: %w", api.RefOf(m), err)
	}
	ref := api.Ref{Kind: api.KindAssignment, Tenant: m.Tenant, Name: m.Spec.Instance}
	return markEvicted(ctx, s, ref, m.Spec.InstanceUID, api.Eviction{At: at, Reason: "moves to " + m.Spec.To + ": " + m.Spec.Reason, To: m.Spec.To})
}
