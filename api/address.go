package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindAddress is a floating address of a tenant.
const KindAddress Kind = "Address"

// Address is an address of the physical network that a tenant has: it leads to an instance,
// on whichever host that is, and goes along when the instance moves. Spec is the user's; the
// controller of addresses writes Status.
type Address struct {
	Head
	Spec   AddressSpec   `json:"spec"`
	Status AddressStatus `json:"status,omitzero"`
}

// AddressSpec is which address it is to be, and where it leads.
type AddressSpec struct {
	Pool        string `json:"pool,omitempty" doc:"address pool it comes from; default: the first that the tenant may use and that has one left" example:"public"`
	Address     string `json:"address,omitempty" doc:"which one; default: the next free one" example:"203.0.113.10"`
	Instance    string `json:"instance,omitempty" doc:"instance of the tenant that it leads to; none: it is only kept" example:"web"`
	Network     string `json:"network,omitempty" doc:"network of the instance on which it arrives; default: its first" example:"main"`
	Description string `json:"description,omitempty" doc:"a note for people"`
}

// AddressStatus is what the pool made of it. Hosts go by it.
type AddressStatus struct {
	Address     string      `json:"address,omitempty" doc:"the address" example:"203.0.113.10"`
	Pool        string      `json:"pool,omitempty" doc:"the pool it is from"`
	Node        string      `json:"node,omitempty" doc:"host that answers for it; empty: none"`
	InstanceUID string      `json:"instanceUid,omitempty" doc:"the instance it leads to"`
	VNI         uint32      `json:"vni,omitempty" doc:"number of the network it arrives on; 0: the host's own"`
	Inside      string      `json:"inside,omitempty" doc:"address of the instance there"`
	Conditions  []Condition `json:"conditions,omitempty" doc:"Ready: a host answers for it"`
}

// Validate checks what can be judged from the spec alone.
func (a *Address) Validate() []errs.Field {
	s := &a.Spec
	var f []errs.Field
	for _, n := range []struct{ field, value, example string }{{"spec.pool", s.Pool, "public"}, {"spec.instance", s.Instance, "web"}} {
		if n.value != "" && !ValidName(n.value) {
			f = append(f, errs.Field{Field: n.field, Value: clip(n.value), Rule: "must be a name", Example: n.example})
		}
	}
	if s.Network != "" && !ValidName(s.Network) {
		f = append(f, errs.Field{Field: "spec.network", Value: clip(s.Network), Rule: "must name a network of the tenant", Example: "main"})
	}
	if s.Network != "" && s.Instance == "" {
		f = append(f, errs.Field{Field: "spec.network", Value: clip(s.Network), Rule: "goes with spec.instance", Example: ""})
	}
	if p, err := netip.ParseAddr(s.Address); s.Address != "" && (err != nil || !p.Is4()) {
		f = append(f, errs.Field{Field: "spec.address", Value: clip(s.Address), Rule: "must be an IPv4 address", Example: "203.0.113.10"})
	}
	return f
}

// Fixed names what cannot change: another address is another object.
func (a *Address) Fixed(old Object) []errs.Field {
	was := old.(*Address)
	var f []errs.Field
	for _, c := range []struct{ field, was, is, has string }{{"spec.address", was.Spec.Address, a.Spec.Address, was.Status.Address}, {"spec.pool", was.Spec.Pool, a.Spec.Pool, was.Status.Pool}} {
		if c.was != c.is && c.has != "" && c.is != c.has {
			f = append(f, errs.Field{Field: c.field, Value: clip(c.is), Rule: "cannot change; make another address", Example: c.has})
		}
	}
	return f
}

// Ready is the condition Ready; the zero Condition when nothing was said yet.
func (a *Address) Ready() Condition {
	if i := slices.IndexFunc(a.Status.Conditions, func(c Condition) bool { return c.Type == ConditionReady }); i >= 0 {
		return a.Status.Conditions[i]
	}
	return Condition{}
}

func addressDefinition() *Definition {
	status := func(fn func(s *AddressStatus) string) func(Object, time.Time) string {
		return func(o Object, _ time.Time) string { return dash(fn(&o.(*Address).Status)) }
	}
	return &Definition{
		Kind: KindAddress, Plural: "addresses", Aliases: []string{"addr", "floating"}, Tenanted: true,
		Doc: "An address of the physical network that a tenant has, and that goes with an instance wherever it runs.",
		New: func() Object { return &Address{Head: Head{K: KindAddress}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "ADDRESS", Value: status(func(s *AddressStatus) string { return s.Address })},
			{Name: "POOL", Value: status(func(s *AddressStatus) string { return s.Pool })},
			{Name: "INSTANCE", Value: func(o Object, _ time.Time) string { return dash(o.(*Address).Spec.Instance) }},
			{Name: "NODE", Value: status(func(s *AddressStatus) string { return s.Node })},
			{Name: "INSIDE", Wide: true, Value: status(func(s *AddressStatus) string { return s.Inside })},
			{Name: "READY", Value: func(o Object, _ time.Time) string {
				switch c := o.(*Address).Ready(); {
				case c.Status:
					return "true"
				case c.Reason != "":
					return "false (" + c.Reason + ")"
				}
				return "false"
			}},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{
			"status.node":   func(o Object) string { return o.(*Address).Status.Node },
			"spec.instance": func(o Object) string { return o.(*Address).Spec.Instance },
		},
	}
}

// KindAddressPool is addresses that tenants may have.
const KindAddressPool Kind = "AddressPool"

// AddressPool is addresses of the physical network that hosts may answer for, and that nobody
// else there uses.
type AddressPool struct {
	Head
	Spec AddressPoolSpec `json:"spec"`
}

// AddressPoolSpec is which, and for whom.
type AddressPoolSpec struct {
	Prefixes    []string `json:"prefixes" doc:"the addresses; all of each prefix, also its first and last" example:"[203.0.113.8/29]"`
	Exclude     []string `json:"exclude,omitempty" doc:"parts that are not to be given" example:"[203.0.113.8/32]"`
	Tenants     []string `json:"tenants,omitempty" doc:"tenants, and those below them, that may use it; default: all" example:"[acme]"`
	Description string   `json:"description,omitempty" doc:"a note for people"`
}

// maxPool bounds the addresses of one pool: every one may have to be looked at.
const maxPool = 1 << 16

// Validate checks that it is addresses.
func (p *AddressPool) Validate() []errs.Field {
	var f []errs.Field
	if len(p.Spec.Prefixes) == 0 {
		f = append(f, errs.Field{Field: "spec.prefixes", Rule: "must be given", Example: "[203.0.113.8/29]"})
	}
	total := 0
	for _, list := range []struct {
		field string
		all   []string
	}{{"spec.prefixes", p.Spec.Prefixes}, {"spec.exclude", p.Spec.Exclude}} {
		for i, s := range list.all {
			field := fmt.Sprintf("%s[%d]", list.field, i)
			x, err := netip.ParsePrefix(s)
			switch {
			case err != nil || !x.Addr().Is4() || x.Bits() < 16:
				f = append(f, errs.Field{Field: field, Value: clip(s), Rule: "must be an IPv4 prefix from /16 to /32", Example: "203.0.113.8/29"})
				continue
			case x.Masked() != x:
				f = append(f, errs.Field{Field: field, Value: clip(s), Rule: "must have no bits set behind its length: " + x.Masked().String(), Example: x.Masked().String()})
				continue
			}
			for _, no := range notInstances {
				if no.Overlaps(x) {
					f = append(f, errs.Field{Field: field, Value: s, Rule: "must not be part of " + no.String(), Example: "203.0.113.8/29"})
				}
			}
			if list.field == "spec.prefixes" {
				total += 1 << (32 - x.Bits())
			}
		}
	}
	if total > maxPool {
		f = append(f, errs.Field{Field: "spec.prefixes", Value: strconv.Itoa(total), Rule: fmt.Sprintf("must be at most %d addresses; make another pool for more", maxPool), Example: "[203.0.113.8/29]"})
	}
	for i, t := range p.Spec.Tenants {
		if !ValidTenantPath(t) {
			f = append(f, errs.Field{Field: fmt.Sprintf("spec.tenants[%d]", i), Value: clip(t), Rule: "must name a tenant", Example: "acme"})
		}
	}
	return f
}

// Has reports whether the pool may give an address.
func (p *AddressPool) Has(a netip.Addr) bool {
	in := func(all []string) bool {
		return slices.ContainsFunc(all, func(s string) bool {
			x, err := netip.ParsePrefix(s)
			return err == nil && x.Contains(a)
		})
	}
	return in(p.Spec.Prefixes) && !in(p.Spec.Exclude)
}

// All yields every address that the pool may give, in order.
func (p *AddressPool) All(yield func(netip.Addr) bool) {
	for _, s := range p.Spec.Prefixes {
		x, err := netip.ParsePrefix(s)
		if err != nil {
			continue
		}
		for a := x.Addr(); x.Contains(a); a = a.Next() {
			if p.Has(a) && !yield(a) {
				return
			}
		}
	}
}

// For reports whether a tenant may use the pool.
func (p *AddressPool) For(tenant string) bool {
	return len(p.Spec.Tenants) == 0 || slices.ContainsFunc(p.Spec.Tenants, func(t string) bool { return WithinTenant(tenant, t) })
}

func addressPoolDefinition() *Definition {
	return &Definition{
		Kind: KindAddressPool, Plural: "addresspools", Aliases: []string{"addrpool"},
		Doc: "Addresses of the physical network that tenants may have.",
		New: func() Object { return &AddressPool{Head: Head{K: KindAddressPool}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "PREFIXES", Value: func(o Object, _ time.Time) string { return strings.Join(o.(*AddressPool).Spec.Prefixes, ",") }},
			{Name: "TENANTS", Value: func(o Object, _ time.Time) string {
				if t := o.(*AddressPool).Spec.Tenants; len(t) > 0 {
					return strings.Join(t, ",")
				}
				return "(all)"
			}},
			{Name: "AGE", Value: ageColumn},
		},
	}
}
