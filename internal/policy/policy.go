// Package policy is the contract of placement: a View of the pool that is kept up
// to date piece by piece, and what a policy can do with it: refuse nodes for an
// instance (Filter), prefer one to another (Scorer), and choose what of a node an
// instance gets (Picker). A policy is one folder and one line in
// cmd/atolld/builtin/builtin.go. Policies are pure: no clock, no store, no randomness; they
// read the View and the Item and answer.
//
// A policy is asked once for every kind of item (Item.Key) and answers with
// functions. Those that judge a node may look at that node alone, at the counts a
// Group keeps for it, and at what their Epoch covers; so the engine need not ask
// again before the node changes. What depends on a whole zone or rack is said of
// that domain (In), and asked at every decision.
package policy

// Filter refuses nodes.
type Filter interface {
	Name() string
	// Check prepares for one kind of item; nil: nothing to refuse.
	Check(v *View, it *Item) *Check
}

// Check is a Filter, prepared. Reasons are plain words without the node's name, so
// that equal ones can be counted; "" admits.
type Check struct {
	Node func(n *Node) string
	// Short is how far a refused node is from admitting, in 0..1 of what is asked, and
	// Tell says it in words, for "closest: isle2: memory 512Mi free of 8Gi". Optional.
	Short func(n *Node) float64
	Tell  func(n *Node) string
	// In judges a whole domain of Level. Optional.
	In    func(p Place) string
	Level Level
	// Epoch changes when answers may change though no node did. Optional.
	Epoch func() uint64
}

// Scorer prefers nodes.
type Scorer interface {
	Name() string
	// Grade prepares for one kind of item; nil: all nodes are equal.
	Grade(v *View, it *Item) *Grade
}

// Grade is a Scorer, prepared. The sum of Node and In is 0 (worst) to 1 (best).
type Grade struct {
	Node  func(n *Node) float64
	In    func(p Place) float64 // optional: what a whole domain of Level adds
	Level Level
	Epoch func() uint64 // optional, as in Check
}

// Picker chooses what of a node an instance gets: its devices, its cores.
type Picker interface {
	// Pick adds to a. The node admits the item.
	Pick(n *Node, it *Item, a *Alloc)
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
	Pickers []Picker
}

// Pick runs all pickers.
func (c Chain) Pick(n *Node, it *Item) Alloc {
	var a Alloc
	for _, p := range c.Pickers {
		p.Pick(n, it, &a)
	}
	return a
}
