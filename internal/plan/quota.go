package plan

import (
	"context"
	"fmt"

	"atoll/api"
	"atoll/internal/store"
)

// quota plays another guarantee and limit of a tenant, or a new tenant.
func (p *Plan) quota(ctx context.Context, q api.PlanQuota) (*api.PlanAnswer, error) {
	next := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: q.Tenant}}}
	there := false
	for _, t := range p.pool.Tenants {
		if t.Name == q.Tenant {
			next, there = api.Clone(t), true
		}
	}
	next.Spec.Guarantee, next.Spec.Limit = q.Guarantee, q.Limit
	if err := api.Check(next); err != nil {
		return nil, err
	}
	a := &api.PlanAnswer{Question: "quota"}
	b := p.books()
	var err error
	if a.Admission, err = b.judge(ctx, []store.Op{b.op(ctx, next)}); err != nil {
		return nil, err
	}
	a.Holds = a.Admission == nil
	if !there {
		a.Notes = append(a.Notes, fmt.Sprintf("tenant %s does not exist: it would be made", q.Tenant))
	}
	if l, ok := b.refs[api.Ref{Kind: api.KindLedger, Tenant: q.Tenant, Name: api.LedgerName}].(*api.Ledger); ok {
		for _, r := range l.Spec.Requested.Over(q.Limit) {
			a.Notes = append(a.Notes, fmt.Sprintf("%s %s is requested, the limit would be %s: what runs is held to it together, and nothing that needs more is admitted",
				api.HumanQuantity(r, l.Spec.Requested[r]), word(r), api.HumanQuantity(r, q.Limit[r])))
		}
		for _, i := range parted {
			r := api.ResourceNames()[i]
			if asked := l.Spec.Requested[r]; asked > q.Guarantee[r] {
				a.Notes = append(a.Notes, fmt.Sprintf("%s %s is requested, %s would be guaranteed: the rest is borrowed",
					api.HumanQuantity(r, asked), word(r), api.HumanQuantity(r, q.Guarantee[r])))
			}
		}
	}
	then := New(p.with([]api.Object{next}), p.again())
	return a, then.spares(ctx, p, a)
}

// again is the config for another view of much the same pool.
func (p *Plan) again() Config {
	cfg := p.cfg
	cfg.Items = p.items
	return cfg
}

// with is the pool with some objects written over it; instances are not.
func (p *Plan) with(objs []api.Object) Pool {
	next := p.pool
	for _, o := range objs {
		switch o := o.(type) {
		case *api.Tenant:
			next.Tenants = overlay(next.Tenants, o)
		case *api.PriorityClass:
			next.Classes = overlay(next.Classes, o)
		case *api.DisruptionBudget:
			next.Budgets = overlay(next.Budgets, o)
		case *api.Node:
			for _, n := range next.Nodes {
				if n.Name == o.Name { // what a host has, only its agent says
					n = api.Clone(n)
					n.Spec, n.Labels = o.Spec, o.Labels
					next.Nodes = overlay(next.Nodes, n)
					break
				}
			}
		}
	}
	return next
}

// overlay is a list with an object in the place of the one of its name, or at the end.
func overlay[T api.Object](list []T, o T) []T {
	out := append(make([]T, 0, len(list)+1), list...)
	for i, x := range out {
		if api.RefOf(x) == api.RefOf(o) {
			out[i] = o
			return out
		}
	}
	return append(out, o)
}
