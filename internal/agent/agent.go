// Package agent makes a node do what the store says: it watches what is assigned
// to its node, compares that with what really runs (a pure decision, diff.go), and
// lets the drivers close the gap. It writes the status of instances and of its
// node, and nothing else. It knows contracts only: no crun, no nftables, no HTTP.
//
// Run owns all goroutines and waits for them. The agent may be killed at any
// moment: what runs goes on, and the next agent finds it by Observe.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Images makes the content of an image available on the node.
type Images interface {
	// Root returns the unpacked image, fetching it first as pull says (missing, always,
	// never). tenant decides whose names are looked at. fetched is not nil when the image
	// has just come and the pool should know it. progress may be nil.
	Root(ctx context.Context, tenant, ref, pull string, progress func(api.Progress)) (img driver.Image, fetched *api.Image, err error)
	// Handle serves an image stream (pull, import, export, push).
	Handle(ctx context.Context, req api.ImageRequest, st ImageStream) error
	// Here lists what the node has, for placement: "tenant|reference" and digests.
	Here() []string
	// Known lists the names the node has as the Images they should be in the pool. Those
	// it brings along itself are shared and have no digest in their spec.
	Known() []*api.Image
	// Adopt gives the name of an Image to its content and tells what is here; nil
	// when the content is not, or not in this tenant.
	Adopt(ctx context.Context, img *api.Image) (*api.ImageStatus, error)
	// Forget drops the name of an Image. Nil when it is not here.
	Forget(ctx context.Context, ref api.Ref) error
	// Collect removes content nobody needs; inUse are the digests of instances on the node.
	Collect(ctx context.Context, inUse map[string]bool) error
}

// ImageStream is the caller's side of long image work.
type ImageStream struct {
	In       func() ([]byte, error) // next part of an import; io.EOF at the end
	Out      func([]byte) error     // next part of an export
	Progress func(api.Progress)
	Commit   func(ctx context.Context, img *api.Image) error // makes the image known in the pool
}

// Groups is the node's tree of resource groups.
type Groups interface {
	// Ensure makes a group and brings its limits in line; warnings name what the host cannot enforce.
	Ensure(path string, s Share) (warnings []string, err error)
	// Remove removes an empty group and everything empty inside. Nil when already gone.
	Remove(path string) error
	// List gives the paths of all groups below root that are tenants' groups.
	List(root string) ([]string, error)
	Usage(path string) (api.Usage, error)
}

// Deps is what an agent is built from.
type Deps struct {
	Node     string
	Store    store.Store
	Clock    clock.Clock
	Log      *slog.Logger
	Runtimes map[string]driver.Runtime
	Network  driver.Network
	// Fabric is the part of Network that is about networks of tenants; nil: there is none.
	Fabric driver.Fabric
	// Ready waits until Fabric knows all about interfaces.
	Ready func(ctx context.Context, interfaces []driver.Interface) error
	// Bands are what an instance may have of the network when it is attached; nil: as its spec says.
	Bands func(*api.Instance) *[2]api.Band
	// Drops tells what the host does of the drop list; nil: it has none.
	Drops func(ctx context.Context) []api.DropCount
	// Traffic tells of what passes networks of tenants; nil: nobody does here.
	Traffic  Traffic
	Storage  driver.Storage
	Images   Images
	Groups   Groups
	Root     string // name of the tree of groups; default DefaultRoot
	Recorder *reconcile.Recorder
	DNS      []string // resolvers of instances
	// Lease is this node's right to act; nil: nobody takes it away (a simulator, a test).
	Lease Lease
	// Guard stops what must not run twice when the lease ends, also when this process
	// does not live or does not run then; nil: there is none.
	Guard Guard
	// Facts reads what the host is: capacity, kernel and so on, and conditions about it.
	Facts func(ctx context.Context) (api.NodeStatus, error)
	// Extend adds what others on this host say of it; nil: nobody does.
	Extend func(*api.NodeStatus)
}

// Lease tells whether what must not run twice may run now, and the revision at which the
// lease was taken.
type Lease interface{ Term() (rev int64, held bool) }

// Guard is told which resource groups to empty when the lease ends.
type Guard interface {
	// GuardAll is called once, before the others, with the groups of what runs already, by
	// ID: what guarded it for an earlier agent goes on until it knows all of these. After an
	// error they are guarded as soon as can be, and Guard may be called for each again.
	GuardAll(ctx context.Context, groups map[string][]string) error
	Guard(ctx context.Context, id string, groups []string) error
	Unguard(id string)
}

// Agent is one node's.
type Agent struct {
	Deps
	engine *reconcile.Engine
	checks *checks

	unsynced bool // names of images were not compared with the pool's; Start's, then upkeep's

	mu    sync.Mutex
	lives map[string]*life // by runtime ID
	seen  int64            // the lease that what the store shows is no older than

	groupMu    sync.Mutex
	groups     map[string]Share // shares of the tenants that have a group here
	written    map[string]Share // groups as last written
	strays     map[string]string
	tenantList []*api.Tenant // as last read
	capacity   api.Resources // allocatable
	whole      api.Resources // what the host has
	caps       []api.Capability
	cells      []api.Cell
	warnings   map[string]bool
	fabric     *api.Capability // nil: the host takes no part in networks of tenants
	noFabric   string          // why
	samples    map[string]sample
}

// life is what the agent knows of one instance beyond the store.
type life struct {
	obs       driver.Observed
	runtime   driver.Runtime
	ref       api.Ref
	changed   chan struct{} // closed and replaced at every change
	launches  int64         // starts in this agent's time
	readers   int           // attached callers
	read      bool          // an attached caller was or is there
	unhealthy bool
	healthy   *bool
	failure   error // why the last start failed
	pulling   []api.Progress
	pulledAt  time.Time // when readers were last told
	ended     int64     // ends seen in this agent's time
	once      bool      // it must not run twice
	guarded   bool      // Guard knows of it
	fenced    bool      // it was stopped because the lease ended
	own       string    // cores it alone may use
	pinned    string    // cores it was last put on; "": all
}

// New wires an agent. No I/O.
func New(d Deps) *Agent {
	if d.Root == "" {
		d.Root = DefaultRoot
	}
	a := &Agent{Deps: d, lives: map[string]*life{}, groups: map[string]Share{}, written: map[string]Share{}, warnings: map[string]bool{}, samples: map[string]sample{}}
	a.engine = reconcile.New(d.Store, d.Clock, d.Log, reconcile.Events{})
	a.checks = newChecks(d.Clock, a.report)
	a.engine.Add(&instances{a}, 32)
	a.engine.Add(&tenants{a}, 1)
	a.engine.Add(&images{a}, 1)
	a.engine.Add(&floats{Agent: a}, 1)
	a.engine.Add(&upkeep{Agent: a}, 1)
	return a
}

// Engine gives the simulator a hand on the agent's work.
func (a *Agent) Engine() *reconcile.Engine { return a.engine }

// Start learns what is on the node and publishes it. Call it before Run.
func (a *Agent) Start(ctx context.Context) error {
	for name, rt := range a.Runtimes {
		seen, err := rt.Observe(ctx)
		if err != nil {
			return fmt.Errorf("observe %s: %w", name, err)
		}
		for _, o := range seen {
			a.set(o.ID, func(l *life) { l.obs, l.runtime, l.ref = o, rt, o.Ref })
		}
	}
	if err := a.guardFound(ctx); err != nil {
		return err
	}
	if err := a.probe(ctx); err != nil {
		return err
	}
	if err := a.syncImages(ctx); errors.Is(err, errs.Unavailable) {
		a.Log.Warn("the pool does not know all images of this host; it is told later", "error", err)
		a.unsynced = true // upkeep's, from now on
	} else if err != nil {
		return err
	}
	for try := 0; ; try++ {
		err := a.publish(ctx)
		if !errors.Is(err, errs.Conflict) || try == publishTries {
			return err
		}
	}
}

// publishTries is how often a start looks at its node again when somebody else changed it
// meanwhile, as the control plane does in a pool where many begin at once.
const publishTries = 5

// Run works until ctx ends. Instances run on.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for name, rt := range a.Runtimes {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := rt.Exits(ctx, func(o driver.Observed) { a.Exited(rt, o) }); err != nil && ctx.Err() == nil {
					a.Log.Error("cannot see instances end; trying again", "runtime", name, "error", err)
					_ = a.Clock.Sleep(ctx, time.Second) // ends early only with ctx
				}
			}
		})
	}
	wg.Go(func() { _ = a.engine.Run(ctx) }) // always ctx's error
	wg.Go(func() { a.probeFabric(ctx) })
	a.enqueueKnown()
	<-ctx.Done()
	a.checks.stop()
	wg.Wait()
	return ctx.Err()
}

// probeFabric finds out what nobody waited for, and has it published.
func (a *Agent) probeFabric(ctx context.Context) {
	if a.Network == nil || a.Fabric == nil {
		return
	}
	if _, ok := a.Fabric.Known(ctx); ok {
		return
	}
	c, err := a.Fabric.Probe(ctx)
	a.groupMu.Lock()
	if err != nil {
		a.noFabric = err.Error()
	} else {
		a.fabric, a.noFabric = &c, ""
	}
	a.groupMu.Unlock()
	if err != nil {
		a.Log.Warn("no networks of tenants here", "error", err)
	}
	a.engine.Enqueue("upkeep", api.Ref{Kind: api.KindNode, Name: a.Node})
}

// enqueueKnown looks at everything found on the node: what the store does not want here must go.
func (a *Agent) enqueueKnown() {
	a.engine.Enqueue("floats", floatsRef)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range sortedNames(a.lives) {
		a.engine.Enqueue("instances", a.lives[id].ref)
	}
}

// Exited is told by a runtime that an instance ended.
func (a *Agent) Exited(rt driver.Runtime, o driver.Observed) {
	a.set(o.ID, func(l *life) { l.obs, l.runtime, l.ref = o, rt, o.Ref; l.ended++ })
	a.checks.forget(o.ID)
	a.unguard(o.ID)
	a.engine.Enqueue("instances", o.Ref)
}

// set changes a life and wakes who waits for it.
func (a *Agent) set(id string, fn func(*life)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lives[id]
	if l == nil {
		l = &life{changed: make(chan struct{})}
		a.lives[id] = l
	}
	fn(l)
	close(l.changed)
	l.changed = make(chan struct{})
}

// look copies a life.
func (a *Agent) look(id string) (life, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lives[id]
	if l == nil {
		return life{}, false
	}
	return *l, true
}

func (a *Agent) drop(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.lives[id]; l != nil {
		close(l.changed)
		delete(a.lives, id)
		if l.own != "" {
			a.wake(id)
		}
	}
}

// probe asks the drivers what they can do here.
func (a *Agent) probe(ctx context.Context) error {
	a.caps = nil
	for _, name := range sortedNames(a.Runtimes) {
		c, err := a.Runtimes[name].Probe(ctx)
		if errors.Is(err, errs.Unsupported) {
			a.Log.Warn("driver cannot work here", "driver", name, "error", err)
			delete(a.Runtimes, name)
			continue
		}
		if err != nil {
			return fmt.Errorf("probe %s: %w", name, err)
		}
		c.Type, c.Name = "runtime", name
		a.caps = append(a.caps, c)
	}
	if a.Network != nil {
		c, err := a.Network.Probe(ctx)
		if err != nil {
			a.Log.Warn("no instance networks here", "error", err)
			a.Network = nil
		} else {
			c.Type = "network"
			a.caps = append(a.caps, c)
		}
	}
	if a.Network != nil && a.Fabric != nil {
		if c, ok := a.Fabric.Known(ctx); ok {
			a.fabric = &c
		} else {
			a.noFabric = "it is being found out what this host can do"
		}
	}
	if a.Storage != nil {
		c, err := a.Storage.Probe(ctx)
		if err != nil {
			a.Log.Warn("no volumes here", "error", err)
			a.Storage = nil
		} else {
			c.Type = "storage"
			a.caps = append(a.caps, c)
		}
	}
	if len(a.Runtimes) == 0 {
		return errs.New(errs.Unsupported, "no runtime works on this host").WithHint("atoll doctor says what is missing")
	}
	return nil
}
