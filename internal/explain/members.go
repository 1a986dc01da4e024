package explain

import (
	"fmt"
	"slices"
	"strings"

	"atoll/api"
)

// TwoHosts says plainly what it means that a pool has exactly two hosts and one of them
// keeps its state; "" when that is not so.
func TwoHosts(nodes []*api.Node, members []*api.Member) string {
	if len(nodes) != 2 || len(members) != 1 {
		return ""
	}
	keeper := members[0]
	if keeper.Spec.State != api.MemberVoter || keeper.Spec.ID == "" { // with an external etcd members keep nothing
		return ""
	}
	at := slices.IndexFunc(nodes, func(n *api.Node) bool { return n.Name != keeper.Name })
	if at < 0 || !slices.ContainsFunc(nodes, func(n *api.Node) bool { return n.Name == keeper.Name }) {
		return ""
	}
	return strings.Join([]string{
		fmt.Sprintf("two hosts: %s alone keeps the pool's state. When it is lost, %s goes on running what it runs, but stops what must not run twice;", keeper.Name, nodes[at].Name),
		"nothing starts, moves or changes until it is back. Two hosts cannot do better: neither could tell a lost one from a cut cable. Two ways out:",
		"  a third host:                             atoll node token",
		"  a witness, on any small machine or NAS:   atoll node token --role witness",
	}, "\n")
}
