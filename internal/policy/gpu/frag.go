package gpu

import (
	"cmp"
	"math"
	"slices"
)

// Typical is a shape of request and how often it comes, 0..1.
type Typical struct {
	Item
	Share float64
}

// TypicalOf lists the most frequent shapes until they cover so much (0..1) of the
// items, their shares adding up to 1. Memory is no part of a shape.
func TypicalOf(items []Item, cover float64) []Typical {
	counts := map[Item]int{}
	for _, it := range items {
		it.Memory = 0
		counts[it]++
	}
	out := make([]Typical, 0, len(counts))
	for it, n := range counts {
		out = append(out, Typical{it, float64(n)})
	}
	slices.SortFunc(out, func(a, b Typical) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(b.CPU, a.CPU), cmp.Compare(b.Milli, a.Milli),
			cmp.Compare(b.Count, a.Count), cmp.Compare(b.Models, a.Models))
	})
	sum, n := 0.0, 0
	for n < len(out) && sum < cover*float64(len(items)) {
		sum += out[n].Share
		n++
	}
	for i := range out[:n] {
		out[i].Share /= sum
	}
	return out[:n]
}

// Frag is the fragmentation of a node as Weng et al. (USENIX ATC'23) define it: the
// free thousandths that the typical requests cannot use, weighted by their shares.
// The sums are kept by cause and added in the order of the published code, because
// Gradient cuts to whole numbers and its ties hang on the last digit.
func Frag(n *Node, typical []Typical) float64 {
	idle := n.Idle()
	if idle == 0 {
		return 0
	}
	var lost [6]float64 // both short, devices short, cores short, no devices asked with and without cores, model
	for i := range typical {
		t := &typical[i]
		cores := n.CPU >= t.CPU
		cause, amount := 0, idle
		switch {
		case t.Count == 0 && cores:
			cause = 3
		case t.Count == 0:
			cause = 4
		case !t.Allows(n.Model):
			cause = 5
		case n.has(&t.Item) && cores:
			cause, amount = 1, 0
			for _, f := range n.Free[:n.Devices] {
				if f < t.Milli {
					amount += int64(f)
				}
			}
		case n.has(&t.Item):
			cause = 2
		case cores:
			cause = 1
		}
		lost[cause] += t.Share * float64(amount)
	}
	sum := 0.0
	for _, l := range lost {
		sum += l
	}
	return sum
}

// Gradient is fragmentation gradient descent: how much a node's fragmentation falls
// by an item that fits, squeezed to whole numbers of 0..100 as the published
// scheduler does (higher is better), and the devices to take for it.
func Gradient(n *Node, it *Item, typical []Typical) (int, Set) {
	before := Frag(n, typical)
	best, set := -1, Set(0)
	n.options(it, AllDevices, func(s Set) {
		after := *n
		after.Take(it, s)
		if g := int(100 / (1 + math.Exp(-(before-Frag(&after, typical))/Whole))); g > best {
			best, set = g, s
		}
	})
	return best, set
}
