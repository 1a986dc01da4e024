package sim

import (
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/store"
)

// vector is an amount in every dimension of api.ResourceNames.
type vector []int64

// dims is where the dimensions are that the books look at more closely.
type dims struct {
	names                []api.Resource
	cpu, memory, gpu, in int
}

func newDims() dims {
	d := dims{names: api.ResourceNames()}
	for i, n := range d.names {
		switch n {
		case api.CPU:
			d.cpu = i
		case api.Memory:
			d.memory = i
		case api.GPU:
			d.gpu = i
		case api.Instances:
			d.in = i
		}
	}
	return d
}

func (d *dims) vector(r api.Resources) vector {
	v := make(vector, len(d.names))
	for i, n := range d.names {
		v[i] = r[n]
	}
	return v
}

func (v vector) add(o vector, sign int64) {
	for i := range v {
		v[i] += sign * o[i]
	}
}

// promised are the dimensions in which guarantees are followed over time.
func (d *dims) promised() [3]int { return [3]int{d.cpu, d.memory, d.gpu} }

// rec is one instance as the books have it, from its creation until no host runs it.
type rec struct {
	ref        api.Ref
	uid        string
	kind       *kindOf
	tenant     *account
	req        vector
	full       bool // class guaranteed
	generation int64
	counts     bool // asks for resources: not stopped, not being removed
	asked      bool // its removal was asked for
	gone       bool // not in the store any more
	free       bool // has conditions on where it runs
	decided    bool // has an assignment, with a node or without
	leaves     bool // was told to leave its host
	gaveUp     bool // its gang was not placed in time: asks for nothing any more
	address    string

	node     *host // assigned to; nil: waits
	nodeName string
	lastNode string  // the last it was assigned to
	at       int     // place among the recs of node
	on       []*host // runs on; more than one is a mistake
	waits    int     // place among those that wait, plus 1

	tries      int64 // starts that its status tells of
	restored   bool  // was there at the beginning
	counted    bool  // its pending time was noted
	want, have bool  // counted in the tenant's account
	touched    bool

	created, placed, started time.Duration // since the beginning; placed and started -1: not yet
	removal                  time.Duration
	lasts                    time.Duration // from the first start; 0: to the end
	level                    [3]float64    // use of cpu, memory, gpu
	series                   [3]int
	seed                     uint64
}

// kindOf is what instances of one arrival share.
type kindOf struct {
	name   string
	levels [3]*level // how they use cpu, memory and gpu; nil: half
}

// byController is the kind of all that deployments and jobs make.
var byController = &kindOf{name: "workload"}

// account is a tenant in the books.
type account struct {
	name         string
	chain        []*account // itself and its parents
	guarantee    vector
	guaranteed   api.Resources
	want, have   vector
	lacks        bool
	touched      bool
	seconds      float64 // in which it had less than it was promised
	cpuSeconds   float64 // lacking millicores times seconds
	created      int
	refused      int
	refusedInner int
	n, peak      int
	pending      []float64
	cpuSum       float64 // requested share of the pool's CPU over the samples
}

// books follows everything that happens, change by change, and knows at any time what
// must be true. It reads events and what the hosts report; it writes nothing.
type books struct {
	dims
	byUID   map[string]*rec
	hosts   map[string]*host
	tenants map[string]*account
	order   []*account
	waiting []*rec
	touched []*rec
	moved   []*host    // hosts whose load changed
	short   []*account // tenants that may lack something
	addrs   map[string]string
	asgs    map[api.Ref]bool // assignments in the store
	decided int              // instances that have one
	leaving int              // instances that were told to leave their host
	now     time.Duration

	live      int // instances in the store
	running   int
	peak      int
	starts    int
	ends      int
	failed    int
	moves     int
	checks    int
	pendings  []float64
	onStart   func(*rec) // at the first start
	onEnd     func(*rec) // gone from the store
	violate   func(format string, args ...any)
	changedAt bool // something that matters to those that wait happened
}

func newBooks() *books {
	return &books{dims: newDims(), byUID: map[string]*rec{}, hosts: map[string]*host{}, tenants: map[string]*account{}, addrs: map[string]string{}, asgs: map[api.Ref]bool{}}
}

// tenant finds or opens an account.
func (b *books) tenant(name string) *account {
	if a := b.tenants[name]; a != nil {
		return a
	}
	a := &account{name: name, want: make(vector, len(b.names)), have: make(vector, len(b.names)), guarantee: make(vector, len(b.names))}
	a.chain = []*account{a}
	if p := api.ParentTenant(name); p != "" {
		a.chain = append(a.chain, b.tenant(p).chain...)
	}
	b.tenants[name] = a
	b.order = append(b.order, a)
	return a
}

func (b *books) touch(r *rec) {
	if !r.touched {
		r.touched = true
		b.touched = append(b.touched, r)
	}
}

func (b *books) load(h *host) {
	if !h.loaded {
		h.loaded = true
		b.moved = append(b.moved, h)
	}
}

// note takes in one change of the store.
func (b *books) note(ev store.Event) {
	switch o := ev.Object.(type) {
	case *api.Instance:
		b.instance(o, ev.Deleted)
	case *api.Assignment:
		b.assignment(o, ev.Deleted)
	case *api.Node:
		b.node(o, ev.Deleted)
	case *api.Tenant:
		a := b.tenant(o.Name)
		a.guaranteed, a.guarantee = o.Spec.Guarantee, b.vector(o.Spec.Guarantee)
		if ev.Deleted {
			a.guaranteed, a.guarantee = nil, make(vector, len(b.names))
		}
		b.recheck(a)
	}
}

func (b *books) recheck(a *account) {
	if !a.touched {
		a.touched = true
		b.short = append(b.short, a)
	}
}

// expect opens the record of an instance that is about to be created.
func (b *books) expect(in *api.Instance, k *kindOf) *rec {
	r := &rec{ref: api.RefOf(in), uid: in.UID, kind: k, tenant: b.tenant(in.Tenant), created: b.now, placed: -1, started: -1}
	b.byUID[in.UID] = r
	return r
}

func (b *books) instance(o *api.Instance, deleted bool) {
	r := b.byUID[o.UID]
	if r == nil && !deleted && o.Owner != nil {
		r = b.expect(o, byController) // a controller wants it, and does not say so before
	}
	if r == nil {
		b.violate("%s came from nowhere", api.RefOf(o))
		return
	}
	if o.Owner != nil && o.DeletedAt != nil && !r.asked {
		r.asked, r.removal = true, b.now
	}
	b.touch(r)
	if deleted {
		if !r.asked {
			b.violate("%s was lost: it is gone from the store, and nobody asked for that", r.ref)
		}
		b.unassign(r) // its assignment goes next
		b.decided -= btoi(r.decided)
		b.leaving -= btoi(r.leaves)
		r.leaves = false
		r.gone, r.counts, r.decided = true, false, false
		b.live--
		r.tenant.n--
		b.weigh(r)
		b.drop(r)
		if b.onEnd != nil {
			b.onEnd(r)
		}
		return
	}
	if r.req == nil {
		b.live++
		r.tenant.n++
		r.tenant.peak = max(r.tenant.peak, r.tenant.n)
	}
	if o.Status.Starts > r.tries {
		r.tries = o.Status.Starts
		b.failed += btoi(o.Status.Reason == "StartFailed")
	}
	r.gaveUp = o.Status.State == api.StateFailed && o.Status.Reason == api.ReasonGangTimeout
	counts := o.DeletedAt == nil && !o.Spec.Stopped && !r.gaveUp
	if r.req != nil && r.generation == o.Generation && r.counts == counts {
		return // a status
	}
	b.hold(r, -1)
	r.counts = false
	b.weigh(r) // takes the old amounts out
	r.generation = o.Generation
	r.req = b.vector(o.Spec.Requests)
	r.req[b.in] = 1
	if o.Spec.Stopped {
		r.req = make(vector, len(b.names))
	}
	r.full = o.Spec.Class() == api.ClassGuaranteed
	r.free = o.Spec.Placement == nil && len(o.Spec.GPUModels) == 0 && !o.Spec.ExclusiveCPUs && o.Spec.Hugepages == "" && len(o.Spec.Ports) == 0
	b.hold(r, 1)
	r.counts = counts
	b.weigh(r)
}

// hold adds what an instance takes to its host, or takes it out.
func (b *books) hold(r *rec, sign int64) {
	if r.node == nil || r.req == nil {
		return
	}
	r.node.used.add(r.req, sign)
	if r.full {
		r.node.usedFull += sign * r.req[b.cpu]
	}
	b.load(r.node)
}

func (b *books) assignment(o *api.Assignment, deleted bool) {
	if deleted {
		delete(b.asgs, api.RefOf(o))
	} else {
		b.asgs[api.RefOf(o)] = true
	}
	r := b.byUID[o.Spec.InstanceUID]
	if r == nil || r.gone {
		if !deleted && r == nil {
			b.violate("%s is for an instance that never was", api.RefOf(o))
		}
		return // what stays behind is looked for when all has settled
	}
	b.touch(r)
	b.unassign(r)
	if r.decided == deleted {
		r.decided = !deleted
		b.decided += 1 - 2*btoi(deleted)
	}
	if leaves := !deleted && o.Spec.Evict != nil; leaves != r.leaves {
		r.leaves = leaves
		b.leaving += 2*btoi(leaves) - 1
	}
	if !deleted && o.Spec.Node != "" {
		r.nodeName = o.Spec.Node
		r.node = b.hosts[o.Spec.Node]
		if r.node != nil {
			r.at = len(r.node.recs)
			r.node.recs = append(r.node.recs, r)
		}
		b.hold(r, 1)
		if r.lastNode != "" && r.lastNode != r.nodeName {
			b.moves++
		}
		r.lastNode = r.nodeName
		if r.placed < 0 {
			r.placed = b.now
		}
		if a := o.Spec.Address; a != "" {
			if other := b.addrs[a]; other != "" && other != r.uid {
				b.violate("%s has the address %s of another instance", r.ref, a)
			}
			b.addrs[a], r.address = r.uid, a
		}
	}
	b.weigh(r)
}

func (b *books) unassign(r *rec) {
	if r.address != "" && b.addrs[r.address] == r.uid {
		delete(b.addrs, r.address)
	}
	r.address = ""
	b.hold(r, -1)
	if h := r.node; h != nil {
		last := len(h.recs) - 1
		h.recs[r.at] = h.recs[last]
		h.recs[r.at].at = r.at
		h.recs[last] = nil
		h.recs = h.recs[:last]
	}
	r.node, r.nodeName = nil, ""
}

// weigh brings a tenant's account, and the list of who waits, in line with an instance.
func (b *books) weigh(r *rec) {
	want := r.counts && !r.gone
	have := want && r.node != nil && r.node.serves()
	sign := func(was, is bool) int64 {
		switch {
		case is && !was:
			return 1
		case was && !is:
			return -1
		}
		return 0
	}
	w, h := sign(r.want, want), sign(r.have, have)
	r.want, r.have = want, have
	if w != 0 || h != 0 {
		for _, a := range r.tenant.chain {
			a.want.add(r.req, w)
			a.have.add(r.req, h)
			b.recheck(a)
		}
	}
	waits := want && r.nodeName == ""
	switch {
	case waits && r.waits == 0:
		b.waiting = append(b.waiting, r)
		r.waits = len(b.waiting)
		b.changedAt = true
	case !waits && r.waits > 0:
		last := len(b.waiting) - 1
		b.waiting[r.waits-1] = b.waiting[last]
		b.waiting[r.waits-1].waits = r.waits
		b.waiting[last] = nil
		b.waiting = b.waiting[:last]
		r.waits = 0
	}
}

// drop forgets an instance that is gone everywhere.
func (b *books) drop(r *rec) {
	if r.gone && len(r.on) == 0 {
		delete(b.byUID, r.uid)
	}
}

func (b *books) node(o *api.Node, deleted bool) {
	h := b.hosts[o.Name]
	if h == nil {
		return
	}
	b.load(h)
	h.known = !deleted
	h.object = o
	h.room = b.vector(o.Status.Allocatable)
	b.changedAt = true
	b.reweigh(h)
}

// reweigh is called when a host came, went, or lost its power.
func (b *books) reweigh(h *host) {
	for _, r := range h.recs {
		b.weigh(r)
	}
}

// phase is told by the hosts.
func (b *books) phase(h *host, uid string, p driver.Phase) {
	r := b.byUID[uid]
	if r == nil {
		if p == driver.PhaseRunning {
			b.violate("%s started something that was removed", h.name)
		}
		return
	}
	b.touch(r)
	here := -1
	for i, x := range r.on {
		if x == h {
			here = i
		}
	}
	switch {
	case p == driver.PhaseRunning && here < 0:
		r.on = append(r.on, h)
		h.running++
		b.running++
		b.peak = max(b.peak, b.running)
		b.starts++
		if r.started < 0 {
			r.started = b.now
		}
		if first := b.first(r); first {
			wait := (b.now - r.created).Seconds()
			b.pendings = append(b.pendings, wait)
			r.tenant.pending = append(r.tenant.pending, wait)
			if b.onStart != nil {
				b.onStart(r)
			}
		}
	case p != driver.PhaseRunning && here >= 0:
		r.on = append(r.on[:here], r.on[here+1:]...)
		h.running--
		b.running--
		if p == driver.PhaseExited {
			b.ends++
		}
		b.drop(r)
	}
}

// first reports, once, that an instance that was not there at the beginning has started.
func (b *books) first(r *rec) bool {
	if r.counted || r.restored {
		return false
	}
	r.counted = true
	return true
}

// pass lets time go by: what lacks something lacks it for d longer.
func (b *books) pass(d time.Duration) {
	b.now += d
	for _, a := range b.order {
		if !a.lacks {
			continue
		}
		a.seconds += d.Seconds()
		i := b.cpu
		a.cpuSeconds += float64(max(min(a.want[i], a.guarantee[i])-a.have[i], 0)) * d.Seconds()
	}
}

// settle decides anew who lacks something.
func (b *books) settle() {
	for _, a := range b.short {
		a.touched, a.lacks = false, false
		for _, i := range b.promised() {
			a.lacks = a.lacks || a.have[i] < min(a.want[i], a.guarantee[i])
		}
	}
	b.short = b.short[:0]
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
