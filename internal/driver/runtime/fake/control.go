package fake

import (
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
