package sim

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/agent"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/driver/runtime/fake"
	"atoll/internal/errs"
	"atoll/internal/lease"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// hclock is the pool's clock as a machine reads it; without a machine, as the network does.
type hclock struct {
	p    *pool
	m    *machine
	mono bool // what does not jump
}

func (c *hclock) Now() time.Time {
	if c.m == nil || c.mono {
		return c.p.clk.Now()
	}
	return c.p.clk.Now().Add(c.m.offset)
}
func (c *hclock) NewTimer(d time.Duration) *clock.Timer { return c.p.clk.NewTimer(d) }
func (c *hclock) Sleep(ctx context.Context, d time.Duration) error {
	return c.p.pause(ctx, c.m, d)
}

// machine is a host with the real agent and the real holder of a lease, a pretended
// runtime, and a watchdog that is a process of its own.
type machine struct {
	host    // what its daemon's coroutines belong to
	p       *pool
	edge    time.Duration
	power   bool
	daemon  bool // the daemon's process is there
	stopped bool // but is not given the processor
	paused  bool // nothing on the machine is
	gone    bool // was taken out of the pool
	began   time.Time
	drift   float64
	offset  time.Duration

	srv    *server
	mirror *mirror
	rt     *fake.Runtime
	agent  *agent.Agent
	rec    *reconcile.Recorder
	holder *lease.Holder
	life   context.Context //nolint:containedctx // of this daemon
	end    context.CancelFunc
	works  bool // the agent does
	runs   map[string]bool
	news   bool

	lost, taken       bool
	losing, takingNow bool
	dog               watchdog
}

// watchdog stops what it guards at the deadline, whatever becomes of the daemon.
type watchdog struct {
	alive    bool
	strange  bool // an earlier daemon's: the next list replaces what it has
	deadline time.Duration
	items    map[string]bool
	fenced   []string // not told yet
}

const dogMargin = 400 * time.Millisecond

func (p *pool) newMachine(i int) *machine {
	m := &machine{p: p, drift: (p.rng.Float64() - 0.5) / 50, runs: map[string]bool{}, dog: watchdog{items: map[string]bool{}}}
	m.host.idx, m.host.name = i, fmt.Sprintf("h%d", i)
	p.machines = append(p.machines, m)
	if i < p.opt.servers {
		m.srv = p.newServer(m)
		p.servers = append(p.servers, m.srv)
	}
	m.mirror = p.newMirror(func() bool { return m.awake() && m.reach() != nil }, m.send)
	return m
}

// awake: the daemon runs.
func (m *machine) awake() bool  { return m.power && m.daemon && !m.stopped && !m.paused }
func (m *machine) frozen() bool { return m.stopped || m.paused }

// hears reports whether what o sends arrives here.
func (m *machine) hears(o *machine) bool { return m == o || !m.p.cut[[2]int{o.idx, m.idx}] }

// reach gives a server that can be asked; nil: none.
func (m *machine) reach() *server {
	if m.srv != nil && m.srv.majority() {
		return m.srv
	}
	for i := range m.p.servers {
		s := m.p.servers[(i+m.idx)%len(m.p.servers)]
		if s.m.hears(m) && m.hears(s.m) && s.majority() {
			return s
		}
	}
	return nil
}

// send is how the agent commits: by the API of a server.
func (m *machine) send(ctx context.Context, ops []store.Op) (int64, error) {
	s := m.reach()
	if s == nil {
		return 0, errs.New(errs.Unavailable, "no server can be reached")
	}
	return m.p.over(ctx, m, func() (int64, error) {
		if m.gone || !s.m.hears(m) {
			return 0, errs.New(errs.Unavailable, "no server can be reached")
		}
		rev, err := s.admit(context.Background(), ops)
		if !m.hears(s.m) {
			return 0, errs.New(errs.Unavailable, "no answer; the outcome is not known")
		}
		return rev, err
	})
}

func (m *machine) boot() time.Duration {
	return time.Second + time.Duration(float64(m.p.clk.Now().Sub(m.began))*(1+m.drift))
}

// on boots the machine.
func (m *machine) on(ctx context.Context) {
	if m.power || m.gone {
		return
	}
	m.power, m.began, m.stopped, m.paused = true, m.p.clk.Now(), false, false
	m.dog = watchdog{alive: true, items: map[string]bool{}}
	clk := &hclock{p: m.p, m: m}
	rt, err := fake.New(driver.Deps{Node: m.name, Clock: clk, Log: m.p.log}, fake.Config{Seed: m.p.rng.Uint64(), StartMax: api.Duration(800 * time.Millisecond), StartFailures: 0.05})
	if err != nil {
		m.p.broke("%s: %v", m.name, err)
	}
	rt.OnChange(func(uid string, ph driver.Phase) {
		m.news = true
		m.runs[uid] = ph == driver.PhaseRunning
		m.p.ran(m, uid, ph)
	})
	m.rt = rt
	m.start(ctx)
}

// off takes its power.
func (m *machine) off() {
	m.kill()
	if m.power {
		m.power = false
		m.rt.Reboot()
		m.runs = map[string]bool{}
	}
	m.stopped, m.paused = false, false
}

// start begins a daemon; what runs goes on.
func (m *machine) start(ctx context.Context) {
	if m.daemon || !m.power || m.gone {
		return
	}
	m.daemon, m.stopped, m.works, m.lost, m.taken, m.losing, m.takingNow = true, false, false, false, false, false, false
	m.dog.strange = true
	m.life, m.end = context.WithCancel(ctx)
	clk := &hclock{p: m.p, m: m}
	m.holder = lease.NewHolder(lease.HolderDeps{Clock: clk, Log: m.p.log, Boot: m.boot, Ways: func() []lease.Renewer { return []lease.Renewer{ways{m}} },
		Extended: func(end time.Duration, _ bool) { m.extend(end) }, Shorter: m.shorter,
		Took: func(lease.Grant) { m.taken = true }, Lost: func() { m.lost = true }})
	var st store.Store = store.Fenced(m.mirror, api.NodeLease(m.name), m.holder.Rev)
	var right agent.Lease = m.holder
	switch m.p.opt.broken {
	case "fence":
		st = m.mirror
	case "lease":
		right = always{m.holder}
	}
	m.rec = reconcile.NewRecorder(st, clk, m.p.log, "agent/"+m.name)
	m.agent = agent.New(agent.Deps{Node: m.name, Store: st, Clock: clk, Log: m.p.log, Recorder: m.rec, Runtimes: map[string]driver.Runtime{"container": m.rt},
		Images: pretended{}, Network: unplugged{}, Facts: m.facts, Lease: right, Guard: m})
	life := m.life
	m.p.crew.run(&m.host, func() { m.live(life) })
}

// always believes that what the store shows is new enough.
type always struct{ *lease.Holder }

func (a always) Term() (int64, bool) { return a.Rev(), true }

// live is what a daemon does, in its order.
func (m *machine) live(ctx context.Context) {
	if m.holder.First(ctx) != nil {
		return
	}
	m.taken = false
	for ctx.Err() == nil {
		err := m.agent.LeaseTaken(ctx, m.holder.Rev())
		if err == nil {
			err = m.agent.Start(ctx)
		}
		if err == nil {
			break
		}
		m.p.say("%s: the daemon cannot start yet: %v", m.name, err)
		if m.p.pause(ctx, m, time.Second) != nil { // started again by whoever looks after it
			return
		}
		if m.holder.First(ctx) != nil {
			return
		}
	}
	m.tell()
	m.works, m.taken = true, true // looks at everything that Start found
	_ = m.holder.Run(ctx)
}

func (m *machine) facts(context.Context) (api.NodeStatus, error) {
	return api.NodeStatus{Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30, api.Instances: 100}, Arch: "amd64", OS: "simulated",
		Conditions: []api.Condition{{Type: api.ConditionFences, Status: true}}}, nil
}

// kill ends the daemon in the middle of whatever it does.
func (m *machine) kill() {
	if !m.daemon {
		return
	}
	m.end()
	m.daemon, m.works, m.stopped = false, false, false
	m.p.crew.kill(&m.host)
	for _, t := range m.p.terms {
		if t.srv.m == m {
			t.stop("killed")
		}
	}
}

// ways is the network between the holder of a lease and whoever may lead.
type ways struct{ m *machine }

// Renew asks everybody who believes to lead.
func (w ways) Renew(ctx context.Context, b lease.Beat) (lease.Grant, error) {
	m, p := w.m, w.m.p
	if m.gone {
		return lease.Grant{}, errs.New(errs.Unavailable, "turned away")
	}
	var none lease.Grant
	err := errs.New(errs.Unavailable, "nobody leads")
	terms := append([]*term(nil), p.terms...)
	p.rng.Shuffle(len(terms), func(i, j int) { terms[i], terms[j] = terms[j], terms[i] })
	for _, t := range terms {
		if ctx.Err() != nil {
			return none, ctx.Err()
		}
		if t.over || !t.srv.m.hears(m) || !m.hears(t.srv.m) {
			continue
		}
		g, rerr := w.ask(context.WithoutCancel(ctx), t, b)
		if rerr == nil || b.Epoch != 0 && errors.Is(rerr, errs.Conflict) {
			return g, rerr
		}
		err = errs.New(errs.Unavailable, "%w", rerr)
	}
	return none, err
}

func (w ways) ask(ctx context.Context, t *term, b lease.Beat) (g lease.Grant, err error) {
	m, p := w.m, w.m.p
	slow := time.Duration(1)
	if p.rng.IntN(100) < p.slowness {
		slow = 40
	}
	there := slow * time.Duration(p.rng.Int64N(int64(5*time.Millisecond)))
	back := slow * time.Duration(p.rng.Int64N(int64(5*time.Millisecond)))
	done := false
	p.crew.run(p.net, func() {
		if p.pause(ctx, t.srv.m, there) != nil {
			return
		}
		// Takes what waits for it also when it stood still meanwhile.
		g, err = lease.Local(m.name, func() *lease.Keeper {
			if t.over {
				return nil
			}
			return t.keeper
		}).Renew(ctx, b)
		if p.pause(ctx, t.srv.m, back) == nil && m.hears(t.srv.m) {
			done = true
		}
	})
	for waited := time.Duration(0); !done; {
		if waited += 5 * time.Millisecond; waited > time.Second {
			return lease.Grant{}, errs.New(errs.Timeout, "no answer to a heartbeat")
		}
		if serr := p.pause(ctx, m, 5*time.Millisecond); serr != nil {
			return lease.Grant{}, serr
		}
	}
	g.Alone = false
	return g, err
}

// extend is on its way to the watchdog. What is shorter than before is taken to be late:
// only after shorter has it arrived for certain.
func (m *machine) extend(end time.Duration) { m.dog.deadline = max(m.dog.deadline, end-dogMargin) }

func (m *machine) shorter(ctx context.Context, end time.Duration) error {
	if m.p.opt.broken == "shorter" {
		return nil
	}
	if err := m.p.pause(ctx, m, time.Duration(m.p.rng.Int64N(int64(20*time.Millisecond)))); err != nil {
		return err
	}
	if m.p.rng.IntN(3) == 0 {
		return errs.New(errs.Unavailable, "the watchdog does not answer")
	}
	m.dog.deadline = end - dogMargin
	return nil
}

// Guard is the daemon's word to the watchdog.
func (m *machine) Guard(ctx context.Context, id string, _ []string) error {
	if m.p.rng.IntN(4) == 0 {
		if err := m.p.pause(ctx, m, time.Duration(m.p.rng.Int64N(int64(20*time.Millisecond)))); err != nil {
			return err
		}
	}
	if m.dog.deadline <= m.boot() {
		return errs.New(errs.Unavailable, "guard %s: the host has no lease that lasts", id)
	}
	if m.dog.strange {
		m.dog.items, m.dog.strange = map[string]bool{}, false
	}
	m.dog.items[id] = true
	return nil
}

// GuardAll is the first word of a daemon: all that it found.
func (m *machine) GuardAll(ctx context.Context, groups map[string][]string) error {
	if err := m.p.pause(ctx, m, time.Duration(m.p.rng.Int64N(int64(20*time.Millisecond)))); err != nil {
		return err
	}
	if m.dog.deadline <= m.boot() {
		return errs.New(errs.Unavailable, "guard: the host has no lease that lasts")
	}
	m.dog.items, m.dog.strange = map[string]bool{}, false
	for id := range groups {
		m.dog.items[id] = true
	}
	return nil
}

// Unguard is told that nothing of it runs any more.
func (m *machine) Unguard(id string) {
	if !m.dog.strange {
		delete(m.dog.items, id)
	}
}

// bite stops what is guarded when the deadline has passed.
func (m *machine) bite() {
	if !m.power || m.paused || !m.dog.alive || m.p.opt.broken == "watchdog" || len(m.dog.items) == 0 || m.boot() < m.dog.deadline {
		return
	}
	ids := make([]string, 0, len(m.dog.items))
	for id := range m.dog.items {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	m.dog.items = map[string]bool{}
	for _, id := range ids {
		if err := m.rt.Stop(context.Background(), id, "KILL", 0); err == nil {
			m.p.bites++
			m.dog.fenced = append(m.dog.fenced, id)
		}
	}
	m.p.say("%s: the watchdog stopped %v", m.name, ids)
	if m.works && m.awake() {
		m.tell()
	}
}

func (m *machine) tell() {
	for _, id := range m.dog.fenced {
		m.agent.Fenced(id)
	}
	m.dog.fenced = nil
}

// next is when the watchdog has to look.
func (m *machine) next() (time.Time, bool) {
	if !m.power || m.paused || len(m.dog.items) == 0 || m.p.opt.broken == "watchdog" {
		return time.Time{}, false
	}
	left := time.Duration(float64(m.dog.deadline-m.boot()) / (1 + m.drift))
	return m.p.clk.Now().Add(max(left+time.Microsecond, time.Microsecond)), true
}

// turn lets the agent work until it has nothing more to do now.
func (m *machine) turn() (int, error) {
	if !m.awake() || !m.works {
		return 0, nil
	}
	if m.lost && !m.losing {
		m.lost, m.losing = false, true
		m.p.crew.run(&m.host, func() {
			_ = m.p.pause(m.life, m, time.Duration(m.p.rng.Int64N(int64(20*time.Millisecond))))
			m.agent.LeaseLost(m.life)
			m.losing = false
		})
	}
	if m.taken && !m.takingNow {
		m.taken, m.takingNow = false, true
		m.p.crew.run(&m.host, func() {
			_ = m.p.pause(m.life, m, time.Duration(m.p.rng.Int64N(int64(20*time.Millisecond))))
			for m.holder.Held() && m.life.Err() == nil {
				if m.agent.LeaseTaken(m.life, m.holder.Rev()) == nil {
					break
				}
				_ = m.p.pause(m.life, m, 500*time.Millisecond)
			}
			m.takingNow = false
		})
	}
	if len(m.dog.fenced) > 0 {
		m.tell()
	}
	if m.news {
		m.news = false
		for _, o := range m.rt.Ended() {
			m.agent.Exited(m.rt, o)
		}
	}
	n, err := m.agent.Engine().Turn(m.life, m.mirror, func(call func()) { m.p.crew.run(&m.host, call) })
	if errs.KindOf(err) == errs.Unavailable {
		return 0, nil // it lists again
	}
	return n, err
}
