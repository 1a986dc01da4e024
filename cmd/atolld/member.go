package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"atoll/api"
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
		CertFile: file("node.crt"), KeyFile: file("node.key"), CAFile: file("ca.crt")}
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
	if p.base.Sole() {
		if err := p.base.Regroup(ctx, m.peers(p.c)); err != nil {
			return "", "", errors.Join(err, os.Remove(memberFile(p.c.State)))
		}
		p.log.Info("other hosts can keep the state with this one", "peer", m.Advertise)
	}
	return m.Advertise, ends[0], nil
}

// ended waits for the end of this host's part in keeping the state, and clears up after it.
func (h *daemon) ended(ctx context.Context, p *plane) error {
	err := p.base.Ended(ctx)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if h.id == nil { // there is nobody else it could have been taken out by
		return err
	}
	h.log.Warn("this host keeps the pool's state no longer", "error", err)
	_ = p.base.Close() // it has ended
	if err := forgetMembership(h.c.State); err != nil {
		return err
	}
	if err := h.id.Demote(); err != nil {
		return err
	}
	return fmt.Errorf("%w: it was taken out of those that keep the state", errAgain)
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

const partPoll = 2 * time.Second

// partTaking follows whether this host is wanted among those that keep the state, and
// takes part when it is. What it needs for that it keeps before it begins anew.
func (h *daemon) partTaking(ctx context.Context, st store.Store) error {
	for {
		err := h.takePart(ctx, st)
		if errors.Is(err, errAgain) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			h.log.Warn("this host should keep the pool's state; trying again", "error", err)
		}
		if h.clk.Sleep(ctx, partPoll) != nil {
			return ctx.Err()
		}
	}
}

func (h *daemon) takePart(ctx context.Context, st store.Store) error {
	m, err := store.Get[*api.Member](ctx, st, api.Ref{Kind: api.KindMember, Name: h.c.Node})
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	rs, ok := st.(*remote.Store)
	if !ok || h.mem != nil || m.Spec.State != api.MemberWanted && m.Spec.State != api.MemberLearner {
		return nil
	}
	mine, err := reachable(h.c)
	if err != nil {
		return err
	}
	ans, err := rs.TakePart(ctx, h.c.Node, api.TakePartRequest{Peer: mine.Advertise, API: serverConfig(h.c).Advertise[0]})
	if err != nil {
		return err
	}
	if err := h.adoptAuthority(ans.Authority); err != nil {
		return err
	}
	mine.Cluster, mine.Join = ans.Cluster, true
	// What an earlier part left belongs to a member that is no more.
	if err := os.RemoveAll(filepath.Join(h.c.State, "etcd")); err != nil {
		return errs.New(errs.Internal, "remove an old copy of the state: %w", err)
	}
	if err := mine.save(h.c.State); err != nil {
		return err
	}
	return fmt.Errorf("%w: it keeps the pool's state from now on", errAgain)
}
