package main

import (
	"context"
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
	if err := p.certify(m); err != nil {
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
func (p *plane) certify(m *membership) error {
	csr, err := join.Sign(p.c.State, joinDeps())
	if err != nil {
		return err
	}
	u, err := url.Parse(m.Advertise)
	if err != nil {
		return errs.New(errs.Internal, "member.json: %w", err)
	}
	cert, err := p.ca.SignMember(csr, u.Hostname())
	if err != nil {
		return err
	}
	return join.WriteFile(filepath.Join(p.c.State, "pki", "member.crt"), cert)
}

// certifyEvery is a part of a day: a certificate lasts one, and is read at every connection.
const certifyEvery = 6 * time.Hour

// keepCertified renews this member's certificate while there are others.
func (p *plane) keepCertified(ctx context.Context) error {
	for {
		if m, err := readMembership(p.c.State); err != nil {
			p.log.Error("the certificate of this member", "error", err)
		} else if m != nil {
			if err := p.certify(m); err != nil {
				p.log.Error("the certificate of this member", "error", err)
			}
		}
		if p.clk.Sleep(ctx, certifyEvery) != nil {
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

// forgetMembership removes the copy of the state: it is not kept current any more.
func forgetMembership(state string) error {
	if err := os.Remove(memberFile(state)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Internal, "forget the membership: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(state, "etcd")); err != nil {
		return errs.New(errs.Internal, "remove the old copy of the state: %w", err)
	}
	return nil
}

const (
	partPoll  = 2 * time.Second
	partAgain = 15 * time.Second
)

// takePart follows whether this host is wanted among those that keep the state: it
// begins when it is, and clears up when it no longer is. mem is what an earlier process
// left; nil: this host keeps nothing.
func (h *daemon) takePart(ctx context.Context, rs *remote.Store, mem *membership) error {
	for ctx.Err() == nil {
		if mem == nil {
			m, err := h.asked(ctx, rs)
			if err != nil {
				return err
			}
			mem = m
		}
		err := h.keepState(ctx, mem)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		h.log.Warn("this host does not keep the pool's state now", "error", err)
		if h.dismissed(ctx, rs) {
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

// dismissed reports whether the pool, which others keep, says that this host is no
// member. As long as nobody can say so, it may be one.
func (h *daemon) dismissed(ctx context.Context, rs *remote.Store) bool {
	_, err := store.Get[*api.Member](ctx, rs, api.Ref{Kind: api.KindMember, Name: h.c.Node})
	return errors.Is(err, errs.NotFound)
}

// keepState runs the control plane's part of this host until it ends.
func (h *daemon) keepState(ctx context.Context, mem *membership) error {
	p, err := openPlane(ctx, h.c, mem.peers(h.c), h.clk, h.log)
	if err != nil {
		return err
	}
	h.plane.Store(p)
	defer func() {
		h.plane.Store(nil)
		_ = p.base.Close() // what is acknowledged is on the disk
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.mirror(ctx) })
	g.Go(func() error { return p.keepLevel(ctx) })
	g.Go(func() error { return p.lead(ctx) })
	g.Go(func() error { return p.keepCertified(ctx) })
	g.Go(func() error { return p.base.Ended(ctx) })
	g.Go(func() error { return p.serve(ctx) })
	h.register(ctx, p)
	h.log.Info("this host keeps the pool's state", "peer", mem.Advertise)
	return g.Wait()
}

// asked waits until this host is wanted, asks for its part, and keeps what it needs.
func (h *daemon) asked(ctx context.Context, rs *remote.Store) (*membership, error) {
	for {
		m, err := h.ask(ctx, rs)
		if m != nil {
			return m, nil
		}
		if err != nil && ctx.Err() == nil {
			h.log.Warn("this host should keep the pool's state; trying again", "error", err)
		}
		if err := h.clk.Sleep(ctx, partPoll); err != nil {
			return nil, err
		}
	}
}

// ask gives nil when this host is not wanted.
func (h *daemon) ask(ctx context.Context, rs *remote.Store) (*membership, error) {
	m, err := store.Get[*api.Member](ctx, rs, api.Ref{Kind: api.KindMember, Name: h.c.Node})
	if errors.Is(err, errs.NotFound) || err == nil && m.Spec.State != api.MemberWanted && m.Spec.State != api.MemberLearner {
		return nil, nil //nolint:nilnil // not wanted
	}
	if err != nil {
		return nil, err
	}
	mine, err := reachable(h.c)
	if err != nil {
		return nil, err
	}
	csr, err := join.Sign(h.c.State, joinDeps())
	if err != nil {
		return nil, err
	}
	ans, err := rs.TakePart(ctx, h.c.Node, api.TakePartRequest{CSR: string(csr), Peer: mine.Advertise, API: serverConfig(h.c).Advertise[0]})
	if err != nil {
		return nil, err
	}
	if err := h.adoptAuthority(ans.Authority); err != nil {
		return nil, err
	}
	if err := join.WriteFile(filepath.Join(h.c.State, "pki", "member.crt"), []byte(ans.Certificate)); err != nil {
		return nil, err
	}
	// What an earlier part left belongs to a member that is no more.
	if err := os.RemoveAll(filepath.Join(h.c.State, "etcd")); err != nil {
		return nil, errs.New(errs.Internal, "remove an old copy of the state: %w", err)
	}
	mine.Cluster, mine.Join = ans.Cluster, true
	return mine, mine.save(h.c.State)
}
