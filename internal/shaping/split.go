package shaping

import (
	"cmp"
	"slices"
)

// node is a part of a host's traffic in one direction: the host, a tenant, an instance, or a cable, which has no
// children. Rates are bits per second.
type node struct {
	guarantee int64 // 0: none
	limit     int64 // 0: none
	weight    int64 // of what is left when everybody has his guarantee; 0 counts as 1
	used      int64 // of a cable: what passed lately
	hungry    bool  // of a cable: it would take more
	children  []*node

	want, firm int64 // of what is below: what it would take, and what it is promised
	share      int64 // what it may take now; 0: as much as it likes
}

const (
	unbounded = int64(1) << 52
	// leastPart of what a group has is left to each that does nothing, divided by their number, so that it can
	// show that it wants more.
	leastPart = 100
)

// split gives every cable its share. The sum of the shares below a node is never more than the node's limit.
// Who does not use his share leaves it to the others, guarantees too, and has it back as soon as he wants it.
func split(root *node) {
	ask(root)
	give(root, root.most())
}

func (n *node) most() int64 {
	if n.limit == 0 {
		return unbounded
	}
	return n.limit
}

// ask sums up from the cables: what each would take, and what of it is promised.
func ask(n *node) {
	if len(n.children) == 0 {
		n.want = n.used + n.used/4
		if n.hungry {
			n.want = unbounded
		}
		n.firm = n.guarantee
	} else {
		n.want, n.firm = 0, 0
		for _, c := range n.children {
			ask(c)
			n.want = min(n.want+c.want, unbounded)
			n.firm = min(n.firm+c.firm, unbounded)
		}
		n.firm = max(n.firm, n.guarantee)
	}
	n.want, n.firm = min(n.want, n.most()), min(n.firm, n.most())
}

// give divides amount among the children of n: first what is promised, as far as it is wanted, then by weight what
// is wanted beyond, and what is left then, too, so that nobody begins at nothing.
func give(n *node, amount int64) {
	n.share = amount
	if len(n.children) == 0 || amount >= unbounded {
		for _, c := range n.children {
			give(c, min(c.most(), amount))
		}
		return
	}
	floor := max(amount/leastPart/int64(len(n.children)), 1)
	var firm int64
	for _, c := range n.children {
		c.want = min(max(c.want, floor), c.most())
		c.share = min(c.want, max(c.firm, floor))
		firm += c.share
	}
	if firm > amount { // more is promised than there is: everybody loses the same part
		for _, c := range n.children {
			c.share = max(int64(float64(c.share)*float64(amount)/float64(firm)), 1)
		}
		firm = amount
	}
	left := fill(n.children, amount-firm, func(c *node) int64 { return c.want })
	fill(n.children, left, func(c *node) int64 { return c.most() })
	for _, c := range n.children {
		give(c, c.share)
	}
}

// fill raises shares by weight, nobody's above his top, until left is used up, and says what is left then.
func fill(children []*node, left int64, top func(*node) int64) int64 {
	open := slices.Clone(children)
	open = slices.DeleteFunc(open, func(c *node) bool { return c.share >= top(c) })
	weight := func(c *node) float64 { return float64(max(c.weight, 1)) }
	// Who needs the least for his weight is served first; what he leaves is for the others.
	need := func(c *node) float64 { return float64(top(c)-c.share) / weight(c) }
	slices.SortStableFunc(open, func(a, b *node) int { return cmp.Compare(need(a), need(b)) })
	var sum float64
	for _, c := range open {
		sum += weight(c)
	}
	for _, c := range open {
		part := min(int64(float64(left)*weight(c)/sum), top(c)-c.share)
		sum -= weight(c)
		c.share += part
		left -= part
	}
	return left
}
