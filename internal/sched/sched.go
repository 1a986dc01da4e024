// Package sched decides where instances run. Plan is pure: the same view, items,
// chain and seed give the same plan; it reads no clock, does no I/O and cannot
// fail. What cannot be placed comes back with the reasons, counted.
package sched

import (
	"fmt"
	"hash/fnv"
	"sort"

	"atoll/api"
	"atoll/internal/policy"
)

// Placement is one decision. Node is "" when no node admits the item; Decision says why.
type Placement struct {
	Item     *policy.Item
	Node     string
	Decision api.Decision
}

// maxVerdicts bounds what a decision keeps per node; the rest is counted only.
const maxVerdicts = 20

// Plan places items in the order given, each seeing the ones before it. The view
// is as before when Plan returns.
func Plan(v *policy.View, items []*policy.Item, chain policy.Chain, seed uint64) []Placement {
	out := make([]Placement, 0, len(items))
	placed := make([]string, 0, len(items))
	for _, it := range items {
		p := one(v, it, chain, seed)
		if p.Node != "" && len(items) > 1 {
			v.Place(it, p.Node)
			placed = append(placed, it.UID)
		}
		out = append(out, p)
	}
	for i := len(placed) - 1; i >= 0; i-- {
		v.Unplace(placed[i])
	}
	return out
}

func one(v *policy.View, it *policy.Item, chain policy.Chain, seed uint64) Placement {
	p := Placement{Item: it, Decision: api.Decision{Of: len(v.Nodes)}}
	refusals := map[string]*refusal{}
	var possible, refused []api.NodeVerdict
	for _, n := range v.Nodes {
		if name, reason, f := admit(v, n, it, chain); reason != "" {
			r := refusals[reason]
			if r == nil {
				r = &refusal{Refusal: api.Refusal{Policy: name, Reason: reason}, short: 2}
				refusals[reason] = r
			}
			r.count(v, n, it, f)
			if len(refused) < maxVerdicts {
				refused = append(refused, api.NodeVerdict{Node: n.Name, Reason: reason})
			}
			continue
		}
		possible = append(possible, score(v, n, it, chain))
	}
	// Equal scores are ordered by a hash of seed, item and node, so that equal nodes
	// share the load, and the same seed decides the same.
	ties := map[string]uint64{}
	for _, n := range possible {
		ties[n.Node] = tie(seed, it.UID, n.Node)
	}
	sort.SliceStable(possible, func(i, j int) bool {
		if possible[i].Score != possible[j].Score {
			return possible[i].Score > possible[j].Score
		}
		return ties[possible[i].Node] < ties[possible[j].Node]
	})
	if len(possible) > 0 {
		p.Node = possible[0].Node
		p.Decision.Chosen = p.Node
	}
	p.Decision.Nodes = append(possible[:min(len(possible), maxVerdicts)], refused[:min(len(refused), max(maxVerdicts-len(possible), 0))]...)
	p.Decision.Refusals = counted(refusals)
	if p.Node == "" {
		p.Decision.Hints = hints(v, it, p.Decision.Refusals)
	}
	return p
}

func admit(v *policy.View, n *policy.Node, it *policy.Item, chain policy.Chain) (string, string, policy.Filter) {
	for _, f := range chain.Filters {
		if reason := f.Admit(v, n, it); reason != "" {
			return f.Name(), reason, f
		}
	}
	return "", "", nil
}

func score(v *policy.View, n *policy.Node, it *policy.Item, chain policy.Chain) api.NodeVerdict {
	nv := api.NodeVerdict{Node: n.Name, Parts: make(map[string]float64, len(chain.Scorers))}
	sum, weights := 0.0, 0.0
	for _, s := range chain.Scorers {
		x := s.Score(v, n, it)
		nv.Parts[s.Name()] = x
		sum += x * s.Weight
		weights += s.Weight
	}
	if weights > 0 {
		nv.Score = sum / weights
	}
	return nv
}

func tie(seed uint64, uid, node string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d|%s|%s", seed, uid, node)
	return h.Sum64()
}

type refusal struct {
	api.Refusal
	short float64
}

// count adds a node and remembers the one that came closest.
func (r *refusal) count(v *policy.View, n *policy.Node, it *policy.Item, f policy.Filter) {
	r.Nodes++
	g, ok := f.(policy.Gauge)
	if !ok {
		if r.Best == "" {
			r.Best = n.Name
		}
		return
	}
	if s, text := g.Short(v, n, it); s < r.short {
		r.short, r.Best = s, n.Name+": "+text
	}
}

func counted(m map[string]*refusal) []api.Refusal {
	out := make([]api.Refusal, 0, len(m))
	for _, r := range m {
		out = append(out, r.Refusal)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Nodes != out[j].Nodes {
			return out[i].Nodes > out[j].Nodes
		}
		return out[i].Reason < out[j].Reason
	})
	return out
}

// hints says what would help.
func hints(v *policy.View, it *policy.Item, refusals []api.Refusal) []string {
	if len(v.Nodes) == 0 {
		return []string{"the pool has no node: start one with 'atolld up', or see 'atoll node token'"}
	}
	var out []string
	for _, r := range refusals {
		switch r.Policy {
		case "resources":
			for i, name := range api.ResourceNames() {
				most, size := int64(0), int64(0)
				for _, n := range v.Nodes {
					most, size = max(most, n.Allocatable[i]-n.Used[i]), max(size, n.Allocatable[i])
				}
				if it.Request[i] > most && (name == api.CPU || name == api.Memory || name == api.Disk) {
					out = append(out, fmt.Sprintf("at most %s=%s fits on one node now (the largest node has %s)", name, api.HumanQuantity(name, most), api.HumanQuantity(name, size)))
				}
			}
		case "host":
			out = append(out, "see 'atoll get nodes -o wide' and 'atoll describe node/NAME'")
		case "ports":
			out = append(out, "publish on another port, or leave the host's port out")
		}
	}
	return out
}
