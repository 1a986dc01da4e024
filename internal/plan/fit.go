package plan

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/store"
)

const (
	maxFit  = 10_000 // counting stops there
	maxMore = 1_000  // and there for what more of one resource would bring
)

// fit counts how many more of one instance there is room for.
func (p *Plan) fit(ctx context.Context, q api.PlanFit) (*api.PlanAnswer, error) {
	if q.Count < 0 || q.Count > maxFit {
		return nil, errs.InvalidFields("plan", []errs.Field{{Field: "fit.count", Value: fmt.Sprint(q.Count), Rule: fmt.Sprintf("must be 0 to %d", maxFit), Example: "10"}})
	}
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "plan-fit", Tenant: q.Tenant, Labels: q.Labels}}, Spec: q.Spec}
	room := &api.PlanRoom{Wanted: q.Count}
	a := &api.PlanAnswer{Question: "fit", Fit: room}
	t := p.try()
	defer t.end()
	it := policy.ItemAt(in, p.ranks.of(in).Value)
	on, err := p.fill(ctx, t, it, maxFit)
	if err != nil {
		return nil, err
	}
	for node, n := range on {
		room.Count += n
		room.Nodes = append(room.Nodes, api.PlanRoomNode{Node: node, Count: n})
	}
	slices.SortFunc(room.Nodes, func(a, b api.PlanRoomNode) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Node, b.Node))
	})
	if room.AtLeast = room.Count >= maxFit; !room.AtLeast {
		d := p.planner.Decide(it).Decision
		room.Decision = &d
		if err := p.bottleneck(ctx, t, in, room); err != nil {
			return nil, err
		}
	}
	a.Placed, a.Pending = room.Count, max(q.Count-room.Count, 0)
	a.Holds = room.Count >= max(q.Count, 1)
	if q.Tenant != "" {
		if err := p.admitted(ctx, in, room); err != nil {
			return nil, err
		}
		if room.Admitted != nil {
			a.Holds = a.Holds && *room.Admitted >= max(q.Count, 1)
		}
	}
	return a, nil
}

// fill places copies until none fits, and tells how many are where.
func (p *Plan) fill(ctx context.Context, t *trial, it *policy.Item, limit int) (map[string]int, error) {
	on := map[string]int{}
	for i := range limit {
		if i%256 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c := *it
		c.UID = fmt.Sprintf("plan/%d/%d", t.mark(), i)
		pl := p.planner.Fits(&c)
		if pl.Node == "" {
			break
		}
		on[pl.Node]++
		t.on(&c, pl.Node, pl.Alloc)
	}
	return on, nil
}

// bottleneck finds the resource of which alone more would bring most. Where no one
// resource does, all that are short are named.
func (p *Plan) bottleneck(ctx context.Context, t *trial, in *api.Instance, room *api.PlanRoom) error {
	for _, r := range api.ResourceNames() {
		if in.Spec.Requests[r] == 0 {
			continue
		}
		less := *in
		less.Spec.Requests = in.Spec.Requests.Clone()
		delete(less.Spec.Requests, r)
		if r == api.GPU { // memory of devices is nothing without them
			delete(less.Spec.Requests, api.GPUMemory)
			less.Spec.GPUModels = nil
		}
		mark := t.mark()
		on, err := p.fill(ctx, t, policy.ItemAt(&less, p.ranks.of(in).Value), maxMore)
		if err != nil {
			return err
		}
		t.back(mark)
		more := 0
		for _, n := range on {
			more += n
		}
		switch {
		case more > room.More:
			room.More, room.Bottleneck = more, []api.Resource{r}
		case more == room.More && more > 0:
			room.Bottleneck = append(room.Bottleneck, r)
		}
	}
	return nil
}

// admitted asks admission for ever more, by halves.
func (p *Plan) admitted(ctx context.Context, in *api.Instance, room *api.PlanRoom) error {
	b := p.books()
	high := max(room.Count, room.Wanted, 1)
	try := func(n int) (*api.PlanRefusal, error) {
		if why := b.tooMany(in.Tenant, n); why != nil {
			return why, nil
		}
		many := api.Clone(in)
		for r, v := range many.Spec.Requests {
			if v > mostOf/int64(n) {
				return &api.PlanRefusal{Kind: string(errs.Quota), Message: fmt.Sprintf("%s: more than can be counted", r)}, nil
			}
			many.Spec.Requests[r] = v * int64(n)
		}
		return b.judge(ctx, []store.Op{store.Create(many)})
	}
	why, err := try(high)
	if err != nil || why == nil {
		return err
	}
	low := 0 // admitted; high is not
	for low+1 < high {
		mid := (low + high) / 2
		w, err := try(mid)
		if err != nil {
			return err
		}
		if w == nil {
			low = mid
		} else {
			high, why = mid, w
		}
	}
	room.Admitted, room.Refusal = &low, why
	return nil
}

// tooMany judges the count of instances, which a single large one does not show.
func (b *books) tooMany(tenant string, n int) *api.PlanRefusal {
	for _, path := range api.TenantChain(tenant) {
		t, ok := b.refs[api.Ref{Kind: api.KindTenant, Name: path}].(*api.Tenant)
		if !ok {
			continue
		}
		limit, bounded := t.Spec.Limit[api.Instances]
		used := int64(0)
		if l, ok := b.refs[api.Ref{Kind: api.KindLedger, Tenant: path, Name: api.LedgerName}].(*api.Ledger); ok {
			used = l.Spec.Requested[api.Instances]
		}
		if bounded && used+int64(n) > limit {
			return &api.PlanRefusal{Kind: string(errs.Quota), Message: fmt.Sprintf("tenant %s: instances: %d used, %d asked, the limit is %d", path, used, n, limit),
				Hint: fmt.Sprintf("raise the limit (atoll tenant set %s --limit instances=%d), or delete something in it", path, used+int64(n))}
		}
	}
	return nil
}
