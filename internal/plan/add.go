package plan

import (
	"context"
	"fmt"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/sched"
)

const (
	maxNew = 10_000 // hosts that may be added at once
	mostOf = 1 << 60
)

// add plays hosts that join: what waits is placed again.
func (p *Plan) add(ctx context.Context, q api.PlanAdd) (*api.PlanAnswer, error) {
	count := max(q.Count, 1)
	if count > maxNew || q.Capacity[api.CPU] <= 0 || q.Capacity[api.Memory] <= 0 {
		return nil, errs.InvalidFields("plan", []errs.Field{{Field: "add", Rule: fmt.Sprintf("must be 1 to %d hosts with cpu and memory", maxNew), Example: "{capacity: {cpu: 16, memory: 64Gi}, count: 2}"}})
	}
	for r, v := range q.Capacity {
		if v > mostOf/maxNew {
			return nil, errs.InvalidFields("plan", []errs.Field{{Field: "add.capacity." + string(r), Value: api.FormatQuantity(r, v), Rule: "is more than any host has"}})
		}
	}
	next := p.pool
	next.Nodes = append([]*api.Node(nil), p.pool.Nodes...)
	a := &api.PlanAnswer{Question: "add"}
	for i := range count {
		n := p.newcomer(q, i)
		next.Nodes = append(next.Nodes, n)
		a.Nodes = append(a.Nodes, n.Name)
	}
	then := New(next, p.again())
	a.Headroom = &api.PlanHeadroom{Now: p.free(), Then: then.free()}
	t := then.try()
	defer t.end()
	for _, it := range sched.Order(then.view, then.pending, then.weight) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		place := api.PlanPlace{Instance: it.Ref, Requests: it.Spec.Requests, PriorityValue: it.Priority}
		if then.put(t, it, &place) {
			a.Placed++
		} else {
			a.Pending++
		}
		a.Places = append(a.Places, place)
	}
	a.Holds = a.Pending == 0
	return a, then.spares(ctx, p, a)
}

// spares tells N+1 as it would be in p, and as it is before.
func (p *Plan) spares(ctx context.Context, before *Plan, a *api.PlanAnswer) error {
	was, err := before.spare(ctx)
	if err != nil {
		return err
	}
	if a.Spare, err = p.spare(ctx); err != nil {
		return err
	}
	a.Spare.Before = &was.Holds
	return nil
}

// newcomer is a host like those there are, with the capacity asked for.
func (p *Plan) newcomer(q api.PlanAdd, i int) *api.Node {
	name := fmt.Sprintf("new-%d", i+1)
	for p.view.Node(name) != nil {
		name = "new-" + name
	}
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name, UID: "plan/" + name, Labels: q.Labels}}}
	n.Spec.Region, n.Spec.Zone, n.Spec.Rack = q.Region, q.Zone, q.Rack
	n.Status.Capacity = q.Capacity
	// As an agent with the default reserve would.
	n.Status.Allocatable = q.Capacity.Sub(api.Resources{api.CPU: min(200, q.Capacity[api.CPU]/10), api.Memory: min(1<<30, q.Capacity[api.Memory]/10)})
	n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
	n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
	for _, old := range p.pool.Nodes {
		if open(p.view.Node(old.Name)) { // the same build and the same kind of host can run the same
			n.Status.Drivers = old.Status.Drivers
			break
		}
	}
	for range q.Capacity[api.GPU] / 1000 {
		d := api.Device{Model: q.GPUModel}
		if m := q.Capacity[api.GPUMemory]; m > 0 {
			d.Memory = m / (q.Capacity[api.GPU] / 1000)
		}
		n.Status.Devices = append(n.Status.Devices, d)
	}
	return n
}

// free sums what hosts that take newcomers have free.
func (p *Plan) free() api.PlanFree {
	var sum, most policy.Vector
	f := api.PlanFree{}
	for _, n := range p.view.Nodes {
		if !open(n) {
			continue
		}
		f.Nodes++
		for i := range sum {
			free := max(n.Free(i), 0)
			sum[i] += free
			most[i] = max(most[i], free)
		}
	}
	f.Free, f.Largest = amounts(sum), amounts(most)
	return f
}
