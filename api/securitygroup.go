package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindSecurityGroup says who may talk with instances of a tenant.
const KindSecurityGroup Kind = "SecurityGroup"

// SecurityGroup allows traffic of the instances it selects. Groups only allow: what no
// rule of any group allows is refused in a direction that a group speaks about. Spec is
// the user's; Status is written by the controller of networks.
type SecurityGroup struct {
	Head
	Spec   SecurityGroupSpec   `json:"spec"`
	Status SecurityGroupStatus `json:"status,omitzero"`
}

// SecurityGroupSpec is whom it is about, and what they may do. A list that is not given
// leaves its direction alone; one that is given and empty lets nothing through. The two are
// kept apart in JSON, so also in the store.
type SecurityGroupSpec struct {
	Select      map[string]string `json:"select,omitempty" doc:"the instances of the tenant with all these labels; none: all instances of the tenant" example:"{app: db}"`
	Network     string            `json:"network,omitempty" doc:"only where they are on this network of the tenant; default: on every tenant network" example:"main"`
	Ingress     []SecurityRule    `json:"ingress,omitzero" doc:"what may come in; not given: this group does not say; []: nothing" example:"[{from: [{labels: {app: web}}], ports: [tcp/5432]}]"`
	Egress      []SecurityRule    `json:"egress,omitzero" doc:"what may go out; not given: this group does not say; []: nothing" example:"[{to: [{dns: example.org}], ports: [tcp/443]}]"`
	Log         bool              `json:"log,omitempty" doc:"record the flows that it judges"`
	DryRun      bool              `json:"dryRun,omitempty" doc:"only count and record what it would refuse"`
	Description string            `json:"description,omitempty" doc:"what it is for, for people"`
}

// SecurityRule allows some ports with some peers.
type SecurityRule struct {
	From        []SecurityPeer `json:"from,omitzero" doc:"ingress: who may begin; any of them; not given: everybody, inside and outside" example:"[{labels: {app: web}}]"`
	To          []SecurityPeer `json:"to,omitzero" doc:"egress: who may be asked; any of them; not given: everybody, inside and outside" example:"[{dns: example.org}]"`
	Ports       []string       `json:"ports,omitzero" doc:"protocols and ports; not given: all" example:"[tcp/5432, udp/8000-8100, icmp/8]"`
	Description string         `json:"description,omitempty" doc:"what it is for, for people"`
}

// SecurityPeer is who is on the other side: exactly one of its fields, but labels may be
// narrowed by a network, and cidr by except.
type SecurityPeer struct {
	Labels  map[string]string `json:"labels,omitzero" doc:"instances of the same tenant with all these labels; with network: those of that network" example:"{app: web}"`
	Group   string            `json:"group,omitempty" doc:"instances that another group of the tenant selects" example:"clients"`
	Network string            `json:"network,omitempty" doc:"all instances of a network: of the tenant, or tenant/network of one that is peered" example:"main"`
	CIDR    string            `json:"cidr,omitempty" doc:"addresses outside of the network and its peers" example:"203.0.113.0/24"`
	Except  []string          `json:"except,omitempty" doc:"parts of cidr that are not meant" example:"[203.0.113.128/25]"`
	DNS     string            `json:"dns,omitempty" doc:"the addresses a name has" example:"example.org"`
	Service string            `json:"service,omitempty" doc:"a service of the tenant" example:"db"`
	Where   string            `json:"where,omitempty" doc:"the host an instance is on, or all that is outside of the network" enum:"host|outside"`
}

// Places of SecurityPeer.Where.
const (
	WhereHost    = "host"
	WhereOutside = "outside"
)

// SecurityGroupStatus is what the controller says of it.
type SecurityGroupStatus struct {
	Conditions []Condition `json:"conditions,omitempty" doc:"Resolved: whether everything exists that its rules name"`
}

// Bounds of one group.
const (
	MaxSecurityRules = 1000 // of both directions together
	MaxSecurityItems = 1000 // peers, ports and exceptions of a rule, each
)

// Validate checks what the group says, not whether what it names exists.
func (g *SecurityGroup) Validate() []errs.Field {
	f := labelFields("spec.select", g.Spec.Select)
	if n := g.Spec.Network; n != "" && !ValidName(n) {
		f = append(f, errs.Field{Field: "spec.network", Value: clip(n), Rule: "must name a network of the tenant", Example: "main"})
	}
	if n := len(g.Spec.Ingress) + len(g.Spec.Egress); n > MaxSecurityRules {
		return append(f, errs.Field{Field: "spec.ingress", Value: strconv.Itoa(n), Rule: fmt.Sprintf("must be at most %d rules, with those of egress; write another group for more", MaxSecurityRules)})
	}
	for i := range g.Spec.Ingress {
		f = append(f, g.Spec.Ingress[i].validate(fmt.Sprintf("spec.ingress[%d]", i), true)...)
	}
	for i := range g.Spec.Egress {
		f = append(f, g.Spec.Egress[i].validate(fmt.Sprintf("spec.egress[%d]", i), false)...)
	}
	return f
}

// Peers are From or To, whichever the direction has.
func (r *SecurityRule) Peers() []SecurityPeer {
	if r.From != nil {
		return r.From
	}
	return r.To
}

func (r *SecurityRule) validate(at string, ingress bool) []errs.Field {
	name, peers, other, wrong := "from", r.From, "to", r.To
	if !ingress {
		name, peers, other, wrong = other, wrong, name, peers
	}
	var f []errs.Field
	if wrong != nil {
		f = append(f, errs.Field{Field: at + "." + other, Rule: "is of the other direction; write " + name, Example: name + ": [{labels: {app: web}}]"})
	}
	if peers != nil && len(peers) == 0 {
		f = append(f, errs.Field{Field: at + "." + name, Value: "[]", Rule: "must name somebody; leave it out to mean everybody, leave the rule out to mean nobody", Example: "[{labels: {app: web}}]"})
	}
	if r.Ports != nil && len(r.Ports) == 0 {
		f = append(f, errs.Field{Field: at + ".ports", Value: "[]", Rule: "must name ports; leave it out to mean all", Example: "[tcp/5432]"})
	}
	for what, n := range map[string]int{name: len(peers), "ports": len(r.Ports)} {
		if n > MaxSecurityItems {
			return append(f, errs.Field{Field: at + "." + what, Value: strconv.Itoa(n), Rule: fmt.Sprintf("must be at most %d entries", MaxSecurityItems)})
		}
	}
	for i := range peers {
		f = append(f, peers[i].validate(fmt.Sprintf("%s.%s[%d]", at, name, i))...)
	}
	for i, p := range r.Ports {
		if _, err := ParsePorts(p); err != nil {
			f = append(f, errs.Field{Field: fmt.Sprintf("%s.ports[%d]", at, i), Value: clip(p), Rule: err.Error() + "; " + portRule, Example: portExample})
		}
	}
	return f
}

func (p *SecurityPeer) validate(at string) []errs.Field {
	given := 0
	for _, is := range []bool{p.Labels != nil, p.Group != "", p.Network != "" && p.Labels == nil, p.CIDR != "", p.DNS != "", p.Service != "", p.Where != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return []errs.Field{{Field: at, Rule: "must have exactly one of labels, group, network, cidr, dns, service and where; labels may go with network", Example: "{labels: {app: web}}"}}
	}
	bad := func(field, value, rule, example string) []errs.Field {
		return []errs.Field{{Field: at + "." + field, Value: clip(value), Rule: rule, Example: example}}
	}
	if len(p.Except) > 0 && p.CIDR == "" {
		return bad("except", p.Except[0], "goes with cidr only", "{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}")
	}
	switch {
	case p.Labels != nil && len(p.Labels) == 0:
		return bad("labels", "{}", "must name at least one label; name a network to mean all of its instances", "{network: main}")
	case p.Network != "" && !validNetworkName(p.Network):
		return bad("network", p.Network, "must be a network of the tenant, or tenant/network", "main")
	case p.Group != "" && !ValidName(p.Group):
		return bad("group", p.Group, "must name a group of the tenant; a name "+nameRule, "clients")
	case p.Service != "" && !ValidName(p.Service):
		return bad("service", p.Service, "must name a service of the tenant; a name "+nameRule, "db")
	case p.DNS != "" && !validHostName(p.DNS):
		return bad("dns", p.DNS, "must be a DNS name in lower case, without * and without a dot at its end", "example.org")
	case p.Where != "" && p.Where != WhereHost && p.Where != WhereOutside:
		return bad("where", p.Where, "must be host or outside", "outside")
	case p.CIDR != "":
		return p.validateCIDR(at)
	}
	return labelFields(at+".labels", p.Labels)
}

func (p *SecurityPeer) validateCIDR(at string) []errs.Field {
	whole, err := ParseCIDR(p.CIDR)
	if err != nil {
		return []errs.Field{{Field: at + ".cidr", Value: clip(p.CIDR), Rule: err.Error(), Example: "203.0.113.0/24"}}
	}
	if len(p.Except) > MaxSecurityItems {
		return []errs.Field{{Field: at + ".except", Value: strconv.Itoa(len(p.Except)), Rule: fmt.Sprintf("must be at most %d entries", MaxSecurityItems)}}
	}
	var f []errs.Field
	for i, s := range p.Except {
		e, err := ParseCIDR(s)
		rule := "must be a smaller part of " + whole.String()
		if err != nil {
			rule = err.Error()
		}
		if err != nil || e.Bits() <= whole.Bits() || !whole.Contains(e.Addr()) {
			f = append(f, errs.Field{Field: fmt.Sprintf("%s.except[%d]", at, i), Value: clip(s), Rule: rule, Example: "203.0.113.128/25"})
		}
	}
	return f
}

// ParseCIDR reads a prefix as rules name it: no bits beyond its length, and IPv4 as IPv4.
func ParseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
			return p, fmt.Errorf("must have a length; write %s for the one address", netip.PrefixFrom(a, a.BitLen()))
		}
		return p, fmt.Errorf("must be an address, / and a length")
	case p.Addr().Is4In6():
		return p, fmt.Errorf("must be written as an IPv4 prefix")
	case p != p.Masked():
		return p, fmt.Errorf("has bits beyond its length; write %s", p.Masked())
	}
	return p, nil
}

// validNetworkName is a network's name, after its tenant and / when it is another tenant's.
func validNetworkName(s string) bool {
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		return ValidTenantPath(s[:i]) && ValidName(s[i+1:])
	}
	return ValidName(s)
}

func validHostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for _, l := range strings.Split(s, ".") {
		if !word(l, 63, false, "-_") {
			return false
		}
	}
	_, err := netip.ParseAddr(s)
	return err != nil
}

func securityGroupDefinition() *Definition {
	spec := func(fn func(s *SecurityGroupSpec) string) func(Object, time.Time) string {
		return func(o Object, _ time.Time) string { return fn(&o.(*SecurityGroup).Spec) }
	}
	rules := func(list []SecurityRule) string {
		switch {
		case list == nil:
			return "-"
		case len(list) == 0:
			return "nothing"
		case len(list) == 1:
			return "1 rule"
		}
		return fmt.Sprintf("%d rules", len(list))
	}
	return &Definition{
		Kind: KindSecurityGroup, Plural: "securitygroups", Aliases: []string{"sg", "group", "groups", "secgroup"}, Tenanted: true,
		Doc: "Who may talk with instances of a tenant.",
		New: func() Object { return &SecurityGroup{Head: Head{K: KindSecurityGroup}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "SELECT", Value: spec(func(s *SecurityGroupSpec) string {
				if len(s.Select) == 0 {
					return "(all)"
				}
				return FormatLabels(s.Select)
			})},
			{Name: "NETWORK", Wide: true, Value: spec(func(s *SecurityGroupSpec) string { return dash(s.Network) })},
			{Name: "INGRESS", Value: spec(func(s *SecurityGroupSpec) string { return rules(s.Ingress) })},
			{Name: "EGRESS", Value: spec(func(s *SecurityGroupSpec) string { return rules(s.Egress) })},
			{Name: "MODE", Value: spec(func(s *SecurityGroupSpec) string {
				if s.DryRun {
					return "dry run"
				}
				return "enforced"
			})},
			{Name: "LOG", Wide: true, Value: spec(func(s *SecurityGroupSpec) string { return strconv.FormatBool(s.Log) })},
			{Name: "DESCRIPTION", Wide: true, Value: spec(func(s *SecurityGroupSpec) string { return dash(s.Description) })},
			{Name: "AGE", Value: ageColumn},
		},
	}
}
