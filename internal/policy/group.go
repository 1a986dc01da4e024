package policy

import (
	"reflect"
	"slices"

	"atoll/api"
)

// Group counts the placed items that match something, per domain of every level,
// and is kept up to date by the View.
type Group struct {
	key   string // in View.groups; "" for those of avoiders
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

const (
	// maxGroups bounds what is counted for one tenant; beyond, all of the tenant's is
	// counted anew as it is asked for. Other tenants do not notice.
	maxGroups = 1000
	// maxKinds bounds what is remembered of kinds of items.
	maxKinds = 20_000
	// idleAvoiders of a tenant may be kept after who wished them has gone.
	idleAvoiders = 64
)

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
		if len(v.byTenant[tenant]) >= maxGroups+len(v.avoiders[tenant]) {
			v.forgetGroups(tenant)
		}
		g = &Group{key: key, match: func(x *Item) bool { return x.Ref.Tenant == tenant && match(x) }}
		v.groups[key] = g
		v.byTenant[tenant] = append(v.byTenant[tenant], g)
		clear(v.matching)
	}
	v.recount(g)
	return g
}

// forgetGroups drops all groups of a tenant but those of its avoiders.
func (v *View) forgetGroups(tenant string) {
	for _, g := range v.byTenant[tenant] {
		delete(v.groups, g.key)
	}
	v.byTenant[tenant] = nil
	for _, a := range v.avoiders[tenant] {
		v.byTenant[tenant] = append(v.byTenant[tenant], a.Group)
	}
	clear(v.matching)
	v.asked[tenant]++
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
	v.countAvoiders(it, int(d))
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
		if len(v.matching) >= maxKinds {
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
	wished int // by how many placed items
}

// Avoiders lists what placed items of a tenant want to be away from.
func (v *View) Avoiders(tenant string) []*Avoider {
	list := v.avoiders[tenant]
	for _, a := range list {
		v.recount(a.Group)
	}
	return list
}

// countAvoiders follows the wishes of an item that comes or goes.
func (v *View) countAvoiders(it *Item, d int) {
	if it.Spec == nil || it.Spec.Placement == nil {
		return
	}
	tenant := it.Ref.Tenant
	for _, t := range it.Spec.Placement.Avoid {
		if t.Preferred {
			continue
		}
		key := avoidKey(t)
		i := slices.IndexFunc(v.avoiders[tenant], func(a *Avoider) bool { return a.key == key })
		if i < 0 {
			g := &Group{match: func(x *Item) bool { return x.Ref.Tenant == tenant && avoids(x, key) }}
			i = len(v.avoiders[tenant])
			v.avoiders[tenant] = append(v.avoiders[tenant], &Avoider{Labels: t.Labels, Level: LevelOf(t.Topology), Group: g, key: key})
			v.byTenant[tenant] = append(v.byTenant[tenant], g)
			clear(v.matching)
			v.asked[tenant]++
		}
		v.avoiders[tenant][i].wished += d
	}
	if d < 0 && v.quiet == 0 {
		v.dropAvoiders(tenant)
	}
}

// dropAvoiders forgets wishes nobody has any more, some at once.
func (v *View) dropAvoiders(tenant string) {
	idle := 0
	for _, a := range v.avoiders[tenant] {
		if a.wished == 0 {
			idle++
		}
	}
	if idle <= idleAvoiders {
		return
	}
	v.avoiders[tenant] = slices.DeleteFunc(v.avoiders[tenant], func(a *Avoider) bool { return a.wished == 0 })
	v.forgetGroups(tenant)
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

// leaving lists what of a tenant was told to go.
func (v *View) leaving(tenant string) []*spot {
	var out []*spot
	for uid := range v.goes[tenant] {
		if s := v.spots[uid]; s != nil {
			out = append(out, s)
		}
	}
	return out
}

// budget is a DisruptionBudget and whom it protects.
type budget struct {
	spec *api.DisruptionBudgetSpec
}

// SetBudget adds a budget or replaces it.
func (v *View) SetBudget(b *api.DisruptionBudget) {
	if old := v.budgets[b.Tenant][api.RefOf(b)]; old != nil && reflect.DeepEqual(*old.spec, b.Spec) {
		return
	}
	if v.budgets[b.Tenant] == nil {
		v.budgets[b.Tenant] = map[api.Ref]*budget{}
	}
	v.budgets[b.Tenant][api.RefOf(b)] = &budget{spec: &b.Spec}
	v.budgeted++
}

// RemoveBudget forgets a budget.
func (v *View) RemoveBudget(ref api.Ref) {
	if delete(v.budgets[ref.Tenant], ref); len(v.budgets[ref.Tenant]) == 0 {
		delete(v.budgets, ref.Tenant)
	}
	v.budgeted++
}

// Budgets counts the tenants that have budgets.
func (v *View) Budgets() int { return len(v.budgets) }

// Spare is how many items like this one may be taken away now, and by which budget;
// bounded is false when none protects it.
func (v *View) Spare(it *Item) (n int, by api.Ref, bounded bool) {
	tenant := it.Ref.Tenant
	for ref, b := range v.budgets[tenant] {
		if !Matches(it.Labels, b.spec.Labels) {
			continue
		}
		g := v.Matching(tenant, b.spec.Labels)
		want, have := g.total, g.total
		for _, s := range v.leaving(tenant) {
			if Matches(s.item.Labels, b.spec.Labels) {
				have--
			}
		}
		for _, w := range v.waiting[tenant] {
			if Matches(w.Labels, b.spec.Labels) {
				want++
			}
		}
		if a := b.spec.Allows(have, want); !bounded || a < n || a == n && ref.Name < by.Name {
			n, by, bounded = a, ref, true
		}
	}
	return n, by, bounded
}
