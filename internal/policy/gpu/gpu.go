// Package gpu places instances on devices that can be shared. It refuses nodes
// whose devices cannot serve an instance, chooses the devices, and prefers the node
// whose worth for what else is likely to come falls least.
//
// That worth (Market.Cost, in thousandths of a device) is made of
//   - what imagined streams of arrivals could place on the node before and after;
//     a hardware type's streams are drawn from what is placed on that type now, and
//     instances without devices count a little, so cores are kept for them, too;
//   - the price of the room it takes from instances of several devices, when the pool
//     has few such rooms left for those that likely come until it is full;
//   - the price of a model that others can do without;
//   - a small price of breaking an untouched node, larger for hardware few nodes have.
//
// All of it is learned from what is placed on the pool's nodes: nothing is known of the
// future, of refused instances or of the past. Package gpu also has the published
// fragmentation gradient (Weng et al., USENIX ATC'23), which bench/openb compares with.
//
// It starts no goroutine. It must never give out more of a device than is free, nor
// refuse what fits.
package gpu

import (
	"fmt"
	"math"
	"slices"

	"atoll/internal/policy"
)

// Policy is filter, scorer and picker.
type Policy struct{ conf Config }

// New makes it, with Defaults.
func New() *Policy { return With(Defaults()) }

// With makes one that judges differently.
func With(c Config) *Policy { return &Policy{conf: c} }

// Name is "gpu".
func (*Policy) Name() string { return "gpu" }

// Check looks for enough devices of an allowed model with enough free.
func (*Policy) Check(_ *policy.View, it *policy.Item) *policy.Check {
	count, share := it.GPUs()
	if count == 0 {
		return nil
	}
	return &policy.Check{
		Node: func(n *policy.Node) string { return refusal(n, it) },
		Short: func(n *policy.Node) float64 {
			return float64(count-min(fitting(n, it), count)) / float64(count)
		},
		Tell: func(n *policy.Node) string {
			if share < Whole {
				return fmt.Sprintf("%d of %d GPUs have %d/1000 free", fitting(n, it), len(n.Devices), share)
			}
			return fmt.Sprintf("%d of %d GPUs free", fitting(n, it), len(n.Devices))
		},
	}
}

func refusal(n *policy.Node, it *policy.Item) string {
	count, share := it.GPUs()
	if fitting(n, it) >= count {
		return ""
	}
	models, free := 0, 0
	for i := range n.Devices {
		d := &n.Devices[i]
		if modelFits(d, it) {
			models++
			if d.Free >= share {
				free++
			}
		}
	}
	switch {
	case len(n.Devices) == 0:
		return "no GPU"
	case models < count && len(it.Spec.GPUModels) > 0:
		return "not enough GPUs of the models asked for"
	case models < count:
		return "not as many GPUs"
	case free < count && share < Whole:
		return "no GPU with enough of it free"
	case free < count:
		return "not enough free GPUs"
	}
	return "not enough memory free on its GPUs"
}

// fitting counts the devices that could serve a part of the item.
func fitting(n *policy.Node, it *policy.Item) int {
	k := 0
	for i := range n.Devices {
		if deviceFits(n, i, it) {
			k++
		}
	}
	return k
}

func deviceFits(n *policy.Node, i int, it *policy.Item) bool {
	count, share := it.GPUs()
	d := &n.Devices[i]
	return i < MaxDevices && d.Free >= share && modelFits(d, it) && d.FreeMemory*int64(count) >= it.Request[policy.GPUMemory]
}

func modelFits(d *policy.Device, it *policy.Item) bool {
	return len(it.Spec.GPUModels) == 0 || slices.Contains(it.Spec.GPUModels, d.Model)
}

// allowed is the set of devices that may serve the item, of a cell when one is given.
func allowed(n *policy.Node, it *policy.Item, a *policy.Alloc) Set {
	set := Set(0)
	for i := range n.Devices {
		if deviceFits(n, i, it) && (a == nil || !a.Bound || n.Devices[i].Cell == a.Cell) {
			set |= 1 << i
		}
	}
	return set
}

// without is what a node without devices is worth to an instance that asks for none:
// a little more than one with devices that loses nothing by it now.
const without = 0.55

// Grade is 0.5 where the pool loses no more than is placed, less where it loses more.
func (p *Policy) Grade(v *policy.View, it *policy.Item) *policy.Grade {
	f := p.follow(v)
	if len(f.class) == 0 && it.Request[policy.GPU] == 0 {
		return nil
	}
	want := f.item(it)
	return &policy.Grade{
		Epoch: f.epoch,
		Node: func(n *policy.Node) float64 {
			if len(n.Devices) == 0 {
				return without
			}
			free := f.free(n)
			cost, _ := f.market.Cost(&free, &want, allowed(n, it, nil))
			return 1 / (1 + math.Exp((cost-float64(want.Demand()))/Whole))
		},
	}
}

// Pick takes the devices that Grade reckoned with; of a cell, when one was chosen,
// those with the least that suffices.
func (p *Policy) Pick(n *policy.Node, it *policy.Item, a *policy.Alloc) {
	if count, _ := it.GPUs(); count == 0 {
		return
	}
	may := allowed(n, it, a)
	set := Set(0)
	if v := n.View(); v != nil && !a.Bound {
		f := p.follow(v)
		want, free := f.item(it), f.free(n)
		_, set = f.market.Cost(&free, &want, may)
	} else {
		want, free := shapeOf(it), nodeOf(n)
		set = free.Tightest(&want, may)
	}
	for i := range n.Devices {
		if set>>i&1 == 1 {
			a.Devices = append(a.Devices, i)
		}
	}
}

// nodeOf is what is free on a node, without class and model.
func nodeOf(n *policy.Node) Node {
	out := Node{CPU: max(n.Free(policy.CPU), 0), Memory: max(n.Free(policy.Memory), 0), Devices: int8(min(len(n.Devices), MaxDevices))}
	for i := range out.Devices {
		out.Free[i] = int16(min(max(n.Devices[i].Free, 0), Whole))
	}
	for _, it := range n.Items {
		out.Touched = out.Touched || counts(it)
	}
	return out
}

// counts tells whether an item takes anything that is valued here.
func counts(it *policy.Item) bool {
	return it.Request[policy.CPU] > 0 || it.Request[policy.Memory] > 0 || it.Request[policy.GPU] > 0
}

// shapeOf is what an item asks, without models.
func shapeOf(it *policy.Item) Item {
	count, share := it.GPUs()
	return Item{CPU: it.Request[policy.CPU], Memory: it.Request[policy.Memory], Count: int8(min(count, math.MaxInt8)), Milli: int16(share)}
}
