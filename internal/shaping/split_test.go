package shaping

import (
	"testing"

	"pgregory.net/rapid"
)

const mbit = 1_000_000

func leaf(used, guarantee, limit int64, hungry bool) *node {
	return &node{used: used * mbit, guarantee: guarantee * mbit, limit: limit * mbit, hungry: hungry}
}

func group(guarantee, limit int64, children ...*node) *node {
	return &node{guarantee: guarantee * mbit, limit: limit * mbit, children: children}
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		name string
		root *node
		want []int64 // Mbit/s of the cables, from left to right; -1: unbounded
	}{
		{"nothing said", group(0, 0, group(0, 0, leaf(5, 0, 0, true))), []int64{-1}},
		{"its own limit", group(0, 0, group(0, 0, leaf(5, 0, 20, true), leaf(5, 0, 0, true))), []int64{20, -1}},
		{"a tenant's limit, both want all", group(0, 0, group(0, 100, leaf(40, 0, 0, true), leaf(40, 0, 0, true))), []int64{50, 50}},
		{"one is idle: all but what shows that it wants more", group(0, 0, group(0, 100, leaf(50, 0, 0, true), leaf(0, 0, 0, false))), []int64{99, 0}},
		{"one is limited itself", group(0, 0, group(0, 100, leaf(20, 0, 20, true), leaf(40, 0, 0, true))), []int64{20, 80}},
		{"nobody wants much: what is left is for both", group(0, 0, group(0, 100, leaf(4, 0, 0, false), leaf(8, 0, 0, false))), []int64{47, 52}},
		{"a guarantee on a full uplink", group(0, 1000, group(0, 0, leaf(500, 700, 0, true)), group(0, 0, leaf(500, 0, 0, true), leaf(500, 0, 0, true))), []int64{848, 76, 76}},
		{"a guarantee that is not used", group(0, 1000, group(0, 0, leaf(0, 700, 0, false)), group(0, 0, leaf(500, 0, 0, true))), []int64{5, 995}},
		{"of a tenant, used by one of its instances", group(0, 1000, group(600, 0, leaf(10, 0, 0, true), leaf(0, 0, 0, false)), group(0, 0, leaf(10, 0, 0, true))), []int64{794, 3, 201}},
		{"more is promised than there is", group(0, 90, leaf(0, 100, 0, true), leaf(0, 50, 0, true)), []int64{60, 30}},
	} {
		split(c.root)
		var got []int64
		for _, l := range leaves(c.root) {
			if l.share >= unbounded {
				got = append(got, -1)
			} else {
				got = append(got, l.share/mbit)
			}
		}
		for i, w := range c.want {
			if d := got[i] - w; d < -1 || d > 1 {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
				break
			}
		}
	}
}

func leaves(n *node) []*node {
	if len(n.children) == 0 {
		return []*node{n}
	}
	var out []*node
	for _, c := range n.children {
		out = append(out, leaves(c)...)
	}
	return out
}

// Whatever is said and used: no limit is exceeded on any level, everybody gets something, and who is hungry gets his
// guarantee where the guarantees fit.
func TestSplitKeepsLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Int64Range(1_000_000, 10_000_000_000)
		maybe := func(name string) int64 {
			if rapid.Bool().Draw(t, name) {
				return rate.Draw(t, name)
			}
			return 0
		}
		root := &node{limit: maybe("uplink")}
		for range rapid.IntRange(1, 4).Draw(t, "tenants") {
			tenant := &node{limit: maybe("limit"), guarantee: maybe("guarantee") / 100, weight: rapid.Int64Range(0, 10000).Draw(t, "weight")}
			for range rapid.IntRange(1, 4).Draw(t, "instances") {
				n := &node{limit: maybe("limit"), used: maybe("used"), hungry: rapid.Bool().Draw(t, "hungry")}
				if n.limit == 0 {
					n.guarantee = maybe("guarantee") / 100
				}
				tenant.children = append(tenant.children, n)
			}
			root.children = append(root.children, tenant)
		}
		split(root)
		var check func(n *node) int64
		check = func(n *node) int64 {
			if len(n.children) == 0 {
				if n.share <= 0 || n.share > n.most() {
					t.Fatalf("a share of %d, at most %d", n.share, n.most())
				}
				return n.share
			}
			var sum int64
			for _, c := range n.children {
				sum += check(c)
			}
			if n.limit != 0 && sum > n.limit+int64(len(n.children)) {
				t.Fatalf("%d is given of %d", sum, n.limit)
			}
			return min(sum, unbounded)
		}
		check(root)
		if root.limit == 0 || root.firm < root.limit/2 {
			for _, tenant := range root.children {
				if tenant.limit != 0 && tenant.limit < 2*tenant.firm {
					continue
				}
				for _, l := range tenant.children {
					if l.hungry && l.share < min(l.guarantee, l.most())*9/10 {
						t.Fatalf("%d of a guarantee of %d", l.share, l.guarantee)
					}
				}
			}
		}
	})
}
