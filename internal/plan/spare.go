package plan

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"atoll/api"
	"atoll/internal/policy"
)

const (
	maxFailing = 20 // hosts that must not be lost; more are not looked for
	maxWorst   = 5  // of them are named
)

// spare checks N+1: for each host, whether what runs there and requests something
// would find room on the others. A place is looked for first where there is most
// room, by the filters alone, which finds one for nearly all; what that does not
// place is left to the planner.
func (p *Plan) spare(ctx context.Context) (*api.PlanSpare, error) {
	s := &api.PlanSpare{}
	var hosts []*policy.Node
	for _, n := range p.view.Nodes {
		if open(n) {
			hosts = append(hosts, n)
		}
	}
	if len(hosts) == 0 {
		s.Reason = "no node takes instances"
		return s, nil
	}
	if len(hosts) == 1 {
		s.Checked, s.Failing, s.Reason = 1, 1, "there is only "+hosts[0].Name
		return s, nil
	}
	r := p.searcher(hosts)
	for _, n := range p.view.Nodes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !n.Object.Ready() {
			continue
		}
		if s.Failing >= maxFailing {
			s.AtLeast = true
			break
		}
		s.Checked++
		if left := p.without(r, n); left > 0 {
			s.Failing++
			s.Worst = append(s.Worst, api.PlanSpareNode{Node: n.Name, Pending: left})
		}
	}
	slices.SortStableFunc(s.Worst, func(a, b api.PlanSpareNode) int { return cmp.Compare(b.Pending, a.Pending) })
	s.Worst = s.Worst[:min(len(s.Worst), maxWorst)]
	s.Reason = p.promisesWithoutOne()
	s.Holds = s.Failing == 0 && s.Reason == ""
	return s, nil
}

// promisesWithoutOne says when the guarantees need every host.
func (p *Plan) promisesWithoutOne() string {
	var largest [len(parted)]*policy.Node
	for _, n := range p.view.Nodes {
		for k, i := range parted {
			if n.Object.Ready() && (largest[k] == nil || n.Allocatable[i] > largest[k].Allocatable[i]) {
				largest[k] = n
			}
		}
	}
	for k, i := range parted {
		if largest[k] == nil {
			continue
		}
		g, short := p.overpromised([]*policy.Node{largest[k]})
		if r := api.ResourceNames()[i]; short && g.Guaranteed[r] > 0 {
			return fmt.Sprintf("%s %s is guaranteed, without %s the nodes have %s", api.HumanQuantity(r, g.Guaranteed[r]), word(r), largest[k].Name, api.HumanQuantity(r, g.Placed[r]))
		}
	}
	return ""
}

func word(r api.Resource) string {
	if r == api.CPU {
		return "CPU"
	}
	return string(r)
}

// without counts what would have no room if a host were lost. The view is as before.
func (p *Plan) without(r *searcher, n *policy.Node) (left int) {
	var items []*policy.Item
	for _, it := range n.Items {
		if it.Class != api.ClassBestEffort && !p.fixed[it.UID] {
			items = append(items, it)
		}
	}
	if len(items) == 0 {
		return 0
	}
	p.bySize(items)
	t := p.try()
	defer t.end()
	for _, it := range items {
		t.off(it)
	}
	mark := t.mark()
	for i, it := range items {
		host := r.find(it, n)
		if host == nil {
			break
		}
		t.on(it, host.Name, p.cfg.Chain.Pick(host, it))
		if i == len(items)-1 {
			return 0
		}
	}
	t.back(mark)
	t.lose(n)
	for _, it := range items {
		pl := p.planner.Fits(it)
		if pl.Node == "" {
			left++
			continue
		}
		t.on(it, pl.Node, pl.Alloc)
	}
	return left
}

// searcher finds any host that admits an item, beginning with the one that admitted
// the last of its kind.
type searcher struct {
	view  *policy.View
	chain policy.Chain
	hosts []*policy.Node // most room first
	kinds map[string]*kind
}

// kind is what is known of items that every policy answers equally.
type kind struct {
	checks  []*policy.Check
	version uint64
	epoch   uint64
	start   int // in hosts
}

func (p *Plan) searcher(hosts []*policy.Node) *searcher {
	room := make(map[*policy.Node]float64, len(hosts))
	for _, n := range hosts {
		least := 1.0
		for _, i := range parted {
			if n.Allocatable[i] > 0 {
				least = min(least, float64(n.Free(i))/float64(n.Allocatable[i]))
			}
		}
		room[n] = least
	}
	slices.SortStableFunc(hosts, func(a, b *policy.Node) int { return cmp.Compare(room[b], room[a]) })
	return &searcher{view: p.view, chain: p.cfg.Chain, hosts: hosts, kinds: map[string]*kind{}}
}

func (s *searcher) find(it *policy.Item, but *policy.Node) *policy.Node {
	k := s.kind(it)
	for i := range s.hosts {
		at := (k.start + i) % len(s.hosts)
		if n := s.hosts[at]; n != but && k.admits(n) {
			k.start = at
			return n
		}
	}
	return nil
}

// kind prepares the filters, or finds them prepared.
func (s *searcher) kind(it *policy.Item) *kind {
	s.view.Arrange()
	k := s.kinds[it.Key()]
	if k != nil && k.version == s.view.Version(it.Ref.Tenant) && k.epoch == k.epochs() {
		return k
	}
	fresh := &kind{}
	if k != nil {
		fresh.start = k.start
	}
	for _, f := range s.chain.Filters {
		if c := f.Check(s.view, it); c != nil {
			fresh.checks = append(fresh.checks, c)
		}
	}
	fresh.version, fresh.epoch = s.view.Version(it.Ref.Tenant), fresh.epochs()
	s.kinds[it.Key()] = fresh
	return fresh
}

func (k *kind) epochs() uint64 {
	e := uint64(1)
	for _, c := range k.checks {
		if c.Epoch != nil {
			e = e*1099511628211 + c.Epoch()
		}
	}
	return e
}

func (k *kind) admits(n *policy.Node) bool { return k.refusal(n) == "" }

// refusal is the first reason against a host.
func (k *kind) refusal(n *policy.Node) string {
	for _, c := range k.checks {
		if c.Node != nil {
			if why := c.Node(n); why != "" {
				return why
			}
		}
		if c.In != nil {
			if why := c.In(n.Place); why != "" {
				return why
			}
		}
	}
	return ""
}
