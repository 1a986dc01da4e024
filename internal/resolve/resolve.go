// Package resolve answers the questions for names that instances on tenants' networks ask
// (docs/dns.md). On every host it listens at the gateways of those networks that have instances
// there, in the networks' own namespaces: by where a question comes in it is known whose view of the names holds.
// Names of the asker's tenant it answers from the store; others it asks the host's resolvers.
//
// Run owns all goroutines. It writes nothing to the store. It must never say a word about a name of
// another tenant, also not that it exists, and never write to the log what anybody asks.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Deps is what a Resolver is built from.
type Deps struct {
	Node     string
	Store    store.Store
	Clock    clock.Clock
	Log      *slog.Logger
	Upstream []string // resolvers for all other names: addresses, with a port where it is not 53
	// Listen opens sockets for questions at addresses of a network; errs.Unavailable while the
	// network is not on the host. See On.
	Listen func(ctx context.Context, vni uint32, gateways []netip.Addr) (Sockets, error)
	Rate   int // questions a second that one network may ask on this host; 0: 2000
	Events Events
}

// Events lets metrics and tests see the resolver work. Fields may be nil. None tells who asked what.
type Events struct {
	Answered  func(rcode int)
	Cached    func() // of these, from the cache
	Forwarded func(took time.Duration, err error)
	Dropped   func(why string)
}

// Why a question is not looked into.
const (
	DropRate = "rate" // its network asks too much
	DropBusy = "busy" // too many wait for answers from outside, or too many connections
	DropBad  = "bad"  // it is none
)

func (e Events) answered(rcode int) {
	if e.Answered != nil {
		e.Answered(rcode)
	}
}

func (e Events) cached() {
	if e.Cached != nil {
		e.Cached()
	}
}

func (e Events) forwarded(took time.Duration, err error) {
	if e.Forwarded != nil {
		e.Forwarded(took, err)
	}
}

func (e Events) dropped(why string) {
	if e.Dropped != nil {
		e.Dropped(why)
	}
}

// Resolver is one host's.
type Resolver struct {
	Deps
	engine  *reconcile.Engine
	outside *forwarder
	work    sync.WaitGroup // of posts

	mu      sync.RWMutex       // guards tenants and what they hold
	tenants map[string]*tenant // that have instances here

	// Only the controller's one worker knows these.
	here  map[api.Ref][]string // endpoints of instances here -> names of their networks
	posts map[api.Ref]*post    // by network
}

// New makes it; no goroutine, no I/O.
func New(d Deps) *Resolver {
	r := &Resolver{Deps: d, outside: newForwarder(d.Upstream, d.Clock, d.Events), tenants: map[string]*tenant{}, here: map[api.Ref][]string{}, posts: map[api.Ref]*post{}}
	r.engine = reconcile.New(d.Store, d.Clock, d.Log, reconcile.Events{})
	r.engine.Add(controller{r}, 1)
	return r
}

// Run answers until ctx ends.
func (r *Resolver) Run(ctx context.Context) error {
	if n := len(r.Upstream) - len(r.outside.all); n > 0 {
		r.Log.Warn("some resolvers of the host are not addresses; they are not asked", "count", n)
	}
	err := r.engine.Run(ctx)
	r.work.Wait()
	return err
}

func (r *Resolver) rate() int {
	if r.Rate > 0 {
		return r.Rate
	}
	return netRate
}

// On opens sockets by the host's driver of tenants' networks.
func On(f driver.Fabric) func(context.Context, uint32, []netip.Addr) (Sockets, error) {
	return func(_ context.Context, vni uint32, gateways []netip.Addr) (Sockets, error) {
		d, ok := f.(driver.Listener)
		if !ok {
			return Sockets{}, errs.New(errs.Unsupported, "the driver of tenants' networks opens no sockets")
		}
		var s Sockets
		for _, g := range gateways {
			at := netip.AddrPortFrom(g, 53)
			c, err := d.ListenPacket(vni, at)
			if err != nil {
				s.Close()
				return Sockets{}, fmt.Errorf("listen on %s: %w", at, err)
			}
			s.Packets = append(s.Packets, c)
			l, err := d.Listen(vni, at)
			if err != nil {
				s.Close()
				return Sockets{}, fmt.Errorf("listen on %s: %w", at, err)
			}
			s.Streams = append(s.Streams, l)
		}
		return s, nil
	}
}

// look finds a name in the view of a network, and says whether other names are asked outside.
func (r *Resolver) look(network api.Ref, name string) (found, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	t := r.tenants[network.Tenant]
	if t == nil {
		return found{}, false
	}
	n := t.nets[network.Name]
	return t.find(network.Name, name), n != nil && n.outside
}

// controller is the Resolver as the engine sees it.
type controller struct{ *Resolver }

// Name is "names".
func (controller) Name() string { return "names" }

// Watches networks first: endpoints are on them.
func (controller) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNetwork}, {Kind: api.KindEndpoint}}
}

// Owns nothing.
func (controller) Owns() []api.Kind { return nil }

// Reconcile follows one change.
func (c controller) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if ref.Kind == api.KindNetwork {
		return reconcile.Result{}, c.network(ctx, s, ref)
	}
	return reconcile.Result{}, c.endpoint(ctx, s, ref)
}

// network follows a network of a tenant that has instances here.
func (r *Resolver) network(ctx context.Context, s store.Store, ref api.Ref) error {
	t := r.tenants[ref.Tenant]
	if t == nil {
		return nil
	}
	o, err := store.Get[*api.Network](ctx, s, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	r.mu.Lock()
	if err != nil {
		t.unset(ref.Name)
	} else {
		t.set(o)
	}
	r.mu.Unlock()
	return r.listen(ctx, s, ref)
}

// endpoint follows where an instance is.
func (r *Resolver) endpoint(ctx context.Context, s store.Store, ref api.Ref) error {
	e, err := store.Get[*api.Endpoint](ctx, s, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	was := r.here[ref]
	var on []string
	if err == nil && e.Spec.Node == r.Node {
		for _, i := range e.Spec.Interfaces {
			on = append(on, i.Network)
		}
		if r.tenants[ref.Tenant] == nil {
			if err := r.meet(ctx, s, ref.Tenant); err != nil {
				return err
			}
		}
	}
	if t := r.tenants[ref.Tenant]; t != nil {
		r.mu.Lock()
		t.place(ref.Name, e)
		r.mu.Unlock()
	}
	if slices.Equal(was, on) {
		return nil
	}
	if r.here[ref] = on; len(on) == 0 {
		delete(r.here, ref)
	}
	for _, n := range on {
		if err := r.listen(ctx, s, api.Ref{Kind: api.KindNetwork, Tenant: ref.Tenant, Name: n}); err != nil {
			r.here[ref] = was // so that it is tried again
			return err
		}
	}
	r.quit(ref.Tenant)
	return nil
}

// meet takes in all of a tenant that has its first instance here.
func (r *Resolver) meet(ctx context.Context, s store.Store, name string) error {
	nets, _, err := store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork, Tenant: name})
	if err != nil {
		return fmt.Errorf("list networks of %s: %w", name, err)
	}
	ends, _, err := store.List[*api.Endpoint](ctx, s, api.Selector{Kind: api.KindEndpoint, Tenant: name})
	if err != nil {
		return fmt.Errorf("list endpoints of %s: %w", name, err)
	}
	t := newTenant()
	for _, n := range nets {
		if n.Tenant == name {
			t.set(n)
		}
	}
	for _, e := range ends {
		if e.Tenant == name {
			t.place(e.Name, e)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tenants[name] = t
	return nil
}

// listen has questions of a network heard, if it has instances here, at its gateways as they are now.
func (r *Resolver) listen(ctx context.Context, s store.Store, ref api.Ref) error {
	used := false
	for e, on := range r.here {
		used = used || e.Tenant == ref.Tenant && slices.Contains(on, ref.Name)
	}
	if !used {
		return nil
	}
	o, err := store.Get[*api.Network](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		return nil // what listens goes with its last instance
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	var gateways []netip.Addr
	for _, p := range o.Spec.Prefixes() {
		gateways = append(gateways, api.Gateway(p))
	}
	p := r.posts[ref]
	if p != nil && p.vni == o.Status.VNI && slices.Equal(p.gateways, gateways) {
		return nil
	}
	if p != nil {
		p.close()
		delete(r.posts, ref)
	}
	if o.Status.VNI != 0 {
		r.posts[ref] = r.newPost(ctx, ref, o.Status.VNI, gateways)
	}
	return nil
}

// quit lets go of networks of a tenant that have no instance here any more, and of the tenant with the last.
func (r *Resolver) quit(name string) {
	used := map[string]bool{}
	for e, on := range r.here {
		for _, n := range on {
			if e.Tenant == name {
				used[n] = true
			}
		}
	}
	for ref, p := range r.posts {
		if ref.Tenant == name && !used[ref.Name] {
			p.close()
			delete(r.posts, ref)
		}
	}
	if len(used) == 0 {
		r.mu.Lock()
		delete(r.tenants, name)
		r.mu.Unlock()
	}
}
