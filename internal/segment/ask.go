package segment

import (
	"net/netip"
	"slices"
)

// Judge is a group that has a say about a direction of an instance that is here.
type Judge struct {
	Group       GroupRef
	Log, DryRun bool
}

// Judges lists the groups that have a say about a direction of an address that is here, by name.
func (c *Compiler) Judges(a netip.Addr, dir Direction) []Judge {
	p := c.profiles[c.here[a]]
	if p == nil {
		return nil
	}
	var out []Judge
	for _, g := range p.groups {
		if says(g, int(dir)) {
			out = append(out, Judge{g.ref, g.spec.Log, g.spec.DryRun})
		}
	}
	slices.SortFunc(out, func(a, b Judge) int { return a.Group.compare(b.Group) })
	return out
}

// Logged lists the numbers of the rules whose flows are to be recorded.
func (c *Compiler) Logged() []uint32 {
	var out []uint32
	for id, r := range c.rules {
		if r.Log && !r.DryRun {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Rules are those that the tables have, by number.
func (c *Compiler) Rules() map[uint32]Rule {
	out := make(map[uint32]Rule, len(c.rules))
	for id, r := range c.rules {
		out[id] = *r
	}
	return out
}

// Tried lists the groups that are only tried, by the number of the set they are asked in.
func (c *Compiler) Tried() map[uint32][]GroupRef {
	out := map[uint32][]GroupRef{}
	for _, st := range c.sets {
		for _, g := range st.groups {
			if st.id != 0 && g.spec != nil && g.spec.DryRun {
				out[st.id] = append(out[st.id], g.ref)
			}
		}
	}
	return out
}

// GroupsOf lists the groups that select an instance, by name.
func (w *World) GroupsOf(i Identity) []GroupRef { return w.groupsOf(&i) }
