package plan

import (
	"context"
	"fmt"
	"slices"

	"atoll/api"
	"atoll/internal/policy"
)

// lose plays the failure of hosts. Budgets do not bind: nobody asks a fault to wait.
func (p *Plan) lose(ctx context.Context, h api.PlanHosts) (*api.PlanAnswer, error) {
	hosts, err := p.hosts(h)
	if err != nil {
		return nil, err
	}
	a := &api.PlanAnswer{Question: "lose"}
	before := p.promised(p.pending)
	t := p.try()
	defer t.end()
	moving := p.leaving(hosts, a)
	for _, n := range hosts {
		t.lose(n)
	}
	for _, it := range moving {
		t.off(it.item)
	}
	var lost []*policy.Item
	for _, m := range moving {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		place := api.PlanPlace{Instance: m.item.Ref, From: m.from, Requests: m.item.Spec.Requests, PriorityValue: m.item.Priority, Notes: m.notes()}
		if !p.put(t, m.item, &place) {
			lost = append(lost, m.item)
		}
		a.Places = append(a.Places, place)
	}
	count(a)
	a.Guarantees = p.broken(before, append(slices.Clone(p.pending), lost...), hosts)
	a.Holds = a.Pending == 0 && len(a.Guarantees) == 0
	a.Spare, err = p.spare(ctx)
	return a, err
}

// mover is an instance on a host it must leave.
type mover struct {
	item *policy.Item
	from string
}

// notes tells what does not come along.
func (m mover) notes() []string {
	var out []string
	for _, v := range m.item.Spec.Volumes {
		switch {
		case v.Name != "":
			out = append(out, fmt.Sprintf("volume %s is on %s and stays there", v.Name, m.from))
		case v.HostPath != "":
			out = append(out, fmt.Sprintf("%s of %s is not there", v.HostPath, m.from))
		}
	}
	return out
}

// leaving lists what would be started elsewhere, in the order of placing.
func (p *Plan) leaving(hosts []*policy.Node, a *api.PlanAnswer) []mover {
	var items []*policy.Item
	for _, n := range hosts {
		a.Nodes = append(a.Nodes, n.Name)
		for _, it := range n.Items {
			if p.fixed[it.UID] {
				a.Stopped++
				continue
			}
			items = append(items, it)
		}
	}
	p.bySize(items)
	out := make([]mover, len(items))
	for i, it := range items {
		out[i] = mover{it, p.view.Where(it.UID)}
	}
	return out
}

// put finds a host for an item and puts it there; false when there is none.
func (p *Plan) put(t *trial, it *policy.Item, place *api.PlanPlace) bool {
	if d := p.kept(it); d != nil {
		place.Decision = d
		t.wait(it)
		return false
	}
	p.planner.Terse = true // of moves only the refusals are told
	pl := p.planner.Decide(it)
	p.planner.Terse = false
	if pl.Node == "" {
		place.Decision = t.others(&pl.Decision)
		t.wait(it)
		return false
	}
	place.To = pl.Node
	t.on(it, pl.Node, pl.Alloc)
	return true
}

// drain empties hosts on purpose: disruption budgets bind. What it says is what the drain
// controller would do, as long as nothing else changes.
func (p *Plan) drain(ctx context.Context, h api.PlanHosts) (*api.PlanAnswer, error) {
	hosts, err := p.hosts(h)
	if err != nil {
		return nil, err
	}
	a := &api.PlanAnswer{Question: "drain"}
	before := p.promised(p.pending)
	t := p.try()
	defer t.end()
	moving := p.leaving(hosts, a)
	for _, n := range hosts {
		t.cordon(n)
	}
	// What a budget spares is asked before anything moves: what moves is up again
	// before the next round, so the budget is then as it was.
	taken := map[api.Ref]int{}
	ins := p.byUID(moving)
	for _, m := range moving {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		place := api.PlanPlace{Instance: m.item.Ref, From: m.from, Requests: m.item.Spec.Requests, PriorityValue: m.item.Priority, Notes: m.notes()}
		place.Round = 1
		spare, by, bounded := p.view.Spare(m.item)
		bounded = bounded && !h.Evacuate
		switch in := ins[m.item.UID]; {
		case in.PerNode():
			place.Round, place.To = 0, m.from
			place.Stays = perNode
		case in.BoundTo(m.from) != "":
			place.Round, place.To, place.Halts = 0, m.from, !h.Leave
			place.Notes = nil
			place.Stays = in.BoundTo(m.from)
			if place.Halts && bounded && spare <= 0 {
				place.Halts = false
				place.Stays += fmt.Sprintf(", and budget %s/%s allows none to be away", by.Tenant, by.Name)
			}
		case bounded && spare <= 0:
			place.Round, place.To = 0, m.from
			place.Stays = fmt.Sprintf("budget %s/%s allows none to be away", by.Tenant, by.Name)
		case !p.moves(t, m.item, &place):
			place.Round, place.To = 0, m.from
			place.Stays, place.Halts = "no other node can run it", h.Evacuate && !h.Leave
		case bounded:
			if place.Round = taken[by]/spare + 1; place.Round > 1 {
				place.Notes = append(place.Notes, fmt.Sprintf("round %d: budget %s/%s allows %d away at a time", place.Round, by.Tenant, by.Name, spare))
			}
			taken[by]++
		}
		if ins[m.item.UID].Spec.RunsToEnd() && place.Stays == "" && !h.Evacuate {
			place.Notes = append(place.Notes, "runs to its end, which is waited for; then it begins anew")
		}
		a.Places = append(a.Places, place)
	}
	for _, place := range a.Places {
		switch place.Stays {
		case "":
			a.Placed++
		case perNode: // nobody wants it elsewhere
		default:
			a.Pending++
		}
	}
	a.Guarantees = p.broken(before, p.pending, hosts)
	a.Holds = a.Pending == 0 && len(a.Guarantees) == 0
	a.Spare, err = p.spare(ctx)
	return a, err
}

// perNode is why what runs on every host stays where it is.
const perNode = "it belongs to the host"

// byUID finds the instances of what is to move.
func (p *Plan) byUID(moving []mover) map[string]*api.Instance {
	out := make(map[string]*api.Instance, len(moving))
	for _, m := range moving {
		out[m.item.UID] = nil
	}
	for _, in := range p.pool.Instances {
		if _, ok := out[in.UID]; ok {
			out[in.UID] = in
		}
	}
	return out
}

// moves takes an item to another host; it stays when there is none.
func (p *Plan) moves(t *trial, it *policy.Item, place *api.PlanPlace) bool {
	mark := t.mark()
	t.off(it)
	if p.put(t, it, place) {
		return true
	}
	t.back(max(mark, 1)) // the host is cordoned by then, so the trial has begun
	return false
}

func count(a *api.PlanAnswer) {
	for _, p := range a.Places {
		if p.To != "" {
			a.Placed++
		} else {
			a.Pending++
		}
	}
}
