package segment

import (
	"fmt"
	"strings"

	"atoll/api"
)

// Rule is what a number of a rule in tables stands for. It stays as it is when the compiler goes on.
type Rule struct {
	Group   GroupRef // zero: a rule that every network has
	Ingress bool
	Number  int  // in the group's list, from 1
	Log     bool // flows that it allows are to be recorded
	DryRun  bool // its group is only tried
	base    string
	rule    *api.SecurityRule
}

// Rule finds a rule by its number; false: it was dropped more than one change ago, or never was.
func (c *Compiler) Rule(id uint32) (Rule, bool) {
	if r, ok := c.rules[id]; ok {
		return *r, true
	}
	return Rule{}, false
}

// Text says what it allows: "from app=web, tcp 5432".
func (r Rule) Text() string {
	if r.base != "" {
		return r.base
	}
	return peersText(r.rule, r.Ingress) + ", " + portsText(r.rule)
}

// String names it and says what it allows.
func (r Rule) String() string {
	if r.base != "" {
		return "a rule of every network (" + r.base + ")"
	}
	return fmt.Sprintf("SecurityGroup %s, %s rule %d (%s)", r.Group, directionText(r.Ingress), r.Number, r.Text())
}

func directionText(ingress bool) string {
	if ingress {
		return "ingress"
	}
	return "egress"
}

func peersText(r *api.SecurityRule, ingress bool) string {
	word := "to "
	if ingress {
		word = "from "
	}
	return word + peersOnly(r)
}

func peersOnly(r *api.SecurityRule) string {
	peers := r.Peers()
	if peers == nil {
		return "anybody"
	}
	var out []string
	for i := range peers {
		out = append(out, peerText(&peers[i]))
	}
	return someOf(out, " or ")
}

func peerText(p *api.SecurityPeer) string {
	switch {
	case p.Labels != nil && p.Network != "":
		return api.FormatLabels(p.Labels) + " on " + p.Network
	case p.Labels != nil:
		return api.FormatLabels(p.Labels)
	case p.Network != "":
		return "network " + p.Network
	case p.Group != "":
		return "group " + p.Group
	case p.CIDR != "" && len(p.Except) > 0:
		return p.CIDR + " except " + someOf(p.Except, ", ")
	case p.CIDR != "":
		return p.CIDR
	case p.DNS != "":
		return p.DNS
	case p.Service != "":
		return "service " + p.Service
	case p.Where == api.WhereHost:
		return "the host"
	}
	return "outside"
}

func portsText(r *api.SecurityRule) string {
	if r.Ports == nil {
		return "all ports"
	}
	var out []string
	for _, s := range r.Ports {
		p, err := api.ParsePorts(s)
		if err != nil {
			return "nothing, for a part of it cannot be read"
		}
		out = append(out, p.String())
	}
	return someOf(out, ", ")
}

// someOf keeps a line readable: the first four, and how many more.
func someOf(s []string, sep string) string {
	if len(s) > 5 {
		return strings.Join(s[:4], sep) + fmt.Sprintf("%s%d more", sep, len(s)-4)
	}
	return strings.Join(s, sep)
}
