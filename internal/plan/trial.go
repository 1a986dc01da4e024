package plan

import (
	"slices"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/sched"
)

// trial changes the view and takes it all back.
type trial struct {
	*Plan
	undo  []func()
	items map[*policy.Node][]*policy.Item // as they were, in their order
	gone  map[string]bool                 // hosts that are lost or cordoned in the trial
}

func (p *Plan) try() *trial {
	return &trial{Plan: p, items: map[*policy.Node][]*policy.Item{}, gone: map[string]bool{}}
}

// end restores the view.
func (t *trial) end() { t.back(0) }

// mark is a place to go back to.
func (t *trial) mark() int { return len(t.undo) }

// back undoes what was done since a mark.
func (t *trial) back(mark int) {
	for i := len(t.undo) - 1; i >= mark; i-- {
		t.undo[i]()
	}
	t.undo = t.undo[:mark]
	if mark == 0 { // what came back is at the end; among equals the order counts
		for n, items := range t.items {
			copy(n.Items, items)
		}
		clear(t.items)
	}
}

func (t *trial) touch(n *policy.Node) {
	if _, ok := t.items[n]; !ok {
		t.items[n] = slices.Clone(n.Items)
	}
}

// node puts another object in the place of a known host's.
func (t *trial) node(o *api.Node) {
	was := t.view.Node(o.Name).Object
	t.view.SetNode(o)
	t.undo = append(t.undo, func() { t.view.SetNode(was) })
}

// close puts an object that refuses everything in the place of a host's.
func (t *trial) close(o *api.Node) {
	if open(t.view.Node(o.Name)) {
		t.gone[o.Name] = true
	}
	t.node(o)
}

// lose makes a host not ready, as it is when its agent is silent.
func (t *trial) lose(n *policy.Node) {
	o := *n.Object
	o.Status.Conditions = []api.Condition{{Type: "Ready"}}
	t.close(&o)
}

// cordon makes a host take nothing new.
func (t *trial) cordon(n *policy.Node) {
	o := *n.Object
	o.Spec.Cordoned = true
	t.close(&o)
}

// others leaves out of a decision what it says of hosts that the trial itself closed.
func (t *trial) others(d *api.Decision) *api.Decision {
	if len(t.gone) == 0 {
		return d
	}
	d.Of -= len(t.gone)
	d.Nodes = slices.DeleteFunc(d.Nodes, func(n api.NodeVerdict) bool { return t.gone[n.Node] })
	why := map[string]int{}
	for name := range t.gone {
		if o := t.view.Node(name).Object; o.Ready() {
			why[o.Closed()]++
		} else {
			why["node is not ready"]++
		}
	}
	host := false
	d.Refusals = slices.DeleteFunc(d.Refusals, func(r api.Refusal) bool {
		left := r.Nodes > why[r.Reason]
		host = host || r.Policy == "host" && left
		return !left
	})
	for i := range d.Refusals {
		r := &d.Refusals[i]
		if r.Nodes -= why[r.Reason]; why[r.Reason] > 0 {
			r.Best = ""
		}
	}
	if !host {
		d.Hints = slices.DeleteFunc(d.Hints, func(h string) bool { return h == sched.HintNodes })
	}
	return d
}

// off takes an item off its host.
func (t *trial) off(it *policy.Item) {
	n, a := t.view.Node(t.view.Where(it.UID)), t.view.Alloc(it.UID)
	t.touch(n)
	t.view.Unplace(it.UID)
	t.undo = append(t.undo, func() { t.view.Place(it, n.Name, a) })
}

// on puts an item on a host.
func (t *trial) on(it *policy.Item, node string, a policy.Alloc) {
	t.touch(t.view.Node(node))
	t.view.Place(it, node, a)
	t.undo = append(t.undo, func() { t.view.Unplace(it.UID) })
	if t.waits[it.UID] {
		t.view.Unwait(it.Ref.Tenant, it.UID)
		t.undo = append(t.undo, func() { t.view.Wait(it) })
	}
}

// wait notes for the budgets that an item should run somewhere.
func (t *trial) wait(it *policy.Item) {
	if t.waits[it.UID] {
		return
	}
	t.view.Wait(it)
	t.undo = append(t.undo, func() { t.view.Unwait(it.Ref.Tenant, it.UID) })
}
