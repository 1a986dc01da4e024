// Package fabric keeps the networks of tenants on one host as the store says: it follows
// networks, endpoints and security groups, compiles them (package segment), and tells the
// host's driver.Fabric of those networks that have instances here. It writes nothing to the store.
//
// Run owns all goroutines. Whoever attaches an instance asks Ready first: what is not told
// to the driver yet is not open.
package fabric

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/segment"
	"atoll/internal/store"
)

// Deps is what a Fabric is built from.
type Deps struct {
	Node   string
	Store  store.Store
	Clock  clock.Clock
	Log    *slog.Logger
	Driver driver.Fabric
	Dir    string // directory for what is recorded of flows; "": nothing is
}

// Fabric is one host's.
type Fabric struct {
	Deps
	engine *reconcile.Engine
	sight  *sight

	mu      sync.Mutex   // guards all below
	ids     *segment.IDs // nil until there is a network
	started bool
	nets    map[api.Ref]*network
	learned map[uint32][]driver.Member
	here    map[api.Ref][]api.Ref    // endpoints of instances that are here -> their networks
	told    map[place]bool           // addresses of instances here that the driver knows all about
	moved   chan struct{}            // closed and replaced when told grows
	gone    map[uint32]bool          // networks that the driver is to forget
	peered  map[api.Ref][]api.Ref    // networks that are joined, in the whole pool
	ways    map[api.Ref][]*api.Route // routes of networks, in the whole pool
}

// place is an address of a network.
type place struct {
	vni  uint32
	addr netip.Addr
}

// network is one that has instances here, or is peered with one that has.
type network struct {
	object   *api.Network
	compiler *segment.Compiler
	used     bool                        // it has instances here
	with     []api.Ref                   // networks it is joined with on this host
	guests   map[guest][]driver.Member   // on those, as the driver was told
	numbers  map[labels]*number          // of guests
	replaced bool                        // the driver has it
	net      driver.Net                  // as the driver was told
	members  map[api.Ref][]driver.Member // by endpoint, as the driver was told
	users    map[uint16]map[api.Ref]bool // endpoints with an identity
	beside   map[netip.Addr]driver.Member
}

// New makes it; no goroutine, no I/O.
func New(d Deps) *Fabric {
	f := &Fabric{Deps: d, nets: map[api.Ref]*network{}, here: map[api.Ref][]api.Ref{}, told: map[place]bool{}, moved: make(chan struct{}), gone: map[uint32]bool{}, sight: newSight(d.Dir)}
	f.engine = reconcile.New(d.Store, d.Clock, d.Log, reconcile.Events{})
	f.engine.Add(controller{f}, 1)
	return f
}

// Run works until ctx ends. Networks and what is on them stay.
func (f *Fabric) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { f.listen(ctx) })
	wg.Go(func() { f.note(ctx) })
	err := f.engine.Run(ctx)
	wg.Wait()
	return err
}

// readyFor is how long an instance waits for its networks: they are told within milliseconds,
// or something is wrong.
const readyFor = 5 * time.Second

// Ready waits until the driver knows all about interfaces of an instance here.
func (f *Fabric) Ready(ctx context.Context, interfaces []driver.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, readyFor)
	defer cancel()
	for {
		f.mu.Lock()
		missing := f.missing(interfaces)
		moved := f.moved
		f.mu.Unlock()
		if missing == "" {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "%s is not known on this host yet", missing).WithHint("it is tried again; the host's log says what fails: network")
		}
	}
}

func (f *Fabric) missing(interfaces []driver.Interface) string {
	for _, i := range interfaces {
		for _, a := range i.Addrs {
			if !f.told[place{i.VNI, a.Addr()}] {
				return fmt.Sprintf("address %s on network %d", a.Addr(), i.VNI)
			}
		}
	}
	return ""
}

// controller is the Fabric as the engine sees it.
type controller struct{ *Fabric }

// Name is "networks".
func (c controller) Name() string { return "networks" }

// Watches all that decides about traffic, networks and groups first.
func (c controller) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNetwork}, {Kind: api.KindPeering}, {Kind: api.KindRoute}, {Kind: api.KindSecurityGroup}, {Kind: api.KindEndpoint}}
}

// Owns nothing.
func (c controller) Owns() []api.Kind { return nil }

// retryForget is how often a network is looked at that is to go and has a wire yet.
const retryForget = 2 * time.Second

// Reconcile follows one change.
func (c controller) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.start(ctx, s); err != nil {
		return reconcile.Result{}, err
	}
	var err error
	switch ref.Kind {
	case api.KindNetwork:
		err = c.network(ctx, s, ref)
	case api.KindSecurityGroup:
		err = c.group(ctx, s, ref)
	case api.KindEndpoint:
		if err = c.endpoint(ctx, s, ref); err == nil {
			err = c.visit(ctx, s, ref)
		}
	case api.KindPeering:
		err = c.peerings(ctx, s)
	case api.KindRoute:
		err = c.routes(ctx, s)
	}
	if err == nil && ref == learnedRef {
		err = c.relearn(ctx)
	}
	// What failed for one name is made good by the next call, whichever name it is about.
	for _, n := range c.nets {
		if err == nil && !n.replaced {
			err = c.tell(ctx, n, driver.Change{})
		}
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if c.forget(ctx); len(c.gone) > 0 {
		return reconcile.Result{Again: retryForget}, nil
	}
	return reconcile.Result{}, nil
}

// start brings, once, all networks up that have instances here, and then has everything forgotten that an
// earlier life left.
func (f *Fabric) start(ctx context.Context, s store.Store) error {
	if f.started {
		return nil
	}
	old, err := f.Driver.Nets(ctx)
	if err != nil {
		return fmt.Errorf("look at the host's networks: %w", err)
	}
	f.started = true
	defer func() {
		if err != nil { // all of it again
			for _, n := range f.nets {
				n.compiler.Close()
			}
			f.started, f.nets, f.here = false, map[api.Ref]*network{}, map[api.Ref][]api.Ref{}
		}
	}()
	mine, _, err := store.List[*api.Endpoint](ctx, s, api.Selector{Kind: api.KindEndpoint, Fields: map[string]string{"spec.node": f.Node}})
	if err != nil {
		return fmt.Errorf("list endpoints: %w", err)
	}
	for _, e := range mine {
		f.here[api.RefOf(e)] = networksOf(e)
	}
	if err = f.listRoutes(ctx, s); err != nil {
		return err
	}
	// All of them at once: what an earlier life left is not to be taken down in between.
	if err = f.peerings(ctx, s); err != nil {
		return err
	}
	for _, e := range mine {
		if err = f.arrive(ctx, s, e); err != nil {
			return err
		}
	}
	for _, vni := range old {
		if !slices.ContainsFunc(slices.Collect(values(f.nets)), func(n *network) bool { return n.net.VNI == vni }) {
			f.gone[vni] = true
		}
	}
	if err = f.Driver.Settle(ctx); err != nil {
		return fmt.Errorf("forget what is not needed any more: %w", err)
	}
	return nil
}

func values(m map[api.Ref]*network) func(func(*network) bool) {
	return func(yield func(*network) bool) {
		for _, n := range m {
			if !yield(n) {
				return
			}
		}
	}
}

// forget has the driver forget networks; those that still have a wire are tried again.
func (f *Fabric) forget(ctx context.Context) {
	for vni := range f.gone {
		err := f.Driver.Forget(ctx, vni)
		if err == nil {
			delete(f.gone, vni)
		} else if !errors.Is(err, errs.Conflict) {
			f.Log.Warn("cannot remove a network from the host; trying again", "vni", vni, "error", err)
		}
	}
}

// network follows a network's own object.
func (f *Fabric) network(ctx context.Context, s store.Store, ref api.Ref) error {
	n := f.nets[ref]
	if n == nil {
		return f.join(ctx, s) // it may have come to be
	}
	o, err := store.Get[*api.Network](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		return nil // it goes with its last endpoint
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	n.object = o
	return f.join(ctx, s)
}

// group follows a security group.
func (f *Fabric) group(ctx context.Context, s store.Store, ref api.Ref) error {
	var spec *api.SecurityGroupSpec
	g, err := store.Get[*api.SecurityGroup](ctx, s, ref)
	if err == nil {
		spec = &g.Spec
	} else if !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	for _, n := range f.nets {
		if n.object.Tenant != ref.Tenant {
			continue
		}
		n.compiler.SetGroup(segment.GroupRef{Tenant: ref.Tenant, Name: ref.Name}, spec)
		if err := f.tell(ctx, n, n.compiler.Change()); err != nil {
			return err
		}
	}
	return nil
}

// endpoint follows where an instance is.
func (f *Fabric) endpoint(ctx context.Context, s store.Store, ref api.Ref) error {
	e, err := store.Get[*api.Endpoint](ctx, s, ref)
	switch {
	case errors.Is(err, errs.NotFound):
		return f.leave(ctx, s, ref, nil)
	case err != nil:
		return fmt.Errorf("read %s: %w", ref, err)
	}
	if e.Spec.Node == f.Node {
		return f.arrive(ctx, s, e)
	}
	if err := f.leave(ctx, s, ref, e); err != nil {
		return err
	}
	for _, i := range e.Spec.Interfaces {
		if n := f.nets[networkRef(e, i)]; n != nil {
			f.untell(n, ref)
			if err := f.tell(ctx, n, n.place(f.Node, e, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func networkRef(e *api.Endpoint, i api.Interface) api.Ref {
	return api.Ref{Kind: api.KindNetwork, Tenant: e.Tenant, Name: i.Network}
}

func networksOf(e *api.Endpoint) []api.Ref {
	var on []api.Ref
	for _, i := range e.Spec.Interfaces {
		on = append(on, networkRef(e, i))
	}
	return on
}

// arrive makes the networks of an instance here ready, with the instance on them.
func (f *Fabric) arrive(ctx context.Context, s store.Store, e *api.Endpoint) error {
	ref, on := api.RefOf(e), networksOf(e)
	if err := f.dropFromAllBut(ctx, ref, on); err != nil {
		return err
	}
	f.here[ref] = on
	if err := f.join(ctx, s); err != nil {
		return err
	}
	for _, i := range e.Spec.Interfaces {
		n := f.nets[networkRef(e, i)]
		if n == nil {
			continue // the network does not exist (any more)
		}
		f.untell(n, ref)
		if err := f.tell(ctx, n, n.place(f.Node, e, i)); err != nil {
			return err
		}
		for _, a := range i.Addresses() {
			f.told[place{i.VNI, netip.MustParseAddr(a)}] = true
		}
	}
	close(f.moved)
	f.moved = make(chan struct{})
	return nil
}

// leave takes out an instance that was here, or is nowhere (now nil).
func (f *Fabric) leave(ctx context.Context, s store.Store, ref api.Ref, now *api.Endpoint) error {
	var on []api.Ref
	if now != nil {
		on = networksOf(now)
	}
	if err := f.dropFromAllBut(ctx, ref, on); err != nil {
		return err
	}
	delete(f.here, ref)
	return f.join(ctx, s)
}

// dropFromAllBut takes an endpoint off the networks that it is not on any more.
func (f *Fabric) dropFromAllBut(ctx context.Context, ref api.Ref, on []api.Ref) error {
	for netRef, n := range f.nets {
		if !slices.Contains(on, netRef) {
			if err := f.dropFrom(ctx, n, ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropFrom takes an endpoint off a network.
func (f *Fabric) dropFrom(ctx context.Context, n *network, ref api.Ref) error {
	if _, on := n.members[ref]; !on {
		return nil
	}
	f.untell(n, ref)
	return f.tell(ctx, n, n.without(ref))
}

// untell notes that the driver does not know an instance here any more, or not all about it.
func (f *Fabric) untell(n *network, ref api.Ref) {
	for _, m := range n.members[ref] {
		delete(f.told, place{n.net.VNI, m.Addr})
	}
}

// shut has networks forgotten that are not needed here any more.
func (f *Fabric) shut(need map[api.Ref]bool) {
	for ref, n := range f.nets {
		if !need[ref] {
			f.gone[n.net.VNI] = true
			for _, num := range n.numbers {
				f.ids.FreePeer(num.is)
			}
			n.compiler.Close()
			delete(f.nets, ref)
			for p := range f.told {
				if p.vni == n.net.VNI {
					delete(f.told, p)
				}
			}
		}
	}
}

// open finds all that is known about a network. The driver is told when it is known whom it is joined with.
func (f *Fabric) open(ctx context.Context, s store.Store, ref api.Ref) error {
	o, err := store.Get[*api.Network](ctx, s, ref)
	if errors.Is(err, errs.NotFound) || err == nil && o.Status.VNI == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	groups, _, err := store.List[*api.SecurityGroup](ctx, s, api.Selector{Kind: api.KindSecurityGroup, Tenant: ref.Tenant})
	if err != nil {
		return fmt.Errorf("list security groups of %s: %w", ref.Tenant, err)
	}
	ends, _, err := store.List[*api.Endpoint](ctx, s, api.Selector{Kind: api.KindEndpoint, Tenant: ref.Tenant, Labels: []api.LabelTerm{{Key: api.NetworkLabel(ref.Name)}}})
	if err != nil {
		return fmt.Errorf("list endpoints on %s: %w", ref, err)
	}
	if f.ids == nil {
		next, err := f.Driver.NextID(ctx)
		if err != nil {
			return fmt.Errorf("look at the host's networks: %w", err)
		}
		f.ids = segment.NewIDs(next)
	}
	n := &network{object: o, compiler: segment.New(f.ids, segmentNetwork(o, nil)), net: netOf(o), members: map[api.Ref][]driver.Member{}, users: map[uint16]map[api.Ref]bool{},
		guests: map[guest][]driver.Member{}, numbers: map[labels]*number{}}
	for _, g := range groups {
		n.compiler.SetGroup(segment.GroupRef{Tenant: g.Tenant, Name: g.Name}, &g.Spec)
	}
	for _, e := range ends {
		for _, i := range e.Spec.Interfaces {
			if i.Network == ref.Name {
				n.place(f.Node, e, i)
			}
		}
	}
	delete(f.gone, n.net.VNI)
	f.nets[ref] = n
	return nil
}

// tell has the driver make a change. After an error nobody knows how far it came: the whole is told anew.
func (f *Fabric) tell(ctx context.Context, n *network, c driver.Change) error {
	if n.replaced {
		err := f.change(ctx, n, c)
		if err == nil {
			return nil
		}
		f.Log.Warn("a change of a network failed; making it anew", "network", api.RefOf(n.object).String(), "error", err)
		n.replaced = false
	}
	var members []driver.Member
	for _, ms := range n.members {
		members = append(members, ms...)
	}
	beside := f.besideOf(n)
	members = slices.AppendSeq(members, maps.Values(beside))
	for _, ms := range n.guests {
		members = append(members, ms...)
	}
	if err := f.Driver.Replace(ctx, n.net, members, n.compiler.Table()); err != nil {
		return fmt.Errorf("make %s: %w", api.RefOf(n.object), err)
	}
	n.replaced, n.beside = true, beside
	return nil
}

// place notes what an endpoint is on the network, and gives what is new by it.
func (n *network) place(self string, e *api.Endpoint, i api.Interface) driver.Change {
	ref := api.RefOf(e)
	was := n.members[ref]
	now := membersOf(e, i)
	n.use(ref, e, i)
	for _, m := range was {
		n.compiler.SetInstance(m.Addr, 0)
	}
	if e.Spec.Node == self {
		for _, m := range now {
			n.compiler.SetInstance(m.Addr, m.Identity)
		}
	}
	n.members[ref] = now
	c := n.compiler.Change()
	if slices.Equal(was, now) {
		return c
	}
	c.Put = now
	for _, m := range was {
		if !slices.ContainsFunc(now, func(x driver.Member) bool { return x.Addr == m.Addr }) {
			c.Drop = append(c.Drop, m.Addr)
		}
	}
	return c
}

// without notes that an endpoint is gone from the network.
func (n *network) without(ref api.Ref) driver.Change {
	was := n.members[ref]
	delete(n.members, ref)
	n.unuse(ref, 0)
	for _, m := range was {
		n.compiler.SetInstance(m.Addr, 0)
	}
	c := n.compiler.Change()
	for _, m := range was {
		c.Drop = append(c.Drop, m.Addr)
	}
	return c
}

// use notes whose an identity is: it means something as long as an endpoint has it.
func (n *network) use(ref api.Ref, e *api.Endpoint, i api.Interface) {
	n.unuse(ref, i.Identity)
	if n.users[i.Identity] == nil {
		n.users[i.Identity] = map[api.Ref]bool{}
	}
	n.users[i.Identity][ref] = true
	n.compiler.SetIdentity(uint32(i.Identity), &segment.Identity{Tenant: e.Tenant, Network: segment.Net{Tenant: e.Tenant, Name: i.Network}, Labels: e.Spec.Labels})
}

func (n *network) unuse(ref api.Ref, but uint16) {
	for id, by := range n.users {
		if id == but || !by[ref] {
			continue
		}
		if delete(by, ref); len(by) == 0 {
			delete(n.users, id)
			n.compiler.SetIdentity(uint32(id), nil)
		}
	}
}

// membersOf is one interface as the driver knows it; nothing while its instance is nowhere.
func membersOf(e *api.Endpoint, i api.Interface) []driver.Member {
	mac, err := net.ParseMAC(i.MAC)
	if err != nil || len(mac) != 6 || e.Spec.Node == "" {
		return nil
	}
	host, _ := netip.ParseAddr(e.Spec.Tunnel) // without one, others do not reach it
	var out []driver.Member
	for _, s := range i.Addresses() {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, driver.Member{Addr: a, MAC: [6]byte(mac), Host: host, Identity: uint32(i.Identity)})
		}
	}
	return out
}

func segmentNetwork(o *api.Network, with []api.Ref) segment.Network {
	var peers []segment.Net
	for _, p := range with {
		peers = append(peers, segment.Net{Tenant: p.Tenant, Name: p.Name})
	}
	return segment.Network{Peers: peers, Direct: o.Spec.Direct(), Net: segment.Net{Tenant: o.Tenant, Name: o.Name}, Prefixes: o.Spec.Prefixes(), Closed: o.Spec.Closed()}
}

func netOf(o *api.Network) driver.Net {
	n := driver.Net{VNI: o.Status.VNI, Ref: api.RefOf(o), Prefixes: o.Spec.Prefixes(), MTU: o.Spec.MTU, Egress: driver.Egress(o.Spec.Egress)}
	if n.Egress == "" {
		n.Egress = driver.EgressNAT
	}
	for _, p := range n.Prefixes {
		n.Gateways = append(n.Gateways, api.Gateway(p))
	}
	return n
}

func same(a, b driver.Net) bool {
	return a.VNI == b.VNI && a.Ref == b.Ref && a.MTU == b.MTU && a.Egress == b.Egress && slices.Equal(a.Prefixes, b.Prefixes) && slices.Equal(a.Gateways, b.Gateways) &&
		slices.Equal(a.Routes, b.Routes) && slices.EqualFunc(a.Peers, b.Peers, func(p, q driver.Peer) bool { return p.VNI == q.VNI && slices.Equal(p.Prefixes, q.Prefixes) })
}
