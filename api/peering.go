package api

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindPeering joins two networks.
const KindPeering Kind = "Peering"

// Peering lets instances of two networks reach each other. Between networks of one tenant
// one object does; between those of two, each side has one, and neither learns anything of the other
// before both are there. Spec is the user's; the controller of peerings writes Status.
type Peering struct {
	Head
	Spec   PeeringSpec   `json:"spec"`
	Status PeeringStatus `json:"status,omitzero"`
}

// PeeringSpec is which networks are joined.
type PeeringSpec struct {
	Network     string `json:"network" doc:"network of the tenant" example:"main"`
	Peer        string `json:"peer" doc:"the other one: a network of the tenant, or tenant/network; of another tenant it needs a peering of that one, too" example:"lab/main"`
	Description string `json:"description,omitempty" doc:"a note for people"`
}

// PeeringStatus is whether it is in force.
type PeeringStatus struct {
	Conditions []Condition `json:"conditions,omitempty" doc:"Ready: instances of the two networks can reach each other, as far as security groups let them"`
}

// Why a peering is not in force.
const (
	PeeringWaits    = "Waiting"   // for the other tenant
	PeeringNo       = "NoNetwork" // one of the networks does not exist
	PeeringOverlaps = "Overlap"   // addresses
)

// Ends are the networks: the tenant's own, and the other.
func (p *Peering) Ends() (own, peer Ref) {
	own = Ref{Kind: KindNetwork, Tenant: p.Tenant, Name: p.Spec.Network}
	peer = Ref{Kind: KindNetwork, Tenant: p.Tenant, Name: p.Spec.Peer}
	if i := strings.LastIndexByte(p.Spec.Peer, '/'); i >= 0 {
		peer.Tenant, peer.Name = p.Spec.Peer[:i], p.Spec.Peer[i+1:]
	}
	return own, peer
}

// Ready reports whether its controller found nothing against it.
func (p *Peering) Ready() bool {
	return p.DeletedAt == nil && slices.ContainsFunc(p.Status.Conditions, func(c Condition) bool { return c.Type == ConditionReady && c.Status })
}

// Peered lists for every network those it is joined with, in order. A peering of two tenants of which
// one side is gone is not in force, whatever the status of the other still says.
func Peered(all []*Peering) map[Ref][]Ref {
	said := map[[2]Ref]bool{}
	for _, p := range all {
		if own, peer := p.Ends(); p.Ready() {
			said[[2]Ref{own, peer}] = true
		}
	}
	out := map[Ref][]Ref{}
	for ends := range said {
		a, b := ends[0], ends[1]
		if a == b || a.Tenant != b.Tenant && !said[[2]Ref{b, a}] {
			continue
		}
		out[a], out[b] = append(out[a], b), append(out[b], a)
	}
	for n, with := range out {
		slices.SortFunc(with, func(a, b Ref) int { return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name)) })
		out[n] = slices.Compact(with)
	}
	return out
}

// Validate checks the names.
func (p *Peering) Validate() []errs.Field {
	var f []errs.Field
	if !ValidName(p.Spec.Network) {
		f = append(f, errs.Field{Field: "spec.network", Value: clip(p.Spec.Network), Rule: "must name a network of the tenant; a name " + nameRule, Example: "main"})
	}
	if !validNetworkName(p.Spec.Peer) {
		f = append(f, errs.Field{Field: "spec.peer", Value: clip(p.Spec.Peer), Rule: "must be a network of the tenant, or tenant/network", Example: "lab/main"})
	}
	if own, peer := p.Ends(); own == peer && len(f) == 0 {
		f = append(f, errs.Field{Field: "spec.peer", Value: clip(p.Spec.Peer), Rule: "must be another network than spec.network", Example: "lab/main"})
	}
	return f
}

// Fixed keeps the ends: what was agreed to was these two networks.
func (p *Peering) Fixed(old Object) []errs.Field {
	was := old.(*Peering).Spec
	var f []errs.Field
	for _, c := range []struct{ field, was, is string }{{"spec.network", was.Network, p.Spec.Network}, {"spec.peer", was.Peer, p.Spec.Peer}} {
		if c.was != c.is {
			f = append(f, errs.Field{Field: c.field, Value: clip(c.is), Rule: "cannot change; make another peering", Example: c.was})
		}
	}
	return f
}

func peeringDefinition() *Definition {
	spec := func(o Object) *PeeringSpec { return &o.(*Peering).Spec }
	return &Definition{
		Kind: KindPeering, Plural: "peerings", Aliases: []string{"peer", "peers"}, Tenanted: true,
		Doc: "Joins two networks; those of two tenants when both have one.",
		New: func() Object { return &Peering{Head: Head{K: KindPeering}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "NETWORK", Value: func(o Object, _ time.Time) string { return spec(o).Network }},
			{Name: "PEER", Value: func(o Object, _ time.Time) string { return spec(o).Peer }},
			{Name: "STATE", Value: func(o Object, _ time.Time) string { return conditionColumn(o.(*Peering).Status.Conditions, false) }},
			{Name: "WHY", Wide: true, Value: func(o Object, _ time.Time) string { return conditionColumn(o.(*Peering).Status.Conditions, true) }},
			{Name: "AGE", Value: ageColumn},
		},
	}
}

// conditionColumn is Ready, or why it is not.
func conditionColumn(list []Condition, why bool) string {
	for _, c := range list {
		if c.Type != ConditionReady {
			continue
		}
		if why {
			return dash(c.Message)
		}
		if c.Status {
			return "Ready"
		}
		return dash(c.Reason)
	}
	return "-"
}
