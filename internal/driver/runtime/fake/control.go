package fake

import (
	"time"

	"atoll/api"
	"atoll/internal/driver"
)

// What a test or the simulator does to the pretended host.

// Exit ends a running instance now, as if by itself; it reports whether there was one.
func (r *Runtime) Exit(id string, code int, oom bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	in := r.all[id]
	if in == nil {
		return false
	}
	r.settle(in)
	if in.phase != driver.PhaseRunning {
		return false
	}
	in.oom = oom
	r.end(in, r.clk.Now(), code)
	return true
}

// Reboot ends everything with 137, as a loss of power does, and reports how much ran.
func (r *Runtime) Reboot() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, in := range r.all {
		r.settle(in)
		if in.phase == driver.PhaseRunning || in.phase == driver.PhasePrepared {
			n++
			r.end(in, r.clk.Now(), 137)
		}
	}
	return n
}

// Fail makes every call fail with err until it is called with nil.
func (r *Runtime) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = err
	r.changed()
}

// SetUsage fixes what Usage reports for an instance; nil: back to the configured load.
func (r *Runtime) SetUsage(id string, u *api.Usage) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	in := r.all[id]
	if in == nil {
		return false
	}
	in.usage = u
	return true
}

// Spec is what the driver was last given for an instance.
func (r *Runtime) Spec(id string) (driver.Spec, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in := r.all[id]
	if in == nil {
		return driver.Spec{}, false
	}
	return in.spec, true
}

// OnChange makes the runtime call fn, in its caller's goroutine and holding its lock,
// whenever an instance gets to another phase; "" is gone. Call it before use.
func (r *Runtime) OnChange(fn func(uid string, p driver.Phase)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = fn
}

// Ended gives what has ended since the last call, as Exits tells it; for a caller
// that must not wait. Use one or the other.
func (r *Runtime) Ended() []driver.Observed {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended()
}

// NextEnd is when the next run will end by itself; false when none is known to.
func (r *Runtime) NextEnd() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nextEnd()
}

// Slow makes starts from now on take factor times as long; 1 is as configured.
func (r *Runtime) Slow(factor float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slow = factor
}

// StartFailures changes the share of preparations that fail from now on.
func (r *Runtime) StartFailures(share float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cfg.StartFailures = share
}
