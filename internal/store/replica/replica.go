// Package replica is the part of the pool that the agent of one node needs, kept in
// memory and on that node's disk: a store.Store over the pool's, for hosts that do not
// keep the pool's state. It answers reads of that part at once, also while no server
// answers and after a restart without one.
//
// What the agent reports meanwhile (the status of its instances and of its node) is taken
// in here, kept on the disk, and told when a server answers again: spec and metadata are
// the pool's, the status is the node's, unless the pool has assigned the instance anew.
// Every other change needs a server, as it does without a replica.
//
// The revisions of List and Watch order what this replica shows. They are the pool's as
// long as its changes come in their order; what comes late, or is known here only, gets a
// number of the replica's own. So they mean something to this replica and nobody else.
//
// Open reads the disk; Run owns all goroutines and waits for them; Close after it. A
// replica must never acknowledge a report that is not on the disk, tell anything without
// the node's lease as it is held now, or change what is the pool's.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Config is what a replica works with.
type Config struct {
	Node   string
	Pool   string      // which pool it is; what is on the disk of another one is put aside
	Source store.Store // the pool
	Path   string      // of the file
	Clock  clock.Clock
	Log    *slog.Logger
	// LeaseRev is the revision of the node's lease as it is held now: what is told later
	// expects it, as Fenced does for what is committed at once.
	LeaseRev func() int64

	// parts are what is kept; nil: those of an agent. For tests.
	parts []api.Selector
}

const (
	history    = 4096            // changes kept per kind for those who follow
	tryFor     = 2 * time.Second // a report that takes longer is kept and told later
	lookEvery  = time.Second     // at the pool while it is out of reach, or something is to be told
	retryFirst = 50 * time.Millisecond
	retryMost  = 5 * time.Second
	// localRev marks revisions of objects that the pool has not been told of. No store
	// comes so far.
	localRev = int64(1) << 62
)

// Replica is one node's.
type Replica struct {
	cfg   Config
	parts []*part
	wake  chan struct{} // there is something to tell

	mu     sync.Mutex
	st     *state
	log    *journal
	marks  map[api.Ref]int64 // the revision under which what is to be told is shown
	local  int64             // reports kept so far
	away   bool              // the pool did not answer when it was last asked
	failed bool              // the disk did not take the last record
}

// part is one selection that is kept.
type part struct {
	sel  api.Selector
	view *store.Mirror

	// Guarded by Replica.mu.
	at     int64             // everything up to here is shown
	listed int64             // what a watch tells of earlier revisions is known already
	gone   map[api.Ref]int64 // removed by this node at a revision the watch has not come to
	loaded bool
	ready  chan struct{} // closed when loaded
}

// Parts is what an agent reads: all of these a node may read (auth), and what it needs to
// run on alone.
func Parts(node string) []api.Selector {
	return []api.Selector{
		{Kind: api.KindLease, Name: api.NodeLease(node).Name},
		{Kind: api.KindNode, Name: node},
		{Kind: api.KindMember},
		{Kind: api.KindTenant},
		{Kind: api.KindImage},
		{Kind: api.KindEncryption},
		{Kind: api.KindHostKey},
		{Kind: api.KindNetwork},
		{Kind: api.KindSecurityGroup},
		{Kind: api.KindPeering},
		{Kind: api.KindRoute},
		{Kind: api.KindEndpoint},
		{Kind: api.KindAddress, Fields: map[string]string{"status.node": node}},
		{Kind: api.KindBGPPeer},
		{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": node}},
		{Kind: api.KindInstance, Fields: map[string]string{"status.node": node}},
	}
}

// Open reads what an earlier replica left on the disk.
func Open(c Config) (*Replica, error) {
	if c.parts == nil {
		c.parts = Parts(c.Node)
	}
	j, st, err := openJournal(c.Path, head{c.Node, c.Pool})
	if err != nil {
		return nil, err
	}
	r := &Replica{cfg: c, st: st, log: j, wake: make(chan struct{}, 1), marks: map[api.Ref]int64{}}
	for _, sel := range c.parts {
		p := &part{sel: sel, view: store.NewMirror(history), gone: map[api.Ref]int64{}, ready: make(chan struct{})}
		p.at, p.loaded = st.at[sel.Kind], st.at[sel.Kind] > 0
		p.view.Reach(p.at)
		if p.loaded {
			close(p.ready)
		}
		r.parts = append(r.parts, p)
	}
	for ref := range st.tell {
		if st.base[ref] == nil {
			delete(st.tell, ref)
			continue
		}
		r.mark(ref)
	}
	for ref := range st.base {
		if p := r.part(ref.Kind); p != nil {
			r.show(p, 0, ref)
		}
	}
	return r, nil
}

// Close leaves the file whole.
func (r *Replica) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.close()
}

// Loaded reports whether the replica can answer without a server.
func (r *Replica) Loaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.parts {
		if !p.loaded {
			return false
		}
	}
	return true
}

// Pending is how many objects have a status the pool has not been told of.
func (r *Replica) Pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.st.tell)
}

// Away reports whether the pool did not answer when it was last asked.
func (r *Replica) Away() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.away
}

// part finds what is kept of a kind; nil: nothing.
func (r *Replica) part(k api.Kind) *part {
	for _, p := range r.parts {
		if p.sel.Kind == k {
			return p
		}
	}
	return nil
}

// whole reports whether a part has all objects of its kind that ref could be.
func (p *part) whole(ref api.Ref) bool {
	return len(p.sel.Fields) == 0 && (p.sel.Name == "" || p.sel.Name == ref.Name)
}

// answers finds the part that has everything sel chooses; nil: none.
func (r *Replica) answers(sel api.Selector) *part {
	p := r.part(sel.Kind)
	if p == nil || p.sel.Name != "" && p.sel.Name != sel.Name {
		return nil
	}
	for k, v := range p.sel.Fields {
		if sel.Fields[k] != v {
			return nil
		}
	}
	return p
}

// Get reads one object. What is not kept is the source's to tell, also that it is not there.
func (r *Replica) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := r.part(ref.Kind)
	if p == nil {
		return r.cfg.Source.Get(ctx, ref)
	}
	if p.whole(ref) {
		if err := r.load(ctx, p); err != nil {
			return nil, err
		}
	}
	if o, ok := p.view.Get(ref); ok {
		return o, nil
	}
	if p.whole(ref) {
		return nil, errs.New(errs.NotFound, "%s does not exist", ref)
	}
	return r.beyond(ctx, ref)
}

// beyond reads what no watch tells of. An instance that an assignment names is kept: it is
// to be started here, maybe when no server answers.
func (r *Replica) beyond(ctx context.Context, ref api.Ref) (api.Object, error) {
	r.mu.Lock()
	known, away := r.st.base[ref], r.away
	r.mu.Unlock()
	switch {
	case away && known != nil:
		return known.obj, nil
	case away:
		return nil, errs.New(errs.Unavailable, "read %s: no server answers, and this host does not know", ref)
	}
	tctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	o, err := r.cfg.Source.Get(tctx, ref)
	if err == nil {
		err = r.whose(tctx, o)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	lost := outOfReach(err)
	r.reached(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.part(ref.Kind)
	if shown, ok := p.view.Get(ref); ok { // a watch told of it meanwhile, or this node did
		return shown, nil
	}
	switch {
	case lost && known != nil:
		return known.obj, nil
	case lost:
		return nil, errs.New(errs.Unavailable, "read %s: %w", ref, err)
	case errors.Is(err, errs.NotFound):
		if known != nil {
			r.keep(false, record{Gone: &ref})
		}
		return nil, err
	case err != nil:
		return nil, err
	}
	if r.named(o) {
		r.put(o, false)
	}
	return o, nil
}

// whose brings the assignment of an instance up to date that says it is on another node. It
// comes by another way than the instance, and must not be older: this node would take
// for its own what has moved on.
func (r *Replica) whose(ctx context.Context, o api.Object) error {
	in, ok := o.(*api.Instance)
	if !ok || in.Status.Node == "" || in.Status.Node == r.cfg.Node {
		return nil
	}
	ref := api.Ref{Kind: api.KindAssignment, Tenant: in.Tenant, Name: in.Name}
	p := r.part(ref.Kind)
	if p == nil {
		return nil
	}
	as, err := r.cfg.Source.Get(ctx, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("read %s: %w", ref, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at, here := in.Revision, false
	if b := r.st.base[ref]; b != nil {
		at = max(at, b.obj.Metadata().Revision)
	}
	if err == nil {
		if at, here = as.Metadata().Revision, p.sel.Matches(as); at <= p.at {
			return nil // known already, and maybe what came after
		}
		if b := r.st.base[ref]; b != nil && b.obj.Metadata().Revision >= at {
			return nil
		}
	}
	if here {
		r.put(as, true)
	} else {
		p.gone[ref] = at
		r.leave(ref)
	}
	r.show(p, at, ref)
	return nil
}

// named reports whether an assignment to this node is for o. r.mu is held.
func (r *Replica) named(o api.Object) bool {
	ref := api.RefOf(o)
	if ref.Kind != api.KindInstance {
		return false
	}
	b := r.st.base[api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name}]
	if b == nil {
		return false
	}
	as, ok := b.obj.(*api.Assignment)
	return ok && as.Spec.InstanceUID == o.Metadata().UID
}

// outOfReach reports whether an error means that the pool does not answer.
func outOfReach(err error) bool {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.Timeout:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// reached notes whether the pool answers.
func (r *Replica) reached(err error) {
	lost := err != nil && outOfReach(err)
	r.mu.Lock()
	turned := r.away != lost
	r.away = lost
	r.mu.Unlock()
	if turned && lost {
		r.cfg.Log.Warn("no server answers: this host runs on alone", "error", err)
	}
	if turned {
		r.poke()
	}
}

func (r *Replica) poke() {
	select {
	case r.wake <- struct{}{}:
	default: // it is on its way
	}
}

// List reads the chosen objects. With MinRev, everything that is kept comes as far, not only
// what was asked for: who waits for a revision wants to know what was decided until then.
func (r *Replica) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	p := r.answers(sel)
	if p == nil {
		return r.cfg.Source.List(ctx, sel)
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	if err := r.load(ctx, p); err != nil {
		return nil, 0, err
	}
	if sel.MinRev > 0 {
		if err := r.reach(ctx, sel.MinRev); err != nil {
			return nil, 0, err
		}
	}
	objs, rev := p.view.List(sel)
	return objs, rev, nil
}

// load reads a part for the first time, where Run has not done so.
func (r *Replica) load(ctx context.Context, p *part) error {
	select {
	case <-p.ready:
		return nil
	default:
	}
	_, err := r.refresh(ctx, p, 0)
	return err
}

// reach reads all parts that have not come to a revision.
func (r *Replica) reach(ctx context.Context, rev int64) error {
	var behind []*part
	r.mu.Lock()
	for _, p := range r.parts {
		if p.at < rev {
			behind = append(behind, p)
		}
	}
	r.mu.Unlock()
	fails := make([]error, len(behind))
	var wg sync.WaitGroup
	for i, p := range behind {
		wg.Go(func() { _, fails[i] = r.refresh(ctx, p, rev) })
	}
	wg.Wait()
	return errors.Join(fails...)
}

// Watch follows what is kept; what is not, the source tells of.
func (r *Replica) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	p := r.answers(sel)
	if p == nil {
		return r.cfg.Source.Watch(ctx, sel, rev, fn)
	}
	select {
	case <-p.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	return p.view.Watch(ctx, sel, rev, fn)
}

// Run keeps the replica current and tells what is to be told, until ctx ends.
func (r *Replica) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, p := range r.parts {
		wg.Go(func() { r.follow(ctx, p) })
	}
	wg.Go(func() { r.teller(ctx) })
	wg.Wait()
	return ctx.Err()
}

// follow reads a part and then hears of its changes, again and again.
func (r *Replica) follow(ctx context.Context, p *part) {
	pause := retryFirst
	for ctx.Err() == nil {
		rev, err := r.refresh(ctx, p, 0)
		if err == nil {
			pause = retryFirst
			var commit []store.Event // the changes of one revision, so that they are shown at once
			err = r.cfg.Source.Watch(ctx, p.sel, rev, func(ev store.Event) error {
				if n := len(commit); n > 0 && commit[n-1].Rev != ev.Rev {
					r.heard(p, commit)
					commit = nil
				}
				if commit = append(commit, ev); !ev.More {
					r.heard(p, commit)
					commit = nil
				}
				return nil
			})
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, errs.Compacted) {
			r.cfg.Log.Debug("cannot follow the pool; trying again", "kind", string(p.sel.Kind), "error", err)
		}
		_ = r.cfg.Clock.Sleep(ctx, pause) // ends early only with ctx
		pause = min(2*pause, retryMost)
	}
}

// refresh reads a part of the source and shows what is new.
func (r *Replica) refresh(ctx context.Context, p *part, minRev int64) (int64, error) {
	r.mu.Lock()
	before := p.at
	r.mu.Unlock()
	sel := p.sel
	sel.MinRev = minRev
	objs, rev, err := r.cfg.Source.List(ctx, sel)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	r.reached(err)
	if err != nil {
		return 0, fmt.Errorf("list %s: %w", p.sel.Kind, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// A list that is older than what was known before it was asked for is another
	// history: the pool was put back to an older state.
	other := rev < before
	if other {
		clear(p.gone)
		p.at, p.listed = 0, 0
	}
	if p.listed == 0 || rev > p.at { // otherwise a watch, or another list, was faster
		r.merge(p, objs, rev, other)
		p.at = rev
		r.keep(false, record{At: &position{p.sel.Kind, rev}})
	}
	p.listed = max(p.listed, rev)
	for ref, at := range p.gone {
		if at <= rev {
			delete(p.gone, ref)
		}
	}
	p.view.Reach(rev)
	if !p.loaded {
		p.loaded = true
		close(p.ready)
	}
	return rev, nil
}

// merge makes a list what is known, but for what this node has written since. What an
// earlier process left on the disk counts for nothing against it. r.mu is held.
func (r *Replica) merge(p *part, objs []api.Object, rev int64, other bool) {
	there := make(map[api.Ref]bool, len(objs))
	var changed []api.Ref
	for _, o := range objs {
		ref, m := api.RefOf(o), o.Metadata()
		there[ref] = true
		b := r.st.base[ref]
		switch {
		case b != nil && b.followed && !b.fresh && sameJSON(b.obj, o):
			b.fresh = true
		case other, b == nil && m.Revision > p.gone[ref], b != nil && (!b.followed || !b.fresh || m.Revision > b.obj.Metadata().Revision):
			r.put(o, true)
			changed = append(changed, ref)
		}
	}
	for ref, b := range r.st.base {
		if ref.Kind == p.sel.Kind && b.followed && !there[ref] && (other || !b.fresh || b.obj.Metadata().Revision <= rev) {
			r.leave(ref)
			changed = append(changed, ref)
		}
	}
	r.show(p, rev, changed...)
}

// heard takes in the changes of one commit of the source.
func (r *Replica) heard(p *part, evs []store.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away { // something came: there is a server
		r.away = false
		r.poke()
	}
	rev := evs[0].Rev
	if rev <= p.listed {
		return
	}
	var changed []api.Ref
	for _, ev := range evs {
		ref := api.RefOf(ev.Object)
		if b := r.st.base[ref]; rev < p.gone[ref] || b != nil && b.followed && rev <= b.obj.Metadata().Revision {
			continue // older than what this node has done
		}
		delete(p.gone, ref)
		if ev.Deleted {
			r.leave(ref)
		} else {
			r.put(ev.Object, true)
		}
		changed = append(changed, ref)
	}
	r.show(p, rev, changed...)
	p.at = max(p.at, rev-1) // a source may tell of one commit in several parts
}

// put notes an object as the pool has it. r.mu is held.
func (r *Replica) put(o api.Object, followed bool) {
	ref := api.RefOf(o)
	r.st.base[ref] = &base{o, followed, true}
	raw, err := api.EncodeStored(o, oldest)
	if err != nil {
		r.cfg.Log.Error("cannot keep an object for the time without a server", "ref", ref.String(), "error", err)
		return
	}
	rec := record{Put: raw}
	if !followed {
		rec = record{Named: raw}
	}
	r.keep(false, rec)
	if ref.Kind == api.KindAssignment {
		r.unnamed(ref)
	}
	mine := r.st.tell[ref]
	switch {
	case mine == nil:
	case mine.Metadata().UID == o.Metadata().UID && sameJSON(told(o, mine), o):
		r.forget(ref) // the pool has heard, but its answer did not come
	default:
		r.mark(ref) // what is shown is something else now
	}
}

// leave takes out what is not there any more, or not for this node. What the pool must
// still be told of it stays until the pool was asked. r.mu is held.
func (r *Replica) leave(ref api.Ref) {
	b := r.st.base[ref]
	if b == nil {
		return
	}
	if r.st.tell[ref] != nil {
		r.put(b.obj, false)
		r.poke()
		return
	}
	r.keep(false, record{Gone: &ref})
	if ref.Kind == api.KindAssignment {
		r.unnamed(ref)
	}
}

// unnamed drops the instance that was kept only because an assignment named it, when that
// does so no more. r.mu is held.
func (r *Replica) unnamed(as api.Ref) {
	in := api.Ref{Kind: api.KindInstance, Tenant: as.Tenant, Name: as.Name}
	if b := r.st.base[in]; b != nil && !b.followed && r.st.tell[in] == nil && !r.named(b.obj) {
		r.keep(false, record{Gone: &in})
	}
}

// show makes readers see objects as they are now known, all at once. r.mu is held.
func (r *Replica) show(p *part, rev int64, refs ...api.Ref) {
	var evs []store.Event
	for _, ref := range refs {
		b, mine := r.st.base[ref], r.st.tell[ref]
		if b == nil || !b.followed && mine == nil {
			if was, ok := p.view.Get(ref); ok {
				evs = append(evs, store.Event{Object: was, Deleted: true})
			}
			continue
		}
		o := b.obj
		if mine != nil && mine.Metadata().UID == o.Metadata().UID {
			o = told(o, mine)
			o.Metadata().Revision = r.marks[ref]
		}
		evs = append(evs, store.Event{Object: o})
	}
	p.view.Apply(rev, evs...)
}

// mark gives what is to be told a revision that no store gives. r.mu is held.
func (r *Replica) mark(ref api.Ref) {
	r.local++
	r.marks[ref] = localRev | r.local
}

// keep writes to the disk what the state says already, or is made to say here: Gone and At
// change it. now: it must be there before anybody relies on it. r.mu is held.
func (r *Replica) keep(now bool, recs ...record) bool {
	for _, rec := range recs {
		switch {
		case rec.Gone != nil:
			delete(r.st.base, *rec.Gone)
		case rec.At != nil:
			r.st.at[rec.At.Kind] = rec.At.Rev
		}
	}
	err := r.log.append(r.st, now, recs...)
	if err != nil && !r.failed {
		r.cfg.Log.Error("this host cannot keep what it needs to run on alone", "error", err)
	}
	r.failed = err != nil
	return err == nil
}

// Lease is what SaveLease has kept.
func (r *Replica) Lease() Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.st.lease
}

// SaveLease keeps how long the node may act without a server, for the time after a
// restart; the zero value: not at all. It is on the disk when it returns, unless what is
// there says nearly the same and no more.
func (r *Replica) SaveLease(l Lease) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l == r.st.lease || l.Duration != 0 && !r.st.lease.worth(l) {
		return nil
	}
	was := r.st.lease
	r.st.lease = l
	if err := r.log.append(r.st, true, record{Lease: &l}); err != nil {
		r.st.lease = was
		return fmt.Errorf("keep the lease: %w", err)
	}
	return nil
}
