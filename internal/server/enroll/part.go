package enroll

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// TakePart lets a host that the leader wants among the members in: it is made a
// learner, and gets what a member needs. Asked again before it votes it begins anew;
// one that votes gets a new certificate. With an external etcd a server gets the authority.
func (d *Desk) TakePart(ctx context.Context, node string, req api.TakePartRequest) (*api.TakePartAnswer, error) {
	if d.CA == nil {
		return nil, errs.New(errs.Unsupported, "this server has no certificate authority")
	}
	ref := api.Ref{Kind: api.KindMember, Name: node}
	m, err := maybe[*api.Member](ctx, d.Store, ref)
	if err != nil {
		return nil, err
	}
	if m == nil || m.Spec.State == api.MemberLeaving {
		return nil, errs.New(errs.Denied, "%s is not wanted among the members", node).WithHint("the leader chooses them: atoll get members")
	}
	if f := checkPart(req, m.Spec.Witness, d.Group == nil); f != nil {
		return nil, errs.InvalidFields("member "+node, f)
	}
	key, err := auth.ParseRequest([]byte(req.CSR))
	if err != nil {
		return nil, err
	}
	id, err := maybe[*api.NodeIdentity](ctx, d.Store, identityRef(node))
	if err != nil {
		return nil, err
	}
	if id == nil {
		return nil, errs.New(errs.Denied, "%s is not a host of this pool", node)
	}
	if err := auth.GoodKey(id, key.KeyHash); err != nil {
		return nil, err
	}
	if d.Group == nil {
		return d.share(m)
	}
	if m.Spec.State == api.MemberVoter && !req.Fresh {
		return d.member(m, req)
	}
	if m.Spec.State != api.MemberWanted { // it begins anew, with nothing: what the others believe it has is gone
		if id, err := strconv.ParseUint(m.Spec.ID, 16, 64); err == nil {
			if err := d.Group.RemovePeer(ctx, id); err != nil {
				return nil, err
			}
		}
	}
	peer, err := d.Group.AddLearner(ctx, req.Peer)
	if err != nil {
		return nil, err
	}
	next := api.Clone(m)
	next.Spec.Peer, next.Spec.API, next.Spec.ID, next.Spec.Message = req.Peer, req.API, strconv.FormatUint(peer.ID, 16), "gets a copy of the state"
	if m.Spec.State != api.MemberLearner {
		next.Spec.State, next.Spec.Since = api.MemberLearner, d.now()
	}
	if _, err := d.Store.Commit(ctx, store.Update(next)); err != nil {
		return nil, fmt.Errorf("note the member %s: %w", node, err)
	}
	ans, err := d.member(m, req)
	if err != nil {
		return nil, err
	}
	peers, err := d.Group.Peers(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range peers {
		name := p.Name
		if p.ID == peer.ID {
			name = node
		}
		if name != "" { // another learner that has not begun is no member yet
			ans.Cluster[name] = p.URL
		}
	}
	return ans, nil
}

// member is what every member gets: its certificate, and the authority if it answers the API.
func (d *Desk) member(m *api.Member, req api.TakePartRequest) (*api.TakePartAnswer, error) {
	u, err := url.Parse(req.Peer)
	if err != nil {
		return nil, errs.New(errs.Invalid, "peer: %w", err)
	}
	cert, err := d.CA.SignMember([]byte(req.CSR), u.Hostname())
	if err != nil {
		return nil, err
	}
	ans := &api.TakePartAnswer{Cluster: map[string]string{}, Certificate: string(cert)}
	if m.Spec.Witness {
		return ans, nil
	}
	shared, err := d.share(m)
	if err != nil {
		return nil, err
	}
	ans.Authority = shared.Authority
	return ans, nil
}

// share gives the authority to another server on the same external etcd. Its Member is
// the proof that it may have it: only who may write everything there could make it.
func (d *Desk) share(m *api.Member) (*api.TakePartAnswer, error) {
	if m.Spec.Witness {
		return nil, errs.New(errs.Unsupported, "the state of this pool is kept by an etcd of its own: there is nothing to witness")
	}
	bundle, err := d.CA.Bundle()
	if err != nil {
		return nil, err
	}
	return &api.TakePartAnswer{Cluster: map[string]string{}, Authority: string(bundle)}, nil
}

func checkPart(req api.TakePartRequest, witness, external bool) []errs.Field {
	var f []errs.Field
	check := func(field, v string) {
		u, err := url.Parse(v)
		if err != nil || u.Scheme != "https" || u.Path != "" || u.RawQuery != "" || u.User != nil {
			f = append(f, errs.Field{Field: field, Value: clip(v), Rule: "must be https://host:port", Example: "https://10.0.0.2:7444"})
			return
		}
		if h, p, err := net.SplitHostPort(u.Host); err != nil || h == "" || p == "" || net.ParseIP(h) != nil && net.ParseIP(h).IsLoopback() {
			f = append(f, errs.Field{Field: field, Value: clip(v), Rule: "must be where other hosts reach it", Example: "https://10.0.0.2:7444"})
		}
	}
	if !external {
		check("peer", req.Peer)
	}
	if !witness {
		check("api", req.API)
	}
	return f
}

func clip(s string) string { return s[:min(len(s), 80)] }
