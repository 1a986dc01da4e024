// Package policy is the contract of placement: a View of the pool that is kept up
// to date piece by piece, and the two things a policy can do with it: refuse a
// node for an instance (Filter) and prefer one to another (Scorer). A policy is
// one folder and one line in cmd/atolld/builtin.go. Policies are pure: no clock,
// no store, no randomness; they read the View and the Item and answer.
package policy

import (
	"sort"

	"atoll/api"
)

// Vector is an amount in every dimension of api.ResourceNames, in that order.
type Vector [NumResources]int64

// NumResources is the number of dimensions.
const NumResources = 14

// Index finds a dimension's place in a Vector.
func Index(r api.Resource) int {
	for i, n := range api.ResourceNames() {
		if n == r {
			return i
		}
	}
	return -1
}

// VectorOf reads amounts; what is missing is zero.
func VectorOf(r api.Resources) Vector {
	var v Vector
	if len(r) == 0 {
		return v
	}
	for i, n := range api.ResourceNames() {
		v[i] = r[n]
	}
	return v
}

// Add adds o in place.
func (v *Vector) Add(o *Vector) {
	for i := range v {
		v[i] += o[i]
	}
}

// Sub subtracts o in place.
func (v *Vector) Sub(o *Vector) {
	for i := range v {
		v[i] -= o[i]
	}
}

// Item is an instance as policies see it.
type Item struct {
	Ref       api.Ref
	UID       string
	Labels    map[string]string
	Spec      *api.InstanceSpec
	Request   Vector
	Class     api.Class
	Isolation api.Isolation
	Publish   []string // api.Port.PublishKey of published ports
	Priority  int64
}

// ItemOf compiles an instance.
func ItemOf(in *api.Instance) *Item {
	it := &Item{Ref: api.RefOf(in), UID: in.UID, Labels: in.Labels, Spec: &in.Spec, Request: VectorOf(in.Spec.Requests),
		Class: in.Spec.Class(), Isolation: in.Spec.EffectiveIsolation()}
	it.Request[Index(api.Instances)] = 1
	for _, p := range in.Spec.Ports {
		if p.Publish != 0 {
			it.Publish = append(it.Publish, p.PublishKey())
		}
	}
	return it
}

// Node is a host as policies see it.
type Node struct {
	Name        string
	Object      *api.Node
	Allocatable Vector
	Used        Vector          // sum of the requests of Items
	Items       []*Item         // in the order they were placed
	Published   map[string]bool // host ports taken
	Runtimes    map[string]bool
	Images      map[string]bool // digests that are here
}

// Domain is the node's place at a level of topology: host, rack or zone.
func (n *Node) Domain(level string) string {
	switch level {
	case "zone":
		return n.Object.Spec.Zone
	case "rack":
		return n.Object.Spec.Zone + "/" + n.Object.Spec.Rack
	}
	return n.Name
}

// View is the pool at one moment. One goroutine owns it; during a plan it is only read.
type View struct {
	Nodes  []*Node // sorted by name
	byName map[string]*Node
	where  map[string]string // instance UID -> node
	items  map[string]*Item
}

// NewView is empty.
func NewView() *View {
	return &View{byName: map[string]*Node{}, where: map[string]string{}, items: map[string]*Item{}}
}

// Node finds a host by name; nil when there is none.
func (v *View) Node(name string) *Node { return v.byName[name] }

// SetNode adds a host or replaces what is known of it; what is placed there stays.
func (v *View) SetNode(o *api.Node) {
	n := v.byName[o.Name]
	if n == nil {
		n = &Node{Name: o.Name, Published: map[string]bool{}}
		v.byName[o.Name] = n
		i := sort.Search(len(v.Nodes), func(i int) bool { return v.Nodes[i].Name >= o.Name })
		v.Nodes = append(v.Nodes, nil)
		copy(v.Nodes[i+1:], v.Nodes[i:])
		v.Nodes[i] = n
	}
	n.Object, n.Allocatable = o, VectorOf(o.Status.Allocatable)
	n.Runtimes, n.Images = map[string]bool{}, map[string]bool{}
	for _, d := range o.Status.Drivers {
		if d.Type == "runtime" {
			n.Runtimes[d.Name] = true
		}
	}
	for _, i := range o.Status.Images {
		n.Images[i] = true
	}
}

// RemoveNode forgets a host and what was placed there.
func (v *View) RemoveNode(name string) {
	n := v.byName[name]
	if n == nil {
		return
	}
	for _, it := range n.Items {
		delete(v.where, it.UID)
		delete(v.items, it.UID)
	}
	delete(v.byName, name)
	for i, x := range v.Nodes {
		if x == n {
			v.Nodes = append(v.Nodes[:i], v.Nodes[i+1:]...)
			return
		}
	}
}

// Where tells on which node an instance is; "" when on none.
func (v *View) Where(uid string) string { return v.where[uid] }

// Place puts an instance on a node, taking it off where it was. A node that is
// not known (yet) gets an entry without capacity, so nothing is forgotten.
func (v *View) Place(it *Item, node string) {
	v.Unplace(it.UID)
	if v.byName[node] == nil {
		v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: node}}})
	}
	n := v.byName[node]
	n.Items = append(n.Items, it)
	n.Used.Add(&it.Request)
	for _, p := range it.Publish {
		n.Published[p] = true
	}
	v.where[it.UID], v.items[it.UID] = node, it
}

// Unplace takes an instance off its node. Nothing happens when it is on none.
func (v *View) Unplace(uid string) {
	n := v.byName[v.where[uid]]
	if n == nil {
		return
	}
	it := v.items[uid]
	delete(v.where, uid)
	delete(v.items, uid)
	for i, x := range n.Items {
		if x.UID == uid {
			n.Items = append(n.Items[:i], n.Items[i+1:]...)
			break
		}
	}
	n.Used.Sub(&it.Request)
	for _, p := range it.Publish {
		delete(n.Published, p)
	}
}

// Placed counts the instances on all nodes.
func (v *View) Placed() int { return len(v.where) }

// Filter refuses nodes.
type Filter interface {
	Name() string
	// Admit answers why it may not run there, "" when it may. The reason is plain
	// words without the node's name, so that equal reasons can be counted.
	Admit(v *View, n *Node, it *Item) string
}

// Gauge is a Filter that can tell by how much a node falls short, for "closest: isle2, 512Mi short".
type Gauge interface {
	// Short is how far the node is from admitting, in 0..1 of what is asked, and the same in words.
	Short(v *View, n *Node, it *Item) (float64, string)
}

// Scorer prefers nodes.
type Scorer interface {
	Name() string
	// Score is 0 (worst) to 1 (best).
	Score(v *View, n *Node, it *Item) float64
}

// Weighted is a scorer and how much it counts.
type Weighted struct {
	Scorer
	Weight float64
}

// Chain is what a pool decides by, in order: the cheapest and most selective filters first.
type Chain struct {
	Filters []Filter
	Scorers []Weighted
}
