package sim

import (
	"context"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/quota"
)

// mirror is the pool's state as one process sees it: what was committed comes with a
// delay, and not at all while it is cut off. It commits through its owner's way.
type mirror struct {
	p     *pool
	objs  map[api.Kind]map[api.Ref]api.Object
	pos   int   // in the pool's events
	rev   int64 // up to which it knows
	acked int64 // of its own commits: what is read must show them
	lag   time.Duration
	shut  bool      // no news arrived when it was last looked
	after time.Time // when it has made up for that
	slow  time.Duration
	open  func() bool // whether news arrives
	send  func(ctx context.Context, ops []store.Op) (int64, error)
}

func (p *pool) newMirror(open func() bool, send func(context.Context, []store.Op) (int64, error)) *mirror {
	m := &mirror{p: p, objs: map[api.Kind]map[api.Ref]api.Object{}, open: open, send: send, slow: 2 * time.Second}
	p.mirrors = append(p.mirrors, m)
	return m
}

// catchUp takes in what has arrived by now, whole commits only.
func (m *mirror) catchUp() bool {
	if !m.open() {
		m.shut = true
		return false
	}
	if m.shut { // who was cut off needs a moment to hear what it missed
		m.shut = false
		m.after = m.p.clk.Now().Add(time.Duration(m.p.rng.Int64N(int64(m.slow))))
	}
	if m.p.clk.Now().Before(m.after) {
		return false
	}
	moved := false
	for m.pos < len(m.p.events) {
		ev := m.p.events[m.pos]
		if ev.Rev > m.acked && m.p.times[m.pos].Add(m.lag).After(m.p.clk.Now()) {
			break
		}
		ref := api.RefOf(ev.Object)
		if m.objs[ref.Kind] == nil {
			m.objs[ref.Kind] = map[api.Ref]api.Object{}
		}
		if ev.Deleted {
			delete(m.objs[ref.Kind], ref)
		} else {
			m.objs[ref.Kind][ref] = ev.Object
		}
		m.rev = ev.Rev
		m.pos++
		moved = true
	}
	return moved
}

// usable is how store.Cache behaves: who wrote something sees it, or hears that it cannot be seen.
func (m *mirror) usable() error {
	m.catchUp()
	if m.rev < m.acked {
		return errs.New(errs.Unavailable, "the mirror is behind, and the store cannot be reached")
	}
	return nil
}

// Get reads one object.
func (m *mirror) Get(_ context.Context, ref api.Ref) (api.Object, error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	if o := m.objs[ref.Kind][ref]; o != nil {
		return o, nil
	}
	return nil, errs.New(errs.NotFound, "%s does not exist", ref)
}

// List reads the chosen objects; it waits for MinRev.
func (m *mirror) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	for tries := 0; ; tries++ {
		if err := m.usable(); err != nil {
			return nil, 0, err
		}
		if m.rev >= sel.MinRev {
			break
		}
		if tries > 100 {
			return nil, 0, errs.New(errs.Unavailable, "the mirror does not get to revision %d", sel.MinRev)
		}
		if err := m.p.crew.sleep(ctx, 20*time.Millisecond); err != nil {
			return nil, 0, err
		}
	}
	var out []api.Object
	for _, o := range m.objs[sel.Kind] {
		if sel.Matches(o) {
			out = append(out, o)
		}
	}
	sort.Slice(out, func(i, j int) bool { return api.SortKey(api.RefOf(out[i])) < api.SortKey(api.RefOf(out[j])) })
	return out, m.rev, nil
}

// Commit sends ops on their way.
func (m *mirror) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	rev, err := m.send(ctx, ops)
	if err == nil {
		m.acked = max(m.acked, rev)
	}
	return rev, err
}

// Watch is not needed: the engines are given what is new.
func (m *mirror) Watch(context.Context, api.Selector, int64, func(store.Event) error) error {
	return errs.New(errs.Unsupported, "not in the simulator")
}

// EventsSince is what an engine has not seen yet.
func (m *mirror) EventsSince(rev int64) []store.Event {
	seen := m.p.events[:m.pos]
	i := sort.Search(len(seen), func(i int) bool { return seen[i].Rev > rev })
	return seen[i:]
}

// server is the part of the control plane on one host: a mirror, the API, and a share in
// what keeps the state.
type server struct {
	m      *machine
	mirror *mirror
}

func (p *pool) newServer(m *machine) *server {
	s := &server{m: m}
	s.mirror = p.newMirror(s.majority, func(ctx context.Context, ops []store.Op) (int64, error) {
		return p.over(ctx, m, func() (int64, error) { return s.write(ctx, ops) })
	})
	return s
}

// majority reports whether most servers hear each other and this one.
func (s *server) majority() bool {
	if !s.m.awake() {
		return false
	}
	n := 0
	for _, o := range s.m.p.servers {
		if o == s || o.m.awake() && s.m.hears(o.m) && o.m.hears(s.m) {
			n++
		}
	}
	return n > len(s.m.p.servers)/2
}

// write commits for good.
func (s *server) write(_ context.Context, ops []store.Op) (int64, error) {
	if !s.majority() {
		return 0, errs.New(errs.Unavailable, "no majority")
	}
	return s.m.p.commit(ops)
}

// admit is what the API does with a commit. Every call has an admission of its own: a
// queue in front of it would make coroutines wait for each other.
func (s *server) admit(ctx context.Context, ops []store.Op) (int64, error) {
	q := quota.New(s.mirror)
	q.Clock = &hclock{p: s.m.p}
	q.Reserve = quota.Reserve{}
	return q.Commit(ctx, ops...)
}

// fresh reads what is true now, as store.Fresh does: a majority says how far to read.
// It answers to every server, also to one that leads no more.
type fresh struct{ s *server }

func (f fresh) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	p := f.s.m.p
	rev, err := p.over(ctx, f.s.m, func() (int64, error) {
		if !f.s.majority() {
			return 0, errs.New(errs.Unavailable, "no majority")
		}
		return p.mem.Revision(), nil
	})
	if err != nil {
		return nil, err
	}
	if _, _, err := f.s.mirror.List(ctx, api.Selector{Kind: ref.Kind, Name: ref.Name, MinRev: rev}); err != nil {
		return nil, err
	}
	return f.s.mirror.Get(ctx, ref)
}

func (f fresh) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	return f.s.mirror.List(ctx, sel)
}
func (f fresh) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	return f.s.mirror.Commit(ctx, ops...)
}
func (f fresh) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	return f.s.mirror.Watch(ctx, sel, rev, fn)
}

// over lets fn happen elsewhere, after a while and without whoever asked: it may be gone
// or asleep when the answer comes. The answer may be lost.
func (p *pool) over(ctx context.Context, from *machine, fn func() (int64, error)) (int64, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	slow := p.rng.IntN(100) < p.slowness
	if !slow && p.rng.IntN(100) < 60 {
		return p.answered(fn())
	}
	wait := func() time.Duration {
		if slow {
			return time.Duration(p.rng.Int64N(int64(700 * time.Millisecond)))
		}
		return time.Duration(p.rng.Int64N(int64(5 * time.Millisecond)))
	}
	there, back := wait(), wait()
	var done bool
	var rev int64
	var err error
	p.crew.run(p.net, func() {
		_ = p.crew.sleep(context.Background(), there) // only ends early with the simulation
		rev, err = fn()
		_ = p.crew.sleep(context.Background(), back)
		done = true
	})
	for waited := time.Duration(0); !done; {
		step := 3 * time.Millisecond
		if slow {
			step = 30 * time.Millisecond
		}
		if waited += step; waited > 5*time.Second {
			return 0, errs.New(errs.Unavailable, "no answer; the outcome is not known")
		}
		if serr := p.pause(ctx, from, step); serr != nil {
			return 0, serr
		}
	}
	return p.answered(rev, err)
}

func (p *pool) answered(rev int64, err error) (int64, error) {
	if err == nil && p.rng.IntN(100) < p.deafness {
		return 0, errs.New(errs.Unavailable, "the answer was lost; the outcome is not known")
	}
	return rev, err
}

// pause lets a process wait; one that does not run when it is over waits on.
func (p *pool) pause(ctx context.Context, m *machine, d time.Duration) error {
	err := p.crew.sleep(ctx, d)
	for err == nil && m != nil && m.frozen() {
		err = p.crew.sleep(ctx, 50*time.Millisecond)
	}
	return err
}
