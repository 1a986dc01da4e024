package gpu

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/policytest"
)

const gib = 1 << 30

func node(name string, devices ...api.Device) *api.Node {
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}}
	n.Status.Allocatable = api.Resources{api.CPU: 64_000, api.Memory: 256 * gib, api.GPU: int64(len(devices)) * Whole, api.Instances: 110}
	n.Status.Devices = devices
	return n
}

func devices(k int, model string) []api.Device {
	out := make([]api.Device, k)
	for i := range out {
		out[i] = api.Device{Model: model, Memory: 16 * gib, Cell: i / 2}
	}
	return out
}

func item(uid string, gpu, memory int64, models ...string) *policy.Item {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: uid, UID: uid}}}
	in.Spec.Requests = api.Resources{api.CPU: 4000, api.Memory: 8 * gib}
	if gpu > 0 {
		in.Spec.Requests[api.GPU] = gpu
	}
	if memory > 0 {
		in.Spec.Requests[api.GPUMemory] = memory
	}
	in.Spec.GPUModels = models
	return policy.ItemOf(in)
}

func TestReasons(t *testing.T) {
	v := policy.NewView()
	v.SetNode(node("none"))
	v.SetNode(node("two", devices(2, "T4")...))
	v.SetNode(node("used", devices(2, "T4")...))
	v.Place(item("a", 700, 0), "used", policy.Alloc{Devices: []int{0}})
	v.Place(item("b", 400, 12*gib), "used", policy.Alloc{Devices: []int{1}})
	for _, c := range []struct {
		node string
		it   *policy.Item
		want string
	}{
		{"none", item("x", 0, 0), ""},
		{"none", item("x", 500, 0), "no GPU"},
		{"two", item("x", 2000, 0), ""},
		{"two", item("x", 3000, 0), "not as many GPUs"},
		{"two", item("x", 1000, 0, "A100"), "not enough GPUs of the models asked for"},
		{"two", item("x", 1000, 0, "A100", "T4"), ""},
		{"two", item("x", 1000, 17*gib), "not enough memory free on its GPUs"},
		{"two", item("x", 2000, 32*gib), ""},
		{"used", item("x", 1000, 0), "not enough free GPUs"},
		{"used", item("x", 700, 0), "no GPU with enough of it free"},
		{"used", item("x", 600, 0), ""},
		{"used", item("x", 500, 5*gib), "not enough memory free on its GPUs"},
	} {
		if got := policytest.Admit(New(), v, v.Node(c.node), c.it); got != c.want {
			t.Errorf("%s, %v: %q, not %q", c.node, c.it.Request[policy.GPU], got, c.want)
		}
	}
	check := New().Check(v, item("x", 1000, 0))
	if s, tell := check.Short(v.Node("used")), check.Tell(v.Node("used")); s != 1 || tell != "0 of 2 GPUs free" {
		t.Errorf("%v: %s", s, tell)
	}
	if tell := New().Check(v, item("x", 600, 0)).Tell(v.Node("used")); tell != "1 of 2 GPUs have 600/1000 free" {
		t.Error(tell)
	}
}

func TestPick(t *testing.T) {
	v := policy.NewView()
	v.SetNode(node("n", devices(4, "T4")...))
	p := New()
	v.Place(item("a", 600, 0), "n", policy.Alloc{Devices: []int{1}})
	v.Place(item("b", 300, 14*gib), "n", policy.Alloc{Devices: []int{3}})
	for _, c := range []struct {
		what string
		it   *policy.Item
		a    policy.Alloc
		want []int
	}{
		{"none asked", item("x", 0, 0), policy.Alloc{}, nil},
		{"whole ones are those untouched", item("x", 2000, 0), policy.Alloc{}, []int{0, 2}},
		{"not where its memory is missing", item("x", 650, 4*gib), policy.Alloc{}, []int{0}},
		{"in the cell that was chosen", item("x", 400, 0), policy.Alloc{Bound: true, Cell: 1}, []int{3}},
		{"in a cell, whole", item("x", 1000, 0), policy.Alloc{Bound: true, Cell: 1}, []int{2}},
	} {
		a := c.a
		p.Pick(v.Node("n"), c.it, &a)
		if !reflect.DeepEqual(a.Devices, c.want) {
			t.Errorf("%s: %v, not %v", c.what, a.Devices, c.want)
		}
	}
}

func TestInstancesWithoutGPUKeepAway(t *testing.T) {
	v := policy.NewView()
	v.SetNode(node("gpu", devices(2, "T4")...))
	v.SetNode(node("plain"))
	v.Place(item("a", 1000, 0), "gpu", policy.Alloc{Devices: []int{0}})
	it := item("x", 0, 0)
	if with, without := policytest.Score(New(), v, v.Node("gpu"), it), policytest.Score(New(), v, v.Node("plain"), it); with >= without {
		t.Errorf("with GPUs %v, without %v", with, without)
	}
	if g := New().Grade(policy.NewView(), it); g != nil {
		t.Error("in a pool without GPUs nodes differ")
	}
}

func TestDevicesThatAppearAreSeen(t *testing.T) {
	v := policy.NewView()
	v.SetNode(node("n"))
	v.Arrange()
	before := v.Version("")
	v.SetNode(node("n", devices(2, "T4")...))
	if v.Version("") == before {
		t.Error("policies are not asked anew when a node's devices appear")
	}
}

func drawNode(t *rapid.T, name string) *api.Node {
	n := node(name, devices(rapid.SampledFrom([]int{0, 1, 2, 4, 8}).Draw(t, "devices"), rapid.SampledFrom([]string{"T4", "A100"}).Draw(t, "model"))...)
	n.Status.Allocatable[api.CPU] = rapid.Int64Range(1, 10).Draw(t, "cores") * 8000
	return n
}

func drawInstance(t *rapid.T, uid string) *policy.Item {
	gpu := rapid.SampledFrom([]int64{0, 1, 250, 500, 750, 1000, 2000, 4000, 8000}).Draw(t, "gpu")
	var memory int64
	var models []string
	if gpu > 0 && rapid.Bool().Draw(t, "with memory") {
		memory = rapid.Int64Range(1, 16).Draw(t, "memory") * gib
	}
	if gpu > 0 && rapid.IntRange(0, 3).Draw(t, "picky") == 0 {
		models = []string{rapid.SampledFrom([]string{"T4", "A100", "none"}).Draw(t, "model")}
	}
	return item(uid, gpu, memory, models...)
}

// engine places on the best node, as the scheduler does.
func engine(v *policy.View, p *Policy, it *policy.Item) (string, policy.Alloc) {
	v.Arrange()
	check, grade := p.Check(v, it), p.Grade(v, it)
	best, worth := (*policy.Node)(nil), -1.0
	for _, n := range v.Nodes {
		if n.Free(policy.CPU) < it.Request[policy.CPU] || n.Free(policy.Memory) < it.Request[policy.Memory] || check != nil && check.Node(n) != "" {
			continue
		}
		w := 0.5
		if grade != nil {
			w = grade.Node(n)
		}
		if w > worth {
			best, worth = n, w
		}
	}
	if best == nil {
		return "", policy.Alloc{}
	}
	var a policy.Alloc
	p.Pick(best, it, &a)
	return best.Name, a
}

// canServe tries all choices of devices.
func canServe(n *policy.Node, it *policy.Item) bool {
	count, share := it.GPUs()
	good := 0
	for _, d := range n.Devices {
		if d.Free >= share && (len(it.Spec.GPUModels) == 0 || slices.Contains(it.Spec.GPUModels, d.Model)) && d.FreeMemory*int64(count) >= it.Request[policy.GPUMemory] {
			good++
		}
	}
	return good >= count && n.Free(policy.CPU) >= it.Request[policy.CPU] && n.Free(policy.Memory) >= it.Request[policy.Memory]
}

func TestNothingIsOverdrawnNorRefusedInVain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, twin := policy.NewView(), policy.NewView()
		p, q := New(), New()
		for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
			n := drawNode(t, fmt.Sprintf("n%d", i))
			v.SetNode(n)
			twin.SetNode(n)
		}
		for i := range rapid.IntRange(1, 40).Draw(t, "arrivals") {
			if i > 0 && rapid.IntRange(0, 4).Draw(t, "leaves") == 0 {
				uid := fmt.Sprintf("i%d", rapid.IntRange(0, i-1).Draw(t, "who"))
				v.Unplace(uid)
				twin.Unplace(uid)
			}
			it := drawInstance(t, fmt.Sprintf("i%d", i))
			fits := slices.ContainsFunc(v.Nodes, func(n *policy.Node) bool { return canServe(n, it) })
			on, a := engine(v, p, it)
			if again, b := engine(twin, q, it); again != on || !reflect.DeepEqual(a, b) {
				t.Fatalf("%s %v, then %s %v", on, a, again, b)
			}
			if fits != (on != "") {
				t.Fatalf("fits: %v, placed on %q", fits, on)
			}
			if on == "" {
				continue
			}
			if count, _ := it.GPUs(); len(a.Devices) != count {
				t.Fatalf("%d devices were chosen, %d are asked", len(a.Devices), count)
			}
			v.Place(it, on, a)
			twin.Place(it, on, a)
			for _, d := range v.Node(on).Devices {
				if d.Free < 0 || d.FreeMemory < 0 {
					t.Fatalf("%s is overdrawn: %+v", on, d)
				}
			}
		}
	})
}

// What was said of a node holds while it does not change and the epoch is the same.
func TestKeepsItsWord(t *testing.T) {
	policytest.Keeps(t, New())
	rapid.Check(t, func(t *rapid.T) {
		v, p := policy.NewView(), New()
		for i := range rapid.IntRange(2, 5).Draw(t, "nodes") {
			v.SetNode(drawNode(t, fmt.Sprintf("n%d", i)))
		}
		v.Arrange()
		judged := drawInstance(t, "judged")
		g := p.Grade(v, judged)
		if g == nil {
			return
		}
		for i := range rapid.IntRange(1, 30).Draw(t, "rounds") {
			epoch := g.Epoch()
			was := make([]float64, len(v.Nodes))
			for id, n := range v.Nodes {
				was[id] = g.Node(n)
			}
			it := drawInstance(t, fmt.Sprintf("i%d", i%8))
			_, at, _ := v.Changes(0)
			v.Unplace(it.UID)
			if on, a := engine(v, p, it); on != "" {
				v.Place(it, on, a)
			}
			changed, _, _ := v.Changes(at)
			if g.Epoch() != epoch {
				continue
			}
			for id, n := range v.Nodes {
				if w := g.Node(n); w < 0 || w > 1 {
					t.Fatalf("%v is not in 0..1", w)
				} else if w != was[id] && !slices.Contains(changed, int32(id)) {
					t.Fatalf("%s, which did not change: %v, then %v", n.Name, was[id], w)
				}
			}
		}
	})
}
