package policy

import "atoll/api"

// Group counts the placed items that match something, per domain of every level,
// and is kept up to date by the View.
type Group struct {
	match func(*Item) bool
	of    uint64 // the structure it counts in
	total int
	by    [numLevels]tally
}

type tally struct {
	n           []int32 // by domain
	open        []bool  // by domain: counts for least and most
	with        []int32 // how many open domains have so many
	least, most int32
}

// maxGroups bounds what is counted at once; beyond, everything is counted anew as it is asked for.
const maxGroups = 20_000

// Siblings counts the items of a tenant with exactly these labels.
func (v *View) Siblings(it *Item) *Group {
	tenant, labels := it.Ref.Tenant, it.Labels
	return v.group("=", tenant, labels, func(x *Item) bool {
		return len(x.Labels) == len(labels) && Matches(x.Labels, labels)
	})
}

// Matching counts the items of a tenant that have at least these labels.
func (v *View) Matching(tenant string, labels map[string]string) *Group {
	return v.group("+", tenant, labels, func(x *Item) bool { return Matches(x.Labels, labels) })
}

func (v *View) group(kind, tenant string, labels map[string]string, match func(*Item) bool) *Group {
	key := string(appendLabels([]byte(kind+tenant+"\x00"), labels))
	g := v.groups[key]
	if g == nil {
		if len(v.groups) >= maxGroups {
			v.forgetGroups()
		}
		g = &Group{match: func(x *Item) bool { return x.Ref.Tenant == tenant && match(x) }}
		v.groups[key] = g
		v.byTenant[tenant] = append(v.byTenant[tenant], g)
		clear(v.matching)
	}
	v.recount(g)
	return g
}

func (v *View) forgetGroups() {
	clear(v.groups)
	clear(v.byTenant)
	clear(v.matching)
	for tenant, list := range v.avoiders {
		for _, a := range list {
			v.byTenant[tenant] = append(v.byTenant[tenant], a.Group)
		}
	}
	v.terms++
}

// recount counts a group in the present structure.
func (v *View) recount(g *Group) {
	v.Arrange()
	if g.of == v.structure {
		return
	}
	g.of, g.total = v.structure, 0
	for l := range g.by {
		t := tally{n: make([]int32, len(v.open[l])), open: v.open[l], with: []int32{0}}
		for _, open := range t.open {
			if open {
				t.with[0]++
			}
		}
		g.by[l] = t
	}
	for _, n := range v.Nodes {
		for _, x := range n.Items {
			if g.match(x) {
				g.add(n, 1)
			}
		}
	}
}

func (g *Group) add(n *Node, d int32) {
	g.total += int(d)
	for l := range g.by {
		g.by[l].add(n.Place[l], d)
	}
}

func (t *tally) add(domain, d int32) {
	old := t.n[domain]
	now := old + d
	t.n[domain] = now
	if !t.open[domain] {
		return
	}
	t.with[old]--
	for int(now) >= len(t.with) {
		t.with = append(t.with, 0)
	}
	t.with[now]++
	t.most = max(t.most, now)
	for t.most > 0 && t.with[t.most] == 0 {
		t.most--
	}
	t.least = min(t.least, now)
	for t.with[t.least] == 0 {
		t.least++
	}
}

// Total is how many are placed anywhere.
func (g *Group) Total() int { return g.total }

// On is how many are on a node.
func (g *Group) On(n *Node) int { return int(g.by[Host].n[n.ID]) }

// In is how many are in a place's domain of a level.
func (g *Group) In(p Place, l Level) int { return int(g.by[l].n[p[l]]) }

// Range is the least and the most in any domain of a level that takes something new.
func (g *Group) Range(l Level) (least, most int) { return int(g.by[l].least), int(g.by[l].most) }

// countGroups adds an item to the groups that count it, or takes it out.
func (v *View) countGroups(n *Node, it *Item, d int32) {
	if d > 0 {
		v.addAvoiders(it)
	}
	if v.arranged != v.structure {
		return // all groups are counted anew
	}
	for _, g := range v.matchingOf(it) {
		if g.of == v.structure {
			g.add(n, d)
		}
	}
}

func (v *View) matchingOf(it *Item) []*Group {
	all := v.byTenant[it.Ref.Tenant]
	if len(all) == 0 {
		return nil
	}
	list, ok := v.matching[it.key]
	if !ok {
		if len(v.matching) >= maxGroups {
			clear(v.matching)
		}
		for _, g := range all {
			if g.match(it) {
				list = append(list, g)
			}
		}
		v.matching[it.key] = list
	}
	return list
}

// Avoider is a required wish of placed items to be away from others.
type Avoider struct {
	Labels map[string]string // those to be avoided
	Level  Level
	Group  *Group // who wishes it
	key    string
}

// Avoiders lists what placed items of a tenant want to be away from.
func (v *View) Avoiders(tenant string) []*Avoider {
	list := v.avoiders[tenant]
	for _, a := range list {
		v.recount(a.Group)
	}
	return list
}

func (v *View) addAvoiders(it *Item) {
	if it.Spec == nil || it.Spec.Placement == nil {
		return
	}
	for _, t := range it.Spec.Placement.Avoid {
		if t.Preferred {
			continue
		}
		key := avoidKey(t)
		known := false
		for _, a := range v.avoiders[it.Ref.Tenant] {
			known = known || a.key == key
		}
		if known {
			continue
		}
		tenant := it.Ref.Tenant
		g := &Group{match: func(x *Item) bool { return x.Ref.Tenant == tenant && avoids(x, key) }}
		v.avoiders[tenant] = append(v.avoiders[tenant], &Avoider{Labels: t.Labels, Level: LevelOf(t.Topology), Group: g, key: key})
		v.byTenant[tenant] = append(v.byTenant[tenant], g)
		clear(v.matching)
		v.terms++
	}
}

func avoidKey(t api.AffinityTerm) string {
	return string(appendLabels([]byte(LevelOf(t.Topology).String()), t.Labels))
}

func avoids(x *Item, key string) bool {
	if x.Spec.Placement == nil {
		return false
	}
	for _, t := range x.Spec.Placement.Avoid {
		if !t.Preferred && avoidKey(t) == key {
			return true
		}
	}
	return false
}

// budget is a DisruptionBudget and whom it protects.
type budget struct {
	spec *api.DisruptionBudgetSpec
}

// SetBudget adds a budget or replaces it.
func (v *View) SetBudget(b *api.DisruptionBudget) {
	v.budgets[api.RefOf(b)] = &budget{spec: &b.Spec}
	v.terms++
}

// RemoveBudget forgets a budget.
func (v *View) RemoveBudget(ref api.Ref) {
	delete(v.budgets, ref)
	v.terms++
}

// Spare is how many items like this one may be taken away now, and by which budget;
// bounded is false when none protects it.
func (v *View) Spare(it *Item) (n int, by api.Ref, bounded bool) {
	for ref, b := range v.budgets {
		if ref.Tenant != it.Ref.Tenant || !Matches(it.Labels, b.spec.Labels) {
			continue
		}
		g := v.Matching(ref.Tenant, b.spec.Labels)
		want := g.total
		for _, w := range v.waiting {
			if w.Ref.Tenant == ref.Tenant && Matches(w.Labels, b.spec.Labels) {
				want++
			}
		}
		if a := b.spec.Allows(g.total, want); !bounded || a < n || a == n && ref.Name < by.Name {
			n, by, bounded = a, ref, true
		}
	}
	return n, by, bounded
}
