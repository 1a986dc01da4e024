package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

// errAgain ends what runs so that it begins anew, as something else: a host that was
// chosen to keep the pool's state, or that keeps it no longer.
var errAgain = errors.New("this host's part in the pool has changed")

// runUp runs what this host is in its pool: its beginning, one that joined, one that
// keeps the state. That may change meanwhile; instances run on.
func runUp(ctx context.Context, args []string) error {
	c, err := load("up", args, nil)
	if err != nil {
		return err
	}
	log, err := newLogger(c)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errs.New(errs.Denied, "atolld up needs root: it makes namespaces, cgroups and network interfaces").WithHint("sudo atolld up")
	}
	unlock, err := prepareDirs(c)
	if err != nil {
		return err
	}
	defer unlock()
	if err := settleIn(c); err != nil {
		log.Warn("the daemon shares the CPU with everything else on the host", "error", err)
	}
	for {
		err := upOnce(ctx, c, log)
		if ctx.Err() != nil {
			log.Info("stopped; instances run on")
			return nil
		}
		if !errors.Is(err, errAgain) {
			return err
		}
		log.Info("begins anew", "why", err)
	}
}

// daemon is everything that runs in this process, in the order of need.
type daemon struct {
	c     config
	clk   clock.Clock
	log   *slog.Logger
	id    *join.Identity // nil: not known to anybody else yet
	mem   *membership    // nil: this host keeps no state, or alone
	plane atomic.Pointer[plane]
	node  *node
	imgs  *images
}

func upOnce(ctx context.Context, c config, log *slog.Logger) (err error) {
	began := time.Now()
	h := &daemon{c: c, clk: clock.Real{}, log: log}
	if h.id, err = join.Load(c.State, joinDeps()); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if h.id != nil {
		h.c.Node = h.id.Node()
		if s := h.id.Pool().Subnet; s != "" {
			h.c.Subnet = s
		}
	}
	if h.mem, err = readMembership(c.State); err != nil {
		return err
	}
	p, err := h.open(ctx)
	defer h.close()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	drained, err := h.start(gctx, g, p)
	if err != nil {
		cancel()
		_ = g.Wait() // ended by this
		return err
	}
	debug.FreeOSMemory() // what opening the store took is not needed again
	log.Info("up", "where", describe(h.c), "took", time.Since(began).Round(time.Millisecond).String(), "version", version)
	err = g.Wait()
	drained()
	return err
}

// start begins one part after the other, in the order of need; all run in g.
func (h *daemon) start(ctx context.Context, g *errgroup.Group, p *plane) (drained func(), err error) {
	if p != nil {
		g.Go(func() error { return p.mirror(ctx) })
		if h.founder() {
			if err := p.bootstrap(ctx, h.imgs); err != nil {
				return nil, err
			}
			if err := h.found(ctx, p); err != nil {
				return nil, err
			}
		}
		g.Go(func() error { return p.base.Lead(ctx, h.c.Node, p.lead) })
		g.Go(func() error { return h.ended(ctx, p) })
	}
	st, err := h.store(p)
	if err != nil {
		return nil, err
	}
	if h.node, err = newNode(nodeDeps{c: h.c, clk: h.clk, log: h.log, store: st, imgs: h.imgs, id: h.id, plane: h.plane.Load}); err != nil {
		return nil, fmt.Errorf("node %s: %w", h.c.Node, err)
	}
	drained = func() {}
	if p != nil {
		var dial tunnel.Dial
		dial, drained = tunnel.Local(ctx, h.node.agent.Handle)
		p.hub.Register(h.c.Node, dial)
	}
	// The API answers when the node is known: the first call may ask for its capacity.
	if err := h.node.start(ctx, g); err != nil {
		return nil, fmt.Errorf("node %s: %w", h.c.Node, err)
	}
	g.Go(func() error { return h.node.run(ctx) })
	if p != nil {
		g.Go(func() error { return p.srv.Run(ctx) })
	}
	if h.id != nil {
		g.Go(func() error { return h.partTaking(ctx, st) })
	}
	return drained, nil
}

// founder reports whether the pool began on this host, and its state still is here.
func (h *daemon) founder() bool { return h.id == nil || h.id.Founder() }

// open opens the images and, where this host keeps the state, the store, at the same
// time: both wait for the disk.
func (h *daemon) open(ctx context.Context) (*plane, error) {
	var g errgroup.Group
	g.Go(func() (err error) { h.imgs, err = openImages(ctx, h.c, h.clk, h.log); return err })
	if h.founder() || h.mem != nil {
		g.Go(func() error {
			p, err := openPlane(ctx, h.c, h.mem.peers(h.c), h.clk, h.log)
			if err == nil {
				h.plane.Store(p)
			}
			return err
		})
	}
	err := g.Wait()
	return h.plane.Load(), err
}

func (h *daemon) close() {
	if p := h.plane.Load(); p != nil {
		_ = p.base.Close() // what is acknowledged is on the disk
	}
	if h.imgs != nil {
		_ = h.imgs.store.Close()
	}
}

// adoptAuthority takes over the pool's authority, so that this host can sign for it, too.
func (h *daemon) adoptAuthority(bundle string) error {
	return auth.NewCA(filepath.Join(h.c.State, "pki"), h.clk, rand.Reader).Adopt([]byte(bundle))
}

// store is the pool as this host's agent sees it: its own copy where the pool began,
// else over the API of whichever server answers.
func (h *daemon) store(p *plane) (store.Store, error) {
	if p != nil && h.founder() {
		return p.st, nil
	}
	return remoteStore(h.id)
}

// found gives the host that the pool begins on an identity like those that join have,
// once it can be reached by others at all.
func (h *daemon) found(ctx context.Context, p *plane) error {
	ends := serverConfig(h.c).Advertise
	if h.id != nil || len(ends) == 0 {
		return nil
	}
	id, err := store.Get[*api.NodeIdentity](ctx, p.st, api.Ref{Kind: api.KindNodeIdentity, Name: h.c.Node})
	if err != nil {
		return fmt.Errorf("identity of %s: %w", h.c.Node, err)
	}
	if want := hostOf(ends[0]); id.Spec.Address != want {
		next := api.Clone(id)
		next.Spec.Address = want
		if _, err := p.st.Commit(ctx, store.Update(next)); err != nil {
			return fmt.Errorf("identity of %s: %w", h.c.Node, err)
		}
		id = next
	}
	csr, err := join.Sign(h.c.State, joinDeps())
	if err != nil {
		return err
	}
	cert, err := p.ca.SignNode(csr, id)
	if err != nil {
		return err
	}
	authority, err := p.ca.CertPEM()
	if err != nil {
		return err
	}
	h.id, err = join.Found(h.c.State, joinDeps(), &api.JoinAnswer{Node: h.c.Node, Role: api.RoleNode, Certificate: string(cert), Authority: string(authority),
		Endpoints: ends, Pool: api.PoolSettings{Subnet: h.c.Subnet}})
	return err
}
