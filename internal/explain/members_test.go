package explain

import (
	"strings"
	"testing"

	"atoll/api"
)

func TestTwoHosts(t *testing.T) {
	node := func(n string) *api.Node {
		return &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: n}}}
	}
	member := func(n string, s api.MemberSpec) *api.Member {
		return &api.Member{Head: api.Head{K: api.KindMember, Meta: api.Meta{Name: n}}, Spec: s}
	}
	voter := api.MemberSpec{State: api.MemberVoter, ID: "1"}
	two := []*api.Node{node("isle1"), node("isle2")}
	for _, c := range []struct {
		name    string
		nodes   []*api.Node
		members []*api.Member
		want    bool
	}{
		{"one host", two[:1], []*api.Member{member("isle1", voter)}, false},
		{"two hosts", two, []*api.Member{member("isle2", voter)}, true},
		{"two hosts and a witness", two, []*api.Member{member("isle1", voter), member("isle2", voter), member("w", voter)}, false},
		{"a third comes", two, []*api.Member{member("isle1", voter), member("w", api.MemberSpec{State: api.MemberWanted})}, false},
		{"three hosts", append(two, node("isle3")), []*api.Member{member("isle1", voter)}, false},
		{"a server of its own keeps it", two, []*api.Member{member("srv", voter)}, false},
		{"an external etcd", two, []*api.Member{member("isle1", api.MemberSpec{State: api.MemberVoter})}, false},
		{"not known", two, nil, false},
	} {
		got := TwoHosts(c.nodes, c.members)
		if (got != "") != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
		if c.want && (!strings.Contains(got, "isle2 alone keeps") || !strings.Contains(got, "isle1 goes on") || !strings.Contains(got, "--role witness")) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
