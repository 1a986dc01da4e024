// Package dhcp answers instances that ask who they are: DHCP, DHCPv6 and router solicitations on tenants'
// networks (docs/dhcp.md). It holds no leases: an answer is a function of what the pool says of the interface that the
// question came from, so that any host gives the same one at any time, and no guest can ask for another's.
//
// Run owns all goroutines. It writes nothing to the store. It must never believe what a question says of who
// asks: only the hardware address of the frame counts, which the wall has compared with the port's.
package dhcp

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

// Deps is what a Server is built from.
type Deps struct {
	Node  string
	Store store.Store
	Clock clock.Clock
	Log   *slog.Logger
	// Questions opens a socket of a network; errs.Unavailable while it is not on the host. See On.
	Questions func(vni uint32, six bool) (driver.Questions, error)
	// Advertise is how often routers are advertised without being asked; 0: every five minutes.
	Advertise time.Duration
	Events    Events
}

// Events lets metrics and tests see the server work. Fields may be nil.
type Events struct {
	Answered func()
	Dropped  func(why string)
}

// Why a question is not looked into.
const (
	DropRate   = "rate"   // its interface asks too much
	DropNobody = "nobody" // no interface here has its hardware address
	DropBad    = "bad"    // no answer is due to it
)

func (e Events) answered() {
	if e.Answered != nil {
		e.Answered()
	}
}

func (e Events) dropped(why string) {
	if e.Dropped != nil {
		e.Dropped(why)
	}
}

// Server is one host's.
type Server struct {
	Deps
	engine *reconcile.Engine
	work   sync.WaitGroup // of posts

	// Only the controller's one worker knows these.
	here  map[api.Ref]*api.Endpoint // instances here
	posts map[api.Ref]*post         // by network
}

// New makes it; no goroutine, no I/O.
func New(d Deps) *Server {
	if d.Advertise == 0 {
		d.Advertise = 5 * time.Minute
	}
	s := &Server{Deps: d, here: map[api.Ref]*api.Endpoint{}, posts: map[api.Ref]*post{}}
	s.engine = reconcile.New(d.Store, d.Clock, d.Log, reconcile.Events{})
	s.engine.Add(controller{s}, 1)
	return s
}

// On hears questions by the host's driver of tenants' networks.
func On(f driver.Fabric) func(uint32, bool) (driver.Questions, error) {
	return func(vni uint32, six bool) (driver.Questions, error) {
		d, ok := f.(driver.Asked)
		if !ok {
			return nil, errs.New(errs.Unsupported, "the driver of tenants' networks hears no questions")
		}
		return d.Questions(vni, six)
	}
}

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	err := s.engine.Run(ctx)
	s.work.Wait()
	return err
}

// controller is the Server as the engine sees it.
type controller struct{ *Server }

// Name is "dhcp".
func (controller) Name() string { return "dhcp" }

// Watches networks and who is on them.
func (controller) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNetwork}, {Kind: api.KindEndpoint}}
}

// Owns nothing.
func (controller) Owns() []api.Kind { return nil }

// Reconcile follows one change.
func (c controller) Reconcile(ctx context.Context, st store.Store, ref api.Ref) (reconcile.Result, error) {
	if ref.Kind == api.KindNetwork {
		return reconcile.Result{}, c.network(ctx, st, ref)
	}
	return reconcile.Result{}, c.endpoint(ctx, st, ref)
}

// endpoint follows where an instance is.
func (s *Server) endpoint(ctx context.Context, st store.Store, ref api.Ref) error {
	e, err := store.Get[*api.Endpoint](ctx, st, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	on := map[string]bool{}
	if was := s.here[ref]; was != nil {
		for _, i := range was.Spec.Interfaces {
			on[i.Network] = true
		}
	}
	if err == nil && e.Spec.Node == s.Node {
		s.here[ref] = e
		for _, i := range e.Spec.Interfaces {
			on[i.Network] = true
		}
	} else {
		delete(s.here, ref)
	}
	for n := range on {
		if err := s.network(ctx, st, api.Ref{Kind: api.KindNetwork, Tenant: ref.Tenant, Name: n}); err != nil {
			return err
		}
	}
	return nil
}

// network brings what is answered on a network in line with who is on it here.
func (s *Server) network(ctx context.Context, st store.Store, ref api.Ref) error {
	var on []*api.Endpoint
	for at, e := range s.here {
		if at.Tenant != ref.Tenant {
			continue
		}
		for _, i := range e.Spec.Interfaces {
			if i.Network == ref.Name {
				on = append(on, e)
				break
			}
		}
	}
	p := s.posts[ref]
	if len(on) == 0 && p == nil {
		return nil
	}
	n, err := store.Get[*api.Network](ctx, st, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	gone := err != nil || len(on) == 0 || n.Status.VNI == 0
	if p != nil && (gone || p.vni != n.Status.VNI) {
		p.leave()
		delete(s.posts, ref)
		p = nil
	}
	if gone {
		return nil
	}
	leases := leasesOf(n, on)
	if p == nil {
		s.posts[ref] = s.newPost(ctx, ref, n.Status.VNI, leases)
		return nil
	}
	p.set(leases)
	return nil
}
