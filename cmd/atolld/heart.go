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
	// where learns the servers' addresses, as this host may.
	where func(ctx context.Context) ([]string, error)

	mu   sync.Mutex
	ways map[string]*lease.Remote // by endpoint
}

// heartDeps is what a heart is made of.
type heartDeps struct {
	c     config
	clk   clock.Clock
	log   *slog.Logger
	id    *join.Identity
	plane func() *plane
	where func(ctx context.Context) ([]string, error)
	// extended is told of every heartbeat that was acknowledged; nil: nobody is.
	extended func(end time.Duration, alone bool)
}

func newHeart(d heartDeps) *heart {
	h := &heart{c: d.c, clk: d.clk, log: d.log, id: d.id, plane: d.plane, where: d.where, ways: map[string]*lease.Remote{}}
	h.holder = lease.NewHolder(lease.HolderDeps{HolderConfig: lease.HolderConfig{Interval: d.c.Heartbeat.D()}, Clock: d.clk, Log: d.log, Ways: h.servers,
		Boot: boot.Now, Extended: d.extended})
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

// first connects and takes the lease. keep must be called next.
func (h *heart) first(ctx context.Context, g *errgroup.Group) error {
	if h.link != nil {
		h.link.Set(h.others())
		g.Go(func() error { return h.link.Run(ctx) })
	}
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

// refresh follows which servers there are.
func (h *heart) refresh(ctx context.Context) error {
	for h.clk.Sleep(ctx, refreshEvery) == nil {
		urls, err := h.where(ctx)
		if err == nil && len(urls) > 0 {
			err = h.id.SetEndpoints(urls)
		}
		if err != nil && ctx.Err() == nil {
			h.log.Debug("cannot learn where the servers are", "error", err)
		}
		h.link.Set(h.others())
	}
	return ctx.Err()
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
