package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
	"atoll/internal/store/remote"
)

// runServer runs a host that answers the API and runs no instances. Where no pool was
// joined, one begins here.
func runServer(ctx context.Context, args []string) error { return runHost(ctx, "server", args) }

// runWitness runs a host that keeps the pool's state and votes, and does nothing else.
func runWitness(ctx context.Context, args []string) error { return runHost(ctx, "witness", args) }

// roleAs is what this host is, and refuses a verb that is for another part.
func roleAs(verb string, c config) (api.JoinRole, error) {
	id, err := join.Load(c.State, joinDeps())
	switch {
	case errors.Is(err, errs.NotFound) && verb == "server":
		return api.RoleServer, nil
	case errors.Is(err, errs.NotFound) && verb == "witness":
		return "", errs.New(errs.Conflict, "this host has joined no pool, and a witness cannot begin one").
			WithHint("on a host of the pool: atoll node token --role witness; here: atolld join https://HOST:7443 --token TOKEN")
	case errors.Is(err, errs.NotFound):
		return api.RoleNode, nil
	case err != nil:
		return "", err
	}
	return roleFor(verb, id.Role(), id.Node())
}

// roleFor holds a verb against the role a host joined as. atolld up does for every one.
func roleFor(verb string, role api.JoinRole, node string) (api.JoinRole, error) {
	if verb == "up" || verb == string(role) {
		return role, nil
	}
	right := "atolld " + string(role)
	if role == api.RoleNode {
		right = "atolld up"
	}
	return "", errs.New(errs.Conflict, "this host is in its pool as %s, a %s", node, role).
		WithHint("run: %s. To make it a %s: atoll node remove %s, here atolld down --data, and join with a token of atoll node token --role %s", right, verb, node, verb)
}

// as gives the settings their meaning for a role.
func (c config) as(role api.JoinRole) config {
	if role == api.RoleServer && c.Listen == defaults().Listen {
		c.Listen = "0.0.0.0:7443" // an API for this host only would be of no use
	}
	return c
}

// claimDirs makes the directories of a role; only where instances run must they be in memory.
func claimDirs(c config, role api.JoinRole) (unlock func(), err error) {
	if err := join.Blocked(c.State); err != nil {
		return nil, err
	}
	if role == api.RoleNode {
		return prepareDirs(c)
	}
	if err := makeDirs(c); err != nil {
		return nil, err
	}
	return lockDirs(c)
}

// pulse sends signs of life for a host that runs nothing. Whoever it is that ends, the
// host is not waited for: what it keeps may be what the others wait for.
func (h *daemon) pulse(ctx context.Context, g *errgroup.Group, dir directory) {
	b := newHeart(heartDeps{c: h.c, clk: h.clk, log: h.log, id: h.id, plane: h.plane.Load, dir: dir})
	b.connect(silent)
	g.Go(func() error {
		if err := b.begin(ctx, g); err != nil {
			return err
		}
		b.keep(ctx, g)
		h.beats.Store(b.holder)
		return nil
	})
}

// mayBegin refuses to begin a pool in an external etcd that has one: it would have two
// authorities, and its hosts could not know each other.
func (h *daemon) mayBegin(ctx context.Context, p *plane) error {
	if h.c.EtcdEndpoints == "" {
		return nil
	}
	ids, _, err := store.List[*api.NodeIdentity](ctx, p.base, api.Selector{Kind: api.KindNodeIdentity})
	if err != nil {
		return fmt.Errorf("look at the pool in etcd: %w", err)
	}
	if len(ids) == 0 {
		return nil
	}
	key, err := join.KeyHash(h.c.State, rand.Reader)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if id.Spec.KeyHash == key {
			return nil // this host began it
		}
	}
	return errs.New(errs.Conflict, "there is a pool in this etcd already, of %s and %d more hosts", ids[0].Name, len(ids)-1).
		WithHint("join it: on one of its servers atoll node token --role server, here atolld join, then the same command again")
}

// announceEvery is between looks at this server's own entry among the members.
const announceEvery = 5 * time.Second

// announce tells where this server answers the API, where nobody else does it: with an
// external etcd. It takes that back when it ends in good order.
func (p *plane) announce(ctx context.Context) error {
	ends := serverConfig(p.c).Advertise
	if p.c.EtcdEndpoints == "" || len(ends) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		if err := p.putSelf(ctx, api.MemberSpec{State: api.MemberVoter, API: ends[0]}); err != nil && ctx.Err() == nil {
			p.log.Warn("cannot tell the others where this server answers", "error", err)
		}
		if p.clk.Sleep(ctx, announceEvery) != nil {
			break
		}
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := p.base.Commit(bye, store.Remove(api.Ref{Kind: api.KindMember, Name: p.c.Node}, store.Any)); err != nil && !errors.Is(err, errs.NotFound) {
		p.log.Debug("the others find out by themselves that this server has ended", "error", err)
	}
	return ctx.Err()
}

// putSelf writes this server's entry among the members, past every other server.
func (p *plane) putSelf(ctx context.Context, spec api.MemberSpec) error {
	ref := api.Ref{Kind: api.KindMember, Name: p.c.Node}
	now := p.clk.Now().UTC()
	have, err := store.Get[*api.Member](ctx, p.base, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	next := &api.Member{Head: api.Head{K: api.KindMember, Meta: api.Meta{Name: ref.Name, UID: newUID(), CreatedAt: &now}}}
	op := store.Create(next)
	if err == nil {
		if have.Spec.State == spec.State && have.Spec.API == spec.API {
			return nil
		}
		next = api.Clone(have)
		op = store.Update(next)
	}
	next.Spec = spec
	next.Spec.Since = now
	_, err = p.base.Commit(ctx, op)
	return err
}

// endpoints are the servers, as this one knows them.
func (p *plane) endpoints(ctx context.Context) ([]string, int64, error) {
	list, rev, err := store.List[*api.Member](ctx, p.st, api.Selector{Kind: api.KindMember})
	return voters(list), rev, err
}

// shared waits until this host has the authority of a pool whose state is in an external
// etcd. Who may write there may have it, and shows that by a Member in it.
func (h *daemon) shared(ctx context.Context, rs *remote.Store) error {
	ends := serverConfig(h.c).Advertise
	if len(ends) == 0 {
		return errs.New(errs.Unsupported, "this host's API listens on %q only, so it can be no server of the pool", h.c.Listen).
			WithHint("start atolld with --listen 0.0.0.0:7443, or --listen ADDRESS:7443")
	}
	base, err := openStore(ctx, h.c, etcdstore.Peers{}, h.clk, h.log)
	if err != nil {
		return err
	}
	defer base.Close()
	if _, err := store.Get[*api.NodeIdentity](ctx, base, api.Ref{Kind: api.KindNodeIdentity, Name: h.c.Node}); errors.Is(err, errs.NotFound) {
		return errs.New(errs.Conflict, "the etcd at %s does not have the pool that this host has joined", h.c.EtcdEndpoints).WithHint("give the --etcd-endpoints that the pool's other servers have")
	} else if err != nil {
		return err
	}
	p := &plane{c: h.c, clk: h.clk, log: h.log, base: base}
	for {
		err := p.putSelf(ctx, api.MemberSpec{State: api.MemberWanted, API: ends[0], Message: "waits for the pool's authority"})
		var ans *api.TakePartAnswer
		if err == nil {
			ans, err = h.part(ctx, rs, api.TakePartRequest{API: ends[0]})
		}
		if err == nil {
			return h.adoptAuthority(ans.Authority)
		}
		h.log.Warn("this host does not have the pool's authority yet; trying again", "error", err)
		if err := h.clk.Sleep(ctx, partPoll); err != nil {
			return err
		}
	}
}

// witnessMemory is what a witness may keep of memory that it could give back, in bytes.
const witnessMemory = 32 << 20

// witness begins on a host that keeps the state and votes, and needs nothing else of the
// pool than an answer of a server, and the other members.
func (h *daemon) witness(ctx context.Context, g *errgroup.Group, mem *membership) error {
	debug.SetMemoryLimit(witnessMemory)
	debug.SetGCPercent(50)
	rs, err := remoteStore(h.id)
	if err != nil {
		return err
	}
	g.Go(func() error { return h.takePart(ctx, rs, mem) })
	h.pulse(ctx, g, told(rs))
	h.tell(ctx, g, rs)
	return nil
}

// tell is a host's part in upgrades that has no Node to tell of itself in.
func (h *daemon) tell(ctx context.Context, g *errgroup.Group, rs *remote.Store) {
	g.Go(func() error {
		return h.up.Tell(ctx, func(ctx context.Context, st api.NodeIdentityStatus) (*api.Upgrade, error) {
			return rs.TellVersion(ctx, h.id.Node(), st)
		})
	})
}

// bearWitness keeps a copy of the state until it ends.
func (h *daemon) bearWitness(ctx context.Context, rs *remote.Store, mem *membership, opened func()) error {
	if err := h.recertify(ctx, rs, mem); err != nil {
		h.log.Warn("the certificate of this witness could not be renewed", "error", err)
	}
	base, err := openStore(ctx, h.c, mem.peers(h.c), h.clk, h.log)
	if err != nil {
		return err
	}
	opened()
	h.copy.Store(base)
	defer h.copy.Store(nil)
	defer base.Close()
	debug.FreeOSMemory() // what opening took is not needed again
	h.log.Info("this host keeps the pool's state, as a witness", "peer", mem.Advertise)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return base.Ended(ctx) })
	g.Go(func() error {
		return base.Yield(ctx, func(ctx context.Context, p store.Peer) bool {
			m, err := store.Get[*api.Member](ctx, base, api.Ref{Kind: api.KindMember, Name: p.Name})
			return err == nil && !m.Spec.Witness
		})
	})
	g.Go(func() error {
		for wait := certifyEvery; h.clk.Sleep(ctx, wait) == nil; {
			wait = certifyEvery
			if err := h.recertify(ctx, rs, mem); err != nil {
				h.log.Warn("the certificate of this witness could not be renewed; trying again", "error", err)
				wait = certifyAgain
			}
		}
		return ctx.Err()
	})
	return g.Wait()
}

// recertify asks for the certificate by which the other members know a witness: it has no
// authority to make one itself.
func (h *daemon) recertify(ctx context.Context, rs *remote.Store, mem *membership) error {
	ctx, cancel := context.WithTimeout(ctx, certifyPatience)
	defer cancel()
	m, err := store.Get[*api.Member](ctx, rs, api.Ref{Kind: api.KindMember, Name: h.c.Node})
	if err != nil {
		return err
	}
	if m.Spec.State != api.MemberVoter { // a learner that asks begins anew; its certificate is new
		return nil
	}
	ans, err := h.part(ctx, rs, api.TakePartRequest{Peer: mem.Advertise})
	if err != nil {
		return err
	}
	return join.WriteFile(filepath.Join(h.c.State, "pki", "member.crt"), []byte(ans.Certificate))
}
