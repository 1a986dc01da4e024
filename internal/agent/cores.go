package agent

import (
	"slices"
	"strconv"

	"atoll/api"
	"atoll/internal/policy"
)

// Some instances have cores of their own (Assignment.spec.cpus). All others on the
// node run on the rest, so whenever the set of owned cores changes, everything
// else is pinned anew.

// cores is what an instance should run on; "" is all. a.mu is held.
func (a *Agent) cores(in *api.Instance, as *api.Assignment) string {
	if as.Spec.CPUs != "" {
		return as.Spec.CPUs
	}
	owned := map[int]bool{}
	for _, l := range a.lives {
		list, err := api.ParseCPUSet(l.own)
		for _, c := range list {
			owned[c] = owned[c] || l.own != "" && err == nil
		}
	}
	if len(owned) == 0 {
		return in.Spec.CPUs
	}
	free := func(cores []int) []int {
		return slices.DeleteFunc(cores, func(c int) bool { return owned[c] })
	}
	if mine, err := api.ParseCPUSet(in.Spec.CPUs); in.Spec.CPUs != "" && err == nil {
		if rest := free(mine); len(rest) > 0 {
			return policy.FormatCPUs(rest)
		}
		// All it asked for are another's own now: it runs on what is nobody's.
	}
	var all []int
	for _, c := range a.cells {
		if list, err := api.ParseCPUSet(c.CPUs); err == nil {
			all = append(all, list...)
		}
	}
	return policy.FormatCPUs(free(all))
}

// own notes which cores an instance has for itself and wakes all others when that
// is news. It reports whether the instance itself runs on other cores than it should.
func (a *Agent) own(id string, in *api.Instance, as *api.Assignment) (repin bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lives[id]
	if l == nil {
		return false
	}
	want := ""
	if as != nil && as.Spec.Node == a.Node && as.Spec.InstanceUID == in.UID && in.DeletedAt == nil {
		want = as.Spec.CPUs
	}
	if l.own != want {
		l.own = want
		a.wake(id)
	}
	return as != nil && l.pinned != a.cores(in, as)
}

// wake looks at all instances but one; a.mu is held.
func (a *Agent) wake(but string) {
	for id, l := range a.lives {
		if id != but {
			a.engine.Enqueue("instances", l.ref)
		}
	}
}

// pin notes what an instance is put on now: its cores and memory node.
func (a *Agent) pin(id string, in *api.Instance, as *api.Assignment) (cpus, mems string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lives[id]
	if l == nil {
		l = &life{changed: make(chan struct{}), ref: api.RefOf(in)}
		a.lives[id] = l
	}
	if l.own != as.Spec.CPUs {
		l.own = as.Spec.CPUs
		a.wake(id)
	}
	l.pinned = a.cores(in, as)
	if c := as.Spec.Cell; c != nil && *c >= 0 && *c < len(a.cells) && len(a.cells) > 1 {
		mems = strconv.Itoa(a.cells[*c].ID)
	}
	return l.pinned, mems
}
