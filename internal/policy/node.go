package policy

import (
	"slices"

	"atoll/api"
)

// Level is a level of topology.
type Level uint8

// The levels, from one host to all. A rack is in a zone, a zone in a region.
const (
	Host Level = iota
	Rack
	Zone
	Region
	numLevels
)

// LevelOf reads a level's name; "" is host.
func LevelOf(name string) Level {
	switch name {
	case "rack":
		return Rack
	case "zone":
		return Zone
	case "region":
		return Region
	}
	return Host
}

func (l Level) String() string { return [...]string{"host", "rack", "zone", "region"}[l] }

// Place numbers the domain of every level something is in. Numbers are the View's
// own and change when nodes come and go.
type Place [numLevels]int32

// Node is a host as policies see it.
type Node struct {
	ID          int // place in View.Nodes
	Name        string
	Object      *api.Node
	Place       Place
	Allocatable Vector
	Used        Vector // sum of the requests of Items
	Guaranteed  Vector // the part of Used that is of class guaranteed
	Items       []*Item
	Published   map[string]int // host ports taken, by how many
	Runtimes    map[string]bool
	Spans       bool            // it takes part in networks of tenants
	Images      map[string]bool // digests and references that are here
	Devices     []Device
	Cells       []Cell

	view *View
}

// Device is a GPU of a node and what of it is free.
type Device struct {
	api.Device
	Free       int64 // in thousandths
	FreeMemory int64 // bytes
}

// Cell is a NUMA cell of a node and what of it is free.
type Cell struct {
	CPUs          []int // its cores
	FreeCPUs      []int // those nothing has for itself
	FreeMemory    int64
	FreeHugepages int64
}

// Domain is the node's place at a level of topology, in words.
func (n *Node) Domain(l Level) string {
	s := n.Object.Spec
	switch l {
	case Region:
		return s.Region
	case Zone:
		return s.Region + "/" + s.Zone
	case Rack:
		return s.Region + "/" + s.Zone + "/" + s.Rack
	}
	return n.Name
}

// Takes reports whether anything new may be placed here at all. Domains without such
// a node do not count for spreading: nobody could make them fuller.
func (n *Node) Takes() bool { return takes(n.Object) }

func takes(o *api.Node) bool { return o != nil && o.Ready() && o.Closed() == "" }

// Free is what of a dimension is not promised yet.
func (n *Node) Free(i int) int64 { return n.Allocatable[i] - n.Used[i] }

// Room is what could still be promised of a dimension to all classes together: CPU
// times the overcommit of the node's operator; without bound where the node does not
// publish the dimension.
func (n *Node) Room(i int) int64 {
	o := n.Object.Spec.Overcommit
	switch {
	case i == CPU:
		return n.Allocatable[i]*int64(max(o.Burstable, o.Guaranteed, 100))/100 - n.Used[i]
	case n.Allocatable[i] == 0 && i != Memory && i != GPU:
		return 1<<63 - 1
	}
	return n.Free(i)
}

// load reads what the object says; what is placed stays.
func (n *Node) load(o *api.Node) {
	n.Object, n.Allocatable = o, VectorOf(o.Status.Allocatable)
	n.Runtimes, n.Images, n.Spans = map[string]bool{}, map[string]bool{}, false
	for _, d := range o.Status.Drivers {
		if d.Type == "runtime" {
			n.Runtimes[d.Name] = true
		}
		n.Spans = n.Spans || d.Type == "network" && d.Name == api.DriverOverlay
	}
	for _, i := range o.Status.Images {
		n.Images[i] = true
	}
	n.Devices = make([]Device, len(o.Status.Devices))
	for i, d := range o.Status.Devices {
		n.Devices[i] = Device{Device: d, Free: 1000, FreeMemory: d.Memory}
	}
	n.Cells = make([]Cell, len(o.Status.Cells))
	for i, c := range o.Status.Cells {
		cpus, _ := api.ParseCPUSet(c.CPUs) // the agent wrote it
		n.Cells[i] = Cell{CPUs: cpus, FreeCPUs: slices.Clone(cpus), FreeMemory: c.Memory, FreeHugepages: c.Hugepages}
	}
}

// take gives an item its share, with sign 1, or takes it back, with sign -1.
func (n *Node) take(it *Item, a *Alloc, sign int64) {
	for i, v := range it.Request {
		n.Used[i] += sign * v
	}
	if it.Class == api.ClassGuaranteed {
		for i, v := range it.Request {
			n.Guaranteed[i] += sign * v
		}
	}
	for _, p := range it.Publish {
		if n.Published[p] += int(sign); n.Published[p] == 0 {
			delete(n.Published, p)
		}
	}
	n.takeDevices(it, a, sign)
	if a.Bound && a.Cell < len(n.Cells) {
		c := &n.Cells[a.Cell]
		c.FreeMemory -= sign * (it.Request[Memory] - it.Hugepages)
		c.FreeHugepages -= sign * it.Hugepages
	}
	for _, cpu := range a.CPUs {
		n.takeCPU(cpu, sign)
	}
}

func (n *Node) takeDevices(it *Item, a *Alloc, sign int64) {
	count, share := it.GPUs()
	for _, d := range a.Devices {
		if d >= 0 && d < len(n.Devices) && count > 0 {
			n.Devices[d].Free -= sign * share
			n.Devices[d].FreeMemory -= sign * it.Request[GPUMemory] / int64(count)
		}
	}
}

func (n *Node) takeCPU(cpu int, sign int64) {
	for i := range n.Cells {
		c := &n.Cells[i]
		if !slices.Contains(c.CPUs, cpu) {
			continue
		}
		at, free := slices.BinarySearch(c.FreeCPUs, cpu)
		switch {
		case sign > 0 && free:
			c.FreeCPUs = slices.Delete(c.FreeCPUs, at, at+1)
		case sign < 0 && !free:
			c.FreeCPUs = slices.Insert(c.FreeCPUs, at, cpu)
		}
	}
}

// Nearer is the finer of two levels; Host stands for none.
func Nearer(a, b Level) Level {
	if a == Host || b != Host && b < a {
		return b
	}
	return a
}
