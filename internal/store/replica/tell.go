package replica

import (
	"context"
	"errors"
	"fmt"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Commit goes to the pool. While that does not answer, a report is kept instead.
func (r *Replica) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	report, kept, err := r.begin(ops)
	if err != nil {
		return 0, err
	}
	if kept != 0 {
		return kept, nil
	}
	ops = r.translate(ops)
	tctx := ctx
	if report != nil {
		var cancel context.CancelFunc
		tctx, cancel = context.WithTimeout(ctx, tryFor)
		defer cancel()
	}
	rev, err := r.cfg.Source.Commit(tctx, ops...)
	if err != nil && ctx.Err() != nil {
		return 0, err // whoever asked has gone
	}
	r.reached(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if report == nil || !outOfReach(err) {
			return 0, err
		}
		if err := r.current(*report); err != nil { // changed meanwhile
			return 0, err
		}
		return r.accept(report.Object)
	}
	r.wrote(ops, rev)
	return rev, nil
}

// begin looks at a commit before the pool is asked. It refuses what is based on something
// that was only ever known here and is not so any more, finds the report in it, and
// keeps that at once when the pool is known not to answer, or has to hear another one
// about the same object first.
func (r *Replica) begin(ops []store.Op) (report *store.Op, kept int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range ops {
		if op.Rev >= localRev || r.st.tell[op.Target()] != nil && op.Rev > 0 {
			if err := r.current(op); err != nil {
				return nil, 0, err
			}
		}
	}
	report = r.report(ops)
	if report == nil {
		for _, op := range ops {
			if op.Verb == store.Put && r.st.tell[op.Target()] != nil {
				return nil, 0, errs.New(errs.Unavailable, "%s: the pool has not been told yet what became of it here", op.Target())
			}
		}
		return nil, 0, nil
	}
	if r.away || r.st.tell[report.Target()] != nil {
		if err := r.current(*report); err != nil {
			return nil, 0, err
		}
		kept, err = r.accept(report.Object)
	}
	return report, kept, err
}

// current judges an op by what is shown here. r.mu is held.
func (r *Replica) current(op store.Op) error {
	ref, have := op.Target(), int64(0)
	if p := r.part(ref.Kind); p != nil {
		if o, ok := p.view.Get(ref); ok {
			have = o.Metadata().Revision
		} else if b := r.st.base[ref]; b != nil {
			have = b.obj.Metadata().Revision
		}
	}
	return store.Judge(op, have)
}

// report finds the one op of a commit when that does nothing but tell the status of an
// object of this node. Objects that this node has not seen are none. r.mu is held.
func (r *Replica) report(ops []store.Op) *store.Op {
	var one *store.Op
	for i, op := range ops {
		switch {
		case op.Verb == store.Check && op.Target() == api.NodeLease(r.cfg.Node):
		case op.Verb != store.Put || op.Rev <= 0 || one != nil:
			return nil
		default:
			one = &ops[i]
		}
	}
	if one == nil {
		return nil
	}
	b := r.st.base[one.Target()]
	if b == nil || b.obj.Metadata().UID != one.Object.Metadata().UID {
		return nil
	}
	switch one.Object.(type) {
	case *api.Instance, *api.Node:
	default:
		return nil
	}
	if !sameJSON(bare(b.obj), bare(one.Object)) {
		return nil // not only the status is new
	}
	return one
}

// bare is an object without what a node reports.
func bare(o api.Object) api.Object {
	o = api.Clone(o)
	o.Metadata().Revision = 0
	switch o := o.(type) {
	case *api.Instance:
		o.Status = api.InstanceStatus{}
	case *api.Node:
		o.Status = api.NodeStatus{}
	}
	return o
}

func sameJSON(a, b api.Object) bool {
	x, err := api.Encode(a)
	if err != nil {
		return false
	}
	y, err := api.Encode(b)
	return err == nil && string(x) == string(y)
}

// accept keeps a report until the pool was told, and shows it. r.mu is held.
func (r *Replica) accept(o api.Object) (int64, error) {
	ref := api.RefOf(o)
	o = api.Clone(o)
	raw, err := api.EncodeStored(o, oldest)
	if err != nil {
		return 0, errs.New(errs.Internal, "encode %s: %w", ref, err)
	}
	was := r.st.tell[ref]
	r.st.tell[ref] = o
	if !r.keep(true, record{Tell: raw}) {
		if r.st.tell[ref] = was; was == nil {
			delete(r.st.tell, ref)
		}
		return 0, errs.New(errs.Unavailable, "%s: no server answers, and this host cannot write it down for later", ref).WithHint("is the disk full?")
	}
	r.mark(ref)
	r.show(r.part(ref.Kind), 0, ref)
	r.poke()
	return r.marks[ref], nil
}

// forget ends the wish to tell of an object. r.mu is held.
func (r *Replica) forget(ref api.Ref) {
	delete(r.st.tell, ref)
	delete(r.marks, ref)
	r.keep(true, record{Told: &ref})
}

// translate names the revisions of the pool where an op names one that is known here only.
func (r *Replica) translate(ops []store.Op) []store.Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]store.Op, len(ops))
	for i, op := range ops {
		if b := r.st.base[op.Target()]; op.Rev >= localRev && b != nil {
			op.Rev = b.obj.Metadata().Revision
		}
		out[i] = op
	}
	return out
}

// wrote shows what this node has committed. r.mu is held.
func (r *Replica) wrote(ops []store.Op, rev int64) {
	changed := map[*part][]api.Ref{}
	for _, op := range ops {
		ref := op.Target()
		p := r.part(ref.Kind)
		if p == nil || op.Verb == store.Check || !p.loaded || rev <= p.at { // shown already, and maybe what came after
			continue
		}
		b := r.st.base[ref]
		if b != nil && b.obj.Metadata().Revision >= rev {
			continue // the watch was faster
		}
		if op.Verb == store.Delete {
			p.gone[ref] = rev
			if r.st.tell[ref] != nil {
				r.forget(ref)
			}
			r.leave(ref)
			changed[p] = append(changed[p], ref)
			continue
		}
		o := api.Clone(op.Object)
		o.Metadata().Revision = rev
		if p.sel.Matches(o) {
			delete(p.gone, ref)
			r.put(o, true)
		} else {
			r.leave(ref)
		}
		changed[p] = append(changed[p], ref)
	}
	for p, refs := range changed {
		r.show(p, rev, refs...)
	}
}

// teller tells what is to be told, and looks whether the pool answers again.
func (r *Replica) teller(ctx context.Context) {
	for ctx.Err() == nil {
		r.tellAll(ctx)
		r.mu.Lock()
		idle := len(r.st.tell) == 0 && !r.away
		r.mu.Unlock()
		t := r.cfg.Clock.NewTimer(lookEvery)
		due := t.C
		if idle {
			due = nil
		}
		wake := r.wake
		if !idle && r.Away() {
			wake = nil // more to tell changes nothing
		}
		select {
		case <-wake:
		case <-due:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

func (r *Replica) tellAll(ctx context.Context) {
	r.mu.Lock()
	refs := make([]api.Ref, 0, len(r.st.tell))
	for ref := range r.st.tell {
		refs = append(refs, ref)
	}
	away := r.away
	r.mu.Unlock()
	if len(refs) == 0 && !away {
		return
	}
	if away {
		tctx, cancel := context.WithTimeout(ctx, tryFor)
		_, err := r.cfg.Source.Get(tctx, api.NodeLease(r.cfg.Node))
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.reached(err)
		if outOfReach(err) && err != nil {
			return
		}
		r.cfg.Log.Info("a server answers again", "to tell", len(refs))
	}
	for _, ref := range refs {
		err := r.tellOne(ctx, ref)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.cfg.Log.Debug("the pool could not be told", "ref", ref.String(), "error", err)
			if outOfReach(err) {
				r.reached(err)
				return
			}
		}
	}
}

// tellOne tells the pool what became of one object here. What the pool has is read anew:
// the report goes with it or not at all.
func (r *Replica) tellOne(ctx context.Context, ref api.Ref) error {
	ctx, cancel := context.WithTimeout(ctx, 2*tryFor)
	defer cancel()
	r.mu.Lock()
	mine := r.st.tell[ref]
	r.mu.Unlock()
	if mine == nil {
		return nil
	}
	now, err := r.cfg.Source.Get(ctx, ref)
	if errors.Is(err, errs.NotFound) || err == nil && now.Metadata().UID != mine.Metadata().UID {
		r.settle(mine, nil, "it is gone")
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	ops := []store.Op{store.Expect(api.NodeLease(r.cfg.Node), r.cfg.LeaseRev())}
	if in, ok := mine.(*api.Instance); ok {
		as, err := store.Get[*api.Assignment](ctx, r.cfg.Source, api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name})
		if err != nil && !errors.Is(err, errs.NotFound) {
			return fmt.Errorf("read the assignment of %s: %w", ref, err)
		}
		if err != nil || r.movedOn(in, as) {
			r.settle(mine, now, "the pool has decided anew")
			return nil
		}
		ops = append(ops, store.Expect(api.RefOf(as), as.Revision))
	}
	next := told(now, mine)
	if sameJSON(next, now) {
		r.settle(mine, now, "")
		return nil
	}
	rev, err := r.cfg.Source.Commit(ctx, append(ops, store.Update(next))...)
	if err != nil {
		return fmt.Errorf("tell of %s: %w", ref, err)
	}
	next.Metadata().Revision = rev
	r.settle(mine, next, "")
	return nil
}

// movedOn reports whether the pool has assigned an instance anew since its status was reported.
func (r *Replica) movedOn(in *api.Instance, as *api.Assignment) bool {
	return as.Spec.Node != r.cfg.Node || as.Spec.InstanceUID != in.UID || as.Spec.Generation != in.Status.Assigned ||
		as.Spec.Evict != nil && as.Spec.Evict.Lost
}

// settle ends the telling of one report; now is the object as the pool has it, nil when it
// is gone. A report that was kept meanwhile is still to be told. dropped says why the pool
// was not told of this one.
func (r *Replica) settle(mine, now api.Object, dropped string) {
	ref := api.RefOf(mine)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = false
	if r.st.tell[ref] == mine {
		r.forget(ref)
		if dropped != "" {
			r.cfg.Log.Info("what became of an object here is not told any more", "ref", ref.String(), "why", dropped)
		}
	}
	p, b := r.part(ref.Kind), r.st.base[ref]
	switch {
	case now != nil && now.Metadata().Revision > p.at && p.sel.Matches(now):
		if b == nil || now.Metadata().Revision > b.obj.Metadata().Revision {
			r.put(now, true)
		}
	case b != nil && !b.followed && r.st.tell[ref] == nil: // a watch said before that it left
		r.keep(false, record{Gone: &ref})
	}
	r.show(p, 0, ref)
	if r.st.tell[ref] != nil {
		r.poke()
	}
}

// told is the pool's object with this node's status. What of the status is the control
// plane's stays as the pool has it.
func told(pool, mine api.Object) api.Object {
	out := api.Clone(pool)
	switch o := out.(type) {
	case *api.Instance:
		if m, ok := mine.(*api.Instance); ok {
			o.Status = api.Clone(m).Status
		}
	case *api.Node:
		if m, ok := mine.(*api.Node); ok {
			o.Status = api.Clone(m).Status
			keepHeldBack(o, pool)
		}
	}
	return out
}

// keepHeldBack makes whether a node is held back, which the leader decides, in o what it is in from.
func keepHeldBack(o, from api.Object) {
	n, ok := o.(*api.Node)
	f, fromNode := from.(*api.Node)
	if !ok || !fromNode {
		return
	}
	var conds []api.Condition
	for _, c := range n.Status.Conditions {
		if c.Type != api.ConditionHeldBack {
			conds = append(conds, c)
		}
	}
	if c := f.Condition(api.ConditionHeldBack); c != nil {
		conds = append(conds, *c)
	}
	n.Status.Conditions = conds
}
