package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/agent"
	"atoll/internal/clock"
	"atoll/internal/driver"
	netfake "atoll/internal/driver/network/fake"
	"atoll/internal/driver/runtime/fake"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/lease"
	"atoll/internal/reconcile"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/store/replica"
	"atoll/internal/tunnel"
	"atoll/internal/tunnel/wire"
)

// fleetConfig is what the fleet is told, on its standard input.
type fleetConfig struct {
	Servers []string // the same server under several addresses
	Token   string
	Agents  int
	Tunnels int
	Pause   time.Duration // between the starts of two hosts
	Dir     string
}

// report is what it tells, a line each.
type report struct {
	Up      int    `json:"up,omitempty"`
	Running int    `json:"running,omitempty"` // instances reported as running
	Probe   int    `json:"probe,omitempty"`   // a change that a host saw
	Driver  bool   `json:"driver,omitempty"`  // its driver did, not only its watch
	At      int64  `json:"at,omitempty"`
	Error   string `json:"error,omitempty"`
}

// probeVar is the variable that marks a change that is followed.
const probeVar = "PROBE"

// yard is what the hosts of a fleet share.
type yard struct {
	fleetConfig
	log         *slog.Logger
	up, running atomic.Int64
	desk        chan struct{} // who joins or begins: so many at once

	mu  sync.Mutex
	out *json.Encoder
}

// atOnce is how many hosts begin at the same time.
const atOnce = 16

func (y *yard) tell(r report) {
	y.mu.Lock()
	defer y.mu.Unlock()
	_ = y.out.Encode(r) // whoever does not listen any more has ended
}

// fleet runs hosts until its standard input ends.
func fleet() error {
	debug.SetGCPercent(400) // a thousand machines collect their garbage on processors of their own
	in := bufio.NewReader(os.Stdin)
	y := &yard{desk: make(chan struct{}, atOnce), out: json.NewEncoder(os.Stdout), log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, &y.fleetConfig); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return y.count(ctx) })
	for i := range y.Agents + y.Tunnels {
		h := &host{yard: y, name: fmt.Sprintf("sim-%05d", i), server: y.Servers[i%len(y.Servers)], agentless: i >= y.Agents, seed: uint64(i)}
		g.Go(func() error { return h.run(ctx) })
		if (clock.Real{}).Sleep(ctx, y.Pause) != nil {
			break
		}
	}
	err = g.Wait()
	if err != nil && !errors.Is(err, context.Canceled) {
		y.tell(report{Error: err.Error()})
		return err
	}
	return nil
}

// count tells how far the fleet is.
func (y *yard) count(ctx context.Context) error {
	var last report
	for (clock.Real{}).Sleep(ctx, 20*time.Millisecond) == nil {
		if r := (report{Up: int(y.up.Load()), Running: int(y.running.Load())}); r != last {
			last = r
			y.tell(r)
		}
	}
	return ctx.Err()
}

// host is one simulated machine: what atolld runs on a host that keeps no state, on
// pretended drivers.
type host struct {
	*yard
	name, server string
	agentless    bool // only its connection and its lease
	seed         uint64
	begun        func() // the next one may begin

	id     *join.Identity
	link   *wire.Link
	holder *lease.Holder
	rs     *remote.Store
}

func (h *host) run(ctx context.Context) error {
	select {
	case h.desk <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	h.begun = sync.OnceFunc(func() { <-h.desk })
	defer h.begun()
	err := h.live(ctx)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	return err
}

func (h *host) live(ctx context.Context) error {
	clk := clock.Real{}
	deps := join.Deps{Clock: clk, Rand: rand.Reader}
	dir := filepath.Join(h.Dir, h.name)
	var err error
	if h.id, _, err = join.Do(ctx, deps, join.Request{Dir: dir, URLs: []string{h.server}, Token: h.Token, Node: h.name, Version: "sim"}); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	h.rs, err = remote.New(remote.Config{Endpoints: []string{h.server}, CA: h.id.Authority(), ClientCert: h.id.TLS().GetClientCertificate, Full: true, Agent: "atolld/sim"})
	if err != nil {
		return err
	}
	defer h.rs.Close()
	h.holder = lease.NewHolder(lease.HolderDeps{Clock: clk, Log: h.log, Ways: h.ways()})
	// On a disk of its own, as every host has one: here in memory, beside the server's etcd.
	rep, err := replica.Open(replica.Config{Node: h.name, Pool: "sim", Source: watched{h.rs, h.yard}, Path: filepath.Join(dir, "replica"), Clock: clk, Log: h.log, LeaseRev: h.holder.Rev})
	if err != nil {
		return err
	}
	defer rep.Close()
	st := store.Fenced(rep, api.NodeLease(h.name), h.holder.Rev)
	rec := reconcile.NewRecorder(st, clk, h.log, "agent/"+h.name)
	a, err := h.agent(st, rec)
	if err != nil {
		return err
	}
	h.link = wire.NewLink(wire.LinkConfig{TLS: h.id.TLS(), Handler: a.Handle, Clock: clk, Log: h.log, Rand: mrand.New(mrand.NewPCG(h.seed, 1))}) //nolint:gosec // jitter
	h.link.Set([]string{h.server})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.link.Run(ctx) })
	if err := h.holder.First(ctx); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	taken := make(chan struct{}, 1)
	h.holder.Took = func(lease.Grant) {
		select {
		case taken <- struct{}{}:
		default:
		}
	}
	g.Go(func() error { return h.holder.Run(ctx) })
	if !h.agentless {
		g.Go(func() error { return rep.Run(ctx) })
		if err := a.LeaseTaken(ctx, h.holder.Rev()); err != nil {
			return err
		}
		if err := a.Start(ctx); err != nil {
			return err
		}
		g.Go(func() error { return h.follow(ctx, a, taken) })
		g.Go(func() error { return h.members(ctx, st) })
		g.Go(func() error { return rec.Run(ctx) })
		g.Go(func() error { return a.Run(ctx) })
	}
	g.Go(func() error { return h.id.Run(ctx, h.log) })
	h.up.Add(1)
	h.begun()
	return g.Wait()
}

// ways is the way to the server, over the tunnel.
func (h *host) ways() func() []lease.Renewer {
	w := []lease.Renewer{lease.NewRemote(func(ctx context.Context) (*tunnel.Stream, error) {
		return h.link.Open(ctx, h.server, tunnel.Header{Verb: lease.Verb})
	})}
	return func() []lease.Renewer { return w }
}

// follow looks at everything again when the lease was taken anew, as atolld does.
func (h *host) follow(ctx context.Context, a *agent.Agent, taken <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-taken:
			if err := a.LeaseTaken(ctx, h.holder.Rev()); err != nil && ctx.Err() == nil {
				h.log.Warn("lease taken", "error", err)
			}
		}
	}
}

func (h *host) agent(st store.Store, rec *reconcile.Recorder) (*agent.Agent, error) {
	clk := clock.Real{}
	d := driver.Deps{Node: h.name, Clock: clk, Log: h.log}
	rt, err := fake.New(d, fake.Config{Seed: h.seed})
	if err != nil {
		return nil, err
	}
	net, err := netfake.New(d, netfake.Config{})
	if err != nil {
		return nil, err
	}
	return agent.New(agent.Deps{Node: h.name, Store: st, Clock: clk, Log: h.log, Runtimes: map[string]driver.Runtime{"container": seeing{rt, h.yard}}, Network: net,
		Images: pretended{}, Recorder: rec, Lease: h.holder, Facts: facts}), nil
}

// facts are of a machine with 32 cores.
func facts(context.Context) (api.NodeStatus, error) {
	return api.NodeStatus{Capacity: api.Resources{api.CPU: 32_000, api.Memory: 128 << 30, api.Disk: 1 << 40, api.Instances: 1000}, Arch: "amd64", OS: "simulated"}, nil
}

// probeOf reads the number of the change that is followed; 0: none.
func probeOf(in *api.Instance) int {
	for _, e := range in.Spec.Env {
		if e.Name == probeVar {
			n, err := strconv.Atoi(e.Value)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// seeing is a runtime that tells what reached it.
type seeing struct {
	*fake.Runtime
	y *yard
}

// Ensure tells of changes that are followed.
func (s seeing) Ensure(ctx context.Context, spec driver.Spec) (driver.Observed, error) {
	if n := probeOf(spec.Instance); n > 0 {
		s.y.tell(report{Probe: n, Driver: true, At: time.Now().UnixNano()})
	}
	return s.Runtime.Ensure(ctx, spec)
}

// watched is the pool as a host sees it, telling what it sees and reports.
type watched struct {
	store.Store
	y *yard
}

// Watch tells of changes that are followed.
func (w watched) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	return w.Store.Watch(ctx, sel, rev, func(ev store.Event) error {
		if in, ok := ev.Object.(*api.Instance); ok && in.Status.Generation < in.Generation {
			if n := probeOf(in); n > 0 {
				w.y.tell(report{Probe: n, At: time.Now().UnixNano()})
			}
		}
		return fn(ev)
	})
}

// Commit counts what was reported to run for the first time.
func (w watched) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	rev, err := w.Store.Commit(ctx, ops...)
	if err != nil {
		return rev, err
	}
	for _, op := range ops {
		if in, ok := op.Object.(*api.Instance); ok && in.Status.State == api.StateRunning && in.Status.Starts == 1 && probeOf(in) == 0 {
			w.y.running.Add(1)
		}
	}
	return rev, nil
}

// pretended has every image.
type pretended struct{}

func (pretended) Root(_ context.Context, _, ref, _ string, _ func(api.Progress)) (driver.Image, *api.Image, error) {
	return driver.Image{Digest: "sha256:" + ref, Layers: []string{"/sim"}}, nil, nil
}

func (pretended) Handle(context.Context, api.ImageRequest, agent.ImageStream) error {
	return errs.New(errs.Unsupported, "simulated hosts keep no images")
}
func (pretended) Here() []string                                              { return nil }
func (pretended) Known() []*api.Image                                         { return nil }
func (pretended) Adopt(context.Context, *api.Image) (*api.ImageStatus, error) { return nil, nil }
func (pretended) Forget(context.Context, api.Ref) error                       { return nil }
func (pretended) Collect(context.Context, map[string]bool) error              { return nil }
