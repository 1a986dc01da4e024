// Command plan measures "what if this host were lost now?": 1,000 hosts, 20,000
// instances of 400 applications, over the HTTP API of a server in this process with
// its store in memory. The pool is the worst that still counts as healthy: three
// quarters full, every application with limits of its own.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"slices"
	"syscall"
	"time"

	"atoll/api"
	"atoll/bench/lib"
	"atoll/cmd/atolld/builtin"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/policy"
	"atoll/internal/sched"
	"atoll/internal/server"
	"atoll/internal/store"
	"atoll/internal/store/remote"
)

func main() {
	nodes := flag.Int("nodes", 1000, "hosts")
	instances := flag.Int("instances", 20_000, "instances")
	apps := flag.Int("apps", 400, "applications they belong to")
	rounds := flag.Int("rounds", 200, "questions")
	profile := flag.String("cpuprofile", "", "write a CPU profile of the questions here")
	flag.Parse()
	if err := run(*profile, *nodes, *instances, *apps, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(profile string, nodes, instances, apps, rounds int) error {
	mem, full, err := pool(nodes, instances, apps)
	if err != nil {
		return err
	}
	cl, stop, err := serve(mem)
	if err != nil {
		return err
	}
	defer stop()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var lose, zone, fit []float64
	moved := 0
	began, cpu := time.Now(), cpuTime()
	for i := range rounds + 1 {
		a, took, err := ask(cl, api.PlanRequest{Lose: &api.PlanHosts{Nodes: []string{full[i*37%len(full)]}}})
		if err != nil {
			return err
		}
		if a.Placed+a.Pending == 0 || a.Spare == nil || a.Spare.Checked < nodes-1 && !a.Spare.AtLeast {
			return fmt.Errorf("not a full answer: %+v", a)
		}
		moved += a.Placed
		if i > 0 { // the first warms up
			lose = append(lose, took)
		}
	}
	cpu = (cpuTime() - cpu) / time.Duration(rounds+1)
	busy := time.Since(began) / time.Duration(rounds+1)
	for range max(rounds/20, 3) {
		_, took, err := ask(cl, api.PlanRequest{Lose: &api.PlanHosts{Zone: "zone-1"}})
		if err != nil {
			return err
		}
		zone = append(zone, took)
		if _, took, err = ask(cl, api.PlanRequest{Fit: &api.PlanFit{Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: 1000, api.Memory: 1 << 30}}}}); err != nil {
			return err
		}
		fit = append(fit, took)
	}
	fmt.Printf("%d hosts (%d in use), %d instances of %d applications; %.1f moved a question\n", nodes, len(full), instances, apps, float64(moved)/float64(rounds+1))
	for _, r := range []struct {
		what string
		ms   []float64
	}{{"plan lose HOST", lose}, {"plan lose --zone", zone}, {"plan fit", fit}} {
		fmt.Printf("%-18s p50 %6.1f ms   p99 %6.1f ms   most %6.1f ms\n", r.what, quantile(r.ms, .5), quantile(r.ms, .99), quantile(r.ms, 1))
	}
	fmt.Printf("%-18s %6.1f ms of CPU in %.1f ms, asking and answering\n", "plan lose HOST", lib.Ms(cpu), lib.Ms(busy))
	lib.JSON(map[string]any{"bench": "plan", "nodes": nodes, "instances": instances, "apps": apps, "plan_ms": lib.Round(quantile(lose, .99), 1), "plan_p50_ms": lib.Round(quantile(lose, .5), 1),
		"plan_cpu_ms": lib.Round(lib.Ms(cpu), 1), "zone_ms": lib.Round(quantile(zone, .99), 1), "fit_ms": lib.Round(quantile(fit, .99), 1)})
	return nil
}

// cpuTime is what this process has used: on a busy machine it tells more than the clock.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func name(i int) string { return fmt.Sprintf("node-%05d", i) }

func ask(cl *remote.Store, q api.PlanRequest) (api.PlanAnswer, float64, error) {
	began := time.Now()
	a, err := cl.Plan(context.Background(), "", q)
	return a, lib.Ms(time.Since(began)), err
}

func quantile(v []float64, q float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[int(q*float64(len(s)-1))]
}

// pool fills a store as the pool itself would have: hosts in ten zones of ten racks,
// tenants with guarantees, applications with spreads and affinities among them. It
// names the hosts that have anything to lose.
func pool(nodes, instances, apps int) (*store.Mem, []string, error) {
	mem := store.NewMem()
	v := policy.NewView()
	var ops []store.Op
	add := func(o api.Object) error {
		if ops = append(ops, store.Create(o)); len(ops) < 1000 {
			return nil
		}
		_, err := mem.Commit(context.Background(), ops...)
		ops = ops[:0]
		return err
	}
	for _, r := range auth.BuiltinRoles() {
		if err := add(r); err != nil {
			return nil, nil, err
		}
	}
	for i := range 20 {
		t := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: fmt.Sprintf("tenant-%d", i)}}}
		t.Spec.Guarantee = api.Resources{api.CPU: int64(nodes) * 16000 / 40, api.Memory: int64(nodes) << 30}
		if err := add(t); err != nil {
			return nil, nil, err
		}
	}
	for i := range nodes {
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name(i)}}, Spec: api.NodeSpec{Zone: fmt.Sprintf("zone-%d", i%10), Rack: fmt.Sprintf("rack-%d", i/10%10)}}
		n.Status.Allocatable = api.Resources{api.CPU: 16000, api.Memory: 64 << 30, api.Instances: 250}
		n.Status.Capacity = n.Status.Allocatable
		n.Status.Conditions = []api.Condition{{Type: "Ready", Status: true}}
		n.Status.Drivers = []api.Capability{{Type: "runtime", Name: "container"}}
		v.SetNode(n)
		if err := add(n); err != nil {
			return nil, nil, err
		}
	}
	p := sched.NewPlanner(v, builtin.Policies(), 1)
	p.Terse = true
	for i := range instances {
		in := instance(i, apps)
		it := policy.ItemOf(in)
		pl := p.Decide(it)
		p.Take(pl)
		if err := add(in); err != nil {
			return nil, nil, err
		}
		a := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: in.Name, Tenant: in.Tenant}}, Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: pl.Node, Generation: 1, Decision: &pl.Decision}}
		pl.Alloc.Write(&a.Spec)
		if err := add(a); err != nil {
			return nil, nil, err
		}
	}
	var full []string
	for _, n := range v.Nodes {
		if len(n.Items) > 0 {
			full = append(full, n.Name)
		}
	}
	_, err := mem.Commit(context.Background(), ops...)
	return mem, full, err
}

// instance is of one of the applications: every fourth spreads over zones, every
// eighth keeps its copies off one host, every tenth publishes a port.
func instance(i, apps int) *api.Instance {
	app := i % apps
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprintf("app-%d-%d", app, i/apps), Tenant: fmt.Sprintf("tenant-%d", app%20), UID: fmt.Sprintf("%032x", i+1),
		Labels: map[string]string{"app": fmt.Sprintf("app-%d", app)}}}}
	in.Spec = api.InstanceSpec{Image: fmt.Sprintf("app:%d", app), Requests: api.Resources{api.CPU: int64(200 + app%9*100), api.Memory: int64(1+app%3) << 30}}
	in.Status = api.InstanceStatus{State: api.StateRunning}
	switch {
	case app%4 == 0:
		in.Spec.Placement = &api.Placement{Spread: []api.SpreadTerm{{Topology: "zone", MaxSkew: 2}}}
	case app%8 == 1:
		in.Spec.Placement = &api.Placement{Avoid: []api.AffinityTerm{{Labels: in.Labels}}}
	case app%10 == 3:
		in.Spec.Ports = []api.Port{{Port: 80, Publish: uint16(20000 + app)}}
	}
	return in
}

// serve gives a client of a server over a unix socket.
func serve(mem *store.Mem) (*remote.Store, func(), error) {
	dir, err := os.MkdirTemp("", "atoll-bench-plan-")
	if err != nil {
		return nil, nil, err
	}
	clk := clock.Real{}
	s := server.New(server.Deps{Store: mem, Auth: auth.New(clk, auth.Config{}), Clock: clk, Rand: rand.Reader, Version: "bench", Chain: builtin.Policies(), Keep: policy.Keep{Buffer: 10}}, server.Config{})
	if err := s.LoadAuth(context.Background()); err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		return nil, nil, err
	}
	web := &http.Server{Handler: s.As(auth.Identity{User: "root", Admin: true, Via: "socket"}), ReadHeaderTimeout: time.Second}
	done := make(chan error, 1)
	go func() { done <- web.Serve(l) }()
	cl, err := remote.New(remote.Config{Socket: dir + "/s"})
	return cl, func() {
		_ = web.Close()
		<-done
		_ = os.RemoveAll(dir)
	}, err
}
