package sim

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/agent"
	"atoll/internal/driver"
	"atoll/internal/driver/runtime/fake"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
)

// host is one simulated machine: the real agent on pretended drivers.
type host struct {
	idx        int
	name       string
	zone, rack string
	group      *scenario.HostGroup

	up     bool // has power
	member bool // belongs to the pool; false before it comes and after it was taken out
	since  time.Duration
	hours  float64 // as a member, until since

	clock   *skewed
	wire    *wire
	rt      *fake.Runtime
	agent   *agent.Agent
	rec     *reconcile.Recorder
	ctx     context.Context //nolint:containedctx // of this life of the machine; it ends with its power
	cancel  context.CancelFunc
	inbox   []store.Event // what the agent has not seen yet
	open    int           // calls under way
	dirty   bool
	changed bool // the runtime reported something since Ended was last asked
	exited  bool // and an end was among it
	nextAt  time.Time
	nextEnd time.Time

	// In the books.
	object   *api.Node
	known    bool // is in the store
	cpu      int  // where CPU is in the vectors
	room     vector
	used     vector
	usedFull int64
	recs     []*rec
	loaded   bool
	running  int

	// In the meter.
	use      [3]float64
	slow     float64
	failures float64
}

// serves reports whether what is assigned here can run.
func (h *host) serves() bool { return h.up && h.member }

// reached reports whether the control plane and the host hear each other.
func (h *host) reached() bool { return h.up && h.wire.frozen == nil }

// busy reports whether the agent is at work, or would be if it had the time.
func (h *host) busy(now time.Time) bool {
	if h.open > 0 || h.dirty || len(h.inbox) > 0 {
		return true
	}
	// What failed is tried again: until then the host is not yet as it should be.
	at, ok := h.agent.Engine().NextWork()
	return ok && at.Add(-h.clock.offset).Sub(now) < time.Minute
}

// EventsSince gives the agent's engine what concerns this host.
func (h *host) EventsSince(rev int64) []store.Event {
	if h.wire.frozen != nil {
		return nil
	}
	i := sort.Search(len(h.inbox), func(i int) bool { return h.inbox[i].Rev > rev })
	return h.inbox[i:]
}

// newHost makes a machine without power.
func (w *World) newHost(g *scenario.HostGroup, i int) *host {
	h := &host{idx: len(w.hosts), name: fmt.Sprintf("%s-%d", g.Name, i), group: g}
	if n := len(g.Zones); n > 0 {
		h.zone = g.Zones[i%n]
		i /= n
	}
	if g.Racks > 0 {
		h.rack = fmt.Sprintf("r%d", i%g.Racks)
	}
	if g.Exact {
		h.name, h.rack = g.Name, g.Rack
	}
	h.clock = &skewed{Manual: w.clk, crew: w.crew}
	h.wire = &wire{Store: w.gate, view: w.view, node: h.name}
	h.cpu = w.books.cpu
	h.used, h.room = make(vector, len(w.books.names)), make(vector, len(w.books.names))
	w.hosts = append(w.hosts, h)
	w.books.hosts[h.name] = h
	return h
}

// join makes a host a member of the pool and switches it on.
func (w *World) join(ctx context.Context, h *host) error {
	g, now := h.group, w.clk.Now()
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: h.name, Labels: g.Labels, CreatedAt: &now}},
		Spec: api.NodeSpec{Taints: g.Taints, Reserve: g.Reserve, Zone: h.zone, Rack: h.rack, Region: g.Region, Overcommit: g.Overcommit, Cordoned: g.Cordoned}}
	if g.Price > 0 {
		n.Spec.Price = strconv.FormatFloat(g.Price, 'f', -1, 64)
	}
	idle, most := g.Power.Bounds()
	n.Spec.IdleWatts, n.Spec.MaxWatts = int(idle), int(most)
	if _, err := w.view.Commit(ctx, store.Create(n)); err != nil {
		return err
	}
	h.member, h.since = true, w.books.now
	return w.powerOn(ctx, h)
}

// powerOn boots a machine: nothing of what ran before is there.
func (w *World) powerOn(ctx context.Context, h *host) error {
	if h.up || !h.member {
		return nil
	}
	r := h.group.Runtime
	rt, err := fake.New(driver.Deps{Node: h.name, Clock: h.clock, Log: w.opt.Log}, fake.Config{Seed: w.rng("host/" + h.name + "/" + strconv.Itoa(int(w.books.now/time.Second))).Uint64(),
		StartMin: r.Start.Min, StartMax: r.Start.Max, StartFailures: r.Failures, Crashes: r.Crashes, CrashAfter: r.CrashAfter})
	if err != nil {
		return err
	}
	rt.OnChange(func(uid string, p driver.Phase) {
		h.changed = true
		h.exited = h.exited || p == driver.PhaseExited
		w.books.phase(h, uid, p)
	})
	if h.slow > 0 {
		rt.Slow(h.slow)
	}
	if h.failures > 0 {
		rt.StartFailures(h.failures)
	}
	h.rt, h.up = rt, true
	w.books.reweigh(h)
	return w.startAgent(ctx, h)
}

// startAgent begins a new life of the agent; what runs on the host goes on.
func (w *World) startAgent(ctx context.Context, h *host) error {
	h.ctx, h.cancel = context.WithCancel(ctx)
	h.rec = reconcile.NewRecorder(h.wire, h.clock, w.opt.Log, "agent/"+h.name)
	runtimes := map[string]driver.Runtime{}
	for _, name := range w.isolations {
		runtimes[name] = h.rt
	}
	h.agent = agent.New(agent.Deps{Node: h.name, Store: h.wire, Clock: h.clock, Log: w.opt.Log, Recorder: h.rec,
		Runtimes: runtimes, Images: pretended{}, Network: unplugged{}, Facts: h.facts})
	if h.wire.frozen == nil {
		h.inbox = h.inbox[:0]
	}
	w.mark(h)
	if err := h.agent.Start(h.ctx); err != nil && !errors.Is(err, errs.Unavailable) {
		return fmt.Errorf("start the agent of %s: %w", h.name, err)
	}
	return nil
}

// defaultInstances is how many instances a host takes when its capacity does not say.
const defaultInstances = 1000

func (h *host) facts(context.Context) (api.NodeStatus, error) {
	c := h.group.Capacity.Clone()
	if _, given := c[api.Instances]; !given {
		c[api.Instances] = defaultInstances
	}
	return api.NodeStatus{Capacity: c, Devices: h.group.Devices, Cells: h.group.Cells, Arch: "amd64", OS: "simulated"}, nil
}

// powerOff takes the power from a machine at once.
func (w *World) powerOff(h *host) {
	if !h.up {
		return
	}
	h.up = false
	w.stopAgent(h)
	h.rt.Reboot()
	h.wire.heal()
	w.books.reweigh(h)
}

// stopAgent ends the agent's life in the middle of whatever it does.
func (w *World) stopAgent(h *host) {
	h.cancel()
	w.crew.kill(h)
	h.open, h.nextAt = 0, time.Time{}
}

// leave takes a host out of the pool for good.
func (w *World) leave(ctx context.Context, h *host) error {
	if !h.member {
		return nil
	}
	w.powerOff(h)
	h.hours += (w.books.now - h.since).Hours()
	h.member = false
	w.books.reweigh(h)
	_, err := w.view.Commit(ctx, store.Remove(api.Ref{Kind: api.KindNode, Name: h.name}, store.Any))
	return err
}

func (w *World) mark(h *host) {
	if !h.dirty {
		h.dirty = true
		w.dirty = append(w.dirty, h)
	}
}

// turn lets the agent of a host work until it has nothing more to do now.
func (w *World) turn(h *host) (int, error) {
	h.dirty = false
	if !h.up {
		return 0, nil
	}
	now := w.clk.Now()
	if h.changed || !h.nextEnd.IsZero() && !h.nextEnd.After(now) {
		h.changed = false
		for _, o := range h.rt.Ended() {
			h.agent.Exited(h.rt, o)
		}
		h.exited = false
		h.changed = true // ends are looked for again below
	}
	life := h.ctx
	n, err := h.agent.Engine().Turn(life, h, func(call func()) {
		h.open++
		w.crew.run(h, func() {
			defer func() {
				if h.ctx == life {
					h.open--
				}
			}()
			call()
		})
	})
	if err != nil {
		return n, fmt.Errorf("agent of %s: %w", h.name, err)
	}
	if h.wire.frozen == nil {
		h.inbox = h.inbox[:0]
	}
	if h.changed {
		h.changed = false
		h.nextEnd = time.Time{}
		if at, ok := h.rt.NextEnd(); ok {
			h.nextEnd = at.Add(-h.clock.offset)
		}
	}
	if h.exited { // the agent itself has stopped something, and is to hear of it
		h.exited, h.changed = false, true
		w.mark(h)
	}
	w.plan(h)
	return n, nil
}

// plan notes when the host will have something to do by itself.
func (w *World) plan(h *host) {
	now, next := w.clk.Now(), h.nextEnd
	if at, ok := h.agent.Engine().NextWork(); ok {
		if at = at.Add(-h.clock.offset); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	// What is due already waits for a worker; the end of a call will bring it up again.
	if next.IsZero() || !next.After(now) || next.Equal(h.nextAt) {
		return
	}
	h.nextAt = next
	heap.Push(&w.wakeups, wakeup{next, h})
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
