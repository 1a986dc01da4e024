package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/cmd/atolld/change"
	"atoll/cmd/atolld/images"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/lease"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
	"atoll/internal/store/remote"
	"atoll/internal/store/replica"
	"atoll/internal/tunnel"
)

// followAgain is between looks at what could not be watched.
const followAgain = 2 * time.Second

// errAgain ends what runs so that it begins anew, as something else: a host that was
// chosen to keep the pool's state, or that keeps it no longer.
var errAgain = errors.New("this host's part in the pool has changed")

// runUp runs what this host is in its pool: its beginning, one that joined, one that
// keeps the state. That may change meanwhile; instances run on.
func runUp(ctx context.Context, args []string) error { return runHost(ctx, "up", args) }

func runHost(ctx context.Context, verb string, args []string) error {
	c, err := load(verb, args, nil)
	if err != nil {
		return err
	}
	log, err := newLogger(c)
	if err != nil {
		return err
	}
	role, err := roleAs(verb, c)
	if err != nil {
		return err
	}
	root := os.Geteuid() == 0
	if role == api.RoleNode && !root {
		return errs.New(errs.Denied, "atolld up needs root: it makes namespaces, cgroups and network interfaces").WithHint("sudo atolld up")
	}
	c = c.as(role)
	versions, err := changing(c)
	if err == nil {
		err = change.Choose(versions)
	}
	if err != nil {
		return err
	}
	unlock, err := claimDirs(c, role)
	if err != nil {
		return err
	}
	defer unlock()
	up := change.New(versions)
	var beside sync.WaitGroup
	defer beside.Wait()
	trial, enough := context.WithCancel(ctx)
	defer enough()
	beside.Go(func() { up.Trial(trial) })
	if root {
		if err := settleIn(c); err != nil {
			log.Warn("the daemon shares the CPU with everything else on the host", "error", err)
		}
	}
	for {
		err := upOnce(up.Begin(ctx), c, role, log, up)
		if ctx.Err() != nil {
			up.Halt()
			log.Info("stopped; instances run on")
			return nil
		}
		if cerr := up.Ended(); cerr != nil {
			log.Error("goes on as it was", "version", version, "error", cerr)
			continue
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
	role  api.JoinRole
	id    *join.Identity // nil: not known to anybody else yet
	plane atomic.Pointer[plane]
	node  *node                           // nil where no instances run
	beats atomic.Pointer[lease.Holder]    // where no instances run, once the lease is held
	copy  atomic.Pointer[etcdstore.Store] // of a witness, while it keeps one
	works atomic.Pointer[node]            // node, once it has its lease
	rep   *replica.Replica                // what the agent needs of the pool, where others keep that
	imgs  *images.Images                  // nil where no instances run
	up    *change.Changer
	parts sync.WaitGroup // streams of this process's own agent
}

func upOnce(ctx context.Context, c config, role api.JoinRole, log *slog.Logger, up *change.Changer) (err error) {
	began := time.Now()
	h := &daemon{c: c, clk: clock.Real{}, log: log, role: role, up: up}
	up.Runs(h)
	defer h.works.Store(nil)
	if h.id, err = join.Load(c.State, joinDeps()); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if h.id != nil {
		h.c.Node = h.id.Node()
		if s := h.id.Pool().Subnet; s != "" {
			h.c.Subnet = s
		}
	}
	mem, err := readMembership(c.State)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	switch {
	case role == api.RoleWitness:
		err = h.witness(gctx, g, mem)
	case mem == nil && (h.id == nil || h.id.Founder()):
		err = h.alone(gctx, g)
	default:
		err = h.oneOfMany(gctx, g, mem)
	}
	if err != nil {
		cancel()
		_ = g.Wait() // ended by this
	} else {
		debug.FreeOSMemory() // what opening the store took is not needed again
		log.Info("up", "where", describe(h.c), "took", time.Since(began).Round(time.Millisecond).String(), "version", version)
		err = g.Wait()
	}
	h.parts.Wait()
	if p := h.plane.Load(); p != nil {
		_ = p.base.Close() // what is acknowledged is on the disk
	}
	if h.rep != nil {
		_ = h.rep.Close() // as well
	}
	if h.imgs != nil {
		_ = h.imgs.Close() // as well
	}
	return err
}

// alone begins where the whole pool is on this host: everything waits for the store, and
// the agent works on it directly. That other hosts take part in keeping it later needs no
// new beginning.
func (h *daemon) alone(ctx context.Context, g *errgroup.Group) error {
	var open errgroup.Group // both wait for the disk
	if h.role == api.RoleNode {
		open.Go(func() (err error) { h.imgs, err = images.Open(ctx, imagesConfig(h.c), h.clk, h.log); return err })
	}
	open.Go(func() error {
		p, err := openPlane(ctx, h.c, etcdstore.Peers{}, h.clk, h.log)
		if err == nil {
			h.plane.Store(p)
		}
		return err
	})
	if err := open.Wait(); err != nil {
		return err
	}
	p := h.plane.Load()
	g.Go(func() error { return p.mirror(ctx) })
	if err := h.mayBegin(ctx, p); err != nil {
		return err
	}
	if err := p.bootstrap(ctx, h.role); err != nil {
		return err
	}
	if err := h.found(ctx, p); err != nil {
		return err
	}
	g.Go(func() error { return p.lead(ctx) })
	g.Go(func() error { return h.ended(ctx, p) })
	g.Go(func() error { return h.keepCertified(ctx, p) })
	g.Go(func() error { return p.announce(ctx) })
	g.Go(func() error { return p.keepLevel(ctx) })
	if h.role != api.RoleNode {
		h.pulse(ctx, g, directory{where: p.endpoints, watched: p.st})
		g.Go(func() error {
			return h.up.Tell(ctx, func(ctx context.Context, st api.NodeIdentityStatus) (*api.Upgrade, error) {
				return p.desk(p.fresh).Told(ctx, h.c.Node, st)
			})
		})
		g.Go(func() error { return p.serve(ctx) })
		return nil
	}
	if err := h.makeNode(p.st, nil); err != nil {
		return err
	}
	g.Go(func() error { return h.up.Follow(ctx, p.st) })
	h.register(ctx, p)
	// The API answers when the node is known: the first call may ask for its capacity.
	if err := h.startNode(ctx, g); err != nil {
		return fmt.Errorf("node %s: %w", h.c.Node, err)
	}
	g.Go(func() error { return h.node.run(ctx) })
	g.Go(func() error { return p.serve(ctx) })
	return nil
}

// oneOfMany begins where there are other servers: the agent works over the API of
// whichever answers and waits for nothing on this host; this host's copy of the state,
// where it keeps one, comes and goes beside it.
func (h *daemon) oneOfMany(ctx context.Context, g *errgroup.Group, mem *membership) (err error) {
	rs, err := remoteStore(h.id)
	if err != nil {
		return err
	}
	if h.role != api.RoleNode {
		g.Go(func() error { return h.takePart(ctx, rs, mem) })
		h.pulse(ctx, g, told(rs))
		h.tell(ctx, g, rs)
		return nil
	}
	if h.imgs, err = images.Open(ctx, imagesConfig(h.c), h.clk, h.log); err != nil {
		return err
	}
	pool := sha256.Sum256(h.id.Authority())
	h.rep, err = replica.Open(replica.Config{Node: h.c.Node, Pool: hex.EncodeToString(pool[:8]), Source: rs, Path: filepath.Join(h.c.State, "replica", h.c.Node), Clock: h.clk, Log: h.log,
		LeaseRev: func() int64 { return h.node.holder.Rev() }})
	if err != nil {
		return err
	}
	if err := h.makeNode(h.rep, rs); err != nil {
		return err
	}
	h.node.rep = h.rep
	g.Go(func() error { return h.rep.Run(ctx) })
	g.Go(func() error { return h.takePart(ctx, rs, mem) })
	g.Go(func() error { return h.up.Follow(ctx, rs) })
	if err := h.startNode(ctx, g); err != nil {
		return fmt.Errorf("node %s: %w", h.c.Node, err)
	}
	g.Go(func() error { return h.node.run(ctx) })
	return nil
}

func (h *daemon) makeNode(st store.Store, rs *remote.Store) (err error) {
	if h.node, err = newNode(nodeDeps{c: h.c, clk: h.clk, log: h.log, store: st, imgs: h.imgs, id: h.id, plane: h.plane.Load, remote: rs, up: h.up}); err != nil {
		return fmt.Errorf("node %s: %w", h.c.Node, err)
	}
	return nil
}

// startNode starts the agent. A host whose release the pool has left behind waits until it
// has been upgraded, which it sees to by itself meanwhile.
func (h *daemon) startNode(ctx context.Context, g *errgroup.Group) error {
	for {
		err := h.node.start(ctx, g)
		if err == nil {
			h.works.Store(h.node)
			return nil
		}
		if !errors.Is(err, errs.Unsupported) || h.id == nil {
			return err
		}
		h.log.Error("this host does not work for its pool", "error", err, "hint", errs.HintOf(err))
		if h.clk.Sleep(ctx, followAgain) != nil {
			return ctx.Err()
		}
	}
}

// register makes this process's own agent reachable for its API.
func (h *daemon) register(ctx context.Context, p *plane) {
	if h.node == nil {
		return
	}
	dial, drained := tunnel.Local(ctx, h.node.agent.Handle)
	p.hub.Register(h.c.Node, dial)
	h.parts.Go(func() { <-ctx.Done(); drained() })
}

// adoptAuthority takes over the pool's authority, so that this host can sign for it, too.
func (h *daemon) adoptAuthority(bundle string) error {
	return auth.NewCA(filepath.Join(h.c.State, "pki"), h.clk, rand.Reader).Adopt([]byte(bundle))
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
	h.id, err = join.Found(h.c.State, joinDeps(), &api.JoinAnswer{Node: h.c.Node, Role: h.role, Certificate: string(cert), Authority: string(authority),
		Endpoints: ends, Pool: api.PoolSettings{Subnet: h.c.Subnet}})
	return err
}
