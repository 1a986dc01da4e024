package api

import (
	"net/netip"
	"slices"
	"time"

	"atoll/internal/errs"
)

// KindRoute is a way out of a network by one of its instances.
const KindRoute Kind = "Route"

// Route says that what a tenant's network sends to some addresses goes to one of its instances, such
// as a gateway to a site or a firewall, or nowhere. That instance, and no other, may send and
// receive for these addresses. Spec is the user's; the controller of routes writes Status.
type Route struct {
	Head
	Spec   RouteSpec   `json:"spec"`
	Status RouteStatus `json:"status,omitzero"`
}

// RouteSpec has exactly one of Via and Blackhole.
type RouteSpec struct {
	Network     string `json:"network" doc:"network of the tenant" example:"main"`
	Destination string `json:"destination" doc:"addresses that are reached by it" example:"192.168.0.0/16"`
	Via         string `json:"via,omitempty" doc:"next hop: an instance of the tenant on the network, by name, wherever it runs; or an address of the network" example:"vpn"`
	Blackhole   bool   `json:"blackhole,omitempty" doc:"nothing is sent there; who tries is told that it is not reachable"`
	Description string `json:"description,omitempty" doc:"a note for people"`
}

// RouteStatus is whether it is in force.
type RouteStatus struct {
	Conditions []Condition `json:"conditions,omitempty" doc:"Ready: hosts go by it"`
}

// Prefix is the destination. It is valid where Validate finds nothing.
func (s *RouteSpec) Prefix() netip.Prefix {
	p, err := netip.ParsePrefix(s.Destination)
	if err != nil {
		return netip.Prefix{}
	}
	return p.Masked()
}

// Hop is the next hop where it is given by its address; else it is an instance's name, or nothing.
func (s *RouteSpec) Hop() netip.Addr {
	a, err := netip.ParseAddr(s.Via)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// Ready reports whether its controller found nothing against it.
func (r *Route) Ready() bool {
	return r.DeletedAt == nil && slices.ContainsFunc(r.Status.Conditions, func(c Condition) bool { return c.Type == ConditionReady && c.Status })
}

// Validate checks what can be judged from the route alone.
func (r *Route) Validate() []errs.Field {
	s := &r.Spec
	var f []errs.Field
	if !ValidName(s.Network) {
		f = append(f, errs.Field{Field: "spec.network", Value: clip(s.Network), Rule: "must name a network of the tenant; a name " + nameRule, Example: "main"})
	}
	bad := func(rule string) {
		f = append(f, errs.Field{Field: "spec.destination", Value: clip(s.Destination), Rule: rule, Example: "192.168.0.0/16"})
	}
	p, err := netip.ParsePrefix(s.Destination)
	switch {
	case err != nil || p.Addr().Is4In6():
		bad("must be an address, / and a length")
	case p != p.Masked():
		bad("must have no bits set behind its length: " + p.Masked().String())
	default:
		for _, no := range notInstances {
			if no.Overlaps(p) {
				bad("must have nothing in common with " + no.String())
				break
			}
		}
	}
	hop := s.Hop()
	switch {
	case s.Blackhole == (s.Via != ""):
		f = append(f, errs.Field{Field: "spec.via", Value: clip(s.Via), Rule: "give either via or blackhole: true", Example: "vpn"})
	case s.Via != "" && !ValidName(s.Via) && !hop.IsValid(), hop.Zone() != "" || hop.Is4In6():
		f = append(f, errs.Field{Field: "spec.via", Value: clip(s.Via), Rule: "must be the name of an instance of the tenant, or an address of the network", Example: "vpn"})
	case hop.IsValid() && err == nil && hop.Is4() != p.Addr().Is4():
		f = append(f, errs.Field{Field: "spec.via", Value: s.Via, Rule: "must be an address of the same family as the destination, or the name of an instance", Example: "vpn"})
	}
	return f
}

// Fixed keeps which network it is of.
func (r *Route) Fixed(old Object) []errs.Field {
	if was := old.(*Route).Spec.Network; was != r.Spec.Network {
		return []errs.Field{{Field: "spec.network", Value: clip(r.Spec.Network), Rule: "cannot change; make another route", Example: was}}
	}
	return nil
}

func routeDefinition() *Definition {
	spec := func(o Object) *RouteSpec { return &o.(*Route).Spec }
	return &Definition{
		Kind: KindRoute, Plural: "routes", Tenanted: true,
		Doc: "A way out of a tenant's network by one of its instances.",
		New: func() Object { return &Route{Head: Head{K: KindRoute}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "NETWORK", Value: func(o Object, _ time.Time) string { return spec(o).Network }},
			{Name: "DESTINATION", Value: func(o Object, _ time.Time) string { return spec(o).Destination }},
			{Name: "VIA", Value: func(o Object, _ time.Time) string {
				if spec(o).Blackhole {
					return "(blackhole)"
				}
				return spec(o).Via
			}},
			{Name: "STATE", Value: func(o Object, _ time.Time) string { return conditionColumn(o.(*Route).Status.Conditions, false) }},
			{Name: "WHY", Wide: true, Value: func(o Object, _ time.Time) string { return conditionColumn(o.(*Route).Status.Conditions, true) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{"spec.network": func(o Object) string { return o.(*Route).Spec.Network }},
	}
}
