// Package sim is the digital twin: the pool's own scheduler, controllers and agent
// on a store in memory, with pretended drivers and a clock that only the
// simulation moves. One seed decides everything; the same scenario and seed give
// the same report, byte for byte. After every step the invariants are checked.
//
// Everything runs in the caller's goroutine. It never touches the host it runs on.
package sim

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/agent"
	"atoll/internal/clock"
	"atoll/internal/control"
	"atoll/internal/driver"
	"atoll/internal/driver/runtime/fake"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Scenario is what is simulated.
type Scenario struct {
	Seed     uint64        `json:"seed"`
	Hosts    []Host        `json:"hosts"`
	Tenants  []Tenant      `json:"tenants"`
	Duration api.Duration  `json:"duration"`
	Step     api.Duration  `json:"step"` // of the clock; default 1s
	Faults   Faults        `json:"faults"`
	Chain    policy.Chain  `json:"-"`
	Limit    int           `json:"-"` // calls of controllers per step; default 100,000
	Log      *slog.Logger  `json:"-"`
	Observe  func(*Report) `json:"-"` // after every step; may be nil
}

// Host is a group of equal hosts.
type Host struct {
	Count    int           `json:"count"`
	Capacity api.Resources `json:"capacity"`
	Zone     string        `json:"zone,omitempty"`
}

// Tenant asks for instances: on average Rate per minute, each living Life on
// average (exponential), with requests drawn from Sizes.
type Tenant struct {
	Name      string          `json:"name"`
	Guarantee api.Resources   `json:"guarantee,omitempty"`
	Rate      float64         `json:"rate"`
	Life      api.Duration    `json:"life"`
	Sizes     []api.Resources `json:"sizes"`
}

// Faults are what goes wrong, as shares and mean pauses.
type Faults struct {
	StartFailures float64      `json:"startFailures,omitempty"` // share of starts that fail
	Crashes       float64      `json:"crashes,omitempty"`       // share of runs that crash
	RebootEvery   api.Duration `json:"rebootEvery,omitempty"`   // mean pause between reboots of some host
	RestartEvery  api.Duration `json:"restartEvery,omitempty"`  // mean pause between restarts of some agent
}

// Report is what came of it.
type Report struct {
	Seed       uint64        `json:"seed"`
	At         time.Duration `json:"at"`
	Created    int           `json:"created"`
	Removed    int           `json:"removed"`
	Running    int           `json:"running"`
	Pending    int           `json:"pending"`
	Reboots    int           `json:"reboots"`
	Restarts   int           `json:"agentRestarts"`
	Calls      int           `json:"controllerCalls"`
	MeanCPU    float64       `json:"meanCpuRequested"` // share of allocatable, mean over steps
	Violations []string      `json:"violations,omitempty"`
}

type island struct {
	name  string
	spec  Host
	agent *agent.Agent
	rt    *fake.Runtime
	rec   *reconcile.Recorder
	ended map[string]time.Time // exits the agent was told of
}

// Pool is a simulated pool at one moment.
type Pool struct {
	sc      Scenario
	clk     *clock.Manual
	rng     *rand.Rand
	mem     *store.Mem
	engine  *reconcile.Engine
	hosts   []*island
	report  Report
	next    map[string]time.Time // tenant -> next arrival
	dies    map[api.Ref]time.Time
	serial  int
	cpuSum  float64
	samples int
	reboot  time.Time
	restart time.Time
}

// New builds the pool of a scenario.
func New(ctx context.Context, sc Scenario) (*Pool, error) {
	if sc.Step <= 0 {
		sc.Step = api.Duration(time.Second)
	}
	if sc.Limit == 0 {
		sc.Limit = 100_000
	}
	if sc.Log == nil {
		sc.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	p := &Pool{sc: sc, clk: clock.NewManual(time.Unix(1_700_000_000, 0).UTC()), rng: rand.New(rand.NewPCG(sc.Seed, 1)),
		mem: store.NewMem(), next: map[string]time.Time{}, dies: map[api.Ref]time.Time{}}
	p.report.Seed = sc.Seed
	p.engine = reconcile.New(p.mem, p.clk, sc.Log, reconcile.Events{})
	cs, err := control.All(control.Deps{Clock: p.clk, Log: sc.Log, Chain: sc.Chain, Seed: sc.Seed, Subnet: "10.0.0.0/8"})
	if err != nil {
		return nil, err
	}
	for _, c := range cs {
		p.engine.Add(c, 1)
	}
	for i, t := range sc.Tenants {
		now := p.clk.Now()
		obj := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: t.Name, UID: p.uid(), CreatedAt: &now}},
			Spec: api.TenantSpec{Guarantee: t.Guarantee}, Status: api.TenantStatus{UIDBase: uint32(1+i) << 16, UIDCount: 1 << 16}}
		if _, err := p.mem.Commit(ctx, store.Create(obj)); err != nil {
			return nil, err
		}
		p.next[t.Name] = p.after(t.Rate)
	}
	for gi, h := range sc.Hosts {
		for i := range h.Count {
			x := &island{name: fmt.Sprintf("h%d-%05d", gi, i), spec: h, ended: map[string]time.Time{}}
			p.hosts = append(p.hosts, x)
			if err := p.boot(ctx, x, true); err != nil {
				return nil, err
			}
		}
	}
	p.reboot, p.restart = p.pause(sc.Faults.RebootEvery), p.pause(sc.Faults.RestartEvery)
	return p, nil
}

// boot starts a host's agent anew; fresh also forgets what ran.
func (p *Pool) boot(ctx context.Context, h *island, fresh bool) error {
	if fresh {
		rt, err := fake.New(driver.Deps{Node: h.name, Clock: p.clk, Log: p.sc.Log}, fake.Config{Seed: p.rng.Uint64(),
			StartFailures: p.sc.Faults.StartFailures, Crashes: p.sc.Faults.Crashes, CrashAfter: api.Duration(5 * time.Second)})
		if err != nil {
			return err
		}
		h.rt = rt
	}
	h.rec = reconcile.NewRecorder(p.mem, p.clk, p.sc.Log, "agent/"+h.name)
	h.agent = agent.New(agent.Deps{Node: h.name, Store: p.mem, Clock: p.clk, Log: p.sc.Log, Recorder: h.rec,
		Runtimes: map[string]driver.Runtime{"container": h.rt}, Images: pretended{}, Network: unplugged{},
		Facts: func(context.Context) (api.NodeStatus, error) {
			return api.NodeStatus{Capacity: h.spec.Capacity.Add(api.Resources{api.Instances: 1000})}, nil
		}})
	if err := h.agent.Start(ctx); err != nil {
		return err
	}
	if h.spec.Zone == "" {
		return nil
	}
	n, err := store.Get[*api.Node](ctx, p.mem, api.Ref{Kind: api.KindNode, Name: h.name})
	if err != nil || n.Spec.Zone == h.spec.Zone {
		return err
	}
	n = api.Clone(n)
	n.Spec.Zone = h.spec.Zone
	_, err = p.mem.Commit(ctx, store.Update(n))
	return err
}

func (p *Pool) uid() string { return fmt.Sprintf("%016x%016x", p.rng.Uint64(), p.rng.Uint64()) }

// after draws the next arrival of a Poisson process.
func (p *Pool) after(perMinute float64) time.Time {
	if perMinute <= 0 {
		return p.clk.Now().Add(1 << 60)
	}
	return p.clk.Now().Add(time.Duration(p.rng.ExpFloat64() / perMinute * float64(time.Minute)))
}

func (p *Pool) pause(mean api.Duration) time.Time {
	if mean <= 0 {
		return p.clk.Now().Add(1 << 60)
	}
	return p.clk.Now().Add(time.Duration(p.rng.ExpFloat64() * float64(mean)))
}

// Run simulates the whole scenario.
func (p *Pool) Run(ctx context.Context) (*Report, error) {
	end := p.clk.Now().Add(p.sc.Duration.D())
	start := p.clk.Now()
	for p.clk.Now().Before(end) && ctx.Err() == nil {
		if err := p.step(ctx); err != nil {
			return &p.report, err
		}
		p.report.At = p.clk.Now().Sub(start)
		if p.sc.Observe != nil {
			p.sc.Observe(&p.report)
		}
		if len(p.report.Violations) > 0 {
			return &p.report, errs.New(errs.Internal, "after %s with seed %d: %s", p.report.At, p.sc.Seed, p.report.Violations[0])
		}
	}
	return &p.report, ctx.Err()
}

// step lets one tick pass: arrivals, ends and faults, then everything settles.
func (p *Pool) step(ctx context.Context) error {
	p.clk.Advance(p.sc.Step.D())
	if err := p.arrive(ctx); err != nil {
		return err
	}
	if err := p.depart(ctx); err != nil {
		return err
	}
	if err := p.faults(ctx); err != nil {
		return err
	}
	if err := p.settle(ctx); err != nil {
		return err
	}
	return p.check(ctx)
}

// settle runs everybody until nobody has anything left to do now.
func (p *Pool) settle(ctx context.Context) error {
	for {
		n, err := p.engine.Settle(ctx, p.mem, p.sc.Limit)
		if err != nil {
			return err
		}
		for _, h := range p.hosts {
			if err := p.exits(ctx, h); err != nil {
				return err
			}
			k, err := h.agent.Engine().Settle(ctx, p.mem, p.sc.Limit)
			if err != nil {
				return fmt.Errorf("agent %s: %w", h.name, err)
			}
			n += k
		}
		p.report.Calls += n
		if n == 0 {
			break
		}
	}
	for _, h := range p.hosts {
		h.rec.Flush(ctx)
	}
	return nil
}

// exits tells the agent what ended on its host, as a runtime would.
func (p *Pool) exits(ctx context.Context, h *island) error {
	seen, err := h.rt.Observe(ctx)
	if err != nil {
		return err
	}
	for _, o := range seen {
		if o.Phase == driver.PhaseExited && !h.ended[o.ID].Equal(o.FinishedAt) {
			h.ended[o.ID] = o.FinishedAt
			h.agent.Exited(h.rt, o)
		}
	}
	return nil
}

func (p *Pool) arrive(ctx context.Context) error {
	for _, t := range p.sc.Tenants {
		for !p.next[t.Name].After(p.clk.Now()) {
			p.next[t.Name] = p.next[t.Name].Add(p.after(t.Rate).Sub(p.clk.Now()))
			p.serial++
			now := p.clk.Now()
			in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprintf("i%d", p.serial), Tenant: t.Name, UID: p.uid(),
				Generation: 1, CreatedAt: &now, Finalizers: []string{"node"}, Labels: map[string]string{"app": fmt.Sprintf("a%d", p.rng.IntN(5))}}},
				Spec: api.InstanceSpec{Image: "sim", Command: []string{"server"}, Requests: t.Sizes[p.rng.IntN(len(t.Sizes))].Clone()}}
			if _, err := p.mem.Commit(ctx, store.Create(in)); err != nil {
				return err
			}
			p.report.Created++
			p.dies[api.RefOf(in)] = now.Add(time.Duration(p.rng.ExpFloat64() * float64(t.Life)))
		}
	}
	return nil
}

func (p *Pool) depart(ctx context.Context) error {
	var due []api.Ref
	for ref, at := range p.dies {
		if !at.After(p.clk.Now()) {
			due = append(due, ref)
		}
	}
	sort.Slice(due, func(i, j int) bool { return api.SortKey(due[i]) < api.SortKey(due[j]) })
	for _, ref := range due {
		in, err := store.Get[*api.Instance](ctx, p.mem, ref)
		if err != nil {
			return fmt.Errorf("an instance was lost: %w", err)
		}
		in = api.Clone(in)
		now := p.clk.Now()
		in.DeletedAt = &now
		if _, err := p.mem.Commit(ctx, store.Update(in)); err != nil {
			return err
		}
		delete(p.dies, ref)
		p.report.Removed++
	}
	return nil
}

func (p *Pool) faults(ctx context.Context) error {
	for !p.reboot.After(p.clk.Now()) {
		p.reboot = p.reboot.Add(p.pause(p.sc.Faults.RebootEvery).Sub(p.clk.Now()))
		h := p.hosts[p.rng.IntN(len(p.hosts))]
		h.rt.Reboot()
		p.report.Reboots++
		if err := p.boot(ctx, h, true); err != nil {
			return err
		}
	}
	for !p.restart.After(p.clk.Now()) {
		p.restart = p.restart.Add(p.pause(p.sc.Faults.RestartEvery).Sub(p.clk.Now()))
		p.report.Restarts++
		if err := p.boot(ctx, p.hosts[p.rng.IntN(len(p.hosts))], false); err != nil {
			return err
		}
	}
	return nil
}

// pretended has every image.
type pretended struct{}

func (pretended) Root(_ context.Context, _, ref, _ string, _ func(api.Progress)) (driver.Image, *api.Image, error) {
	return driver.Image{Digest: "sha256:" + ref, Layers: []string{"/sim"}}, nil, nil
}

func (pretended) Handle(context.Context, api.ImageRequest, agent.ImageStream) error {
	return errs.New(errs.Unsupported, "the simulator keeps no images")
}
func (pretended) Here() []string                                              { return nil }
func (pretended) Known() []*api.Image                                         { return nil }
func (pretended) Adopt(context.Context, *api.Image) (*api.ImageStatus, error) { return nil, nil }
func (pretended) Forget(context.Context, api.Ref) error                       { return nil }
func (pretended) Collect(context.Context, map[string]bool) error              { return nil }

// unplugged connects nothing.
type unplugged struct{}

func (unplugged) Probe(context.Context) (api.Capability, error) {
	return api.Capability{Name: "sim"}, nil
}
func (unplugged) Attach(context.Context, string, driver.Spec) error { return nil }
func (unplugged) Observe(context.Context) ([]string, error)         { return nil, nil }
func (unplugged) Detach(context.Context, string) error              { return nil }
func (unplugged) Teardown(context.Context) error                    { return nil }
