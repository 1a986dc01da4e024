package sched

import "atoll/internal/policy"

// tree finds the largest of many values that change one at a time. val[1] is the
// largest of all; the children of val[i] are val[2i] and val[2i+1].
type tree struct {
	base     int // val[base] is the first leaf
	val      []float64
	nodes    []int32 // node of each leaf
	place    policy.Place
	admitted int
}

// size makes room for a leaf per node.
func (t *tree) size() {
	t.base = 1
	for t.base < len(t.nodes) {
		t.base *= 2
	}
	t.val = make([]float64, 2*t.base)
	for i := range t.val {
		t.val[i] = none
	}
}

// fill computes everything above the leaves.
func (t *tree) fill() {
	for i := t.base - 1; i >= 1; i-- {
		t.val[i] = max(t.val[2*i], t.val[2*i+1])
	}
}

func (t *tree) set(leaf int, x float64) {
	i := t.base + leaf
	t.val[i] = x
	for i >>= 1; i >= 1; i >>= 1 {
		m := max(t.val[2*i], t.val[2*i+1])
		if t.val[i] == m {
			return
		}
		t.val[i] = m
	}
}

// top is the leaf with the largest value.
func (t *tree) top(by toss) int {
	i := 1
	for i < t.base {
		i *= 2
		if t.val[i+1] > t.val[i] || t.val[i+1] == t.val[i] && t.val[i] != none && by.right(i) {
			i++
		}
	}
	return i - t.base
}
