package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/control"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/lease"
	"atoll/internal/reconcile"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
	"atoll/internal/store/quota"
)

// pool is a whole pool of several hosts, with everything in it that decides who may run
// what: servers of which one leads, hosts with leases, agents and watchdogs, users. The
// scheduler, controllers, keeper and holder of leases, fences and agents are the real ones.
// One seed decides everything.
type pool struct {
	opt      options
	rng      *rand.Rand
	clk      *clock.Manual
	begin    time.Time
	crew     *crew
	net      *host // what is on its way belongs to nobody
	mem      *store.Mem
	log      *slog.Logger
	agenda   agenda
	mirrors  []*mirror
	servers  []*server
	machines []*machine
	terms    []*term
	leader   *term
	electing bool

	events []store.Event
	times  []time.Time
	cut    map[[2]int]bool // from, to: nothing arrives
	// percent of calls that are slow, and of answers that are lost
	slowness, deafness int

	once   map[string]api.Ref // what must not run twice
	wanted map[api.Ref]*wish
	broken []string
	story  []string

	placed, takeovers, bites, losses, acks, refused, unknown int
}

type options struct {
	seed              uint64
	machines, servers int
	faults            []trouble
	calm              time.Duration // when they are over
	tell              bool
	broken            string // a part that is left out, to see that it is missed
}

// wish is what a user wants of an instance, as far as the pool has acknowledged.
type wish struct {
	uid     string
	created bool // acknowledged
	doubt   bool // its creation may have happened
	removed bool // asked for, perhaps without an answer
	count   int  // the last change acknowledged
	tried   int
}

// term is one process's time as the leader.
type term struct {
	host
	srv    *server
	rev    int64
	engine *reconcile.Engine
	keeper *lease.Keeper
	ctx    context.Context //nolint:containedctx // of this term
	end    context.CancelFunc
	over   bool
	deaf   time.Time // until when it does not notice that another leads
}

func (p *pool) say(format string, args ...any) {
	if len(p.story) < 100_000 {
		p.story = append(p.story, fmt.Sprintf("%9.3fs ", p.clk.Now().Sub(p.begin).Seconds())+fmt.Sprintf(format, args...))
	}
}

func (p *pool) broke(format string, args ...any) {
	msg := fmt.Sprintf("after %s: ", p.clk.Now().Sub(p.begin)) + fmt.Sprintf(format, args...)
	p.say("BROKEN %s", msg)
	p.broken = append(p.broken, msg)
}

// newPool makes a pool that nothing has happened to yet.
func newPool(ctx context.Context, opt options) *pool {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	p := &pool{opt: opt, rng: rand.New(rand.NewPCG(opt.seed, 99)), begin: begin, clk: clock.NewManual(begin), net: &host{}, mem: store.NewMemHistory(1 << 20), log: slog.New(slog.DiscardHandler),
		cut: map[[2]int]bool{}, once: map[string]api.Ref{}, wanted: map[api.Ref]*wish{}}
	if opt.tell && os.Getenv("ATOLL_SIM_LOG") != "" {
		p.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	p.crew = &crew{clk: p.clk}
	limit := api.Resources{api.Instances: 8}
	q := quota.New(through{Mem: p.mem, p: p})
	for _, t := range []*api.Tenant{{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "t", UID: "t"}}, Spec: api.TenantSpec{Limit: limit}}} {
		if _, err := q.Commit(ctx, store.Create(t)); err != nil {
			p.broke("%v", err)
		}
	}
	for i := range opt.machines {
		m := p.newMachine(i)
		n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: m.name}}}
		if i >= opt.servers && p.rng.IntN(4) == 0 {
			m.edge = 20 * time.Second
			d := api.Duration(m.edge)
			n.Spec.DisconnectAllowed = &d
		}
		if _, err := p.commit([]store.Op{store.Create(n)}); err != nil {
			p.broke("%v", err)
		}
	}
	for _, x := range p.mirrors {
		x.lag = time.Duration(p.rng.Int64N(int64(10 * time.Millisecond)))
		if p.rng.IntN(5) == 0 {
			x.lag *= 30
		}
	}
	for _, m := range p.machines {
		m.on(ctx)
	}
	p.agenda.note(begin, func(context.Context) error { p.govern(ctx); return nil })
	return p
}

// through commits to the store and tells the pool.
type through struct {
	*store.Mem
	p *pool
}

func (t through) Commit(_ context.Context, ops ...store.Op) (int64, error) { return t.p.commit(ops) }

// commit is the one place where anything is written.
func (p *pool) commit(ops []store.Op) (int64, error) {
	ctx := context.Background()
	was := map[api.Ref]api.Object{}
	for _, op := range ops {
		if k := op.Target().Kind; op.Verb != store.Check && (k == api.KindAssignment || k == api.KindLease) {
			if o, err := p.mem.Get(ctx, op.Target()); err == nil {
				was[op.Target()] = o
			}
		}
	}
	before := p.mem.Revision()
	rev, err := p.mem.Commit(ctx, ops...)
	if err != nil {
		return 0, err
	}
	for _, ev := range p.mem.EventsSince(before) {
		p.events, p.times = append(p.events, ev), append(p.times, p.clk.Now())
		p.noted(ctx, ev, was[api.RefOf(ev.Object)])
	}
	return rev, nil
}

// noted holds what was just written to its rules.
func (p *pool) noted(ctx context.Context, ev store.Event, was api.Object) {
	switch o := ev.Object.(type) {
	case *api.Lease:
		if old, ok := was.(*api.Lease); ok && !ev.Deleted && old.Spec.State != o.Spec.State && o.Name != api.LeaseLeader {
			p.losses += btoi(!o.Held())
			p.say("lease of %s: %s, epoch %d", o.Spec.Holder, o.Spec.State, o.Spec.Epoch)
		}
	case *api.Assignment:
		old, _ := was.(*api.Assignment)
		if ev.Deleted || o.Spec.Node == "" || old != nil && old.Spec.Node == o.Spec.Node {
			return
		}
		p.placed++
		p.say("%s is placed on %s", o.Name, o.Spec.Node)
		p.checkPlaced(ctx, o)
	case *api.Instance:
		p.checkQuota(ctx)
	}
}

// checkPlaced: the lease of the host was held when the leader last could see it.
func (p *pool) checkPlaced(ctx context.Context, a *api.Assignment) {
	l, err := store.Get[*api.Lease](ctx, p.mem, api.NodeLease(a.Spec.Node))
	if err == nil && l.Held() {
		return
	}
	// What ended in this moment may not have been seen yet.
	if err == nil && p.clk.Now().Sub(l.Spec.Since) < 2*time.Second {
		return
	}
	p.broke("%s is placed on %s, which holds no lease", a.Name, a.Spec.Node)
}

func (p *pool) checkQuota(ctx context.Context) {
	t, err := store.Get[*api.Tenant](ctx, p.mem, api.Ref{Kind: api.KindTenant, Name: "t"})
	if err != nil {
		return
	}
	ins, _, err := store.List[*api.Instance](ctx, p.mem, api.Selector{Kind: api.KindInstance, Tenant: "t"})
	if err != nil {
		p.broke("list instances: %v", err)
	}
	n := int64(0)
	for _, in := range ins {
		if in.DeletedAt == nil {
			n++
		}
	}
	if n > t.Spec.Limit[api.Instances] {
		p.broke("%d instances, the limit is %d", n, t.Spec.Limit[api.Instances])
	}
}

// ran is told by the runtimes what really runs.
func (p *pool) ran(m *machine, uid string, ph driver.Phase) {
	if ph != driver.PhaseRunning { // many end at once, in any order
		return
	}
	if ref, ok := p.once[uid]; ok {
		p.say("%s runs on %s", ref.Name, m.name)
	}
	p.checkOnce(uid)
}

// checkOnce: of what must not run twice there is one at most.
func (p *pool) checkOnce(uid string) {
	ref, ok := p.once[uid]
	if !ok {
		return
	}
	var on []string
	for _, m := range p.machines {
		if m.power && !m.paused && m.runs[uid] {
			on = append(on, m.name)
		}
	}
	if len(on) > 1 {
		p.broke("%s must not run twice, and runs on %v", ref.Name, on)
	}
}

// govern sees to it that somebody leads, as etcd does.
func (p *pool) govern(ctx context.Context) {
	p.agenda.note(p.clk.Now().Add(100*time.Millisecond), func(context.Context) error { p.govern(ctx); return nil })
	for _, t := range append([]*term(nil), p.terms...) {
		// Whoever sees that another took the lead goes; it is told late, if at all.
		l := t.srv.mirror.objs[api.KindLease][api.LeaderLease()]
		if t.rev != 0 && p.clk.Now().After(t.deaf) && t.srv.m.awake() && (l == nil || l.Metadata().Revision > t.rev || t != p.leader && p.rng.IntN(20) == 0 && t.srv.majority()) {
			t.stop("sees that another leads")
		}
	}
	if p.electing || p.leader != nil && !p.leader.over && p.leader.srv.majority() {
		return
	}
	p.electing = true
	wait := 600*time.Millisecond + time.Duration(p.rng.Int64N(int64(time.Second)))
	p.agenda.note(p.clk.Now().Add(wait), func(context.Context) error {
		p.electing = false
		if p.leader == nil || p.leader.over || !p.leader.srv.majority() {
			p.elect(ctx)
		}
		return nil
	})
}

// elect makes one of the servers the leader, another than now if there is one.
func (p *pool) elect(ctx context.Context) {
	var can []*server
	for _, s := range p.servers {
		if s.majority() && (p.leader == nil || s != p.leader.srv) {
			can = append(can, s)
		}
	}
	if len(can) == 0 && p.leader != nil && p.leader.over && p.leader.srv.majority() {
		can = append(can, p.leader.srv)
	}
	if len(can) == 0 {
		return
	}
	s := can[p.rng.IntN(len(can))]
	for _, t := range p.terms {
		if t.srv == s {
			t.stop("elected anew")
		}
	}
	t := &term{srv: s}
	t.host.name = s.m.name
	t.ctx, t.end = context.WithCancel(ctx)
	p.terms, p.leader = append(p.terms, t), t
	p.takeovers++
	p.say("%s is to lead", s.m.name)
	p.crew.run(&t.host, func() {
		if err := t.reign(p); err != nil {
			p.say("%s cannot lead: %v", s.m.name, err)
			t.over = true
		}
	})
}

// reign is what cmd/atolld does, in its order.
func (t *term) reign(p *pool) error {
	m := t.srv.m
	clk := &hclock{p: p, m: m}
	adm := admitted{t.srv}
	rev, err := lease.Lead(t.ctx, adm, clk, m.name)
	if err != nil {
		return err
	}
	t.rev = rev
	var st store.Store = store.Fenced(adm, api.LeaderLease(), func() int64 { return rev })
	if p.opt.broken == "fence" {
		st = adm
	}
	chain, _ := testChain(scenario.Policies{})
	cs, err := control.All(control.Deps{Clock: clk, Log: p.log, Chain: chain, Seed: 1, Subnet: "10.0.0.0/16"})
	if err != nil {
		return err
	}
	engine := reconcile.New(st, clk, p.log, reconcile.Events{})
	for _, c := range cs {
		engine.Add(c, control.Workers(c))
	}
	k := lease.NewKeeper(lease.Deps{Config: lease.Config{FlapPause: 2 * time.Second, FlapWindow: 20 * time.Second}, Store: st, Fresh: fresh{t.srv}, Term: rev,
		Sole: func() bool { return false }, Clock: &hclock{p: p, m: m, mono: true}, Log: p.log})
	if err := k.Load(t.ctx); err != nil {
		return err
	}
	t.engine, t.keeper = engine, k
	p.say("%s leads", m.name)
	for t.ctx.Err() == nil {
		next, err := k.Look(t.ctx)
		if err != nil {
			next = p.clk.Now().Add(200 * time.Millisecond)
		}
		if err := p.pause(t.ctx, m, min(max(next.Sub(p.clk.Now()), time.Millisecond), 500*time.Millisecond)); err != nil {
			return nil
		}
	}
	return nil
}

// admitted is a server's mirror with admission.
type admitted struct{ *server }

func (a admitted) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	return a.mirror.Get(ctx, ref)
}
func (a admitted) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	return a.mirror.List(ctx, sel)
}
func (a admitted) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	return a.admit(ctx, ops)
}
func (a admitted) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	return a.mirror.Watch(ctx, sel, rev, fn)
}

func (t *term) stop(why string) {
	if t.over {
		return
	}
	t.over = true
	t.end()
	p := t.srv.m.p
	p.crew.kill(&t.host)
	p.say("%s leads no more: %s", t.srv.m.name, why)
	var keep []*term
	for _, x := range p.terms {
		if x != t {
			keep = append(keep, x)
		}
	}
	p.terms = keep
}

// settle runs everybody until nobody has anything left to do now.
func (p *pool) settle() error {
	for rounds := 0; ; rounds++ {
		n := 0
		for _, x := range p.mirrors {
			n += btoi(x.catchUp())
		}
		for _, t := range append([]*term(nil), p.terms...) {
			if t.over || t.engine == nil || !t.srv.m.awake() {
				continue
			}
			k, err := t.engine.Turn(t.ctx, t.srv.mirror, func(call func()) { p.crew.run(&t.host, call) })
			if err != nil && errs.KindOf(err) != errs.Unavailable {
				return err
			}
			n += k
		}
		for _, m := range p.machines {
			k, err := m.turn()
			if err != nil {
				return err
			}
			n += k
		}
		if n == 0 {
			return nil
		}
		if rounds > 10_000 {
			return errs.New(errs.Internal, "the pool does not settle")
		}
	}
}

// step lets time jump to the next thing that happens.
func (p *pool) step(end time.Time) error {
	next, now := end, p.clk.Now()
	consider := func(at time.Time) {
		if at.After(now) && at.Before(next) {
			next = at
		}
	}
	if len(p.agenda.items) > 0 {
		next = minTime(next, p.agenda.items[0].at)
	}
	if len(p.crew.sleepers) > 0 {
		next = minTime(next, p.crew.sleepers[0].at)
	}
	for _, t := range p.terms {
		if t.engine != nil && t.srv.m.awake() {
			if at, ok := t.engine.NextAt(); ok {
				consider(at.Add(-t.srv.m.offset))
			}
		}
	}
	for _, m := range p.machines {
		if at, ok := m.next(); ok {
			consider(at)
		}
		if m.works && m.awake() {
			if at, ok := m.agent.Engine().NextAt(); ok {
				consider(at.Add(-m.offset))
			}
		}
	}
	for _, x := range p.mirrors {
		if x.pos < len(p.events) && x.open() {
			consider(p.times[x.pos].Add(x.lag))
			consider(x.after)
		}
	}
	if d := next.Sub(now); d > 0 {
		p.clk.Advance(d)
	}
	for _, m := range p.machines {
		m.bite() // it has the highest priority on its host
	}
	for p.crew.wake(p.clk.Now()) != nil {
	}
	for len(p.agenda.items) > 0 && !p.agenda.items[0].at.After(p.clk.Now()) {
		e := p.agenda.items[0]
		popEvent(&p.agenda)
		if err := e.do(context.Background()); err != nil {
			return err
		}
	}
	return p.settle()
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (p *pool) close() {
	for _, m := range p.machines {
		if m.end != nil {
			m.end()
		}
	}
	for _, t := range p.terms {
		t.end()
	}
	p.crew.close()
}

// converged tells what is not as it should be; "" when everything is.
func (p *pool) converged(ctx context.Context) string {
	refs := make([]api.Ref, 0, len(p.wanted))
	for ref := range p.wanted {
		refs = append(refs, ref)
	}
	sort.Slice(refs, func(i, j int) bool { return refs[i].Name < refs[j].Name })
	for _, ref := range refs {
		w := p.wanted[ref]
		in, err := store.Get[*api.Instance](ctx, p.mem, ref)
		var on []string
		for _, m := range p.machines {
			if m.power && m.runs[w.uid] {
				on = append(on, m.name)
			}
		}
		switch {
		case err != nil && len(on) > 0:
			return fmt.Sprintf("%s is not in the pool, and runs on %v", ref.Name, on)
		case err != nil:
			continue
		case in.DeletedAt != nil:
			return fmt.Sprintf("%s should be gone: %s %s on %v", ref.Name, in.Status.State, in.Status.Message, on)
		}
		a, err := store.Get[*api.Assignment](ctx, p.mem, api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name})
		if err != nil || a.Spec.Node == "" {
			return fmt.Sprintf("%s has no host: %v", ref.Name, err)
		}
		if len(on) != 1 || on[0] != a.Spec.Node || in.Status.State != api.StateRunning || in.Status.Node != a.Spec.Node {
			return fmt.Sprintf("%s is assigned to %s, runs on %v, and is shown as %s on %s: %s", ref.Name, a.Spec.Node, on, in.Status.State, in.Status.Node, in.Status.Message)
		}
	}
	return ""
}
