package segment

import (
	"fmt"
	"net/netip"
	"slices"

	"atoll/api"
	"atoll/internal/near"
)

// Warning is something in a group that means nobody, or perhaps not who was meant.
type Warning struct {
	Field string // spec.ingress[0].from[1].group
	Text  string // a sentence; says what to do
}

// Warnings lists what a group refers to that does not exist, in the order of its fields.
// A rule with such a peer allows it nothing; the rest of the group holds.
func (w *World) Warnings(ref GroupRef) []Warning {
	spec := w.Groups[ref]
	if spec == nil {
		return nil
	}
	var out []Warning
	if n := (Net{ref.Tenant, spec.Network}); spec.Network != "" && w.Networks[n] == nil {
		out = append(out, Warning{"spec.network", fmt.Sprintf("tenant %s has no network %s, so the group selects nothing%s", ref.Tenant, spec.Network, w.nearNetwork(n))})
	}
	for dir, list := range [2][]api.SecurityRule{spec.Ingress, spec.Egress} {
		for i := range list {
			at := fmt.Sprintf("spec.%s[%d]", directionText(dir == ingress), i)
			if badRule(&list[i]) {
				out = append(out, Warning{at, "a part of the rule cannot be read, so it allows nothing"})
				continue
			}
			word := "to"
			if dir == ingress {
				word = "from"
			}
			for j, p := range list[i].Peers() {
				if field, text := w.doubt(ref, spec, &list[i], &p); text != "" {
					out = append(out, Warning{fmt.Sprintf("%s.%s[%d].%s", at, word, j, field), text})
				}
			}
		}
	}
	return out
}

func (w *World) doubt(ref GroupRef, spec *api.SecurityGroupSpec, r *api.SecurityRule, p *api.SecurityPeer) (field, text string) {
	switch {
	case p.Group != "" && w.Groups[GroupRef{ref.Tenant, p.Group}] == nil:
		var names []string
		for g := range w.Groups {
			if g.Tenant == ref.Tenant {
				names = append(names, g.Name)
			}
		}
		return "group", fmt.Sprintf("tenant %s has no group %s%s", ref.Tenant, p.Group, meant(p.Group, names))
	case p.Network != "":
		return "network", w.doubtNetwork(ref, spec, netOf(ref.Tenant, p.Network))
	case p.CIDR != "":
		c, err := api.ParseCIDR(p.CIDR)
		for _, n := range w.networksOf(ref, spec) {
			if err == nil && !names(r, n) && slices.ContainsFunc(n.Prefixes, func(x netip.Prefix) bool { return within(c, x) }) {
				return "cidr", fmt.Sprintf("%s is a part of network %s, whose instances are known by labels, not by address: name them by labels, or all of them as network %s", p.CIDR, n.Net, n.Net.Name)
			}
		}
	}
	if n, ok := nameOf(ref.Tenant, p); ok {
		if _, known := w.Names[n]; !known && n.DNS != "" {
			return "dns", fmt.Sprintf("%s does not resolve now", n.DNS)
		} else if !known {
			var names []string
			for o := range w.Names {
				if o.Tenant == ref.Tenant && o.Service != "" {
					names = append(names, o.Service)
				}
			}
			return "service", fmt.Sprintf("tenant %s has no service %s%s", ref.Tenant, n.Service, meant(n.Service, names))
		}
	}
	return "", ""
}

func (w *World) doubtNetwork(ref GroupRef, spec *api.SecurityGroupSpec, n Net) string {
	if w.Networks[n] == nil {
		return fmt.Sprintf("there is no network %s%s", n, w.nearNetwork(n))
	}
	for _, own := range w.networksOf(ref, spec) {
		if w.mayMeet(own.Net, n) {
			return ""
		}
	}
	return fmt.Sprintf("network %s is not peered with a network the group is about", n)
}

// networksOf are those that the group may be about, by name.
func (w *World) networksOf(ref GroupRef, spec *api.SecurityGroupSpec) []*Network {
	var out []*Network
	for n, net := range w.Networks {
		if n.Tenant == ref.Tenant && (spec.Network == "" || n.Name == spec.Network) {
			out = append(out, net)
		}
	}
	slices.SortFunc(out, func(a, b *Network) int { return GroupRef(a.Net).compare(GroupRef(b.Net)) })
	return out
}

func (w *World) nearNetwork(n Net) string {
	var names []string
	for o := range w.Networks {
		if o.Tenant == n.Tenant {
			names = append(names, o.Name)
		}
	}
	return meant(n.Name, names)
}

func meant(s string, candidates []string) string {
	if n := near.Of(s, candidates); n != "" {
		return "; did you mean " + n + "?"
	}
	return ""
}
