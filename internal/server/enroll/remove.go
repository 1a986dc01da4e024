package enroll

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Removal says how a host is to go.
type Removal struct {
	Force bool   // although instances are assigned to it: they are given up there
	Off   bool   // somebody says that it is switched off, so nothing runs there any more
	By    string // who says so
	Rev   int64  // the node must still be at this revision; 0: any
}

const evictAtOnce = 64 // assignments of one commit

// Revoke turns a host's key away, from its next request on, until it joins anew.
func (d *Desk) Revoke(ctx context.Context, node, why string) (*api.NodeIdentity, error) {
	if len(why) > 200 {
		return nil, errs.InvalidFields("revoke", []errs.Field{{Field: "why", Rule: "must be at most 200 characters", Example: "stolen"}})
	}
	for try := 0; ; try++ {
		old, err := store.Get[*api.NodeIdentity](ctx, d.Store, identityRef(node))
		if err != nil {
			return nil, err
		}
		n := api.Clone(old)
		n.Spec.Revoked = why
		n.Generation++
		rev, err := d.commit(ctx, store.Update(n))
		if d.again(ctx, err, try) {
			continue
		}
		if err != nil {
			return nil, err
		}
		n.Revision = rev
		d.Auth.Put(n)
		return n, nil
	}
}

// Gone are the ops that take what belongs to a node with it: its identity and its
// lease, so that its machine is turned away from the same moment on. A node to which
// instances are assigned does not go.
func (d *Desk) Gone(ctx context.Context, node string) ([]store.Op, error) {
	if err := d.notMine(node); err != nil {
		return nil, err
	}
	list, err := d.assigned(ctx, node)
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		a := list[0]
		return nil, errs.New(errs.Conflict, "host %s has instances assigned to it: %d, such as %s/%s", node, len(list), a.Tenant, a.Name).
			WithHint("empty it first: atoll drain %s. If the host is lost for good: atoll node remove %s --force", node, node)
	}
	return d.with(ctx, node)
}

func (d *Desk) notMine(node string) error {
	if node != d.Node || node == "" {
		return nil
	}
	return errs.New(errs.Conflict, "this server runs on host %s: it cannot remove itself", node).
		WithHint("ask another server of the pool: atoll --server URL node remove %s", node)
}

func (d *Desk) with(ctx context.Context, node string) ([]store.Op, error) {
	var ops []store.Op
	for _, ref := range []api.Ref{identityRef(node), api.NodeLease(node)} {
		o, err := d.Store.Get(ctx, ref)
		switch {
		case err == nil:
			ops = append(ops, store.Remove(ref, o.Metadata().Revision))
		case !errors.Is(err, errs.NotFound):
			return nil, err
		}
	}
	return ops, nil
}

func (d *Desk) assigned(ctx context.Context, node string) ([]*api.Assignment, error) {
	list, _, err := store.List[*api.Assignment](ctx, d.Store, api.Selector{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": node}})
	if err != nil {
		return nil, fmt.Errorf("list assignments to %s: %w", node, err)
	}
	return list, nil
}

// Forget tells package auth that a host is gone.
func (d *Desk) Forget(node string, rev int64) { d.Auth.Delete(identityRef(node), rev) }

// Remove takes a host out: the node, its identity and its lease in one commit. It
// gives the node as it was; of a host that runs nothing, its name.
//
// By force it first turns the host away and gives up what is assigned to it, step by
// step; each step is safe to be the last, and the same call again goes on.
func (d *Desk) Remove(ctx context.Context, node string, o Removal) (*api.Node, error) {
	if err := d.notMine(node); err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		was, err := d.removeOnce(ctx, node, o)
		if d.again(ctx, err, try) {
			continue
		}
		return was, err
	}
}

func (d *Desk) removeOnce(ctx context.Context, node string, o Removal) (*api.Node, error) {
	n, err := maybe[*api.Node](ctx, d.Store, nodeRef(node))
	if err != nil {
		return nil, err
	}
	id, err := maybe[*api.NodeIdentity](ctx, d.Store, identityRef(node))
	if err != nil {
		return nil, err
	}
	lease, err := maybe[*api.Lease](ctx, d.Store, api.NodeLease(node))
	if err != nil {
		return nil, err
	}
	switch {
	case n == nil && id == nil && lease == nil:
		return nil, errs.New(errs.NotFound, "%s does not exist", nodeRef(node)).WithHint("atoll node list")
	case o.Rev != 0 && n != nil && n.Revision != o.Rev:
		return nil, errs.New(errs.Conflict, "%s was changed meanwhile: it is at revision %d, not %d", nodeRef(node), n.Revision, o.Rev).WithHint("read it again and repeat the change")
	}
	var ops []store.Op
	if o.Force {
		if n, err = d.giveUp(ctx, leaving{node, n, id, lease}, o); err == nil {
			ops, err = d.with(ctx, node)
		}
	} else {
		ops, err = d.Gone(ctx, node)
	}
	if err != nil {
		return nil, err
	}
	was := n
	if n == nil { // it ran nothing
		was = &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: node}}}
		if id != nil {
			was.UID = id.UID
		}
	} else {
		ops = append(ops, store.Remove(api.RefOf(n), n.Revision))
	}
	rev, err := d.commit(ctx, ops...)
	if err != nil {
		return nil, err
	}
	d.Forget(node, rev)
	return was, nil
}

// leaving is a host that is removed by force, as far as it is there.
type leaving struct {
	name  string
	node  *api.Node
	id    *api.NodeIdentity
	lease *api.Lease
}

// still is the condition that the host has not taken its lease anew since it was looked
// at: a proof is about the epoch that ended, and no other.
func (h leaving) still() []store.Op {
	if h.lease == nil {
		return nil
	}
	return []store.Op{store.Expect(api.RefOf(h.lease), h.lease.Revision)}
}

// giveUp turns a host away and marks what is assigned to it as lost, so that it is
// placed anew. Nothing that must not run twice is given up while it may still run.
func (d *Desk) giveUp(ctx context.Context, h leaving, o Removal) (*api.Node, error) {
	fenced := o.Off || h.lease != nil && h.lease.Stopped(h.node)
	list, err := d.held(ctx, h.name, fenced)
	if err != nil {
		return nil, err
	}
	if h, err = d.shut(ctx, h, o); err != nil {
		return nil, err
	}
	// Placement may not have seen yet that nothing goes there any more, so look again.
	for ; err == nil; list, err = d.held(ctx, h.name, fenced) {
		ops := h.still()
		for _, a := range list[:min(len(list), evictAtOnce)] {
			a = api.Clone(a)
			a.Spec.Evict = &api.Eviction{At: d.now(), Reason: "host " + h.name + " was removed by force", Lost: true}
			ops = append(ops, store.Update(a))
		}
		if len(list) == 0 {
			return h.node, nil
		}
		if _, err := d.commit(ctx, ops...); err != nil {
			return nil, err
		}
	}
	return nil, err
}

// held is what is assigned to a host and not given up yet; an error when some of it
// must not run twice and the host is not known to have stopped it.
func (d *Desk) held(ctx context.Context, node string, fenced bool) ([]*api.Assignment, error) {
	list, err := d.assigned(ctx, node)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(a *api.Assignment) bool { return a.Spec.Evict != nil && a.Spec.Evict.Lost })
	if fenced {
		return list, nil
	}
	return list, d.once(ctx, node, list)
}

// once refuses while something runs there that must not run twice.
func (d *Desk) once(ctx context.Context, node string, list []*api.Assignment) error {
	count, first := 0, ""
	for _, a := range list {
		in, err := maybe[*api.Instance](ctx, d.Store, api.Ref{Kind: api.KindInstance, Tenant: a.Tenant, Name: a.Name})
		if err != nil {
			return err
		}
		if in != nil && in.Spec.RunsOnce() {
			if count++; first == "" {
				first = a.Tenant + "/" + a.Name
			}
		}
	}
	if count == 0 {
		return nil
	}
	return errs.New(errs.Conflict, "host %s has instances that must not run twice: %d, such as %s; if it still runs, they would", node, count, first).
		WithHint("switch it off, and say so: atoll node remove %s --force --off", node)
}

// shut is the first step: from here on the host may write nothing, and nothing is placed
// there. A lease that it holds begins another epoch, which nobody has: the keeper of the
// leases refuses the host's next heartbeat, and gives the lease up when the host cannot
// believe any more that it holds it. Only with a proof it is over at once.
func (d *Desk) shut(ctx context.Context, h leaving, o Removal) (leaving, error) {
	var ops []store.Op
	if h.node != nil && !h.node.Spec.Cordoned {
		h.node = api.Clone(h.node)
		h.node.Spec.Cordoned = true
		h.node.Generation++
		ops = append(ops, store.Update(h.node))
	}
	first := h.id == nil || h.id.Spec.Revoked == ""
	if h.id != nil && first {
		h.id = api.Clone(h.id)
		h.id.Spec.Revoked = "removed by force by " + o.By
		h.id.Generation++
		ops = append(ops, store.Update(h.id))
	}
	if l := taken(h.lease, first, o, d.now()); l != nil {
		h.lease = l
		ops = append(ops, store.Update(l))
	} else {
		ops = append(ops, h.still()...)
	}
	if len(ops) == 0 {
		return h, nil
	}
	rev, err := d.commit(ctx, ops...)
	if err != nil {
		return h, err
	}
	for _, op := range ops {
		if op.Object != nil {
			op.Object.Metadata().Revision = rev
		}
	}
	if h.id != nil && h.id.Revision == rev {
		d.Auth.Put(h.id)
	}
	return h, nil
}

// taken is the lease of a host that is turned away; nil when it stays as it is.
func taken(l *api.Lease, first bool, o Removal, now time.Time) *api.Lease {
	if l == nil || !o.Off && !(first && l.Held()) || o.Off && !l.Held() && l.Spec.Proof != nil {
		return nil
	}
	l = api.Clone(l)
	switch {
	case o.Off && l.Held():
		l.Spec.State, l.Spec.Since = api.LeaseExpired, now
		fallthrough
	case o.Off:
		l.Spec.Proof = &api.FenceProof{By: "operator", At: now, Message: o.By + " said that it is switched off"}
	default:
		l.Spec.Epoch, l.Spec.Since = l.Spec.Epoch+1, now
	}
	return l
}
