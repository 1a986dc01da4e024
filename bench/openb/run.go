package main

import (
	"math"
	"math/rand"

	"atoll/internal/policy/gpu"
)

// placer is a policy under test. The score of a node depends on the node's state,
// the item and the epoch only, so it is kept until one of them changes.
type placer interface {
	score(n *gpu.Node, it *gpu.Item) (float64, gpu.Set)
	placed(id int, after *gpu.Node, it *gpu.Item)
	epoch() uint64
}

// shape is what is known of the nodes for one kind of item.
type shape struct {
	item   gpu.Item
	epoch  uint64
	synced int64
	scores []float64 // -Inf: does not fit
	sets   []gpu.Set
}

// pool is the cluster of a run.
type pool struct {
	nodes   []gpu.Node
	changed []int64 // version of each node's last change
	version int64
	shapes  []*shape
	index   map[gpu.Item]int
}

func newPool(nodes []gpu.Node) *pool {
	return &pool{nodes: append([]gpu.Node(nil), nodes...), changed: make([]int64, len(nodes)), version: 1, index: map[gpu.Item]int{}}
}

func (p *pool) shape(it *gpu.Item) *shape {
	i, ok := p.index[*it]
	if !ok {
		i = len(p.shapes)
		p.index[*it] = i
		p.shapes = append(p.shapes, &shape{item: *it, epoch: ^uint64(0), scores: make([]float64, len(p.nodes)), sets: make([]gpu.Set, len(p.nodes))})
	}
	return p.shapes[i]
}

func (p *pool) take(n int, it *gpu.Item, set gpu.Set) {
	p.nodes[n].Take(it, set)
	p.version++
	p.changed[n] = p.version
}

// sync scores anew what changed since the shape was last asked for.
func (p *pool) sync(s *shape, by placer) {
	epoch := by.epoch()
	all := s.epoch != epoch
	for i := range p.nodes {
		if !all && p.changed[i] <= s.synced {
			continue
		}
		n := &p.nodes[i]
		if !n.Fits(&s.item) {
			s.scores[i] = math.Inf(-1)
			continue
		}
		s.scores[i], s.sets[i] = by.score(n, &s.item)
	}
	s.epoch, s.synced = epoch, p.version
}

// choose answers the best node, -1 when the item fits on none. Equal scores go to
// the first node of the file, or to a random one of them when rng is given.
func (s *shape) choose(rng *rand.Rand) int {
	best, score, ties := -1, math.Inf(-1), 0
	for i, x := range s.scores {
		switch {
		case x > score:
			best, score, ties = i, x, 1
		case rng != nil && best >= 0 && x == score:
			if ties++; rng.Intn(ties) == 0 {
				best = i
			}
		}
	}
	return best
}

// outcome is what a run came to.
type outcome struct {
	Alloc      [131]float64 // A(k), percent
	EarlyMulti int          // dropped with two or more devices, up to 90 % arrivals
	CPUOnly    int          // dropped without devices
	Dropped    int
	Decisions  int
	Used       int64 // milli of devices, at the end
}

// run is the experiment: one arrival after the other, what fits nowhere is dropped.
func run(nodes []gpu.Node, items []gpu.Item, by placer, rng *rand.Rand) outcome {
	p := newPool(nodes)
	var o outcome
	capacity := 0.0
	for i := range nodes {
		capacity += float64(nodes[i].Idle())
	}
	var arrived, used int64
	var counts [131]int
	for i := range items {
		it := &items[i]
		arrived += it.Demand()
		s := p.shape(it)
		p.sync(s, by)
		n := s.choose(rng)
		k := int(math.Round(100 * float64(arrived) / capacity))
		if n < 0 {
			o.drop(it, k)
		} else {
			p.take(n, it, s.sets[n])
			by.placed(n, &p.nodes[n], it)
			used += it.Demand()
		}
		if k <= 130 {
			o.Alloc[k] += math.Round(1e4*float64(used)/capacity) / 100
			counts[k]++
		}
	}
	for k, c := range counts {
		if c > 0 {
			o.Alloc[k] /= float64(c)
		}
	}
	o.Decisions, o.Used = len(items), used
	return o
}

func (o *outcome) drop(it *gpu.Item, k int) {
	o.Dropped++
	if it.Count == 0 {
		o.CPUOnly++
	}
	if it.Multi() && k <= 90 {
		o.EarlyMulti++
	}
}
