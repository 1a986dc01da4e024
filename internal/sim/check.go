package sim

import (
	"context"
	"fmt"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/policy"
	"atoll/internal/sched"
	"atoll/internal/store"
)

// check looks at the whole pool after everything settled. The rules:
// no node is given more than it has; every instance that should be there is; each
// has at most one assignment, and runs on the node it names and nowhere else; no
// two have the same address; nothing runs that was removed; nobody waits for a
// node while one has room.
func (p *Pool) check(ctx context.Context) error {
	ins, _, err := store.List[*api.Instance](ctx, p.mem, api.Selector{Kind: api.KindInstance})
	if err != nil {
		return err
	}
	asg, _, err := store.List[*api.Assignment](ctx, p.mem, api.Selector{Kind: api.KindAssignment})
	if err != nil {
		return err
	}
	nodes, _, err := store.List[*api.Node](ctx, p.mem, api.Selector{Kind: api.KindNode})
	if err != nil {
		return err
	}
	view := policy.NewView()
	for _, n := range nodes {
		view.SetNode(n)
	}
	byUID := map[string]*api.Instance{}
	for _, in := range ins {
		byUID[in.UID] = in
	}
	if len(ins) != len(p.dies) {
		p.violate("%d instances are in the store, %d should be", len(ins), len(p.dies))
	}
	where := p.assigned(view, asg, byUID)
	p.report.Running, p.report.Pending = 0, 0
	for _, h := range p.hosts {
		if err := p.checkHost(ctx, h, byUID, where); err != nil {
			return err
		}
	}
	p.fill(view)
	plan := sched.NewPlanner(view, p.sc.Chain, 0)
	for _, in := range ins {
		if where[in.UID] != "" {
			continue
		}
		p.report.Pending++
		if node := plan.Decide(policy.ItemOf(in)).Node; node != "" {
			p.violate("%s waits while %s has room", api.RefOf(in), node)
		}
	}
	return nil
}

// assigned fills the view and looks for double addresses and orphans.
func (p *Pool) assigned(view *policy.View, asg []*api.Assignment, byUID map[string]*api.Instance) map[string]string {
	where, addrs := map[string]string{}, map[string]string{}
	for _, a := range asg {
		in := byUID[a.Spec.InstanceUID]
		if in == nil {
			p.violate("%s is for an instance that is no more", api.RefOf(a))
			continue
		}
		if a.Spec.Node == "" {
			continue
		}
		where[in.UID] = a.Spec.Node
		view.Place(policy.ItemOf(in), a.Spec.Node, policy.AllocOf(&a.Spec))
		if other := addrs[a.Spec.Address]; other != "" {
			p.violate("%s and %s have the address %s", in.Name, other, a.Spec.Address)
		}
		addrs[a.Spec.Address] = in.Name
	}
	return where
}

func (p *Pool) checkHost(ctx context.Context, h *island, byUID map[string]*api.Instance, where map[string]string) error {
	seen, err := h.rt.Observe(ctx)
	if err != nil {
		return err
	}
	for _, o := range seen {
		if o.Phase == driver.PhaseRunning {
			p.report.Running++
		}
		if byUID[o.UID] == nil {
			p.violate("%s is on %s, but was removed", o.Ref, h.name)
		} else if where[o.UID] != h.name {
			p.violate("%s is on %s, but assigned to %q", o.Ref, h.name, where[o.UID])
		}
	}
	return nil
}

// fill checks capacity and keeps the mean.
func (p *Pool) fill(view *policy.View) {
	var used, all int64
	cpu := policy.Index(api.CPU)
	for _, n := range view.Nodes {
		for i, name := range api.ResourceNames() {
			if n.Allocatable[i] > 0 && n.Used[i] > n.Allocatable[i] {
				p.violate("%s is given %s of %s, it has %s", n.Name, api.FormatQuantity(name, n.Used[i]), name, api.FormatQuantity(name, n.Allocatable[i]))
			}
		}
		used += n.Used[cpu]
		all += n.Allocatable[cpu]
	}
	if all > 0 {
		p.samples++
		p.cpuSum += float64(used) / float64(all)
		p.report.MeanCPU = p.cpuSum / float64(p.samples)
	}
}

const maxViolations = 10

func (p *Pool) violate(format string, args ...any) {
	if len(p.report.Violations) < maxViolations {
		p.report.Violations = append(p.report.Violations, fmt.Sprintf(format, args...))
	}
}
