package policy

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
)

func TestVectorCoversEveryDimension(t *testing.T) {
	if n := len(api.ResourceNames()); n != NumResources {
		t.Fatalf("api has %d dimensions, NumResources is %d", n, NumResources)
	}
}

// Whatever is placed, moved, taken off and replaced: what a node counts as used is
// the sum of what is on it.
func TestViewNeverLosesCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			node := fmt.Sprintf("n%d", rapid.IntRange(0, 3).Draw(t, "node"))
			uid := fmt.Sprintf("u%d", rapid.IntRange(0, 8).Draw(t, "uid"))
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, Tenant: "t", UID: uid}}, Spec: api.InstanceSpec{
					Requests: api.Resources{api.CPU: rapid.Int64Range(0, 100).Draw(t, "cpu")},
					Ports:    []api.Port{{Port: 1, Publish: uint16(rapid.IntRange(1, 9).Draw(t, "port"))}}}}
				v.Place(ItemOf(in), node, Alloc{})
			case 2:
				v.Unplace(uid)
			case 3:
				v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: node}}})
			case 4:
				v.RemoveNode(node)
			}
			total := 0
			for i, n := range v.Nodes {
				if i > 0 && v.Nodes[i-1].Name >= n.Name {
					t.Fatal("nodes are not sorted")
				}
				var sum Vector
				for _, it := range n.Items {
					sum.Add(&it.Request)
					if v.Where(it.UID) != n.Name {
						t.Fatalf("%s is on %s, Where says %q", it.UID, n.Name, v.Where(it.UID))
					}
				}
				total += len(n.Items)
				if sum != n.Used {
					t.Fatalf("%s: used %v, sum %v", n.Name, n.Used, sum)
				}
			}
			if total != v.Placed() {
				t.Fatalf("%d items on nodes, %d placed", total, v.Placed())
			}
		}
	})
}
