// Package announce has a host tell routers by BGP what is on it, as the store says: floating addresses, networks that use
// their own addresses outside, and, by EVPN, who is on networks of tenants. What it hears it offers to
// the host's networks. It writes nothing to the store: what is to be known of the sessions goes
// with the status of the node (Sessions).
//
// Run owns all goroutines. When it ends, routers keep what they were told, for as long as their
// BGPPeer says: what is on the host works on.
package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Deps is what an Announcer is built from.
type Deps struct {
	Node   string
	Store  store.Store
	Clock  clock.Clock
	Log    *slog.Logger
	Driver driver.Announcer
	// Learn is given members of networks that routers tell of, by number of the network; nil: they are not wanted.
	Learn func(members map[uint32][]driver.Member)
	// Publish is called when Sessions has news that should not wait; nil: nobody wants to know.
	Publish func()
	// Held reports whether this host holds its lease; nil: it cannot lose it. Look is called when that changes.
	Held func() bool
}

// Announcer is one host's.
type Announcer struct {
	Deps
	engine *reconcile.Engine

	// Only the controller's one worker knows these.
	heardAt time.Time // when was last looked at what routers tell
	taught  bool      // the networks were told of members

	mu       sync.Mutex // guards all below
	world    World      // as last planned by
	refused  map[string]string
	imported map[string]int
	last     map[string]string // states, as last published
}

// New makes it; no goroutine, no I/O.
func New(d Deps) *Announcer {
	a := &Announcer{Deps: d, last: map[string]string{}}
	a.engine = reconcile.New(d.Store, d.Clock, d.Log, reconcile.Events{})
	a.engine.Add(controller{a}, 1)
	d.Driver.Changed(func() { a.engine.Enqueue(controller{}.Name(), heardRef) })
	return a
}

// Run works until ctx ends.
func (a *Announcer) Run(ctx context.Context) error {
	err := a.engine.Run(ctx)
	if cerr := a.Driver.Close(); cerr != nil {
		a.Log.Warn("sessions with routers did not end as they should", "error", cerr)
	}
	return err
}

// Look has all of it decided anew: something outside of the store has changed.
func (a *Announcer) Look() { a.engine.Enqueue(controller{}.Name(), planRef) }

var (
	planRef  = api.Ref{Kind: api.KindBGPPeer, Name: "*"}      // the pool has changed
	heardRef = api.Ref{Kind: api.KindBGPPeer, Name: "*heard"} // what routers say has
)

const (
	// again is how often is looked whether a password changed, or a peer that was put off may be met anew.
	again = time.Minute
	// hear is how long it takes at most until what routers tell is known to networks: a router that begins tells
	// thousands of routes in some hundred messages.
	hear = 200 * time.Millisecond
)

// controller is the Announcer as the engine sees it.
type controller struct{ *Announcer }

// Name is "announce".
func (controller) Name() string { return "announce" }

// Watches all that is announced, and to whom.
func (c controller) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNode, Name: c.Node}, {Kind: api.KindNetwork}, {Kind: api.KindEndpoint, Fields: map[string]string{"spec.node": c.Node}},
		{Kind: api.KindAddress, Fields: map[string]string{"status.node": c.Node}}, {Kind: api.KindBGPPeer}}
}

// Key makes one of all changes of the pool.
func (controller) Key(ref api.Ref) api.Ref {
	if ref == heardRef {
		return ref
	}
	return planRef
}

// Owns nothing.
func (controller) Owns() []api.Kind { return nil }

// Reconcile follows the pool, or what routers say.
func (c controller) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if ref == heardRef {
		return c.heard(ctx)
	}
	w, err := c.read(ctx, s)
	if err != nil {
		return reconcile.Result{}, err
	}
	a, refused := Plan(w)
	c.mu.Lock()
	c.world, c.refused = w, refused
	c.mu.Unlock()
	if err := c.Driver.Announce(ctx, a); err != nil {
		return reconcile.Result{}, fmt.Errorf("announce %d routes to %d peers: %w", len(a.Routes), len(a.Peers), err)
	}
	if len(a.Peers)+len(refused) == 0 && !c.taught && len(c.last) == 0 {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{Again: again, Poll: true, Also: []api.Ref{heardRef}}, nil
}

// read gathers what Plan decides by. Where there are no peers it reads nothing else.
func (c controller) read(ctx context.Context, s store.Store) (w World, err error) {
	w.Node, err = store.Get[*api.Node](ctx, s, api.Ref{Kind: api.KindNode, Name: c.Node})
	if errors.Is(err, errs.NotFound) {
		return World{Node: &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: c.Node}}}}, nil
	}
	if err != nil {
		return w, fmt.Errorf("read node %s: %w", c.Node, err)
	}
	w.Peers, _, err = store.List[*api.BGPPeer](ctx, s, api.Selector{Kind: api.KindBGPPeer})
	if err != nil {
		return w, fmt.Errorf("list BGP peers: %w", err)
	}
	if len(w.Peers) == 0 {
		return w, nil
	}
	if w.Networks, _, err = store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork}); err != nil {
		return w, fmt.Errorf("list networks: %w", err)
	}
	w.Endpoints, _, err = store.List[*api.Endpoint](ctx, s, api.Selector{Kind: api.KindEndpoint, Fields: map[string]string{"spec.node": c.Node}})
	if err != nil {
		return w, fmt.Errorf("list endpoints: %w", err)
	}
	floating, _, err := store.List[*api.Address](ctx, s, api.Selector{Kind: api.KindAddress, Fields: map[string]string{"status.node": c.Node}})
	if err != nil {
		return w, fmt.Errorf("list floating addresses: %w", err)
	}
	for _, x := range floating {
		if a, err := netip.ParseAddr(x.Status.Address); err == nil {
			w.Floating = append(w.Floating, Floating{Addr: a, Node: x.Status.Node})
		}
	}
	w.Lost = c.Held != nil && !c.Held()
	return w, nil
}

// heard gives networks the members that routers tell of, and has news of sessions published.
func (c controller) heard(ctx context.Context) (reconcile.Result, error) {
	now := c.Clock.Now()
	if wait := hear - now.Sub(c.heardAt); wait > 0 && !c.heardAt.IsZero() {
		return reconcile.Result{Again: wait}, nil
	}
	c.heardAt = now
	learned, err := c.Driver.Learned(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	c.mu.Lock()
	members, from := Import(c.world, learned)
	c.imported = from
	c.mu.Unlock()
	if c.Learn != nil && (len(members) > 0 || c.taught) {
		c.Learn(members)
		c.taught = len(members) > 0
	}
	list, err := c.Sessions(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	c.tell(list)
	return reconcile.Result{}, nil
}

// tell logs and publishes what is new about sessions.
func (a *Announcer) tell(list []api.BGPSession) {
	now := map[string]string{}
	for _, s := range list {
		now[s.Peer] = s.State + " " + s.Error
	}
	a.mu.Lock()
	was := a.last
	a.last = now
	a.mu.Unlock()
	news := len(was) != len(now)
	for _, s := range list {
		if was[s.Peer] == now[s.Peer] {
			continue
		}
		news = true
		if s.State == api.BGPEstablished {
			a.Log.Info("a session with a router has begun", "peer", s.Peer)
		} else {
			a.Log.Warn("no session with a router", "peer", s.Peer, "error", s.Error)
		}
	}
	if news && a.Publish != nil {
		a.Publish()
	}
}

// Sessions is how it stands with each peer of this host, for its node's status.
func (a *Announcer) Sessions(ctx context.Context) ([]api.BGPSession, error) {
	list, err := a.Driver.Sessions(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at sessions with routers: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []api.BGPSession
	for _, s := range list {
		x := api.BGPSession{Peer: s.Peer, State: s.State, Sent: s.Sent, Received: s.Received, Imported: a.imported[s.Peer], Error: s.Error}
		if !s.Since.IsZero() {
			since := s.Since.UTC().Truncate(time.Second)
			x.Since = &since
		}
		out = append(out, x)
	}
	for _, p := range a.world.Peers {
		if why := a.refused[p.Name]; why != "" {
			out = append(out, api.BGPSession{Peer: p.Name, State: "Idle", Error: why})
		}
	}
	return out, nil
}
