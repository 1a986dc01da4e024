package gpu

// Whole is a whole device, in thousandths; what a device has free is 0..Whole.
const Whole = 1000

// MaxDevices is how many devices of a node are told apart; those above are not given out.
const MaxDevices = 32

// Node is what is free on a host. It is a value: equal nodes are worth the same.
type Node struct {
	CPU     int64             // thousandths of a core
	Memory  int64             // in any unit, the same for nodes and items
	Free    [MaxDevices]int16 // thousandths of each device
	Class   int16             // hardware type, as numbered by Market.Set
	Devices int8              // how many there are
	Model   int8              // index of the devices' model, 0..63
	Touched bool              // something is placed here
}

// Item is what is asked of one host.
type Item struct {
	CPU    int64
	Memory int64
	Models uint64 // bit per allowed model; 0: any
	Milli  int16  // of each device; below Whole only with one device
	Count  int8   // devices; 0: none
}

// Set is a choice of devices, a bit each.
type Set uint32

// AllDevices does not restrict.
const AllDevices = ^Set(0)

// Demand is the thousandths asked on all devices together.
func (it *Item) Demand() int64 { return int64(it.Count) * int64(it.Milli) }

// Multi tells whether two or more devices are asked.
func (it *Item) Multi() bool { return it.Count > 1 }

// Allows tells whether the item may use a model.
func (it *Item) Allows(model int8) bool { return it.Models == 0 || it.Models>>uint(model)&1 == 1 }

// Idle is the sum of what the devices have free.
func (n *Node) Idle() int64 {
	s := int64(0)
	for _, f := range n.Free[:n.Devices] {
		s += int64(f)
	}
	return s
}

// Fits tells whether the node can take the item.
func (n *Node) Fits(it *Item) bool {
	if n.CPU < it.CPU || n.Memory < it.Memory {
		return false
	}
	return it.Count == 0 || it.Allows(n.Model) && n.has(it)
}

func (n *Node) has(it *Item) bool {
	need := it.Count
	for _, f := range n.Free[:n.Devices] {
		if f >= it.Milli {
			if need--; need == 0 {
				return true
			}
		}
	}
	return false
}

// times is how often an item of whole devices fits, one beside the other.
func (n *Node) times(it *Item) int64 {
	if !it.Allows(n.Model) || n.CPU < it.CPU || n.Memory < it.Memory {
		return 0
	}
	free := int64(0)
	for _, f := range n.Free[:n.Devices] {
		if f == Whole {
			free++
		}
	}
	k := free / int64(it.Count)
	if it.CPU > 0 {
		k = min(k, n.CPU/it.CPU)
	}
	if it.Memory > 0 {
		k = min(k, n.Memory/it.Memory)
	}
	return k
}

// Tightest chooses devices for an item from those allowed: the ones with room that
// have the least, the first among equals, so that the same state gives the same
// devices. It is 0 when there are not enough, or none are asked.
func (n *Node) Tightest(it *Item, allowed Set) Set {
	set := Set(0)
	for range it.Count {
		best := -1
		for d, f := range n.Free[:n.Devices] {
			if f >= it.Milli && allowed&^set>>d&1 == 1 && (best < 0 || f < n.Free[best]) {
				best = d
			}
		}
		if best < 0 {
			return 0
		}
		set |= 1 << best
	}
	return set
}

// Take places an item that fits on the devices of set.
func (n *Node) Take(it *Item, set Set) {
	n.CPU -= it.CPU
	n.Memory -= it.Memory
	for d := 0; set>>d != 0; d++ {
		if set>>d&1 == 1 {
			n.Free[d] -= it.Milli
		}
	}
	n.Touched = true
}

// options calls fn for each choice of devices that leads to a different state:
// one for whole devices, one for each different amount free for a share of one.
func (n *Node) options(it *Item, allowed Set, fn func(Set)) {
	if it.Count != 1 || it.Milli == Whole {
		if set := n.Tightest(it, allowed); set != 0 || it.Count == 0 {
			fn(set)
		}
		return
	}
	for d, f := range n.Free[:n.Devices] {
		if f < it.Milli || allowed>>d&1 == 0 {
			continue
		}
		seen := false
		for e, g := range n.Free[:d] {
			seen = seen || g == f && allowed>>e&1 == 1
		}
		if !seen {
			fn(1 << d)
		}
	}
}
