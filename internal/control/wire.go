package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// What instances are on the networks of their tenants is decided here, together with
// where they run: an Endpoint is written in the transaction of the Assignment.

// loadNetworks notes all networks, and what is taken on them.
func (p *Placement) loadNetworks(ctx context.Context, s store.Store) error {
	networks, _, err := store.List[*api.Network](ctx, s, api.Selector{Kind: api.KindNetwork})
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	endpoints, _, err := store.List[*api.Endpoint](ctx, s, api.Selector{Kind: api.KindEndpoint})
	if err != nil {
		return fmt.Errorf("list endpoints: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range networks {
		p.nets.SetNetwork(n)
	}
	for _, e := range endpoints {
		p.nets.Take(e.Tenant, e.Spec.InstanceUID, e.Spec.Labels, e.Spec.Interfaces)
		p.plugs[e.Spec.InstanceUID] = socket{api.Ref{Kind: api.KindInstance, Tenant: e.Tenant, Name: e.Name}, e.Spec.Node, e.Spec.Tunnel}
	}
	return nil
}

// interfaces is what an instance has on its networks.
func (p *Placement) interfaces(uid string) []api.Interface {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nets.Has(uid)
}

// socket is where an endpoint says that its instance is.
type socket struct {
	ref          api.Ref
	node, tunnel string
}

// retunnelled names the instances on a host that is reached by another address than their endpoints say. One
// that says none now, as after it was started with another version, until it has found out what it can do, is where it was.
func (p *Placement) retunnelled(n *api.Node) []api.Ref {
	var out []api.Ref
	for _, s := range p.plugs {
		if s.node == n.Name && n.Tunnel() != "" && s.tunnel != n.Tunnel() {
			out = append(out, s.ref)
		}
	}
	return out
}

// tunnel is the address by which an instance's host is reached: what it says, or said last.
func (p *Placement) tunnel(uid, node string) string {
	if n := p.view.Node(node); n != nil && n.Object.Tunnel() != "" {
		return n.Object.Tunnel()
	}
	if s := p.plugs[uid]; s.node == node {
		return s.tunnel
	}
	return ""
}

// plug writes an instance's Endpoint. Nobody else does, and the Assignment that goes with
// it is written at its revision: so this one needs none.
func (p *Placement) plug(in *api.Instance, node string, interfaces []api.Interface) store.Op {
	ref := api.RefOf(in)
	p.mu.Lock()
	tunnel := p.tunnel(in.UID, node)
	p.plugs[in.UID] = socket{ref, node, tunnel}
	p.mu.Unlock()
	labels := map[string]string{}
	for _, i := range interfaces {
		labels[api.NetworkLabel(i.Network)] = ""
	}
	e := &api.Endpoint{Head: api.Head{K: api.KindEndpoint, Meta: api.Meta{Name: in.Name, Tenant: in.Tenant, UID: in.UID, Owner: &ref, Labels: labels, CreatedAt: in.CreatedAt}},
		Spec: api.EndpointSpec{InstanceUID: in.UID, Node: node, Tunnel: tunnel, Interfaces: interfaces, Labels: in.Labels}}
	return store.Op{Verb: store.Put, Object: e, Rev: store.Any}
}

// unplug adds the removal of an instance's Endpoint, if it has one.
func (p *Placement) unplug(ops []store.Op, ref api.Ref, uid string) []store.Op {
	if len(p.interfaces(uid)) == 0 {
		return ops
	}
	ref.Kind = api.KindEndpoint
	return append(ops, store.Remove(ref, store.Any))
}

// wires is what an Assignment says of interfaces: identities are the Endpoint's, which
// change with labels.
func wires(interfaces []api.Interface) []api.Interface {
	out := slices.Clone(interfaces)
	for i := range out {
		out[i].Identity = 0
	}
	return out
}

// rewire follows what is changed about an instance that has a node: its labels, which
// are what rules are about, and its networks, which it is on from its next start.
func (p *Placement) rewire(ctx context.Context, s store.Store, in *api.Instance, a *api.Assignment) error {
	if in.DeletedAt != nil || !in.Spec.OnNetworks() {
		return nil
	}
	p.mu.Lock()
	had := p.nets.Has(in.UID)
	labels, at, tunnel := p.nets.Labels(in.UID), p.plugs[in.UID], p.tunnel(in.UID, a.Spec.Node)
	now, err := p.nets.Give(in)
	p.mu.Unlock()
	if err != nil {
		return nil // it runs on with what it has; the next start tells
	}
	same := slices.Equal(had, now) && maps.Equal(labels, in.Labels)
	if same && at.node == a.Spec.Node && at.tunnel == tunnel {
		return nil
	}
	ops := []store.Op{store.Expect(api.RefOf(in), in.Revision), store.Expect(api.RefOf(a), a.Revision), p.plug(in, a.Spec.Node, now)}
	if w := wires(now); !slices.Equal(w, a.Spec.Interfaces) {
		next := api.Clone(a)
		next.Spec.Interfaces = w
		ops[1] = store.Update(next)
	}
	if _, err = s.Commit(ctx, ops...); err == nil {
		return nil
	}
	p.mu.Lock()
	p.nets.Take(in.Tenant, in.UID, labels, had)
	p.plugs[in.UID] = at
	p.mu.Unlock()
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Conflict) {
		return nil // whoever changed it wakes us
	}
	return fmt.Errorf("wire %s: %w", api.RefOf(in), err)
}
