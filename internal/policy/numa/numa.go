// Package numa gives instances that ask for cores of their own, or for huge pages,
// cores, memory and devices of one NUMA cell, near each other. It refuses nodes
// where no cell has all of it free.
package numa

import (
	"slices"

	"atoll/internal/policy"
)

// Cells is filter, scorer and picker.
type Cells struct{}

// New makes it.
func New() Cells { return Cells{} }

// Name is "numa".
func (Cells) Name() string { return "numa" }

// concerns reports whether an item needs a cell.
func concerns(it *policy.Item) bool { return it.Spec.ExclusiveCPUs || it.Hugepages > 0 }

// cores is how many an item wants for itself.
func cores(it *policy.Item) int {
	if !it.Spec.ExclusiveCPUs {
		return 0
	}
	return int(it.Request[policy.CPU] / 1000)
}

// Check looks for a cell with everything.
func (Cells) Check(_ *policy.View, it *policy.Item) *policy.Check {
	if !concerns(it) || it.Request[policy.Memory] == 0 {
		return nil
	}
	return &policy.Check{Node: func(n *policy.Node) string {
		switch {
		case len(n.Cells) == 0:
			return "the node does not tell its NUMA cells"
		case best(n, it) < 0:
			return "no NUMA cell has the cores, memory and devices together"
		}
		return ""
	}}
}

// Grade prefers the cell that is filled most, so that whole cells stay free.
func (Cells) Grade(_ *policy.View, it *policy.Item) *policy.Grade {
	if !concerns(it) {
		return nil
	}
	return &policy.Grade{Node: func(n *policy.Node) float64 {
		c := best(n, it)
		if c < 0 {
			return 0
		}
		return 1 - spare(n, it, c)
	}}
}

// Pick takes the lowest free cores of the best cell.
func (Cells) Pick(n *policy.Node, it *policy.Item, a *policy.Alloc) {
	if !concerns(it) {
		return
	}
	if c := best(n, it); c >= 0 {
		a.Cell, a.Bound = c, true
		a.CPUs = slices.Clone(n.Cells[c].FreeCPUs[:cores(it)])
	}
}

// best is the cell with the least to spare that has enough; -1 when none has.
func best(n *policy.Node, it *policy.Item) int {
	found, least := -1, 2.0
	for i := range n.Cells {
		c := &n.Cells[i]
		if len(c.FreeCPUs) < cores(it) || c.FreeMemory < it.Request[policy.Memory]-it.Hugepages || c.FreeHugepages < it.Hugepages || !devices(n, it, i) {
			continue
		}
		if s := spare(n, it, i); s < least {
			found, least = i, s
		}
	}
	return found
}

// devices reports whether the devices asked for are free in a cell.
func devices(n *policy.Node, it *policy.Item, cell int) bool {
	want, share := it.GPUs()
	for _, d := range n.Devices {
		if d.Cell == cell && d.Free >= share && (len(it.Spec.GPUModels) == 0 || slices.Contains(it.Spec.GPUModels, d.Model)) {
			want--
		}
	}
	return want <= 0
}

// spare is the part of a cell's cores, or of its memory when no cores are asked for, that stays free.
func spare(n *policy.Node, it *policy.Item, i int) float64 {
	c := &n.Cells[i]
	if k := cores(it); k > 0 && len(c.CPUs) > 0 {
		return float64(len(c.FreeCPUs)-k) / float64(len(c.CPUs))
	}
	total := n.Object.Status.Cells[i].Memory
	if total <= 0 {
		return 1
	}
	return min(max(float64(c.FreeMemory-it.Request[policy.Memory])/float64(total), 0), 1)
}
