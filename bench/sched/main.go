// Command sched measures placement, shaped like Kubernetes' scheduler_perf: 5,000
// nodes, 1,000 instances already there, then 10,000 more. First the decision loop
// alone on one core, by all policies of the product; then the full road, from the
// API to a durable assignment, with simulated hosts.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"time"

	"atoll/api"
	"atoll/bench/lib"
	"atoll/cmd/atolld/builtin"
	"atoll/internal/policy"
	"atoll/internal/sched"
)

func main() {
	nodes := flag.Int("nodes", 5000, "hosts")
	profile := flag.String("cpuprofile", "", "write a CPU profile of the decision loops here")
	full := flag.Bool("full", true, "also measure the full road")
	loops := flag.Bool("loops", true, "measure the decision loops")
	fullProfile := flag.String("fullprofile", "", "write a CPU profile of the full road here")
	flag.Parse()
	out := map[string]any{"bench": "sched", "nodes": *nodes}
	err := error(nil)
	if *loops {
		err = profiled(*profile, func() error { return decisions(*nodes, out) })
	}
	if *full && err == nil {
		err = profiled(*fullProfile, func() error { return road(*nodes, out) })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	lib.JSON(out)
}

// profiled writes a CPU profile of fn where path says so.
func profiled(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return fn()
}

func decisions(nodes int, out map[string]any) error {
	procs := runtime.GOMAXPROCS(1) // one core, as the claim says
	defer runtime.GOMAXPROCS(procs)
	var basic result
	for _, c := range cases() {
		r := c.measure(nodes)
		fmt.Printf("%-14s %7d decisions  %9.0f/s   p50 %6.1f us  p99 %6.1f us   %d placed, %d not\n", c.name, r.n, r.rate(), r.at(0.5), r.at(0.99), r.placed, r.n-r.placed)
		out[c.name+"_per_s"] = lib.Round(r.rate(), 0)
		if c.name == "basic" {
			basic = r
			out["p99_us"] = lib.Round(r.at(0.99), 1)
		}
		if r.placed < r.n {
			return fmt.Errorf("%s: %d of %d were not placed: %s", c.name, r.n-r.placed, r.n, r.why)
		}
	}
	large := cases()[0].measure(nodes * 10)
	growth := basic.rate() / large.rate()
	fmt.Printf("%-14s %7d decisions  %9.0f/s   on %d nodes: %.2f times the cost\n", "growth", large.n, large.rate(), nodes*10, growth)
	out["growth"] = lib.Round(growth, 2)
	return nil
}

// load is one of scheduler_perf's: what is there, and what comes.
type load struct {
	name  string
	there int
	come  int
	old   func(i int) *policy.Item
	item  func(i int) *policy.Item
}

func cases() []load {
	plain := func(kind string) func(i int) *policy.Item {
		return func(i int) *policy.Item { return instance(kind, i, 100, 0, nil) }
	}
	app := map[string]string{"app": "b"}
	with := func(p *api.Placement) func(i int) *policy.Item {
		return func(i int) *policy.Item { return instance("b", i, 100, 0, p) }
	}
	return []load{
		{"basic", 1000, 10_000, plain("a"), plain("b")},
		{"spread", 1000, 10_000, plain("a"), with(&api.Placement{Spread: []api.SpreadTerm{{Topology: "zone", MaxSkew: 5}}})},
		{"antiaffinity", 1000, 4_000, plain("a"), with(&api.Placement{Avoid: []api.AffinityTerm{{Labels: app, Topology: "host"}}})},
		{"affinity", 1000, 10_000, plain("a"), with(&api.Placement{Near: []api.AffinityTerm{{Labels: app, Topology: "zone"}}})},
		{"preempt", 20_000, 5_000, func(i int) *policy.Item { return instance("a", i, 900, 0, nil) },
			func(i int) *policy.Item { return instance("b", i, 3000, 10, nil) }},
	}
}

func instance(app string, i int, cpu, priority int64, p *api.Placement) *policy.Item {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprintf("%s-%d", app, i), Tenant: "bench", UID: fmt.Sprintf("%s%031d", app, i), Labels: map[string]string{"app": app}}}}
	in.Spec = api.InstanceSpec{Image: "busybox", Requests: api.Resources{api.CPU: cpu, api.Memory: 500 << 20}, Placement: p}
	return policy.ItemAt(in, priority)
}

// node is scheduler_perf's: 4 CPU, 32 GiB, 110 instances; one of ten zones.
func node(i int) *api.Node {
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: fmt.Sprintf("node-%05d", i)}}, Spec: api.NodeSpec{Zone: fmt.Sprintf("zone-%d", i%10)}}
	n.Status.Allocatable = api.Resources{api.CPU: 4000, api.Memory: 32 << 30, api.Instances: 110}
	n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
	n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
	return n
}

type result struct {
	n, placed int
	took      time.Duration
	each      []time.Duration
	why       string
}

func (r result) rate() float64 { return float64(r.n) / r.took.Seconds() }

// at is a quantile in microseconds.
func (r result) at(q float64) float64 {
	return float64(r.each[int(q*float64(len(r.each)-1))].Nanoseconds()) / 1000
}

func (l load) measure(nodes int) result {
	v := policy.NewView()
	for i := range nodes {
		v.SetNode(node(i))
	}
	p := sched.NewPlanner(v, builtin.Policies(), 1)
	old := make([]*policy.Item, l.there*nodes/5000)
	for i := range old {
		old[i] = l.old(i)
		pl := p.Decide(old[i])
		p.Take(pl)
	}
	items := make([]*policy.Item, l.come)
	for i := range items {
		items[i] = l.item(i)
	}
	runtime.GC()
	r := result{n: len(items), each: make([]time.Duration, len(items))}
	began := time.Now()
	for i, it := range items {
		at := time.Now()
		pl := p.DecideOrPreempt(it)
		p.Take(pl)
		r.each[i] = time.Since(at)
		if pl.Node != "" {
			r.placed++
		} else if r.why == "" {
			r.why = fmt.Sprint(pl.Decision.Refusals)
		}
	}
	r.took = time.Since(began)
	slices.Sort(r.each)
	return r
}
