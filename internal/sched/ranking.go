package sched

import (
	"math"

	"atoll/api"
	"atoll/internal/policy"
)

// ranking is what every node is worth for one kind of item.
type ranking struct {
	view    *policy.View
	checks  []check
	grades  []grade
	weights float64
	level   policy.Level // finest domain that is judged as a whole; Host: none

	version, at, epoch, used uint64

	reason  []int32 // by node: 0 admitted, else a place in reasons, from 1
	reasons []counted
	index   map[string]int32
	trees   []tree  // one per domain of level, or one
	leaf    []int32 // by node: its place in its tree

	evict *eviction
}

type check struct {
	name string
	*policy.Check
}

type grade struct {
	name   string
	weight float64
	*policy.Grade
}

// counted is a reason and how many nodes give it.
type counted struct {
	check int
	text  string
	nodes int
}

var none = math.Inf(-1)

// follow brings the ranking up to date.
func (r *ranking) follow(v *policy.View, chain policy.Chain, it *policy.Item) {
	nodes, now, ok := v.Changes(r.at)
	if !ok || r.view != v || r.version != v.Version(it.Ref.Tenant) || r.epochs() != r.epoch {
		r.build(v, chain, it)
		_, r.at, _ = v.Changes(0)
		return
	}
	for _, id := range nodes {
		r.update(int(id))
	}
	r.at = now
}

func (r *ranking) build(v *policy.View, chain policy.Chain, it *policy.Item) {
	*r = ranking{view: v, used: r.used, index: map[string]int32{}, version: v.Version(it.Ref.Tenant)}
	for _, f := range chain.Filters {
		if c := f.Check(v, it); c != nil {
			r.checks = append(r.checks, check{f.Name(), c})
			if c.In != nil {
				r.level = policy.Nearer(r.level, c.Level)
			}
		}
	}
	for _, s := range chain.Scorers {
		if g := s.Grade(v, it); g != nil && s.Weight > 0 {
			r.grades = append(r.grades, grade{s.Name(), s.Weight, g})
			r.weights += s.Weight
			if g.In != nil {
				r.level = policy.Nearer(r.level, g.Level)
			}
		}
	}
	r.epoch = r.epochs()
	r.reason, r.leaf = make([]int32, len(v.Nodes)), make([]int32, len(v.Nodes))
	r.trees = make([]tree, 1)
	if r.level != policy.Host {
		r.trees = make([]tree, v.Domains(r.level))
	}
	for id, n := range v.Nodes {
		t := r.treeOf(n)
		r.leaf[id] = int32(len(t.nodes))
		t.nodes = append(t.nodes, int32(id))
		t.place = n.Place
	}
	for i := range r.trees {
		r.trees[i].size()
	}
	for id, n := range v.Nodes {
		t := r.treeOf(n)
		x := r.worth(id)
		t.val[t.base+int(r.leaf[id])] = x
		if x != none {
			t.admitted++
		}
	}
	for i := range r.trees {
		r.trees[i].fill()
	}
}

func (r *ranking) treeOf(n *policy.Node) *tree {
	if r.level == policy.Host {
		return &r.trees[0]
	}
	return &r.trees[n.Place[r.level]]
}

// epochs sums up what answers depend on beside the nodes.
func (r *ranking) epochs() uint64 {
	e := uint64(1)
	for i := range r.checks {
		if f := r.checks[i].Epoch; f != nil {
			e = e*1099511628211 + f()
		}
	}
	for i := range r.grades {
		if f := r.grades[i].Epoch; f != nil {
			e = e*1099511628211 + f()
		}
	}
	return e
}

// worth judges a node by itself, and keeps count of the reasons.
func (r *ranking) worth(id int) float64 {
	n := r.view.Nodes[id]
	if old := r.reason[id]; old > 0 {
		r.reasons[old-1].nodes--
	}
	if c, why := r.refusal(n); why != "" {
		i, ok := r.index[why]
		if !ok {
			r.reasons = append(r.reasons, counted{check: c, text: why})
			i = int32(len(r.reasons))
			r.index[why] = i
		}
		r.reasons[i-1].nodes++
		r.reason[id] = i
		return none
	}
	r.reason[id] = 0
	return r.score(n)
}

// refusal is the first reason against a node, and which check gave it.
func (r *ranking) refusal(n *policy.Node) (int, string) {
	for i := range r.checks {
		if why := r.checks[i].Node(n); why != "" {
			return i, why
		}
	}
	return 0, ""
}

func (r *ranking) score(n *policy.Node) float64 {
	s := 0.0
	for i := range r.grades {
		s += r.grades[i].weight * r.grades[i].Node(n)
	}
	return s
}

func (r *ranking) update(id int) {
	t := r.treeOf(r.view.Nodes[id])
	was := t.val[t.base+int(r.leaf[id])] != none
	x := r.worth(id)
	if is := x != none; is != was {
		if is {
			t.admitted++
		} else {
			t.admitted--
		}
	}
	t.set(int(r.leaf[id]), x)
}

// domainRefusal is the first reason against a whole domain.
func (r *ranking) domainRefusal(p policy.Place) (int, string) {
	for i := range r.checks {
		if in := r.checks[i].In; in != nil {
			if why := in(p); why != "" {
				return i, why
			}
		}
	}
	return 0, ""
}

func (r *ranking) domainScore(p policy.Place) float64 {
	s := 0.0
	for i := range r.grades {
		if in := r.grades[i].In; in != nil {
			s += r.grades[i].weight * in(p)
		}
	}
	return s
}

// pick is a node and what it is worth; node is -1 for none.
type pick struct {
	node  int
	worth float64
}

// best finds the node that is worth most.
func (r *ranking) best(t toss) pick {
	tree, worth := -1, none
	for i := range r.trees {
		tr := &r.trees[i]
		if len(tr.nodes) == 0 || tr.val[1] == none {
			continue
		}
		x := tr.val[1]
		if r.level != policy.Host {
			if _, why := r.domainRefusal(tr.place); why != "" {
				continue
			}
			x += r.domainScore(tr.place)
		}
		if tree < 0 || x > worth || x == worth && t.right(-i) {
			tree, worth = i, x
		}
	}
	if tree < 0 {
		return pick{node: -1}
	}
	return pick{int(r.trees[tree].nodes[r.trees[tree].top(t)]), worth}
}

// verdicts tells of the nodes one by one: of all in a small pool, else of the best.
func (r *ranking) verdicts(first pick, t toss) []api.NodeVerdict {
	var out []api.NodeVerdict
	if first.node < 0 || len(r.view.Nodes) <= maxVerdicts {
		return r.allVerdicts(t)
	}
	var hidden []pick
	for p := first; p.node >= 0 && len(out) < topVerdicts; p = r.best(t) {
		out = append(out, r.verdict(p.node))
		tr := r.treeOf(r.view.Nodes[p.node])
		leaf := int(r.leaf[p.node])
		hidden = append(hidden, pick{p.node, tr.val[tr.base+leaf]})
		tr.set(leaf, none)
	}
	for _, h := range hidden {
		r.treeOf(r.view.Nodes[h.node]).set(int(r.leaf[h.node]), h.worth)
	}
	return out
}

// allVerdicts lists possible nodes from the best on, then the refused.
func (r *ranking) allVerdicts(t toss) []api.NodeVerdict {
	var possible []pick
	var refused []api.NodeVerdict
	for id, n := range r.view.Nodes {
		why := ""
		if i := r.reason[id]; i > 0 {
			why = r.reasons[i-1].text
		} else if r.level != policy.Host {
			_, why = r.domainRefusal(n.Place)
		}
		switch {
		case why == "":
			possible = append(possible, pick{id, r.score(n) + r.domainScore(n.Place)})
		case len(refused) < maxVerdicts:
			refused = append(refused, api.NodeVerdict{Node: n.Name, Reason: why})
		}
	}
	first := r.best(t)
	var out []api.NodeVerdict
	for len(possible) > 0 && len(out) < maxVerdicts {
		at := 0
		for i, p := range possible {
			if p.node == first.node { // among equals the one that was taken comes first
				at = i
				break
			}
			if p.worth > possible[at].worth {
				at = i
			}
		}
		out = append(out, r.verdict(possible[at].node))
		possible = append(possible[:at], possible[at+1:]...)
		first.node = -1
	}
	return append(out, refused[:min(len(refused), maxVerdicts-len(out))]...)
}

func (r *ranking) verdict(id int) api.NodeVerdict {
	n := r.view.Nodes[id]
	nv := api.NodeVerdict{Node: n.Name, Parts: make(map[string]float64, len(r.grades))}
	sum := 0.0
	for _, g := range r.grades {
		x := g.Node(n)
		if g.In != nil {
			x += g.In(n.Place)
		}
		nv.Parts[g.name] = x
		sum += g.weight * x
	}
	if r.weights > 0 {
		nv.Score = sum / r.weights
	}
	return nv
}

// refusals counts the reasons; with closest, the node that came nearest is named.
func (r *ranking) refusals(closest bool) []api.Refusal {
	at := map[string]int{}
	var out []api.Refusal
	for i, c := range r.reasons {
		if c.nodes == 0 {
			continue
		}
		f := api.Refusal{Policy: r.checks[c.check].name, Reason: c.text, Nodes: c.nodes}
		if closest {
			f.Best = r.closest(int32(i + 1))
		}
		at[c.text] = len(out)
		out = append(out, f)
	}
	if r.level != policy.Host {
		for i := range r.trees {
			t := &r.trees[i]
			if t.admitted == 0 {
				continue
			}
			c, why := r.domainRefusal(t.place)
			if why == "" {
				continue
			}
			if j, ok := at[why]; ok {
				out[j].Nodes += t.admitted
				continue
			}
			at[why] = len(out)
			out = append(out, api.Refusal{Policy: r.checks[c].name, Reason: why, Nodes: t.admitted})
		}
	}
	sortRefusals(out)
	return out
}

// closest names the node that is nearest to admitting among those with a reason.
func (r *ranking) closest(reason int32) string {
	c := r.checks[r.reasons[reason-1].check]
	short, best := 2.0, -1
	for id, i := range r.reason {
		if i != reason {
			continue
		}
		if c.Short == nil {
			return r.view.Nodes[id].Name
		}
		if s := c.Short(r.view.Nodes[id]); s < short {
			short, best = s, id
		}
	}
	return r.view.Nodes[best].Name + ": " + c.Tell(r.view.Nodes[best])
}
