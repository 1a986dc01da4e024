package gpu

import (
	"atoll/internal/policy"
)

// follower keeps a Market in step with a View, beside which it lives. The View's
// goroutine owns it.
type follower struct {
	conf    Config
	view    *policy.View
	version uint64
	at      uint64
	base    uint64 // epochs of the markets before this one
	market  *Market
	class   map[int]int16 // by Node.ID, of nodes with devices
	models  map[string]int8
	items   []Item // scratch
}

// key finds a policy's follower beside a view.
type key struct{ p *Policy }

func (p *Policy) follow(v *policy.View) *follower {
	f := v.Keep(key{p}, func() any { return &follower{conf: p.conf, view: v, models: map[string]int8{}} }).(*follower)
	f.sync()
	return f
}

// epoch numbers the prices that hold now.
func (f *follower) epoch() uint64 {
	f.sync()
	return f.base + f.market.Epoch()
}

// sync brings in the nodes that changed.
func (f *follower) sync() {
	f.view.Arrange()
	nodes, now, ok := f.view.Changes(f.at)
	if ok && f.market != nil && f.version == f.view.Version("") {
		for _, id := range nodes {
			f.set(f.view.Nodes[id])
		}
		f.at = now
		return
	}
	if f.market != nil {
		f.base += f.market.Epoch()
	}
	f.version, f.at = f.view.Version(""), now
	f.market, f.class = NewMarket(f.conf), map[int]int16{}
	for _, n := range f.view.Nodes {
		f.set(n)
	}
	f.market.Epoch()
}

// set tells the market of one node.
func (f *follower) set(n *policy.Node) {
	if len(n.Devices) == 0 {
		if _, had := f.class[n.ID]; had {
			f.market.Remove(n.ID)
			delete(f.class, n.ID)
		}
		return
	}
	free := nodeOf(n)
	free.Model = f.model(n.Devices[0].Model)
	size := Node{CPU: n.Allocatable[policy.CPU], Memory: n.Allocatable[policy.Memory], Devices: free.Devices, Model: free.Model}
	for i := range size.Devices {
		size.Free[i] = Whole
	}
	f.items = f.items[:0]
	for _, it := range n.Items {
		if counts(it) {
			f.items = append(f.items, f.item(it))
		}
	}
	f.class[n.ID] = f.market.Set(n.ID, size, free, f.items)
}

// free is what is free on a node with devices.
func (f *follower) free(n *policy.Node) Node {
	out := nodeOf(n)
	out.Class, out.Model = f.class[n.ID], f.model(n.Devices[0].Model)
	return out
}

// item is what an item asks.
func (f *follower) item(it *policy.Item) Item {
	out := shapeOf(it)
	for _, m := range it.Spec.GPUModels {
		out.Models |= 1 << f.model(m)
	}
	return out
}

// model numbers a model's name; the names beyond 63 are valued as one.
func (f *follower) model(name string) int8 {
	i, ok := f.models[name]
	if !ok {
		i = int8(min(len(f.models), 63))
		f.models[name] = i
	}
	return i
}
