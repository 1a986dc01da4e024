package api

import (
	"net/netip"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindDropRule is a prefix whose packets no host lets in.
const KindDropRule Kind = "DropRule"

// DropRule has every host drop what comes from a prefix, at its uplink and before it spends anything on it. A host
// leaves out a rule that would cut it off from the pool: one with an address of its own, of another host or of its
// gateway. What each host dropped is not stored; it is asked for (NodeUsage).
type DropRule struct {
	Head
	Spec DropRuleSpec `json:"spec"`
}

// DropRuleSpec is what to drop, and for how long.
type DropRuleSpec struct {
	Prefix    string     `json:"prefix" doc:"addresses of the senders" example:"203.0.113.0/24"`
	Reason    string     `json:"reason,omitempty" doc:"for people" example:"scans port 22"`
	ExpiresAt *time.Time `json:"expiresAt,omitempty" doc:"until when; default: until it is removed"`
	Force     bool       `json:"force,omitempty" doc:"also where it has an address of a host or of a gateway: such hosts may be lost"`
}

// DropRuleName is the usual name of the rule for a prefix: its digits with dashes between.
func DropRuleName(p netip.Prefix) string {
	return "drop-" + strings.Trim(strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(p.String()), "-")
}

// Parse is the prefix; a lone address is one of full length. It is valid where Validate finds nothing.
func (s *DropRuleSpec) Parse() (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s.Prefix)
	if err != nil {
		a, aerr := netip.ParseAddr(s.Prefix)
		if aerr != nil || a.Zone() != "" {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, false
	}
	return p, p == p.Masked()
}

// Ended reports whether its time is over.
func (s *DropRuleSpec) Ended(now time.Time) bool {
	return s.ExpiresAt != nil && !now.Before(*s.ExpiresAt)
}

// Never are prefixes that no rule may be about without force: without them a host does not even find its neighbours.
var never = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10")}

// Validate checks the prefix.
func (d *DropRule) Validate() []errs.Field {
	var f []errs.Field
	p, ok := d.Spec.Parse()
	switch {
	case !ok:
		f = append(f, errs.Field{Field: "spec.prefix", Value: clip(d.Spec.Prefix), Rule: "must be an address, or a prefix whose other bits are 0", Example: "203.0.113.0/24"})
	case !d.Spec.Force:
		for _, n := range never {
			if n.Overlaps(p) {
				f = append(f, errs.Field{Field: "spec.prefix", Value: clip(d.Spec.Prefix), Rule: "must not overlap " + n.String() + ", by which hosts speak to themselves and their neighbours, unless spec.force is true", Example: "203.0.113.0/24"})
				break
			}
		}
	}
	if len(d.Spec.Reason) > 256 {
		f = append(f, errs.Field{Field: "spec.reason", Value: clip(d.Spec.Reason), Rule: "must be at most 256 bytes", Example: "scans port 22"})
	}
	return f
}

func dropRuleDefinition() *Definition {
	spec := func(fn func(*DropRuleSpec, time.Time) string) func(Object, time.Time) string {
		return func(o Object, now time.Time) string { return dash(fn(&o.(*DropRule).Spec, now)) }
	}
	return &Definition{
		Kind: KindDropRule, Plural: "droprules", Aliases: []string{"drop", "drops"},
		Doc: "A prefix whose packets no host lets in.",
		New: func() Object { return &DropRule{Head: Head{K: KindDropRule}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "PREFIX", Value: spec(func(s *DropRuleSpec, _ time.Time) string { return s.Prefix })},
			{Name: "EXPIRES", Value: spec(func(s *DropRuleSpec, now time.Time) string {
				switch {
				case s.ExpiresAt == nil:
					return "never"
				case s.Ended(now):
					return "over"
				}
				return "in " + s.ExpiresAt.Sub(now).Round(time.Second).String()
			})},
			{Name: "REASON", Value: spec(func(s *DropRuleSpec, _ time.Time) string { return s.Reason })},
			{Name: "AGE", Value: ageColumn},
		},
	}
}

// HostDrop is what one host does of a rule.
type HostDrop struct {
	Node    string `json:"node"`
	Packets uint64 `json:"packets"`
	Refused string `json:"refused,omitempty"`
}
