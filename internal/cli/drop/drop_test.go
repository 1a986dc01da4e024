package drop

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"atoll/api"
)

func rule(name, prefix string) *api.DropRule {
	return &api.DropRule{Head: api.Head{K: api.KindDropRule, Meta: api.Meta{Name: name}}, Spec: api.DropRuleSpec{Prefix: prefix}}
}

func TestTable(t *testing.T) {
	now := time.Unix(1e9, 0)
	end := now.Add(90 * time.Minute)
	a, b := rule("a", "203.0.113.0/24"), rule("b", "192.0.2.0/24")
	a.Spec.ExpiresAt, a.Spec.Reason = &end, "scans"
	rows := rowsOf([]*api.DropRule{b, a}, []api.NodeUsage{
		{Node: "isle2", Drops: []api.DropCount{{Rule: "a", Packets: 5}, {Rule: "b", Packets: 1}, {Rule: "gone", Packets: 9}}},
		{Node: "isle1", Drops: []api.DropCount{{Rule: "a", Packets: 7}, {Rule: "b", Refused: "it has 192.0.2.1"}}},
	})
	got := table(rows, now, true).Text(true)
	for _, want := range []string{"a     203.0.113.0/24  12       2       in 1h30m0s  scans   isle1: 7; isle2: 5", "b     192.0.2.0/24    1        1 of 2  never               isle1: left out, it has 192.0.2.1; isle2: 1"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

func TestHit(t *testing.T) {
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle1"}}}
	n.Status.Addresses = []string{"192.0.2.1", "2001:db8::1"}
	for p, want := range map[string]bool{"192.0.2.0/24": true, "192.0.3.0/24": false, "2001:db8::/32": true, "::/0": true} {
		if got := hit(netip.MustParsePrefix(p), []*api.Node{n}); (got != "") != want {
			t.Errorf("%s: %q", p, got)
		}
	}
}

func TestNames(t *testing.T) {
	rules := []*api.DropRule{rule("a", "203.0.113.0/24"), rule("b", "203.0.113.0/24"), rule("c", "203.0.113.7")}
	for arg, want := range map[string][]string{"a": {"a"}, "203.0.113.0/24": {"a", "b"}, "203.0.113.7/32": {"c"}, "x": nil} {
		if got := names(rules, arg); !slices.Equal(got, want) {
			t.Errorf("%s: %v", arg, got)
		}
	}
}
