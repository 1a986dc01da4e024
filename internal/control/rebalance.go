package control

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/balance"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// RebalanceMode is what becomes of proposals.
type RebalanceMode string

// The modes. Off is the zero value: the controller is not there.
const (
	RebalanceOff    RebalanceMode = ""
	RebalanceAdvise RebalanceMode = "advise" // proposals are kept where users see them, nothing moves
	RebalanceAuto   RebalanceMode = "auto"   // proposals that last are carried out, within the budget
)

// RebalanceConfig is how the pool is kept in shape.
type RebalanceConfig struct {
	Mode RebalanceMode
	// Every is the pause between two looks at the pool. Default 5m: shorter, and the
	// load of a moment decides.
	Every time.Duration
	// PerHour bounds the moves begun within an hour. Default 20.
	PerHour int
	// AtOnce bounds the moves that are under way. Default 1.
	AtOnce int
	// MinAge is how long a proposal must have stood before it is carried out. Default
	// twice Every, so that a peak that passes moves nothing.
	MinAge time.Duration
	// Goals, in order; default: repair, pressure, power, defragment.
	Goals []balance.Goal
	// Horizon is how long a host that is emptied is expected to stay empty. Default 4h.
	Horizon time.Duration
	// Shapes are sizes that should find room.
	Shapes []api.Resources
	// Usage reads what instances use now; nil: they are taken to use what they request.
	Usage func(ctx context.Context) (api.UsageReport, error)
}

func (c RebalanceConfig) filled() RebalanceConfig {
	if c.Every <= 0 {
		c.Every = 5 * time.Minute
	}
	if c.PerHour <= 0 {
		c.PerHour = 20
	}
	if c.AtOnce <= 0 {
		c.AtOnce = 1
	}
	if c.MinAge <= 0 {
		c.MinAge = 2 * c.Every
	}
	if c.Horizon <= 0 {
		c.Horizon = 4 * time.Hour
	}
	return c
}

const (
	// restHours is how long an instance stays where it is after a move, unless its node is short.
	restHours = 1
	// keepMoves is how long it is told what became of a proposal.
	keepMoves = 24 * time.Hour
	// moveTimeout is how long a move may be under way before it counts as failed.
	moveTimeout = 15 * time.Minute
	// moveLook is how often moves that are under way are looked at.
	moveLook = 2 * time.Second
	// loads is how many measured values are kept for an instance.
	loads = 64
	// mostProposals bounds what one look proposes.
	mostProposals = 200
)

// Rebalance looks at the whole pool from time to time and proposes moves; in the
// mode auto it also carries them out, few at a time: it asks the instance to leave,
// and placement puts it where it should go, if that still fits.
type Rebalance struct {
	clock clock.Clock
	chain policy.Chain
	c     RebalanceConfig
	next  time.Time
	load  map[string][]float64 // by UID, newest last; forgotten with a new leader
}

// NewRebalance makes the controller.
func NewRebalance(d Deps) *Rebalance {
	return &Rebalance{clock: d.Clock, chain: d.Chain, c: d.Rebalance.filled(), load: map[string][]float64{}}
}

// Name is "rebalance".
func (r *Rebalance) Name() string { return "rebalance" }

// Watches nodes: there is one round for all, and it begins with the first.
func (r *Rebalance) Watches() []api.Selector { return []api.Selector{{Kind: api.KindNode}} }

// Owns moves; of assignments it writes only the wish that an instance leaves.
func (r *Rebalance) Owns() []api.Kind { return []api.Kind{api.KindMove, api.KindAssignment} }

// roundRef stands for the whole pool.
var roundRef = api.Ref{Kind: api.KindMove, Name: "*"}

// Reconcile makes a round when one is due.
func (r *Rebalance) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if ref != roundRef {
		if r.next.IsZero() {
			return reconcile.Result{Also: []api.Ref{roundRef}}, nil
		}
		return reconcile.Result{}, nil
	}
	now := r.clock.Now()
	busy, err := r.follow(ctx, s, now)
	if err != nil {
		return reconcile.Result{}, err
	}
	if !now.Before(r.next) {
		if err := r.round(ctx, s, now, busy); err != nil {
			return reconcile.Result{}, err
		}
		r.next = now.Add(r.c.Every)
	}
	again := r.next.Sub(now)
	if busy {
		again = min(again, moveLook)
	}
	return reconcile.Result{Again: max(again, time.Millisecond)}, nil
}

// round looks at the pool and brings the proposals up to date.
func (r *Rebalance) round(ctx context.Context, s store.Store, now time.Time, busy bool) error {
	f, err := r.read(ctx, s)
	if err != nil {
		return err
	}
	if err := r.sample(ctx, f); err != nil {
		return err
	}
	if busy { // what is under way comes to its end first
		return r.tidy(ctx, s, f, now)
	}
	p := r.pool(f, now)
	moves := balance.Plan(p, balance.Config{Goals: r.c.Goals, MaxMoves: mostProposals, InTurn: true,
		Rest: r.rounds(restHours * time.Hour), Horizon: r.c.Horizon.Hours()})
	if err := r.propose(ctx, s, f, moves, now); err != nil {
		return err
	}
	if r.c.Mode == RebalanceAuto {
		if err := r.approve(ctx, s, now); err != nil {
			return err
		}
	}
	return r.tidy(ctx, s, f, now)
}

func (r *Rebalance) rounds(d time.Duration) int { return int(max(d/r.c.Every, 1)) }

// sample adds what is used now to what was measured before.
func (r *Rebalance) sample(ctx context.Context, f *facts) error {
	if r.c.Usage == nil {
		return nil
	}
	rep, err := r.c.Usage(ctx)
	if err != nil {
		return fmt.Errorf("read what instances use: %w", err)
	}
	used := map[api.Ref]int64{}
	for _, u := range rep.Instances {
		used[u.Ref] = u.CPUMilli
	}
	for uid := range r.load {
		if f.byUID[uid] == nil {
			delete(r.load, uid)
		}
	}
	for uid, p := range f.byUID {
		if v, ok := used[api.RefOf(p.in)]; ok && p.in.Status.State == api.StateRunning {
			l := append(r.load[uid], float64(v))
			r.load[uid] = l[max(len(l)-loads, 0):]
		}
	}
	return nil
}

// propose writes the proposals of a plan. One that stands already keeps its age;
// one that is no longer proposed is dropped.
func (r *Rebalance) propose(ctx context.Context, s store.Store, f *facts, moves []balance.Move, now time.Time) error {
	fresh := map[api.Ref]bool{}
	for step, m := range moves {
		in, to := f.placed[m.Instance].in, f.view.Nodes[m.To].Name
		ref := api.Ref{Kind: api.KindMove, Tenant: in.Tenant, Name: in.Name}
		fresh[ref] = true
		spec := api.MoveSpec{Instance: in.Name, InstanceUID: in.UID, From: f.view.Nodes[m.From].Name, To: to, Goal: string(m.Goal),
			Group: int64(m.Group), Step: int64(step + 1), Gain: round2(m.Gain), Cost: round2(m.Cost), Reason: m.Reason, State: api.MoveProposed}
		old := f.moves[ref]
		if old != nil && old.Spec.State == api.MoveProposed && same(&old.Spec, &spec) {
			spec.Gain, spec.Cost, spec.Reason = old.Spec.Gain, old.Spec.Cost, old.Spec.Reason
			if old.Spec == spec {
				continue
			}
		}
		next := &api.Move{Head: api.Head{K: api.KindMove, Meta: api.Meta{Name: in.Name, Tenant: in.Tenant, UID: in.UID, CreatedAt: &now}}, Spec: spec}
		op := store.Create(next)
		if old != nil {
			op.Rev = old.Revision
			if old.Spec.State == api.MoveProposed && same(&old.Spec, &spec) {
				next.CreatedAt = old.CreatedAt
			}
		}
		if err := commit(ctx, s, op); err != nil {
			return fmt.Errorf("propose to move %s: %w", ref, err)
		}
	}
	for _, ref := range f.moveRefs() {
		if m := f.moves[ref]; m.Spec.State == api.MoveProposed && !fresh[ref] {
			if err := r.end(ctx, s, m, api.MoveDropped, "no longer worth it"); err != nil {
				return err
			}
		}
	}
	return nil
}

// same: the same move for the same end; its worth may have changed a little.
func same(a, b *api.MoveSpec) bool {
	return a.InstanceUID == b.InstanceUID && a.From == b.From && a.To == b.To && a.Goal == b.Goal
}

func round2(v float64) float64 { return math.Round(v*100) / 100 }

// commit writes one thing; that somebody was faster is for the next round.
func commit(ctx context.Context, s store.Store, op store.Op) error {
	_, err := s.Commit(ctx, op)
	if errors.Is(err, errs.Conflict) || errors.Is(err, errs.Exists) || errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (r *Rebalance) end(ctx context.Context, s store.Store, m *api.Move, state api.MoveState, note string) error {
	now := r.clock.Now().UTC()
	next := api.Clone(m)
	next.Spec.State, next.Spec.Note, next.Spec.EndedAt = state, note, &now
	if err := commit(ctx, s, store.Update(next)); err != nil {
		return fmt.Errorf("end %s: %w", api.RefOf(m), err)
	}
	return nil
}

// tidy removes what was told long enough, and what is about instances that are gone.
func (r *Rebalance) tidy(ctx context.Context, s store.Store, f *facts, now time.Time) error {
	for _, ref := range f.moveRefs() {
		m := f.moves[ref]
		old := m.Spec.EndedAt != nil && now.Sub(*m.Spec.EndedAt) > keepMoves
		if !old && f.instances[m.Spec.InstanceUID] {
			continue
		}
		if err := commit(ctx, s, store.Remove(ref, store.Any)); err != nil {
			return fmt.Errorf("remove %s: %w", ref, err)
		}
	}
	return nil
}

// listMoves reads all moves in the order of their turn.
func listMoves(ctx context.Context, s store.Store) ([]*api.Move, error) {
	ms, _, err := store.List[*api.Move](ctx, s, api.Selector{Kind: api.KindMove})
	if err != nil {
		return nil, fmt.Errorf("list moves: %w", err)
	}
	slices.SortFunc(ms, func(a, b *api.Move) int {
		if a.Spec.Step != b.Spec.Step {
			return int(a.Spec.Step - b.Spec.Step)
		}
		return strings.Compare(api.SortKey(api.RefOf(a)), api.SortKey(api.RefOf(b)))
	})
	return ms, nil
}
