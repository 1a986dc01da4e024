package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// BGPPeers gathers what hosts say of their sessions with routers into the status of the routers.
type BGPPeers struct {
	said map[string][]api.BGPSession // by node, as last seen
}

// NewBGPPeers makes the controller.
func NewBGPPeers(Deps) *BGPPeers { return &BGPPeers{said: map[string][]api.BGPSession{}} }

// Name is "bgppeers".
func (c *BGPPeers) Name() string { return "bgppeers" }

// Watches nodes first: what they say is known before a peer is looked at.
func (c *BGPPeers) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindNode}, {Kind: api.KindBGPPeer}}
}

// Owns the status of peers.
func (c *BGPPeers) Owns() []api.Kind { return []api.Kind{api.KindBGPPeer} }

// Reconcile looks at one peer, or at those that a node has something new about.
func (c *BGPPeers) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if ref.Kind == api.KindBGPPeer {
		return reconcile.Result{}, c.gather(ctx, s, ref)
	}
	n, err := store.Get[*api.Node](ctx, s, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	was := c.said[ref.Name]
	var now []api.BGPSession
	if err == nil {
		now = n.Status.BGP
	}
	// A node says much else every few seconds.
	if reflect.DeepEqual(was, now) {
		return reconcile.Result{}, nil
	}
	if c.said[ref.Name] = now; len(now) == 0 {
		delete(c.said, ref.Name)
	}
	var res reconcile.Result
	for _, x := range append(slices.Clone(was), now...) {
		if p := (api.Ref{Kind: api.KindBGPPeer, Name: x.Peer}); !slices.Contains(res.Also, p) {
			res.Also = append(res.Also, p)
		}
	}
	return res, nil
}

// gather writes what is said of one peer, if that is new.
func (c *BGPPeers) gather(ctx context.Context, s store.Store, ref api.Ref) error {
	p, err := store.Get[*api.BGPPeer](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	next := api.Clone(p)
	if next.Status = statusOf(p.Name, c.said); reflect.DeepEqual(p.Status, next.Status) {
		return nil
	}
	if _, err := s.Commit(ctx, store.Update(next)); err != nil {
		return fmt.Errorf("status of %s: %w", ref, err)
	}
	return nil
}

// statusOf lists the sessions with a peer, those that are none first.
func statusOf(peer string, said map[string][]api.BGPSession) api.BGPPeerStatus {
	var st api.BGPPeerStatus
	for node, list := range said {
		for _, x := range list {
			if x.Peer != peer {
				continue
			}
			if st.Hosts++; x.State == api.BGPEstablished {
				st.Established++
			}
			x.Peer, x.Node = "", node
			st.Sessions = append(st.Sessions, x)
		}
	}
	slices.SortFunc(st.Sessions, func(a, b api.BGPSession) int {
		if up := a.State == api.BGPEstablished; up != (b.State == api.BGPEstablished) {
			if up {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.Node, b.Node)
	})
	st.Sessions = st.Sessions[:min(len(st.Sessions), api.MaxBGPSessions)]
	return st
}
