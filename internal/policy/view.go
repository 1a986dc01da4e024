package policy

import (
	"slices"
	"sort"
	"strings"

	"atoll/api"
)

// View is the pool at one moment. One goroutine owns it; during a plan it is only
// changed by the plan, which puts everything back.
type View struct {
	Nodes  []*Node // sorted by name
	byName map[string]*Node
	spots  map[string]*spot // by instance UID

	structure uint64 // grows when nodes come, go or change their domain
	arranged  uint64 // the structure that numbers are of
	terms     uint64 // grows when policies must be asked anew for reasons other than structure
	changed   []int32
	changedAt uint64 // number of the first in changed
	quiet     int    // changes are not told while it is above 0

	open     [numLevels][]bool // by domain: has a node that takes something new
	groups   map[string]*Group
	byTenant map[string][]*Group
	matching map[string][]*Group // the groups that count an item, by its key
	avoiders map[string][]*Avoider
	budgets  map[string]map[api.Ref]*budget // by tenant
	budgeted uint64                         // grows when a budget changes
	waiting  map[string]map[string]*Item    // by tenant and UID
	asked    map[string]uint64              // by tenant: grows when policies must be asked anew for its items
	ranks    map[int64]int                  // how many placed items have a priority
	used     map[string]*Vector             // by tenant, with those nested in it
	capacity Vector
	promised map[string]Vector          // guarantees of tenants
	goes     map[string]map[string]bool // by tenant: UIDs of what was told to go
	kept     map[any]any                // by policies
}

type spot struct {
	leaves bool // was told to go
	item   *Item
	node   *Node
	alloc  Alloc
}

// NewView is empty.
func NewView() *View {
	return &View{structure: 1, byName: map[string]*Node{}, spots: map[string]*spot{}, groups: map[string]*Group{}, byTenant: map[string][]*Group{},
		matching: map[string][]*Group{}, avoiders: map[string][]*Avoider{}, budgets: map[string]map[api.Ref]*budget{}, waiting: map[string]map[string]*Item{}, asked: map[string]uint64{}, goes: map[string]map[string]bool{}, ranks: map[int64]int{}, used: map[string]*Vector{}, promised: map[string]Vector{}}
}

// Node finds a host by name; nil when there is none.
func (v *View) Node(name string) *Node { return v.byName[name] }

// SetNode adds a host or replaces what is known of it; what is placed there stays.
func (v *View) SetNode(o *api.Node) {
	n := v.byName[o.Name]
	if n == nil {
		n = &Node{Name: o.Name, Published: map[string]int{}, view: v}
		v.byName[o.Name] = n
		i := sort.Search(len(v.Nodes), func(i int) bool { return v.Nodes[i].Name >= o.Name })
		v.Nodes = append(v.Nodes, nil)
		copy(v.Nodes[i+1:], v.Nodes[i:])
		v.Nodes[i] = n
		v.structure++
	} else if s, t := n.Object.Spec, o.Spec; s.Region != t.Region || s.Zone != t.Zone || s.Rack != t.Rack ||
		len(n.Object.Status.Devices) != len(o.Status.Devices) || takes(n.Object) != takes(o) {
		v.structure++
	} else if (s.Price == "") != (t.Price == "") || (s.MaxWatts == 0) != (t.MaxWatts == 0) {
		v.terms++ // what nobody told so far may decide now
	}
	v.capacity.Sub(&n.Allocatable)
	n.load(o)
	v.capacity.Add(&n.Allocatable)
	for _, it := range n.Items {
		n.retake(it, &v.spots[it.UID].alloc)
	}
	v.tell(n)
}

// retake gives an item again what load forgot: the shares of devices and cells.
func (n *Node) retake(it *Item, a *Alloc) {
	rest := *n
	n.take(it, a, 1)
	n.Used, n.Guaranteed = rest.Used, rest.Guaranteed
	for _, p := range it.Publish {
		n.Published[p]--
	}
}

// RemoveNode forgets a host. While something is placed there it stays, with nothing to offer.
func (v *View) RemoveNode(name string) {
	n := v.byName[name]
	if n == nil {
		return
	}
	if len(n.Items) > 0 { // what runs there is not forgotten
		v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}})
		return
	}
	v.capacity.Sub(&n.Allocatable)
	delete(v.byName, name)
	i := sort.Search(len(v.Nodes), func(i int) bool { return v.Nodes[i].Name >= name })
	v.Nodes = append(v.Nodes[:i], v.Nodes[i+1:]...)
	v.structure++
}

// Arrange numbers nodes and domains anew when they changed. The engine calls it
// before it asks policies; Node.ID, Node.Place and Groups are valid then.
func (v *View) Arrange() {
	if v.arranged == v.structure {
		return
	}
	v.arranged = v.structure
	for l := range v.open {
		v.open[l] = v.open[l][:0]
	}
	var numbers [numLevels]map[string]int32
	for l := range numbers {
		numbers[l] = map[string]int32{}
	}
	for i, n := range v.Nodes {
		n.ID = i
		for l := Host; l < numLevels; l++ {
			id, ok := int32(i), false
			if l != Host {
				id, ok = numbers[l][n.Domain(l)]
			}
			if !ok {
				id = int32(len(v.open[l]))
				numbers[l][n.Domain(l)] = id
				v.open[l] = append(v.open[l], false)
			}
			n.Place[l] = id
			v.open[l][id] = v.open[l][id] || n.Takes()
		}
	}
}

// Domains counts the domains of a level.
func (v *View) Domains(l Level) int { return len(v.open[l]) }

// Where tells on which node an instance is; "" when on none.
func (v *View) Where(uid string) string {
	if s := v.spots[uid]; s != nil {
		return s.node.Name
	}
	return ""
}

// Item finds what is placed; nil when it is not.
func (v *View) Item(uid string) *Item {
	if s := v.spots[uid]; s != nil {
		return s.item
	}
	return nil
}

// Alloc tells what of its node a placed instance has.
func (v *View) Alloc(uid string) Alloc {
	if s := v.spots[uid]; s != nil {
		return s.alloc
	}
	return Alloc{}
}

// Place puts an instance on a node, taking it off where it was. A node that is
// not known (yet) gets an entry without capacity, so nothing is forgotten.
func (v *View) Place(it *Item, node string, a Alloc) {
	v.Unplace(it.UID)
	if v.byName[node] == nil {
		v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: node}}})
	}
	n := v.byName[node]
	n.Items = append(n.Items, it)
	v.spots[it.UID] = &spot{item: it, node: n, alloc: a}
	v.count(n, it, &a, 1)
}

// Unplace takes an instance off its node. Nothing happens when it is on none.
func (v *View) Unplace(uid string) {
	s := v.spots[uid]
	if s == nil {
		return
	}
	delete(v.spots, uid)
	if v.quiet == 0 {
		delete(v.goes[s.item.Ref.Tenant], uid)
	}
	for i, x := range s.node.Items {
		if x == s.item {
			s.node.Items = append(s.node.Items[:i], s.node.Items[i+1:]...)
			break
		}
	}
	v.count(s.node, s.item, &s.alloc, -1)
}

func (v *View) count(n *Node, it *Item, a *Alloc, sign int64) {
	n.take(it, a, sign)
	v.countTenant(it, sign)
	if v.ranks[it.Priority] += int(sign); v.ranks[it.Priority] == 0 {
		delete(v.ranks, it.Priority)
	}
	v.countGroups(n, it, int32(sign))
	v.tell(n)
}

// countTenant adds an item to the sums of its tenant and those around it.
func (v *View) countTenant(it *Item, sign int64) {
	for t := it.Ref.Tenant; t != ""; t = api.ParentTenant(t) {
		u := v.used[t]
		if u == nil {
			u = new(Vector)
			v.used[t] = u
		}
		if sign > 0 {
			u.Add(&it.Request)
		} else {
			u.Sub(&it.Request)
		}
	}
}

// UsedBy is the sum of the requests of what a tenant, and those nested in it, has placed.
func (v *View) UsedBy(tenant string) Vector {
	if u := v.used[tenant]; u != nil {
		return *u
	}
	return Vector{}
}

// SetTenant notes what a tenant is guaranteed.
func (v *View) SetTenant(t *api.Tenant) { v.promised[t.Name] = VectorOf(t.Spec.Guarantee) }

// RemoveTenant forgets a tenant.
func (v *View) RemoveTenant(name string) { delete(v.promised, name) }

// PromisedTo is what a tenant is guaranteed.
func (v *View) PromisedTo(tenant string) Vector { return v.promised[tenant] }

// Borrows reports whether the top tenant around this one has more placed than it is
// guaranteed, in any dimension of which something is asked.
func (v *View) Borrows(tenant string) bool {
	top := TopTenant(tenant)
	used, promised := v.UsedBy(top), v.promised[top]
	for _, i := range []int{CPU, Memory, GPU} {
		if used[i] > promised[i] {
			return true
		}
	}
	return false
}

// Keep is what of the pool is kept for what is not foreseen.
type Keep struct {
	Buffer int // percent
	Spare  int // so many of the largest nodes
}

// Unpromised is what of a dimension is neither used, nor kept, nor needed for the
// guarantees of tenants.
func (v *View) Unpromised(i int, k Keep) int64 {
	free := (v.capacity[i] - v.largest(i, k.Spare)) / 100 * int64(100-k.Buffer)
	for name, p := range v.promised {
		if api.ParentTenant(name) == "" {
			used := v.UsedBy(name)
			free -= max(p[i], used[i])
		}
	}
	for name, u := range v.used {
		if _, known := v.promised[name]; !known && api.ParentTenant(name) == "" {
			free -= u[i]
		}
	}
	return free
}

// Keeps says why an item that waits for room may not have what is free: it would
// take what other tenants are guaranteed, or what is kept. "" when it may. Items that
// do not wait were admitted for good.
func (v *View) Keeps(it *Item, k Keep) string {
	if !it.Spec.Waits() {
		return ""
	}
	top := TopTenant(it.Ref.Tenant)
	used, promised := v.UsedBy(top), v.promised[top]
	for _, i := range []int{CPU, Memory, GPU} {
		more := used[i] + it.Request[i] - max(used[i], promised[i])
		if more > 0 && more > v.Unpromised(i, k) {
			return "what is left of " + string(api.ResourceNames()[i]) + " is kept for the guarantees of tenants, and the pool's buffer"
		}
	}
	return ""
}

// largest sums up the n nodes that have most of a dimension.
func (v *View) largest(i, n int) int64 {
	if n <= 0 {
		return 0
	}
	all := make([]int64, 0, len(v.Nodes))
	for _, x := range v.Nodes {
		all = append(all, x.Allocatable[i])
	}
	slices.Sort(all)
	sum := int64(0)
	for _, a := range all[max(len(all)-n, 0):] {
		sum += a
	}
	return sum
}

// TopTenant is the outermost tenant around one.
func TopTenant(tenant string) string {
	top, _, _ := strings.Cut(tenant, "/")
	return top
}

// Capacity is the sum of what is allocatable on all nodes.
func (v *View) Capacity() Vector { return v.capacity }

// Placed counts the instances on all nodes.
func (v *View) Placed() int { return len(v.spots) }

// Lower tells whether something of lower priority is placed anywhere.
func (v *View) Lower(priority int64) bool {
	for p := range v.ranks {
		if p < priority {
			return true
		}
	}
	return false
}

// Rank is how many priorities of placed items are below this one.
func (v *View) Rank(priority int64) int {
	below := 0
	for p := range v.ranks {
		if p < priority {
			below++
		}
	}
	return below
}

// Try runs fn, which may take items off the node and put them back, and restores
// what is missing after it. None of it is told as a change: for "would it fit
// without these?".
func (v *View) Try(n *Node, fn func()) {
	items := append([]*Item(nil), n.Items...)
	spots := make([]*spot, len(items))
	for i, it := range items {
		spots[i] = v.spots[it.UID]
	}
	v.quiet++
	fn()
	for i, it := range items {
		if v.spots[it.UID] == nil {
			v.spots[it.UID] = spots[i]
			v.count(n, it, &spots[i].alloc, 1)
		}
	}
	n.Items = items
	v.quiet--
}

// Version changes when policies must be asked anew for the items of a tenant.
func (v *View) Version(tenant string) uint64 { return v.structure + v.terms + v.asked[tenant] }

// Budgeted changes when a disruption budget does.
func (v *View) Budgeted() uint64 { return v.budgeted }

// Changes lists the nodes that changed since a position, and the position now; ok
// is false when that is too long ago to be known. A node may be listed twice.
func (v *View) Changes(since uint64) (nodes []int32, now uint64, ok bool) {
	now = v.changedAt + uint64(len(v.changed))
	if since < v.changedAt || since > now {
		return nil, now, false
	}
	return v.changed[since-v.changedAt:], now, true
}

// Leaves notes that a placed instance was told to go: it is none that can be spared.
func (v *View) Leaves(uid string) {
	if s := v.spots[uid]; s != nil && !s.leaves {
		s.leaves = true
		if v.goes[s.item.Ref.Tenant] == nil {
			v.goes[s.item.Ref.Tenant] = map[string]bool{}
		}
		v.goes[s.item.Ref.Tenant][uid] = true
		v.budgeted++
	}
}

// Remains takes Leaves back: it may stay after all.
func (v *View) Remains(uid string) {
	if s := v.spots[uid]; s != nil && s.leaves {
		s.leaves = false
		delete(v.goes[s.item.Ref.Tenant], uid)
		v.budgeted++
	}
}

// Wait notes an instance that should run but has no node; it counts for budgets.
func (v *View) Wait(it *Item) {
	if v.waiting[it.Ref.Tenant] == nil {
		v.waiting[it.Ref.Tenant] = map[string]*Item{}
	}
	v.waiting[it.Ref.Tenant][it.UID] = it
}

// Unwait forgets that an instance of a tenant waits.
func (v *View) Unwait(tenant, uid string) {
	if delete(v.waiting[tenant], uid); len(v.waiting[tenant]) == 0 {
		delete(v.waiting, tenant)
	}
}

// tell notes that a node changed.
func (v *View) tell(n *Node) {
	if v.quiet > 0 {
		return
	}
	if v.arranged != v.structure {
		return // whoever follows must start anew anyway
	}
	if len(v.changed) >= max(4*len(v.Nodes), 1024) {
		half := len(v.changed) / 2
		v.changed = append(v.changed[:0], v.changed[half:]...)
		v.changedAt += uint64(half)
	}
	v.changed = append(v.changed, int32(n.ID))
}
