package shaping

import (
	"fmt"
	"slices"

	"atoll/api"
	"atoll/internal/driver"
)

// world is what a host's network is divided by.
type world struct {
	instances map[api.Ref]*api.Instance
	tenants   map[string]*api.Tenant
	uplink    int64 // bits per second; 0: not known
}

// shared reports whether anything is said that a bound on a cable alone does not keep.
func (w *world) shared() bool {
	for _, in := range w.instances {
		to, from := in.Spec.Bands()
		if (to.Limit != 0 || from.Limit != 0) && len(in.Spec.Networks) > 1 || w.uplink != 0 && to.Guarantee != 0 {
			return true
		}
		for t := in.Tenant; t != ""; t = api.ParentTenant(t) {
			if o := w.tenants[t]; o != nil && (o.Spec.Limit[api.NetBandwidth] != 0 || w.uplink != 0 && o.Spec.Guarantee[api.NetBandwidth] != 0) {
				return true
			}
		}
	}
	return false
}

// cables are those of the instances that have a network of their own.
func (w *world) cables() map[driver.Cable]*api.Instance {
	out := map[driver.Cable]*api.Instance{}
	for _, in := range w.instances {
		for _, c := range cablesOf(in) {
			out[c] = in
		}
	}
	return out
}

func cablesOf(in *api.Instance) []driver.Cable {
	n := in.Spec.Network()
	if in.Status.RuntimeID == "" || n == api.NetworkNone || n == api.NetworkHost {
		return nil
	}
	var out []driver.Cable
	for i := range max(len(in.Spec.Networks), 1) {
		out = append(out, driver.Cable{ID: in.Status.RuntimeID, Name: fmt.Sprintf("eth%d", i)})
	}
	return out
}

// guaranteed reports whether anybody here is promised a part of the uplink: only then is it divided. Otherwise
// nobody is held back for it.
func (w *world) guaranteed() bool {
	for _, in := range w.instances {
		to, _ := in.Spec.Bands()
		if to.Guarantee != 0 {
			return true
		}
		for t := in.Tenant; t != ""; t = api.ParentTenant(t) {
			if o := w.tenants[t]; o != nil && o.Spec.Guarantee[api.NetBandwidth] != 0 {
				return true
			}
		}
	}
	return false
}

// tree is the host's traffic in a direction, 0 to instances and 1 from them. Each cable is looked at once.
func (w *world) tree(d int, look func(driver.Cable, *node)) (*node, map[driver.Cable]*node) {
	root := &node{}
	if w.guaranteed() {
		root.limit = w.uplink
	}
	groups, of := map[string]*node{"": root}, map[driver.Cable]*node{}
	for _, ref := range sorted(w.instances) {
		in := w.instances[ref]
		cs := cablesOf(in)
		if len(cs) == 0 {
			continue
		}
		to, from := in.Spec.Bands()
		b := [2]api.Band{to, from}[d]
		n := &node{guarantee: b.Guarantee, limit: b.Limit, weight: api.DefaultWeight} // beside nested tenants as one of them
		up := w.group(groups, in.Tenant)
		up.children = append(up.children, n)
		for _, c := range cs {
			leaf := n
			if len(cs) > 1 {
				leaf = &node{}
				n.children = append(n.children, leaf)
			}
			look(c, leaf)
			of[c] = leaf
		}
	}
	return root, of
}

// group is the node of a tenant, with those it is nested in.
func (w *world) group(groups map[string]*node, tenant string) *node {
	if n := groups[tenant]; n != nil {
		return n
	}
	n := &node{weight: api.DefaultWeight}
	if t := w.tenants[tenant]; t != nil {
		n.guarantee, n.limit, n.weight = t.Spec.Guarantee[api.NetBandwidth], t.Spec.Limit[api.NetBandwidth], t.Spec.EffectiveWeight()
	}
	groups[tenant] = n
	up := w.group(groups, api.ParentTenant(tenant))
	up.children = append(up.children, n)
	return n
}

func sorted(m map[api.Ref]*api.Instance) []api.Ref {
	var out []api.Ref
	for r := range m {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b api.Ref) int {
		if a.Tenant != b.Tenant {
			if a.Tenant < b.Tenant {
				return -1
			}
			return 1
		}
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}
