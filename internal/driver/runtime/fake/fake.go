// Package fake is a runtime that runs nothing: instances are entries in memory
// whose life is played on the injected clock. The simulator and the tests of
// everything above the drivers use it. It understands a few words of shell
// (script.go), so that one spec behaves alike here and in a real container.
//
// It starts no goroutine; Exits plays the clock in its caller's. It must never
// touch the host.
package fake

import (
	"context"
	"math/rand/v2"
	"path"
	"sort"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Config says how fast and how reliable the pretended host is.
type Config struct {
	// Seed of the driver's random numbers; the same seed and calls give the same life.
	Seed uint64 `json:"seed,omitempty"`
	// StartMin and StartMax bound how long Ensure takes to prepare an instance. Default 0.
	StartMin api.Duration `json:"startMin,omitempty"`
	StartMax api.Duration `json:"startMax,omitempty"`
	// StartFailures is the share (0..1) of preparations that fail with errs.Unavailable. Default 0.
	StartFailures float64 `json:"startFailures,omitempty"`
	// Crashes is the share (0..1) of starts that end with code 1 after CrashAfter. Default 0.
	Crashes    float64      `json:"crashes,omitempty"`
	CrashAfter api.Duration `json:"crashAfter,omitempty"`
	// Load is the share (0..1) of what was requested that a running instance uses. Default 0.5.
	Load float64 `json:"load,omitempty"`
	// Features are reported by Probe.
	Features map[string]string `json:"features,omitempty"`
	// Warnings are reported for every instance, as limits this "host" cannot enforce.
	Warnings []string `json:"warnings,omitempty"`
}

// Runtime is a pretended host.
type Runtime struct {
	node string
	cfg  Config
	clk  clock.Clock

	mu   sync.Mutex
	rng  *rand.Rand
	all  map[string]*instance
	seen map[string]int64 // highest generation by ID; survives Remove as long as the driver lives
	pid  int
	wake chan struct{} // closed and replaced when something changed
	down error         // set by Fail
	hook func(uid string, p driver.Phase)
	slow float64 // starts take so many times as long; 0: once
}

type instance struct {
	spec     driver.Spec
	phase    driver.Phase
	pid      int
	started  time.Time
	finished time.Time
	code     int
	oom      bool
	reported bool
	play     play // what the current run does
	log      []line
	stdin    int64
	usage    *api.Usage
}

// New makes an empty host.
func New(d driver.Deps, c Config) (*Runtime, error) {
	if c.StartFailures < 0 || c.StartFailures > 1 || c.Crashes < 0 || c.Crashes > 1 || c.Load < 0 || c.Load > 1 {
		return nil, errs.New(errs.Invalid, "startFailures, crashes and load must be 0 to 1")
	}
	if c.StartMax < c.StartMin {
		c.StartMax = c.StartMin
	}
	if c.Load == 0 {
		c.Load = 0.5
	}
	return &Runtime{node: d.Node, cfg: c, clk: d.Clock, rng: rand.New(rand.NewPCG(c.Seed, c.Seed^0x9e3779b97f4a7c15)), //nolint:gosec // repeatable by intent
		all: map[string]*instance{}, seen: map[string]int64{}, pid: 1000, wake: make(chan struct{})}, nil
}

// Probe always succeeds, unless Fail was called.
func (r *Runtime) Probe(context.Context) (api.Capability, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := map[string]string{"userns": "none"}
	for k, v := range r.cfg.Features {
		f[k] = v
	}
	return api.Capability{Type: "runtime", Name: "fake", Version: "1", Features: f}, r.down
}

// Ensure prepares an entry, taking as long and failing as often as configured.
func (r *Runtime) Ensure(ctx context.Context, s driver.Spec) (driver.Observed, error) {
	r.mu.Lock()
	if err := r.admit(s); err != nil {
		r.mu.Unlock()
		return driver.Observed{}, err
	}
	if in := r.all[s.ID]; in != nil {
		r.settle(in)
		if in.phase == driver.PhaseRunning || in.phase == driver.PhasePrepared {
			in.spec = s
			defer r.mu.Unlock()
			return r.observed(in), nil
		}
	}
	delay := r.cfg.StartMin.D()
	if span := r.cfg.StartMax.D() - delay; span > 0 {
		delay += time.Duration(r.rng.Int64N(int64(span) + 1))
	}
	if r.slow > 0 {
		delay = time.Duration(float64(delay) * r.slow)
	}
	fails := r.cfg.StartFailures > 0 && r.rng.Float64() < r.cfg.StartFailures
	r.mu.Unlock()
	if delay > 0 {
		if err := r.clk.Sleep(ctx, delay); err != nil {
			return driver.Observed{}, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.admit(s); err != nil {
		return driver.Observed{}, err
	}
	if fails {
		return driver.Observed{}, errs.New(errs.Unavailable, "prepare %s: the pretended host refused", s.ID)
	}
	p, err := parse(command(s))
	if err != nil {
		return driver.Observed{}, err
	}
	if in := r.all[s.ID]; in != nil && in.phase != driver.PhaseExited {
		in.spec = s
		return r.observed(in), nil
	}
	r.pid++
	in := &instance{spec: s, phase: driver.PhasePrepared, pid: r.pid, play: p}
	if !s.Instance.Spec.Stdin {
		in.stdin = -1
	}
	if old := r.all[s.ID]; old != nil {
		in.log, in.usage = old.log, old.usage
	}
	r.all[s.ID] = in
	r.moved(in)
	r.changed()
	return r.observed(in), nil
}

func (r *Runtime) admit(s driver.Spec) error {
	if r.down != nil {
		return r.down
	}
	if !driver.ValidID(s.ID) || s.Instance == nil {
		return errs.New(errs.Invalid, "spec: ID must be 1 to 64 of a-z, 0-9 and -, and Instance given")
	}
	if g := r.seen[s.ID]; s.Generation < g {
		return errs.New(errs.Conflict, "instance %s: generation %d is older than %d", s.ID, s.Generation, g)
	}
	r.seen[s.ID] = s.Generation
	return nil
}

func command(s driver.Spec) []string {
	entry, cmd := s.Image.Config.Entrypoint, s.Image.Config.Cmd
	if len(s.Instance.Spec.Entry) > 0 {
		entry, cmd = s.Instance.Spec.Entry, nil
	}
	if len(s.Instance.Spec.Command) > 0 {
		cmd = s.Instance.Spec.Command
	}
	return append(append([]string(nil), entry...), cmd...)
}

// Start lets the run begin.
func (r *Runtime) Start(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	in, err := r.find(id)
	if err != nil {
		return err
	}
	switch in.phase {
	case driver.PhaseRunning:
		return nil
	case driver.PhasePrepared:
	default:
		return errs.New(errs.Conflict, "instance %s has ended: prepare it again", id)
	}
	in.phase, in.started = driver.PhaseRunning, r.clk.Now()
	if r.cfg.Crashes > 0 && r.rng.Float64() < r.cfg.Crashes {
		in.play.endsAt(r.cfg.CrashAfter.D(), 1)
	}
	r.moved(in)
	r.changed()
	return nil
}

// Stop signals, waits the grace on the clock, and kills.
func (r *Runtime) Stop(ctx context.Context, id, signal string, grace time.Duration) error {
	r.mu.Lock()
	in, err := r.find(id)
	if err != nil {
		r.mu.Unlock()
		return err
	}
	r.settle(in)
	if in.phase == driver.PhasePrepared {
		in.started = r.clk.Now()
		r.end(in, in.started, 137)
	}
	if in.phase != driver.PhaseRunning {
		r.mu.Unlock()
		return nil
	}
	if signal == "" {
		signal = in.spec.Image.Config.StopSignal
	}
	if signal == "" {
		signal = "TERM"
	}
	if code, ends := in.play.onSignal(signal); ends {
		r.end(in, r.clk.Now(), code)
		r.mu.Unlock()
		return nil
	}
	r.mu.Unlock()
	if err := r.awaitEnd(ctx, id, grace); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if cur := r.all[id]; cur == in {
		r.settle(in)
		if in.phase == driver.PhaseRunning {
			r.end(in, r.clk.Now(), 137)
		}
	}
	return nil
}

// awaitEnd returns when the instance has ended or d has passed.
func (r *Runtime) awaitEnd(ctx context.Context, id string, d time.Duration) error {
	t := r.clk.NewTimer(d)
	defer t.Stop()
	for {
		r.mu.Lock()
		in := r.all[id]
		if in != nil {
			r.settle(in)
		}
		done := in == nil || in.phase != driver.PhaseRunning
		wake, due := r.wake, r.due()
		r.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-t.C:
			return nil
		case <-wake:
		case <-due.C:
		case <-ctx.Done():
			due.Stop()
			return ctx.Err()
		}
		due.Stop()
	}
}

// Observe lists all entries by ID.
func (r *Runtime) Observe(context.Context) ([]driver.Observed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down != nil {
		return nil, r.down
	}
	out := make([]driver.Observed, 0, len(r.all))
	for _, in := range r.all {
		r.settle(in)
		out = append(out, r.observed(in))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out, nil
}

// Remove forgets the entry.
func (r *Runtime) Remove(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down != nil {
		return r.down
	}
	if in := r.all[id]; in != nil {
		in.phase = ""
		r.moved(in)
		delete(r.all, id)
	}
	r.changed()
	return nil
}

// Exits plays the clock until ctx ends.
func (r *Runtime) Exits(ctx context.Context, fn func(driver.Observed)) error {
	for {
		r.mu.Lock()
		ended := r.ended()
		wake, due := r.wake, r.due()
		r.mu.Unlock()
		for _, o := range ended {
			fn(o)
		}
		select {
		case <-wake:
		case <-due.C:
		case <-ctx.Done():
			due.Stop()
			return ctx.Err()
		}
		due.Stop()
	}
}

// ended gives what has ended and was not told yet, by ID. Called with mu held.
func (r *Runtime) ended() []driver.Observed {
	var out []driver.Observed
	for _, in := range r.all {
		r.settle(in)
		if in.phase == driver.PhaseExited && !in.reported {
			in.reported = true
			out = append(out, r.observed(in))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// due is a timer for the next end that is known; it must be stopped. Called with mu held.
func (r *Runtime) due() *clock.Timer {
	next := 24 * time.Hour // without a known end, wake-ups come by the channel
	if at, ok := r.nextEnd(); ok {
		next = max(at.Sub(r.clk.Now()), 0)
	}
	return r.clk.NewTimer(next)
}

// nextEnd is when the next run ends by itself. Called with mu held.
func (r *Runtime) nextEnd() (next time.Time, ok bool) {
	for _, in := range r.all {
		if in.phase != driver.PhaseRunning {
			continue
		}
		if at, ends := in.endTime(); ends && (!ok || at.Before(next)) {
			next, ok = at, true
		}
	}
	return next, ok
}

func (in *instance) endTime() (time.Time, bool) {
	after, _, ok := in.play.end(in.stdin)
	return in.started.Add(after), ok
}

// settle lets everything happen that was due by now. Called with mu held.
func (r *Runtime) settle(in *instance) {
	if in.phase != driver.PhaseRunning {
		return
	}
	if after, code, ok := in.play.end(in.stdin); ok && !in.started.Add(after).After(r.clk.Now()) {
		r.end(in, in.started.Add(after), code)
	}
}

func (r *Runtime) end(in *instance, at time.Time, code int) {
	in.log = append(in.log, in.output(at)...)
	in.phase, in.finished, in.code, in.pid = driver.PhaseExited, at, code, 0
	in.reported = false
	r.moved(in)
	r.changed()
}

// moved tells the hook how far an instance is now. Called with mu held.
func (r *Runtime) moved(in *instance) {
	if r.hook != nil {
		r.hook(in.spec.Instance.UID, in.phase)
	}
}

func (r *Runtime) changed() {
	close(r.wake)
	r.wake = make(chan struct{})
}

func (r *Runtime) find(id string) (*instance, error) {
	if r.down != nil {
		return nil, r.down
	}
	in := r.all[id]
	if in == nil {
		return nil, errs.New(errs.NotFound, "instance %s is not on this node", id)
	}
	return in, nil
}

func (r *Runtime) observed(in *instance) driver.Observed {
	o := driver.Observed{ID: in.spec.ID, Ref: api.RefOf(in.spec.Instance), UID: in.spec.Instance.UID, Generation: in.spec.Generation,
		Phase: in.phase, Pid: in.pid, ImageDigest: in.spec.Image.Digest, ExitCode: in.code, OOMKilled: in.oom,
		StartedAt: in.started, FinishedAt: in.finished, Warnings: append([]string(nil), r.cfg.Warnings...)}
	if in.pid != 0 && in.spec.Network.Mode != "host" {
		o.NetNS = path.Join("/fake", r.node, in.spec.ID, "net")
	}
	return o
}
