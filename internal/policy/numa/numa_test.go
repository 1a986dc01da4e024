package numa

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

func node(v *policy.View) *policy.Node {
	o := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "n"}}}
	o.Status.Allocatable = api.Resources{api.CPU: 8000, api.Memory: 16 << 30}
	o.Status.Cells = []api.Cell{{CPUs: "0-3", Memory: 8 << 30, Hugepages: 2 << 30}, {CPUs: "4-7", Memory: 8 << 30}}
	o.Status.Devices = []api.Device{{Model: "A100", Cell: 1}}
	v.SetNode(o)
	return v.Node("n")
}

func item(uid string, cores int64, memory, huge string, edit func(*api.InstanceSpec)) *policy.Item {
	m, _ := api.ParseQuantity(api.Memory, memory)
	in := &api.Instance{Head: api.Head{Meta: api.Meta{UID: uid}}}
	in.Spec.Requests = api.Resources{api.CPU: cores * 1000, api.Memory: m}
	in.Spec.Limits, in.Spec.ExclusiveCPUs, in.Spec.Hugepages = in.Spec.Requests, true, huge
	if edit != nil {
		edit(&in.Spec)
	}
	return policy.ItemOf(in)
}

func TestPick(t *testing.T) {
	gpu := func(s *api.InstanceSpec) {
		s.Requests = s.Requests.Add(api.Resources{api.GPU: 1000})
		s.GPUModels = []string{"A100"}
	}
	for _, c := range []struct {
		name string
		it   *policy.Item
		cell int // -1: refused
		cpus string
	}{
		{"the fuller cell", item("a", 1, "1Gi", "", nil), 0, "1"},
		{"what only the other has", item("a", 4, "1Gi", "", nil), 1, "4-7"},
		{"huge pages are in one cell", item("a", 1, "2Gi", "1Gi", nil), 0, "1"},
		{"too many huge pages", item("a", 1, "4Gi", "3Gi", nil), -1, ""},
		{"the device's cell", item("a", 1, "1Gi", "", gpu), 1, "4"},
		{"more memory than a cell has", item("a", 1, "9Gi", "", nil), -1, ""},
		{"more cores than a cell has", item("a", 5, "1Gi", "", nil), -1, ""},
		{"shared cores", item("a", 5, "1Gi", "", func(s *api.InstanceSpec) { s.ExclusiveCPUs = false }), -2, ""},
	} {
		v := policy.NewView()
		n := node(v)
		v.Place(item("old", 1, "1Gi", "", nil), "n", policy.Alloc{CPUs: []int{0}, Cell: 0, Bound: true})
		why := policytest.Admit(New(), v, n, c.it)
		var a policy.Alloc
		New().Pick(n, c.it, &a)
		got := -2
		if a.Bound {
			got = a.Cell
		} else if why != "" {
			got = -1
		}
		if got != c.cell || policy.FormatCPUs(a.CPUs) != c.cpus || (why != "") != (c.cell == -1) {
			t.Errorf("%s: cell %d cpus %q (%s), want %d %q", c.name, got, policy.FormatCPUs(a.CPUs), why, c.cell, c.cpus)
		}
	}
}

// Whatever comes and goes: no core is given twice, none is lost.
func TestCoresAreGivenOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := policy.NewView()
		n := node(v)
		for i := range rapid.IntRange(1, 30).Draw(t, "steps") {
			uid := fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "uid"))
			v.Unplace(uid)
			if it := item(uid, rapid.Int64Range(1, 4).Draw(t, "cores"), "1Gi", "", nil); i%3 > 0 && policytest.Admit(New(), v, n, it) == "" {
				var a policy.Alloc
				New().Pick(n, it, &a)
				v.Place(it, "n", a)
			}
			var all []int
			for _, c := range n.Cells {
				all = append(all, c.FreeCPUs...)
			}
			for _, x := range n.Items {
				all = append(all, v.Alloc(x.UID).CPUs...)
			}
			slices.Sort(all)
			if !slices.Equal(all, []int{0, 1, 2, 3, 4, 5, 6, 7}) {
				t.Fatalf("cores: %v", all)
			}
		}
	})
}

func TestKeepsItsWord(t *testing.T) { policytest.Keeps(t, New()) }
