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

// KindNetwork is a network of a tenant.
const KindNetwork Kind = "Network"

// Network is a tenant's own: instances on it reach each other on whichever host they are,
// and nobody else unless something says so. Its addresses may be those of another tenant's
// network, too. Spec is the user's; the network controller writes Status.
type Network struct {
	Head
	Spec   NetworkSpec   `json:"spec"`
	Status NetworkStatus `json:"status,omitzero"`
}

// NetworkSpec is what the network is to be. At least one of CIDR and CIDR6 is given.
type NetworkSpec struct {
	CIDR        string `json:"cidr,omitempty" doc:"IPv4 addresses of its instances; the first is the gateway" example:"10.1.0.0/16"`
	CIDR6       string `json:"cidr6,omitempty" doc:"IPv6 addresses of its instances" example:"fd00:1::/64"`
	Egress      string `json:"egress,omitempty" doc:"how instances reach what is outside: nat, by the address of their host; direct, by their own addresses, which needs the right network:direct; none, not at all" enum:"nat|direct|none" default:"nat"`
	Isolation   string `json:"isolation,omitempty" doc:"open: instances of the network reach each other unless a security group says otherwise; closed: only what a group allows" enum:"open|closed" default:"open"`
	MTU         int    `json:"mtu,omitempty" doc:"largest packet in bytes; 0: as large as the hosts' network lets it be" example:"1400"`
	Domain      string `json:"domain,omitempty" doc:"DNS domain of its instances; default: NETWORK.TENANT.atoll.internal" example:"corp.example"`
	VNI         uint32 `json:"vni,omitempty" doc:"its number between hosts; default: the next free one; to choose it needs the right network:vni" example:"5001"`
	Description string `json:"description,omitempty" doc:"a note for people"`
}

// NetworkStatus is what the pool made of it.
type NetworkStatus struct {
	VNI        uint32      `json:"vni,omitempty" doc:"its number between hosts"`
	Conditions []Condition `json:"conditions,omitempty" doc:"Ready: instances can be on it"`
}

// LastVNI is the largest number a VXLAN header holds. Numbers below FirstVNI are left to administrators.
const (
	LastVNI  = 1<<24 - 1
	FirstVNI = 1 << 16
)

// NetworkDomain is what names of instances on tenants' networks end in.
const NetworkDomain = "atoll.internal"

// EffectiveDomain is the domain of the network's instances.
func (n *Network) EffectiveDomain() string {
	if n.Spec.Domain != "" {
		return n.Spec.Domain
	}
	parts := strings.Split(n.Tenant, "/")
	slices.Reverse(parts)
	return n.Name + "." + strings.Join(parts, ".") + "." + NetworkDomain
}

// Closed reports whether instances reach each other only where a group allows it.
func (s *NetworkSpec) Closed() bool { return s.Isolation == "closed" }

// Direct reports whether its addresses are known outside.
func (s *NetworkSpec) Direct() bool { return s.Egress == EgressDirect }

// EgressDirect is the way out by the network's own addresses.
const EgressDirect = "direct"

// Prefixes are the network's, IPv4 first. They are valid where Validate finds nothing.
func (s *NetworkSpec) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range []string{s.CIDR, s.CIDR6} {
		if p, err := netip.ParsePrefix(c); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// Gateway is the address of a prefix that every host has.
func Gateway(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// Ready reports whether instances can be on the network.
func (n *Network) Ready() bool {
	return n.Status.VNI != 0 && n.DeletedAt == nil && slices.ContainsFunc(n.Status.Conditions, func(c Condition) bool { return c.Type == ConditionReady && c.Status })
}

// Grants lists the dangerous rights the spec needs.
func (s *NetworkSpec) Grants() []string {
	var out []string
	if s.VNI != 0 {
		out = append(out, "network:vni")
	}
	if s.Direct() {
		out = append(out, "network:direct")
	}
	return out
}

// Validate checks everything that can be judged from the spec alone.
func (n *Network) Validate() []errs.Field {
	s := &n.Spec
	var f []errs.Field
	if slices.Contains([]string{NetworkDefault, NetworkNone, NetworkHost}, n.Name) {
		f = append(f, errs.Field{Field: "metadata.name", Value: n.Name, Rule: "is the name of a network that always exists", Example: "main"})
	}
	if s.CIDR == "" && s.CIDR6 == "" {
		f = append(f, errs.Field{Field: "spec.cidr", Rule: "give spec.cidr, spec.cidr6, or both", Example: "10.1.0.0/16"})
	}
	f = append(f, prefixField("spec.cidr", s.CIDR, true)...)
	f = append(f, prefixField("spec.cidr6", s.CIDR6, false)...)
	f = append(f, optional("spec.egress", s.Egress, "nat", EgressDirect, "none")...)
	f = append(f, optional("spec.isolation", s.Isolation, "open", "closed")...)
	least := 576
	if s.CIDR6 != "" {
		least = 1280 // RFC 8200, section 5
	}
	if s.MTU != 0 && (s.MTU < least || s.MTU > 65535) {
		f = append(f, errs.Field{Field: "spec.mtu", Value: strconv.Itoa(s.MTU), Rule: fmt.Sprintf("must be %d to 65535, or 0", least), Example: "1400"})
	}
	if s.Domain != "" && !validDomain(s.Domain) {
		f = append(f, errs.Field{Field: "spec.domain", Value: clip(s.Domain), Rule: "must be DNS labels joined by dots, at most 200 bytes", Example: "corp.example"})
	}
	if s.VNI > LastVNI || s.VNI >= FirstVNI {
		f = append(f, errs.Field{Field: "spec.vni", Value: strconv.FormatUint(uint64(s.VNI), 10), Rule: fmt.Sprintf("must be 1 to %d; larger ones are given by the pool", FirstVNI-1), Example: "5001"})
	}
	return f
}

// Fixed names what of the spec cannot change: addresses are in use.
func (n *Network) Fixed(old Object) []errs.Field {
	was, is := &old.(*Network).Spec, &n.Spec
	var f []errs.Field
	for _, c := range []struct{ field, was, is string }{{"spec.cidr", was.CIDR, is.CIDR}, {"spec.cidr6", was.CIDR6, is.CIDR6}} {
		if c.was != c.is && c.was != "" { // a network of one family may be given the other
			f = append(f, errs.Field{Field: c.field, Value: clip(c.is), Rule: "cannot change; make another network", Example: c.was})
		}
	}
	if is.Direct() && !was.Direct() { // its addresses may be somebody's outside
		f = append(f, errs.Field{Field: "spec.egress", Value: is.Egress, Rule: "cannot become direct; make another network", Example: or(was.Egress, "nat")})
	}
	if is.Direct() && was.CIDR+was.CIDR6 != is.CIDR+is.CIDR6 {
		f = append(f, errs.Field{Field: "spec.egress", Value: is.Egress, Rule: "a network whose addresses are known outside is given no more of them; make another network", Example: "nat"})
	}
	if was.VNI != is.VNI {
		f = append(f, errs.Field{Field: "spec.vni", Value: strconv.FormatUint(uint64(is.VNI), 10), Rule: "cannot change; make another network", Example: strconv.FormatUint(uint64(was.VNI), 10)})
	}
	return f
}

// notInstances are addresses that no network may have: hosts and everybody else would read them as something else.
// Those that begin with fd61 are of networks' own ways out.
var notInstances = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("::/16"), netip.MustParsePrefix("fd61:746f:6c6c::/48"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

func prefixField(field, v string, four bool) []errs.Field {
	if v == "" {
		return nil
	}
	least, most, example := 8, 29, "10.1.0.0/16"
	if !four {
		least, most, example = 32, 112, "fd00:1::/64"
	}
	bad := func(rule string) []errs.Field {
		return []errs.Field{{Field: field, Value: clip(v), Rule: rule, Example: example}}
	}
	p, err := netip.ParsePrefix(v)
	switch {
	case err != nil || p.Addr().Is4() != four || p.Addr().Is4In6() || p.Bits() < least || p.Bits() > most:
		return bad(fmt.Sprintf("must be a network from /%d to /%d", least, most))
	case p.Masked() != p:
		return bad("must have no bits set behind its length: " + p.Masked().String())
	}
	for _, no := range notInstances {
		if no.Overlaps(p) {
			return bad("must not be part of " + no.String())
		}
	}
	return nil
}

func validDomain(s string) bool {
	return len(s) <= 200 && !slices.ContainsFunc(strings.Split(s, "."), func(l string) bool { return !ValidName(l) })
}

func networkDefinition() *Definition {
	spec := func(o Object) *NetworkSpec { return &o.(*Network).Spec }
	return &Definition{
		Kind: KindNetwork, Plural: "networks", Aliases: []string{"net", "nets", "vpc"}, Tenanted: true, Finalizers: []string{FinalizerNetwork},
		Doc: "A tenant's own network, which spans all hosts.",
		New: func() Object { return &Network{Head: Head{K: KindNetwork}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "CIDR", Value: func(o Object, _ time.Time) string { return dash(spec(o).CIDR) }},
			{Name: "CIDR6", Value: func(o Object, _ time.Time) string { return dash(spec(o).CIDR6) }},
			{Name: "EGRESS", Value: func(o Object, _ time.Time) string { return or(spec(o).Egress, "nat") }},
			{Name: "ISOLATION", Value: func(o Object, _ time.Time) string { return or(spec(o).Isolation, "open") }},
			{Name: "VNI", Value: func(o Object, _ time.Time) string {
				if v := o.(*Network).Status.VNI; v != 0 {
					return strconv.FormatUint(uint64(v), 10)
				}
				return "-"
			}},
			{Name: "READY", Value: func(o Object, _ time.Time) string { return strconv.FormatBool(o.(*Network).Ready()) }},
			{Name: "DOMAIN", Wide: true, Value: func(o Object, _ time.Time) string { return o.(*Network).EffectiveDomain() }},
			{Name: "AGE", Value: ageColumn},
		},
	}
}

// DriverOverlay is the network driver of hosts that take part in networks of tenants.
const DriverOverlay = "overlay"

// NetworkWays is the part of a host's bridge in which networks of tenants have their ways out: the
// last sixteenth. Instances get no address there. Subnets of less than 1024 addresses have no such part.
func NetworkWays(bridge netip.Prefix) netip.Prefix {
	if !bridge.IsValid() || !bridge.Addr().Is4() || bridge.Bits() > 22 {
		return netip.Prefix{}
	}
	b := bridge.Masked().Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += 15 << (28 - bridge.Bits())
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), bridge.Bits()+4)
}

// FinalizerNetwork keeps a network that is being removed until no instance is on it.
const FinalizerNetwork = "atoll/network"

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
