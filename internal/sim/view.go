package sim

import (
	"context"
	"sort"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// view is the store in memory with the indexes that many agents in one process need:
// what an agent lists is found without looking at everybody's. It answers as the
// store would.
type view struct {
	*store.Mem
	commits int
	nodes   []api.Object // all nodes; nil: one changed
	log     []nodeChange // of nodes, for who follows them
	logged  uint64       // changes that are not in log any more
	onNode  map[api.Kind]map[string]map[api.Ref]bool
	where   map[api.Ref]string // the node an assignment or a status names
	seen    int64              // revision up to which onNode is true
}

type nodeChange struct{ was, is api.Object }

// maxNodeLog bounds the log of nodes.
const maxNodeLog = 1 << 17

// memHistory is more than any settling between two looks at the history writes.
const memHistory = 1 << 20

func newView() *view {
	return &view{Mem: store.NewMemHistory(memHistory), where: map[api.Ref]string{},
		onNode: map[api.Kind]map[string]map[api.Ref]bool{api.KindAssignment: {}, api.KindInstance: {}}}
}

// Commit notes what the indexes need to know at once.
func (v *view) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	var changed []nodeChange
	for _, op := range ops {
		if op.Verb != store.Check && op.Target().Kind == api.KindNode {
			changed = append(changed, nodeChange{was: v.find(ctx, op.Target())})
		}
	}
	rev, err := v.Mem.Commit(ctx, ops...)
	if err != nil {
		return rev, err
	}
	v.commits++
	if len(changed) == 0 {
		return rev, nil
	}
	v.nodes = nil
	n := 0
	for _, op := range ops {
		if op.Verb != store.Check && op.Target().Kind == api.KindNode {
			changed[n].is = v.find(ctx, op.Target())
			n++
		}
	}
	if v.log = append(v.log, changed...); len(v.log) > maxNodeLog {
		v.logged += uint64(len(v.log))
		v.log = nil
	}
	return rev, nil
}

// find is Get with nil for what is not there.
func (v *view) find(ctx context.Context, ref api.Ref) api.Object {
	o, err := v.Get(ctx, ref)
	if err != nil {
		return nil
	}
	return o
}

// Follow tells what changed of the nodes, as store.Cache does.
func (v *view) Follow(ctx context.Context, k api.Kind, from uint64, fn func(was, is api.Object)) (uint64, error) {
	next := v.logged + uint64(len(v.log)) + 1
	switch {
	case k != api.KindNode:
		return 0, errs.New(errs.Unavailable, "%s is not followed", k)
	case from == 0:
		objs, _, err := v.List(ctx, api.Selector{Kind: k})
		for _, o := range objs {
			fn(nil, o)
		}
		return next, err
	case from-1 < v.logged:
		return 0, errs.New(errs.Compacted, "the changes are gone")
	}
	for _, c := range v.log[from-1-v.logged:] {
		fn(c.was, c.is)
	}
	return next, nil
}

// nodeOf is the node that an assignment or an instance's status names.
func nodeOf(o api.Object) string {
	switch x := o.(type) {
	case *api.Assignment:
		return x.Spec.Node
	case *api.Instance:
		return x.Status.Node
	}
	return ""
}

// note takes an event into the indexes and gives the node it was on before.
func (v *view) note(ev store.Event) (was, is string) {
	ref := api.RefOf(ev.Object)
	m := v.onNode[ref.Kind]
	if m == nil {
		return "", ""
	}
	was = v.where[ref]
	if !ev.Deleted {
		is = nodeOf(ev.Object)
	}
	if was == is {
		return was, is
	}
	if was != "" {
		delete(m[was], ref)
		delete(v.where, ref)
	}
	if is != "" {
		if m[is] == nil {
			m[is] = map[api.Ref]bool{}
		}
		m[is][ref] = true
		v.where[ref] = is
	}
	return was, is
}

// refs lists what is on a node, in the store's order.
func (v *view) refs(k api.Kind, node string) []api.Ref {
	out := make([]api.Ref, 0, len(v.onNode[k][node]))
	for r := range v.onNode[k][node] {
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool { return api.SortKey(out[i]) < api.SortKey(out[j]) })
	return out
}

// List uses the indexes where they help.
func (v *view) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	switch {
	case sel.Limit > 0 || sel.After != "" || sel.MinRev > 0 || len(sel.Labels) > 0 || sel.Tenant != "":
	case sel.Kind == api.KindNode && len(sel.Fields) == 0:
		return v.listNodes(ctx, sel)
	case sel.Name != "" || len(sel.Fields) != 1:
	case sel.Kind == api.KindAssignment && sel.Fields["spec.node"] != "":
		return v.listOn(ctx, sel.Kind, sel.Fields["spec.node"])
	case sel.Kind == api.KindInstance && sel.Fields["status.node"] != "":
		return v.listOn(ctx, sel.Kind, sel.Fields["status.node"])
	}
	return v.Mem.List(ctx, sel)
}

func (v *view) listNodes(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	if sel.Name != "" {
		o, err := v.Get(ctx, api.Ref{Kind: api.KindNode, Name: sel.Name})
		if errs.KindOf(err) == errs.NotFound {
			return nil, v.Revision(), nil
		}
		return []api.Object{o}, v.Revision(), err
	}
	if v.nodes == nil {
		objs, _, err := v.Mem.List(ctx, sel)
		if err != nil {
			return nil, 0, err
		}
		v.nodes = objs
	}
	return v.nodes[:len(v.nodes):len(v.nodes)], v.Revision(), nil
}

func (v *view) listOn(ctx context.Context, k api.Kind, node string) ([]api.Object, int64, error) {
	for _, ev := range v.EventsSince(v.seen) {
		if v.where[api.RefOf(ev.Object)] == node || nodeOf(ev.Object) == node {
			// Not in the index yet: look everywhere.
			sel := api.Selector{Kind: k, Fields: map[string]string{"spec.node": node}}
			if k == api.KindInstance {
				sel.Fields = map[string]string{"status.node": node}
			}
			return v.Mem.List(ctx, sel)
		}
	}
	var out []api.Object
	for _, ref := range v.refs(k, node) {
		o, err := v.Get(ctx, ref)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, o)
	}
	return out, v.Revision(), nil
}

// wire is the store as one host reaches it: what all commit to, until the host is cut
// off. Then it still reads what it had seen, and can write nothing.
type wire struct {
	store.Store // what commits go to
	view        *view
	node        string
	frozen      map[api.Ref]api.Object // not nil: cut off
	at          int64                  // revision of the cut
}

var errCut = errs.New(errs.Unavailable, "the control plane cannot be reached") //nolint:gochecknoglobals // a constant

// cut takes what the host has seen along.
func (w *wire) cut(ctx context.Context) error {
	frozen := map[api.Ref]api.Object{}
	keep := func(ref api.Ref) {
		if o, err := w.view.Get(ctx, ref); err == nil {
			frozen[ref] = o
		}
	}
	keep(api.Ref{Kind: api.KindNode, Name: w.node})
	for _, k := range []api.Kind{api.KindAssignment, api.KindInstance} {
		for _, ref := range w.view.refs(k, w.node) {
			keep(api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name})
			keep(api.Ref{Kind: api.KindInstance, Tenant: ref.Tenant, Name: ref.Name})
		}
	}
	objs, _, err := w.view.List(ctx, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return err
	}
	for _, o := range objs {
		frozen[api.RefOf(o)] = o
	}
	w.frozen, w.at = frozen, w.view.seen
	return nil
}

func (w *wire) heal() { w.frozen = nil }

// Get reads one object.
func (w *wire) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	if w.frozen == nil {
		return w.view.Get(ctx, ref)
	}
	if o := w.frozen[ref]; o != nil {
		return o, nil
	}
	return nil, errs.New(errs.NotFound, "%s does not exist", ref)
}

// List reads the chosen objects.
func (w *wire) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	if w.frozen == nil {
		return w.view.List(ctx, sel)
	}
	var out []api.Object
	for _, o := range w.frozen {
		if sel.Matches(o) {
			out = append(out, o)
		}
	}
	sort.Slice(out, func(i, j int) bool { return api.SortKey(api.RefOf(out[i])) < api.SortKey(api.RefOf(out[j])) })
	return out, w.at, nil
}

// Commit writes, unless cut off.
func (w *wire) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if w.frozen != nil {
		return 0, errCut
	}
	return w.Store.Commit(ctx, ops...)
}
