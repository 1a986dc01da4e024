package main

import (
	"fmt"
	"slices"

	"atoll/internal/balance"
)

// ours is the product's rebalancing. It sees what has been measured so far, and
// places new machines online as the others do.
type ours struct {
	c balance.Config

	load  [][]float64
	since []int // rounds
	came  []int
}

// place takes the fullest host that admits the machine, in the dimension that fills up first.
func (o *ours) place(w *world, v *vm) *host {
	var best *host
	score := -10.0
	for _, h := range w.hosts {
		if !admits(h, v) {
			continue
		}
		sc := float64(h.ram()+v.ram)/hostRAM + (h.mips-h.free+v.mips)/h.mips
		if len(h.vms) > 0 {
			sc += 10
		} else {
			sc -= h.mips / 1e6
		}
		if sc > score {
			best, score = h, sc
		}
	}
	return best
}

func (o *ours) decide(w *world) []move {
	if o.load == nil {
		o.load = make([][]float64, len(w.vms))
		o.since, o.came = make([]int, len(w.vms)), make([]int, len(w.vms))
		for i := range o.since {
			o.since[i] = balance.Never
		}
	}
	p := balance.Pool{Hosts: make([]balance.Host, len(w.hosts)), Instances: make([]balance.Instance, len(w.vms))}
	for i, h := range w.hosts {
		p.Hosts[i] = balance.Host{Name: fmt.Sprint("h", i), CPU: h.mips, Core: h.core, Watts: h.watts[:], Off: len(h.vms) == 0}
		if w.enforce {
			p.Hosts[i].Capacity = balance.Vector{hostRAM}
		}
	}
	for i, v := range w.vms {
		o.load[i] = append(o.load[i], v.demand)
		p.Instances[i] = balance.Instance{Name: fmt.Sprint("v", i), Host: v.host.id, Size: v.mips, Load: o.load[i], Cost: moveTime(v), Rested: o.since[i], Came: o.came[i]}
		if w.enforce {
			p.Instances[i].Request = balance.Vector{int64(v.ram)}
		}
		if o.since[i] != balance.Never {
			o.since[i]++
		}
	}
	var out []move
	for _, m := range balance.Plan(p, o.c) {
		o.since[m.Instance], o.came[m.Instance] = 1, m.From
		out = append(out, move{w.vms[m.Instance], w.hosts[m.To]})
	}
	return slices.Clip(out)
}
