package main

import (
	"context"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/lease"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/sys/boot"
	"atoll/internal/tunnel"
	"atoll/internal/tunnel/wire"
)

// heart is what every host does that belongs to a pool, whatever its part: it sends
// signs of life, keeps a connection to every server, renews its certificate and knows
// where the servers are.
type heart struct {
	c   config
	clk clock.Clock
	log *slog.Logger

	holder *lease.Holder
	id     *join.Identity // nil: this host is alone, and listens nowhere
	link   *wire.Link     // nil as well
	plane  func() *plane  // the control plane in this process; gives nil while there is none
	dir    directory

	mu   sync.Mutex
	ways map[string]*lease.Remote // by endpoint
}

// directory is how a host learns where the servers are, as it may.
type directory struct {
	// where gives the addresses; rev is as of when, where that can be watched.
	where func(ctx context.Context) (urls []string, rev int64, err error)
	// watched is where a change of the members shows; nil: this host may only ask, again and again.
	watched store.Store
}

// told is the directory of a host that may see no member but itself.
func told(rs *remote.Store) directory {
	return directory{where: func(ctx context.Context) ([]string, int64, error) {
		urls, err := rs.RefreshEndpoints(ctx)
		return urls, 0, err
	}}
}

// heartDeps is what a heart is made of.
type heartDeps struct {
	c     config
	clk   clock.Clock
	log   *slog.Logger
	id    *join.Identity
	plane func() *plane
	dir   directory
	// extended is told of every heartbeat that was acknowledged; nil: nobody is.
	extended func(end time.Duration, alone bool)
	// shorter has what else goes by the lease know that it lasts shorter; nil: nothing does.
	shorter func(ctx context.Context, end time.Duration) error
}

func newHeart(d heartDeps) *heart {
	h := &heart{c: d.c, clk: d.clk, log: d.log, id: d.id, plane: d.plane, dir: d.dir, ways: map[string]*lease.Remote{}}
	h.holder = lease.NewHolder(lease.HolderDeps{HolderConfig: lease.HolderConfig{Interval: d.c.Heartbeat.D()}, Clock: d.clk, Log: d.log, Ways: h.servers,
		Boot: boot.Now, Extended: d.extended, Shorter: d.shorter})
	return h
}

// connect makes the connections that servers open streams over; handle serves these.
func (h *heart) connect(handle tunnel.Handler) {
	if h.id == nil {
		return
	}
	h.link = wire.NewLink(wire.LinkConfig{TLS: h.id.TLS(), Handler: handle, Clock: h.clk, Log: h.log,
		Rand: mrand.New(mrand.NewPCG(uint64(h.clk.Now().UnixNano()), uint64(len(h.c.Node))))}) //nolint:gosec // jitter
}

// reach keeps the connections of connect up until ctx ends.
func (h *heart) reach(ctx context.Context, g *errgroup.Group) {
	if h.link == nil {
		return
	}
	h.link.Set(h.others())
	g.Go(func() error { return h.link.Run(ctx) })
}

// begin connects and takes the lease. keep must be called next.
func (h *heart) begin(ctx context.Context, g *errgroup.Group) error {
	h.reach(ctx, g)
	if err := h.holder.First(ctx); err != nil {
		return fmt.Errorf("take the lease of %s: %w", h.c.Node, err)
	}
	return nil
}

// keep beats until ctx ends.
func (h *heart) keep(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return h.holder.Run(ctx) })
	if h.id != nil {
		g.Go(func() error { return h.id.Run(ctx, h.log) })
		g.Go(func() error { return h.refresh(ctx) })
	}
}

const refreshEvery = 5 * time.Second

// others lists the servers but the one in this process.
func (h *heart) others() []string {
	out := h.id.Endpoints()
	if p := h.plane(); p != nil {
		own := serverConfig(h.c).Advertise
		out = slices.DeleteFunc(out, func(u string) bool { return slices.Contains(own, u) })
	}
	return out
}

// refresh follows which servers there are: those that the directory names, but for the one
// in this process, which comes and goes as well.
func (h *heart) refresh(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if h.dir.watched != nil {
		wg.Go(func() {
			onChange(ctx, h.clk, h.dir.watched, api.Selector{Kind: api.KindMember}, func() (int64, error) {
				rev, err := h.learn(ctx)
				h.link.Set(h.others()) // a new server must not wait for its connection
				return rev, err
			})
		})
	}
	for h.clk.Sleep(ctx, refreshEvery) == nil {
		if h.dir.watched == nil {
			_, _ = h.learn(ctx) // has said what is wrong
		}
		h.link.Set(h.others())
	}
	return ctx.Err()
}

// learn looks once where the servers are, and keeps that.
func (h *heart) learn(ctx context.Context) (int64, error) {
	urls, rev, err := h.dir.where(ctx)
	if err == nil && len(urls) > 0 {
		err = h.id.SetEndpoints(urls)
	}
	if err != nil && ctx.Err() == nil {
		h.log.Debug("cannot learn where the servers are", "error", err)
	}
	return rev, err
}

// servers are the ways to whoever leads: the one in this process first.
func (h *heart) servers() []lease.Renewer {
	var out []lease.Renewer
	if p := h.plane(); p != nil {
		out = append(out, lease.Local(h.c.Node, p.keeper.Load))
	}
	if h.link == nil {
		return out
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, u := range h.others() {
		w := h.ways[u]
		if w == nil {
			w = lease.NewRemote(func(ctx context.Context) (*tunnel.Stream, error) {
				return h.link.Open(ctx, u, tunnel.Header{Verb: lease.Verb})
			})
			h.ways[u] = w
		}
		out = append(out, w)
	}
	return out
}

// voters are the addresses at which members answer the API.
func voters(list []*api.Member) []string {
	var urls []string
	for _, m := range list {
		if m.Spec.API != "" && !m.Spec.Witness && m.Spec.State == api.MemberVoter {
			urls = append(urls, m.Spec.API)
		}
	}
	return urls
}

// silent is a host that runs nothing: servers may open no streams to it.
func silent(_ context.Context, head tunnel.Header, _ *tunnel.Stream) error {
	return errs.New(errs.Unsupported, "this host runs no instances, so there is nothing of kind %q here", head.Verb)
}
