package plan

import (
	"context"
	"errors"
	"fmt"

	"atoll/api"
	"atoll/internal/balance/exact"
	"atoll/internal/errs"
	"atoll/internal/policy"
)

// Solver finds the best there is; see exact.Solve.
type Solver func(ctx context.Context, p *exact.Problem) (exact.Solution, error)

// exact asks a solver how many of the new instances could have a place at best, next
// to what runs. Each must be admitted by itself and all together within what is free;
// what they ask of each other (spread, near, avoid, gangs, ports) is left out, so the
// answer is never too low. The view is as it was before anything was placed.
func (q *queue) exact(ctx context.Context) error {
	if q.cfg.Solve == nil {
		return errs.New(errs.Unsupported, "this server has no solver").WithHint("apt-get install coinor-cbc on the host of the server")
	}
	p := &exact.Problem{}
	for _, n := range q.view.Nodes {
		h := exact.Host{Capacity: make([]int64, policy.NumResources)}
		for i := range h.Capacity {
			h.Capacity[i] = min(max(n.Room(i), 0), 1<<50)
		}
		p.Hosts = append(p.Hosts, h)
	}
	s := &searcher{view: q.view, chain: q.cfg.Chain, kinds: map[string]*kind{}}
	loose := false
	for _, it := range q.items {
		x := exact.Item{Host: exact.Nowhere, Without: 1, Request: append([]int64(nil), it.Request[:]...)}
		k := s.kind(alone(it))
		for i, n := range q.view.Nodes {
			if k.refusal(n) != "" {
				x.Deny = append(x.Deny, i)
			}
		}
		pl := it.Spec.Placement
		loose = loose || len(it.Publish) > 0 || it.Request[policy.GPU] > 0 || it.Spec.ExclusiveCPUs ||
			pl != nil && (len(pl.Spread)+len(pl.Near)+len(pl.Avoid)+pl.MaxPerNode > 0 || pl.Gang != nil)
		p.Items = append(p.Items, x)
	}
	best, err := q.cfg.Solve(ctx, p)
	if errors.Is(err, errs.Timeout) {
		return errs.New(errs.Timeout, "the solver found no answer in time: %d instances on %d nodes", len(p.Items), len(p.Hosts)).WithHint("ask without --exact, or for fewer instances")
	}
	if err != nil {
		return fmt.Errorf("plan --exact: %w", err)
	}
	out := &api.PlanExact{Of: len(p.Items), Proven: best.Proven, Loose: loose}
	for _, at := range best.At {
		if at != exact.Nowhere {
			out.Placed++
		}
	}
	q.answer.Exact = out
	return nil
}

// alone is an item without what it asks of others, which those placed with it may meet.
func alone(it *policy.Item) *policy.Item {
	spec := *it.Spec
	if spec.Placement != nil {
		p := *spec.Placement
		p.Spread, p.Near, p.Avoid, p.MaxPerNode, p.Gang = nil, nil, nil, 0, nil
		spec.Placement = &p
	}
	return policy.ItemAt(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: it.Ref.Name, Tenant: it.Ref.Tenant, UID: it.UID, Labels: it.Labels}}, Spec: spec}, it.Priority)
}
