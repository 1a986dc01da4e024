package plan

import (
	"slices"

	"atoll/api"
	"atoll/internal/policy"
)

// promised is what each tenant with a guarantee has, and what it waits for.
type promised map[string]struct{ placed, waiting policy.Vector }

func (p *Plan) promised(pending []*policy.Item) promised {
	waiting := map[string]*policy.Vector{}
	for _, it := range pending {
		for _, t := range api.TenantChain(it.Ref.Tenant) {
			if waiting[t] == nil {
				waiting[t] = new(policy.Vector)
			}
			waiting[t].Add(&it.Request)
		}
	}
	out := promised{}
	for _, t := range p.pool.Tenants {
		if len(t.Spec.Guarantee) == 0 {
			continue
		}
		x := out[t.Name]
		x.placed = p.view.UsedBy(t.Name)
		if w := waiting[t.Name]; w != nil {
			x.waiting = *w
		}
		out[t.Name] = x
	}
	return out
}

// broken lists the guarantees that are not kept, but were before: a tenant that asks
// for no more than it was promised has to wait for part of it; and, where hosts go,
// promises of more than the rest has.
func (p *Plan) broken(before promised, pending []*policy.Item, gone []*policy.Node) []api.PlanGuarantee {
	now := p.promised(pending)
	var out []api.PlanGuarantee
	for _, t := range p.pool.Tenants {
		g := api.PlanGuarantee{Tenant: t.Name, Guaranteed: api.Resources{}, Requested: api.Resources{}, Placed: api.Resources{}}
		for i, r := range api.ResourceNames() {
			has, want := now[t.Name].placed[i], now[t.Name].placed[i]+now[t.Name].waiting[i]
			if now[t.Name].waiting[i] > before[t.Name].waiting[i] && has < min(t.Spec.Guarantee[r], want) {
				g.Guaranteed[r], g.Requested[r], g.Placed[r] = t.Spec.Guarantee[r], want, has
			}
		}
		if len(g.Guaranteed) > 0 {
			out = append(out, g)
		}
	}
	if len(gone) > 0 {
		if g, short := p.overpromised(gone); short {
			out = append(out, g)
		}
	}
	return out
}

// kept refuses an instance that waits for room what tenants are guaranteed, as
// placement does; nil when it may have it.
func (p *Plan) kept(it *policy.Item) *api.Decision {
	why := p.view.Keeps(it, p.cfg.Keep)
	if why == "" {
		return nil
	}
	return &api.Decision{Of: len(p.view.Nodes), Refusals: []api.Refusal{{Policy: "pool", Reason: why, Nodes: len(p.view.Nodes)}},
		Hints: []string{"it starts when others give room back; a larger guarantee of its tenant would be its own"}}
}

// parted are the resources that hosts have and tenants are promised.
var parted = [...]int{policy.CPU, policy.Memory}

// overpromised compares what top tenants are promised with what hosts have without some of them.
func (p *Plan) overpromised(without []*policy.Node) (api.PlanGuarantee, bool) {
	g := api.PlanGuarantee{Guaranteed: api.Resources{}, Placed: api.Resources{}}
	var have, all policy.Vector
	for _, n := range p.view.Nodes {
		if gone := slices.Contains(without, n); n.Object.Ready() || gone {
			all.Add(&n.Allocatable)
			if !gone {
				have.Add(&n.Allocatable)
			}
		}
	}
	names := api.ResourceNames()
	for _, i := range parted {
		r, sum := names[i], int64(0)
		for _, t := range p.pool.Tenants {
			if api.ParentTenant(t.Name) == "" {
				sum += t.Spec.Guarantee[r]
			}
		}
		if sum > have[i] && sum <= all[i] {
			g.Guaranteed[r], g.Placed[r] = sum, have[i]
		}
	}
	return g, len(g.Guaranteed) > 0
}
