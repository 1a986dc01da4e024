package main

import (
	"cmp"
	"fmt"
	"math/rand"
	"os"
	"reflect"
	"testing"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/gpu"
	"atoll/internal/policy/resource"
	"atoll/internal/sched"
	"atoll/internal/trace/openb"
)

// small is a cluster with all that the experiment has: models, shares, whole nodes.
func small() (*cluster, []openb.Pod) {
	c := &cluster{}
	classes := gpu.NewMarket(gpu.Defaults())
	for i := range 20 {
		n := gpu.Node{CPU: 96_000, Memory: 393_216, Devices: 8, Model: int8(c.model([]string{"G2", "T4"}[i%2]))}
		if i%4 == 3 {
			n.Devices, n.CPU = 2, 32_000
		}
		for d := range n.Devices {
			n.Free[d] = gpu.Whole
		}
		n.Class = classes.Set(i, n, n, nil)
		c.nodes = append(c.nodes, n)
		c.capacity += n.Idle()
	}
	rng := rand.New(rand.NewSource(1))
	var pods []openb.Pod
	for i := range 200 {
		p := openb.Pod{Name: fmt.Sprintf("p%03d", i), CPU: 1000 * int64(1+rng.Intn(16)), Memory: 1024 * int64(1+rng.Intn(48)), GPUs: 1, Milli: gpu.Whole}
		switch i % 5 {
		case 0:
			p.GPUs, p.Milli = 0, 0
		case 1, 2:
			p.Milli = int64(100 * (1 + rng.Intn(9)))
		case 3:
			p.GPUs = []int{2, 4, 8}[i/5%3]
		case 4:
			p.Models = []string{"T4"}
		}
		pods = append(pods, p)
	}
	return c, pods
}

// strict is a policy that also checks what the experiment does with its answers.
type strict struct {
	placer
	t     *testing.T
	nodes []gpu.Node
}

func (s *strict) placed(id int, after *gpu.Node, it *gpu.Item) {
	n := &s.nodes[id]
	if !n.Fits(it) || after.CPU != n.CPU-it.CPU || after.Memory != n.Memory-it.Memory || after.Idle() != n.Idle()-it.Demand() {
		s.t.Errorf("%+v on node %d: %+v, then %+v", *it, id, *n, *after)
	}
	for _, f := range after.Free {
		if f < 0 || f > gpu.Whole {
			s.t.Errorf("node %d gives out more than there is: %v", id, after.Free)
		}
	}
	*n = *after
	s.placer.placed(id, after, it)
}

func TestEveryPolicyKeepsTheRules(t *testing.T) {
	c, pods := small()
	items := c.items(openb.Arrivals(pods, c.capacity, 1.3, 42))
	for name, by := range map[string]func() placer{
		"fgd":     func() placer { return &fgd{gpu.TypicalOf(c.items(pods), 0.95)} },
		"bestfit": func() placer { return bestFit{} },
		"atoll":   func() placer { return newAtoll(c, gpu.Defaults()) },
	} {
		s := &strict{placer: by(), t: t, nodes: append([]gpu.Node(nil), c.nodes...)}
		o := run(c.nodes, items, s, nil)
		if again := run(c.nodes, items, by(), nil); !reflect.DeepEqual(o, again) {
			t.Errorf("%s: %+v, then %+v", name, o, again)
		}
		if o.Dropped == 0 || o.Alloc[130] < 70 || o.Alloc[130] > 100 || o.Alloc[50] < 48 || o.Alloc[50] > 51 {
			t.Errorf("%s: %d dropped, A(50) %.1f, A(130) %.1f", name, o.Dropped, o.Alloc[50], o.Alloc[130])
		}
		// Played again without remembering any score, it must end the same.
		nodes := append([]gpu.Node(nil), c.nodes...)
		p := by()
		for i := range items {
			it := &items[i]
			best, worth, set, fits := -1, 0.0, gpu.Set(0), false
			p.epoch()
			for id := range nodes {
				if nodes[id].Fits(it) {
					fits = true
					if w, k := p.score(&nodes[id], it); best < 0 || w > worth {
						best, worth, set = id, w, k
					}
				}
			}
			if fits != (best >= 0) {
				t.Fatalf("%s: %+v fits, but was not placed", name, it)
			}
			if best >= 0 {
				nodes[best].Take(it, set)
				p.placed(best, &nodes[best], it)
			}
		}
		if !reflect.DeepEqual(nodes, s.nodes) {
			t.Errorf("%s: without remembering scores the cluster ends otherwise", name)
		}
	}
}

func TestDropsAreCounted(t *testing.T) {
	var o outcome
	o.drop(&gpu.Item{}, 10)
	o.drop(&gpu.Item{Count: 1, Milli: 500}, 10)
	o.drop(&gpu.Item{Count: 2, Milli: gpu.Whole}, 90)
	o.drop(&gpu.Item{Count: 2, Milli: gpu.Whole}, 91)
	if o.Dropped != 4 || o.CPUOnly != 1 || o.EarlyMulti != 1 {
		t.Errorf("%+v", o)
	}
}

// ATOLL_DATA names the folder with public data sets; without it they are looked for
// beside the repository, as the bench does. Every policy must do what it did when its
// numbers were written down.
func TestTheFirstArrivals(t *testing.T) {
	dir := cmp.Or(os.Getenv("ATOLL_DATA"), "../../../shared/data") + "/openb-gpu-2023"
	c, err := loadCluster(dir)
	if err != nil {
		t.Skip("the data set is not here: " + dir)
	}
	pods, err := loadPods(dir, "default")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.nodes) != 1213 || c.capacity != 6_212_000 {
		t.Fatalf("%d nodes, %d milli", len(c.nodes), c.capacity)
	}
	items := c.items(openb.Arrivals(pods, c.capacity, 1.3, firstSeed))[:9000]
	typical := gpu.TypicalOf(c.items(pods), 0.95)
	for policy, want := range map[string][2]int64{"fgd": {923, 5_922_870}, "bestfit": {1079, 5_779_150}, "atoll": {868, 5_967_490}} {
		o := playOne(c, gpu.Defaults(), policy, items, typical, firstSeed)
		if got := [2]int64{int64(o.Dropped), o.Used}; got != want {
			t.Errorf("%s: %d of %d dropped and %d milli used, not %v", policy, got[0], len(items), got[1], want)
		}
	}
}

// The scheduler, with the policy in its chain, takes the same nodes and devices.
func TestTheSchedulerDecidesTheSame(t *testing.T) {
	c, pods := small()
	v := policy.NewView()
	for i, n := range c.nodes {
		o := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: fmt.Sprintf("n%03d", i)}}}
		o.Status.Allocatable = api.Resources{api.CPU: n.CPU, api.Memory: n.Memory << 20, api.GPU: n.Idle(), api.Instances: 1000}
		for range n.Devices {
			o.Status.Devices = append(o.Status.Devices, api.Device{Model: c.models[n.Model]})
		}
		v.SetNode(o)
	}
	own := gpu.New()
	planner := sched.NewPlanner(v, policy.Chain{Filters: []policy.Filter{resource.New(), own},
		Scorers: []policy.Weighted{{Scorer: own, Weight: 1}}, Pickers: []policy.Picker{own}}, 1)
	planner.Ties, planner.Terse = sched.TiesFirst, true

	direct := newAtoll(c, gpu.Defaults())
	p := newPool(c.nodes)
	for i, pod := range openb.Arrivals(pods, c.capacity, 1.3, 42) {
		it := &c.items([]openb.Pod{pod})[0]
		s := p.shape(it)
		p.sync(s, direct)
		want, set := "", gpu.Set(0)
		if n := s.choose(nil); n >= 0 {
			want, set = fmt.Sprintf("n%03d", n), s.sets[n]
			p.take(n, it, set)
			direct.placed(n, &p.nodes[n], it)
		}
		in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "i", UID: fmt.Sprint(i)}}}
		in.Spec.Requests = api.Resources{api.CPU: pod.CPU, api.Memory: pod.Memory << 20}
		if pod.GPUs > 0 {
			in.Spec.Requests[api.GPU] = pod.Demand()
		}
		in.Spec.GPUModels = pod.Models
		got := planner.Decide(policy.ItemOf(in))
		planner.Take(got)
		devices := gpu.Set(0)
		for _, d := range got.Alloc.Devices {
			devices |= 1 << d
		}
		if got.Node != want || devices != set {
			t.Fatalf("arrival %d, %+v: %q devices %b, the scheduler takes %q devices %b", i, *it, want, set, got.Node, devices)
		}
	}
}
