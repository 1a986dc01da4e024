package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
	"atoll/internal/store/remote"
)

// membership is what a host must know at its start that keeps the pool's state with
// others: STATE/member.json. It is written before the host takes part.
type membership struct {
	Listen    string            `json:"listen"`
	Advertise string            `json:"advertise"`
	Cluster   map[string]string `json:"cluster,omitempty"` // the members there were, by name; for the first start only
	Join      bool              `json:"join,omitempty"`    // it came to a group that was there
}

func memberFile(state string) string { return filepath.Join(state, "member.json") }

// readMembership gives nil where there is none.
func readMembership(state string) (*membership, error) {
	b, err := os.ReadFile(memberFile(state))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // this host keeps no state with others
	}
	if err != nil {
		return nil, errs.New(errs.Internal, "read member.json: %w", err)
	}
	m := &membership{}
	if err := json.Unmarshal(b, m); err != nil || m.Listen == "" {
		return nil, errs.New(errs.Invalid, "%s cannot be read", memberFile(state)).WithHint("atolld recover --help")
	}
	return m, nil
}

func (m *membership) save(state string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return errs.New(errs.Internal, "write member.json: %w", err)
	}
	return join.WriteFile(memberFile(state), append(b, '\n'))
}

// peers is how the store meets the others; the zero value is alone.
func (m *membership) peers(c config) etcdstore.Peers {
	if m == nil {
		return etcdstore.Peers{}
	}
	file := func(name string) string { return filepath.Join(c.State, "pki", name) }
	return etcdstore.Peers{Listen: m.Listen, Advertise: m.Advertise, Cluster: m.Cluster, Join: m.Join,
		CertFile: file("member.crt"), KeyFile: file("node.key"), CAFile: file("ca.crt"), Subject: auth.MemberName}
}

// hostOf is the host of a URL such as https://10.0.0.1:7443.
func hostOf(url string) string {
	h, _, err := net.SplitHostPort(strings.TrimPrefix(url, "https://"))
	if err != nil {
		return ""
	}
	return h
}

// reachable says where other members would reach this host's copy of the state.
func reachable(c config) (*membership, error) {
	ends := serverConfig(c).Advertise
	if len(ends) == 0 {
		return nil, errs.New(errs.Unsupported, "this host's API listens on %q only, so it cannot keep the state with others", c.Listen).
			WithHint("start atolld with --listen 0.0.0.0:7443, or --listen ADDRESS:7443; instances run on meanwhile")
	}
	listen := c.PeerListen
	if listen == "" {
		h, p, err := net.SplitHostPort(c.Listen)
		if err != nil {
			return nil, errs.New(errs.Invalid, "listen %q: %w", c.Listen, err)
		}
		n, err := strconv.Atoi(p)
		if err != nil {
			return nil, errs.New(errs.Invalid, "listen %q: the port must be a number", c.Listen)
		}
		if h == "" {
			h = "0.0.0.0"
		}
		listen = net.JoinHostPort(h, strconv.Itoa(n+1))
	}
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, errs.New(errs.Invalid, "peer-listen %q: %w", listen, err)
	}
	return &membership{Listen: "https://" + listen, Advertise: "https://" + net.JoinHostPort(hostOf(ends[0]), port)}, nil
}

// Reach makes this process's copy of the state reachable for others; it is the first
// step from one member to three. Calls wait for that moment.
func (p *plane) Reach(ctx context.Context) (peer, api string, err error) {
	p.grow.Lock()
	defer p.grow.Unlock()
	m, err := readMembership(p.c.State)
	if err != nil {
		return "", "", err
	}
	if m == nil {
		if m, err = reachable(p.c); err != nil {
			return "", "", err
		}
		if err := m.save(p.c.State); err != nil {
			return "", "", err
		}
	}
	ends := serverConfig(p.c).Advertise
	if err := certify(p.c, p.ca, m); err != nil {
		return "", "", err
	}
	if p.base.Sole() {
		if err := p.base.Regroup(ctx, m.peers(p.c)); err != nil {
			return "", "", errors.Join(err, os.Remove(memberFile(p.c.State)))
		}
		p.log.Info("other hosts can keep the state with this one", "peer", m.Advertise)
	}
	return m.Advertise, ends[0], nil
}

// certify makes the certificate by which other members know this one. A server has the
// authority, so it needs nobody for that.
func certify(c config, ca *auth.CA, m *membership) error {
	csr, err := join.Sign(c.State, joinDeps())
	if err != nil {
		return err
	}
	u, err := url.Parse(m.Advertise)
	if err != nil {
		return errs.New(errs.Internal, "member.json: %w", err)
	}
	cert, err := ca.SignMember(csr, u.Hostname())
	if err != nil {
		return err
	}
	return join.WriteFile(filepath.Join(c.State, "pki", "member.crt"), cert)
}

const (
	// certifyEvery is a part of a day: a certificate lasts one, and is read at every connection.
	certifyEvery = 6 * time.Hour
	// certifyAgain is the pause after a certificate could not be had, certifyPatience how long it may take.
	certifyAgain    = 5 * time.Minute
	certifyPatience = 10 * time.Second
)

// keepCertified renews this member's certificate while there are others.
func (h *daemon) keepCertified(ctx context.Context, p *plane) error {
	for {
		if m, err := readMembership(h.c.State); err != nil {
			h.log.Error("the certificate of this member", "error", err)
		} else if m != nil {
			if err := certify(h.c, p.ca, m); err != nil {
				h.log.Error("the certificate of this member", "error", err)
			}
		}
		if h.clk.Sleep(ctx, certifyEvery) != nil {
			return ctx.Err()
		}
	}
}

// ended waits for the end of the store where it should have none: the process begins
// anew, and finds out what this host is.
func (h *daemon) ended(ctx context.Context, p *plane) error {
	err := p.base.Ended(ctx)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if h.id == nil { // there is nobody else it could have been taken out by
		return err
	}
	return fmt.Errorf("%w: %w", errAgain, err)
}

// forgetMembership puts the copy of the state away: it is not kept current any more. One
// old copy is kept, for the case that those who say so are wrong.
func forgetMembership(state string) error {
	if err := os.Remove(memberFile(state)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Internal, "forget the membership: %w", err)
	}
	return putAway(state)
}

// putAway moves a copy of the state to where nothing looks for one.
func putAway(state string) error {
	now, old := filepath.Join(state, "etcd"), filepath.Join(state, "etcd.old")
	if _, err := os.Lstat(now); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := os.RemoveAll(old)
	if err == nil {
		err = os.Rename(now, old)
	}
	if err != nil {
		return errs.New(errs.Internal, "put the old copy of the state away: %w", err)
	}
	return nil
}

const (
	partPoll  = 2 * time.Second // where it cannot be watched
	partAgain = 15 * time.Second
	// dismissWait bounds asking whether this host is a member before it begins as one.
	dismissWait = 2 * time.Second
)

// takePart follows whether this host is wanted among those that keep the state: it
// begins when it is, and clears up when it no longer is. mem is what an earlier process
// left; nil: this host keeps nothing.
func (h *daemon) takePart(ctx context.Context, rs *remote.Store, mem *membership) error {
	if h.c.EtcdEndpoints != "" && h.role != api.RoleWitness {
		return h.serveShared(ctx, rs)
	}
	for ctx.Err() == nil {
		if mem == nil {
			m, err := h.asked(ctx, rs)
			if err != nil {
				return err
			}
			mem = m
		}
		err := h.member(ctx, rs, mem)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		h.log.Warn("this host does not keep the pool's state now", "error", err)
		if errors.Is(err, errDismissed) || h.dismissed(ctx, rs) {
			if err := forgetMembership(h.c.State); err != nil {
				return err
			}
			if err := h.id.Demote(); err != nil {
				return err
			}
			mem = nil
			continue
		}
		_ = h.clk.Sleep(ctx, partAgain) // ends early only with ctx
	}
	return ctx.Err()
}

// errDismissed: the pool, which others keep, has no such member.
var errDismissed = errs.New(errs.Conflict, "others keep the pool's state without this host")

// member keeps the state until that ends. A copy that others have given up meanwhile, also
// because one of them was made the only one, belongs to a group that is no more: alone it
// would wait for that without end, and together with others like it bring it back.
func (h *daemon) member(ctx context.Context, rs *remote.Store, mem *membership) error {
	first, cancel := context.WithTimeout(ctx, dismissWait)
	gone := h.dismissed(first, rs)
	cancel()
	if gone {
		return errDismissed
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	opened := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop(nil)
	wg.Go(func() {
		for h.clk.Sleep(ctx, partAgain) == nil {
			select {
			case <-opened:
				return
			default:
			}
			if h.dismissed(ctx, rs) {
				stop(errDismissed)
			}
		}
	})
	keep := h.keepState
	if h.role == api.RoleWitness {
		keep = func(ctx context.Context, mem *membership, opened func()) error {
			return h.bearWitness(ctx, rs, mem, opened)
		}
	}
	err := keep(ctx, mem, func() { once.Do(func() { close(opened) }) })
	if errors.Is(context.Cause(ctx), errDismissed) {
		return errDismissed
	}
	return err
}

// dismissed reports whether the pool, which others keep, says that this host is no
// member, or has chosen it anew: then it waits for a copy that begins with nothing. As
// long as nobody can say so, it may be one.
func (h *daemon) dismissed(ctx context.Context, rs *remote.Store) bool {
	m, err := store.Get[*api.Member](ctx, rs, api.Ref{Kind: api.KindMember, Name: h.c.Node})
	return errors.Is(err, errs.NotFound) || err == nil && m.Spec.State == api.MemberWanted
}

// serveShared answers the API of a pool whose state is in an external etcd.
func (h *daemon) serveShared(ctx context.Context, rs *remote.Store) error {
	if err := h.shared(ctx, rs); err != nil {
		return err
	}
	for ctx.Err() == nil {
		err := h.keepState(ctx, nil, func() {})
		if ctx.Err() == nil {
			h.log.Warn("this host does not answer the API now", "error", err)
			_ = h.clk.Sleep(ctx, partAgain) // ends early only with ctx
		}
	}
	return ctx.Err()
}

// keepState runs the control plane's part of this host until it ends. mem is nil with an
// external etcd; opened is told that the store serves.
func (h *daemon) keepState(ctx context.Context, mem *membership, opened func()) error {
	if mem != nil { // before the others are met, who may be waited for: the old one may have ended
		if err := certify(h.c, auth.NewCA(filepath.Join(h.c.State, "pki"), h.clk, rand.Reader), mem); err != nil {
			return err
		}
	}
	p, err := openPlane(ctx, h.c, mem.peers(h.c), h.clk, h.log)
	if err != nil {
		return err
	}
	opened()
	h.plane.Store(p)
	defer func() {
		h.plane.Store(nil)
		_ = p.base.Close() // what is acknowledged is on the disk
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.mirror(ctx) })
	g.Go(func() error { return p.keepLevel(ctx) })
	g.Go(func() error { return p.lead(ctx) })
	g.Go(func() error { return h.keepCertified(ctx, p) })
	g.Go(func() error { return p.announce(ctx) })
	g.Go(func() error { return p.base.Ended(ctx) })
	g.Go(func() error { return p.serve(ctx) })
	h.register(ctx, p)
	h.log.Info("this host serves the pool's state")
	return g.Wait()
}

// asked waits until this host is wanted, asks for its part, and keeps what it needs.
func (h *daemon) asked(ctx context.Context, rs *remote.Store) (got *membership, err error) {
	ctx, done := context.WithCancel(ctx)
	defer done()
	look := func() (int64, error) {
		m, rev, err := h.ask(ctx, rs)
		if m != nil {
			got = m
			done()
		} else if err != nil && ctx.Err() == nil {
			h.log.Warn("this host should keep the pool's state; trying again", "error", err)
		}
		return rev, err
	}
	if h.rep != nil {
		onChange(ctx, h.clk, h.rep, api.Selector{Kind: api.KindMember, Name: h.c.Node}, look)
	} else { // a host that runs nothing may only read its own membership; there are few of them
		for ctx.Err() == nil {
			_, _ = look()                  // has said what is wrong
			_ = h.clk.Sleep(ctx, partPoll) // ends early only with ctx
		}
	}
	if got == nil {
		return nil, ctx.Err()
	}
	return got, nil
}

// ask gives nil when this host is not wanted, as of a revision where that can be watched.
// The replica may be behind, so what it shows is only why to ask.
func (h *daemon) ask(ctx context.Context, rs *remote.Store) (*membership, int64, error) {
	var rev int64
	if h.rep != nil {
		list, at, err := store.List[*api.Member](ctx, h.rep, api.Selector{Kind: api.KindMember, Name: h.c.Node})
		if err != nil {
			return nil, 0, err
		}
		if len(list) == 0 {
			return nil, at, nil
		}
		rev = at
	}
	m, err := store.Get[*api.Member](ctx, rs, api.Ref{Kind: api.KindMember, Name: h.c.Node})
	if errors.Is(err, errs.NotFound) || err == nil && m.Spec.State == api.MemberLeaving {
		return nil, rev, nil
	}
	if err != nil {
		return nil, 0, err
	}
	mine, err := h.join(ctx, rs, m)
	return mine, rev, err
}

// join takes the part that this host is wanted for. One that votes and comes here has lost
// its copy, with its disk: it begins anew.
func (h *daemon) join(ctx context.Context, rs *remote.Store, m *api.Member) (mine *membership, err error) {
	req := api.TakePartRequest{Fresh: m.Spec.State == api.MemberVoter}
	if h.role == api.RoleWitness {
		mine, err = reachableWitness(h.c)
	} else if mine, err = reachable(h.c); err == nil {
		req.API = serverConfig(h.c).Advertise[0]
	}
	if err != nil {
		return nil, err
	}
	req.Peer = mine.Advertise
	ans, err := h.part(ctx, rs, req)
	if err != nil {
		return nil, err
	}
	if h.role != api.RoleWitness {
		if err := h.adoptAuthority(ans.Authority); err != nil {
			return nil, err
		}
	}
	if err := join.WriteFile(filepath.Join(h.c.State, "pki", "member.crt"), []byte(ans.Certificate)); err != nil {
		return nil, err
	}
	// What an earlier part left belongs to a member that is no more.
	if err := putAway(h.c.State); err != nil {
		return nil, err
	}
	mine.Cluster, mine.Join = ans.Cluster, true
	return mine, mine.save(h.c.State)
}

// part asks for this host's part, by its key.
func (h *daemon) part(ctx context.Context, rs *remote.Store, req api.TakePartRequest) (*api.TakePartAnswer, error) {
	csr, err := join.Sign(h.c.State, joinDeps())
	if err != nil {
		return nil, err
	}
	req.CSR = string(csr)
	return rs.TakePart(ctx, h.c.Node, req)
}

// witnessPort is where a witness is reached unless the settings say otherwise: the same as on servers.
const witnessPort = "7444"

// reachableWitness says where other members would reach this witness's copy of the state.
func reachableWitness(c config) (*membership, error) {
	listen := c.PeerListen
	if listen == "" {
		listen = "0.0.0.0:" + witnessPort
	}
	h, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, errs.New(errs.Invalid, "peer-listen %q: %w", listen, err)
	}
	ip := net.ParseIP(h)
	switch {
	case c.Advertise != "":
		ends, err := advertised(config{Listen: listen, Advertise: c.Advertise})
		if err != nil || len(ends) == 0 {
			return nil, errs.New(errs.Invalid, "advertise %q is not host:port", c.Advertise)
		}
		return &membership{Listen: "https://" + listen, Advertise: ends[0]}, nil
	case h == "" || ip != nil && ip.IsUnspecified():
		own := ownAddresses(c.Subnet)
		if len(own) == 0 {
			return nil, errs.New(errs.Unsupported, "no address is known by which the other members reach this witness").WithHint("start it with --peer-listen ADDRESS:%s, or --advertise ADDRESS:PORT", witnessPort)
		}
		h = own[0]
	case h == "localhost" || ip != nil && ip.IsLoopback():
		return nil, errs.New(errs.Unsupported, "other members cannot reach a witness that listens on %q", listen).WithHint("--peer-listen 0.0.0.0:%s", witnessPort)
	}
	return &membership{Listen: "https://" + listen, Advertise: "https://" + net.JoinHostPort(h, port)}, nil
}
