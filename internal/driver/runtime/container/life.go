package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/proc"
)

// Start lets the first process run.
func (r *Runtime) Start(ctx context.Context, id string) error {
	e, err := r.setup()
	if err != nil {
		return err
	}
	unlock, err := r.keys.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	o, _, found := r.look(e, id)
	switch {
	case !found:
		return notHere(id)
	case o.Phase == driver.PhaseRunning:
		return nil
	case o.Phase != driver.PhasePrepared:
		return errs.New(errs.Conflict, "instance %s has ended: prepare it again", id)
	}
	if err := os.WriteFile(r.run("i", id, "started"), nil, 0o600); err != nil {
		return err
	}
	if err := r.release(ctx, e, id); err != nil {
		return fmt.Errorf("start %s: %w", id, err)
	}
	return nil
}

// release lets the OCI runtime's waiting child go on. crun's waits for a byte in a
// FIFO: writing it here saves a process. Where that does not work, the runtime does it.
func (r *Runtime) release(ctx context.Context, e *environment, id string) error {
	if e.isCrun {
		fifo := r.run("c", id, "exec.fifo")
		if err := proc.WriteFIFO(fifo, []byte{0}); err == nil {
			return os.Remove(fifo)
		}
	}
	return r.inRuntimeNS(e, func() error {
		out, err := r.ociCommand(ctx, e, "start", id).CombinedOutput()
		if err != nil {
			return commandError(id, cleanMessage(string(out)))
		}
		return nil
	})
}

// inRuntimeNS runs fn where the OCI runtime finds the hierarchies it understands.
func (r *Runtime) inRuntimeNS(e *environment, fn func() error) error { return e.base.InBase(fn) }

func (r *Runtime) ociCommand(ctx context.Context, e *environment, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, e.program, append(r.ociArgs(e), args...)...)
}

func (r *Runtime) ociArgs(e *environment) []string {
	args := []string{"--root", r.run("c")}
	if m := e.manager(); m != "" {
		args = append(args, m)
	}
	return args
}

// manager tells crun who looks after cgroups.
func (e *environment) manager() string {
	switch {
	case e.inherits():
		return "--cgroup-manager=disabled"
	case e.isCrun:
		return "--cgroup-manager=cgroupfs"
	}
	return ""
}

// Stop asks the first process to end, and kills it when it does not.
func (r *Runtime) Stop(ctx context.Context, id, signal string, grace time.Duration) error {
	e, err := r.setup()
	if err != nil {
		return err
	}
	unlock, err := r.keys.lock(ctx, id)
	if err != nil {
		return err
	}
	o, rec, found := r.look(e, id)
	var p *proc.Process
	if o.Pid != 0 {
		p, err = proc.Open(o.Pid)
		if err == nil && !e.groups.Contains(rec.Cgroup, o.Pid) {
			err = os.ErrProcessDone // the number means another process by now
		}
	}
	unlock()
	if !found {
		return notHere(id)
	}
	if p == nil || errors.Is(err, os.ErrProcessDone) {
		p.Close()
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if err := r.end(ctx, p, o.Phase, signal, grace); err != nil {
		return fmt.Errorf("stop %s: %w", id, err)
	}
	if unlock, err = r.keys.lock(ctx, id); err != nil {
		return err
	}
	defer unlock()
	r.look(e, id) // waits for the exit to be written down
	return nil
}

// end signals, waits and kills.
func (r *Runtime) end(ctx context.Context, p *proc.Process, phase driver.Phase, signal string, grace time.Duration) error {
	sig, err := proc.SignalNumber(signal)
	if err != nil {
		return errs.New(errs.Invalid, "%w", err).WithHint("use a name such as TERM, INT or HUP")
	}
	if phase == driver.PhaseRunning && sig != proc.Kill && grace > 0 {
		if err := p.Signal(sig); err != nil {
			return err
		}
		wait, cancel := context.WithCancel(ctx)
		defer cancel()
		t := r.clk.NewTimer(grace)
		defer t.Stop()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			select {
			case <-t.C:
				cancel()
			case <-wait.Done():
			}
		}()
		err := p.Wait(wait)
		cancel()
		<-stopped
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := p.Signal(proc.Kill); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// Remove ends the instance and removes every trace of it.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if !driver.ValidID(id) {
		return nil // never there
	}
	e, err := r.setup()
	if err != nil {
		return err
	}
	unlock, err := r.keys.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	group := ""
	if rec, err := r.load(id); err == nil {
		group = rec.Cgroup
	}
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	if err := r.destroy(ctx, e, id, group); err != nil {
		return fmt.Errorf("remove %s: %w", id, err)
	}
	return nil
}

// destroy removes everything, also of an instance that is half there.
func (r *Runtime) destroy(ctx context.Context, e *environment, id, group string) error {
	if err := r.clear(ctx, e, id, group); err != nil {
		return err
	}
	if err := os.RemoveAll(r.state("i", id)); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.records, id)
	close(r.changed)
	r.changed = make(chan struct{})
	return nil
}

// clear ends a run and removes what belongs to it: processes, cgroups, mounts, bundle.
// Upper layer, logs and record stay.
func (r *Runtime) clear(ctx context.Context, e *environment, id, group string) error {
	if pid := readPid(r.run("i", id, "pid")); pid != 0 && group != "" {
		if p, err := proc.Open(pid); err == nil {
			if e.groups.Contains(group, pid) { // looked at after the handle was taken
				err = p.Signal(proc.Kill)
			}
			p.Close()
			if err != nil {
				return err
			}
		}
	}
	if err := r.endConmon(ctx, id); err != nil {
		return err
	}
	if group != "" {
		if err := e.groups.Remove(ctx, group); err != nil {
			return err
		}
	}
	for _, dir := range []string{r.run("c", id), r.run("i", id)} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.Remove(r.run("exit", id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	r.mu.Lock()
	delete(r.reported, id)
	r.mu.Unlock()
	return nil
}

// endConmon waits for the supervisor, which ends after the first process; one whose
// process never came to be, or that hangs, is killed. Its mounts go with it.
func (r *Runtime) endConmon(ctx context.Context, id string) error {
	pid := r.conmonPid(id)
	if pid == 0 && !exists(r.run("i", id, "conmon.pid")) && exists(r.run("i", id)) {
		pid = findConmon(id) // the daemon was killed before it noted the number
	}
	p, err := proc.Open(pid)
	if err != nil {
		r.reap(id)
		return nil
	}
	defer p.Close()
	if !exists(r.run("i", id, "pid")) {
		_ = p.Signal(proc.Kill)
	}
	patient, cancel := context.WithTimeout(ctx, conmonPatience)
	defer cancel()
	if err := p.Wait(patient); err != nil {
		if err := p.Signal(proc.Kill); err != nil {
			return err
		}
		if err := p.Wait(ctx); err != nil {
			return fmt.Errorf("end of conmon: %w", err)
		}
	}
	r.reap(id)
	return nil
}

// findConmon looks for a supervisor among all processes.
func findConmon(id string) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, d := range dirs {
		pid := readNumber(filepath.Base(filepath.Dir(d)))
		if pid != 0 && isConmon(pid, id) {
			return pid
		}
	}
	return 0
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Observe lists all that is ours. After a restart it also ends commands that an
// earlier life of the daemon ran in instances: nobody listens to them any more.
func (r *Runtime) Observe(ctx context.Context) ([]driver.Observed, error) {
	e, err := r.setup()
	if err != nil {
		return nil, err
	}
	ids, err := r.ids()
	if err != nil {
		return nil, err
	}
	out := make([]driver.Observed, 0, len(ids))
	for _, id := range ids {
		unlock, err := r.keys.lock(ctx, id)
		if err != nil {
			return nil, err
		}
		o, rec, found := r.look(e, id)
		if found && rec != nil && (o.Phase == driver.PhaseRunning || o.Phase == driver.PhasePrepared) {
			r.killOrphanExecs(e, rec)
		}
		unlock()
		if found {
			out = append(out, o)
		}
	}
	return out, nil
}

// ids lists every instance that has left a trace.
func (r *Runtime) ids() ([]string, error) {
	seen := map[string]bool{}
	for _, dir := range []string{r.state("i"), r.run("i")} {
		es, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			if driver.ValidID(e.Name()) {
				seen[e.Name()] = true
			}
		}
	}
	out := make([]string, 0, len(seen))
	for id := range seen {
		out = append(out, id)
	}
	sort.Strings(out)
	return out, nil
}

// sweepEvery is how often instances are looked at without a reason: for logs that
// have grown and for supervisors that were killed.
const sweepEvery = time.Second

// Exits reports ends until ctx ends. It also keeps the logs within their bounds.
func (r *Runtime) Exits(ctx context.Context, fn func(driver.Observed)) error {
	e, err := r.setup()
	if err != nil {
		return err
	}
	w, err := proc.NewWatch(proc.Moved, r.run("exit"))
	if err != nil {
		return err
	}
	defer w.Close()
	if err := r.reportAll(ctx, e, fn); err != nil {
		return err
	}
	for {
		events, err := w.Next(ctx, sweepEvery)
		if err != nil {
			return err
		}
		all := len(events) == 0
		for _, ev := range events {
			if ev.Overflow {
				all = true
			} else if err := r.report(ctx, e, ev.Name, fn); err != nil {
				return err
			}
		}
		if all {
			if err := r.sweep(ctx, e, fn); err != nil {
				return err
			}
		}
	}
}

func (r *Runtime) reportAll(ctx context.Context, e *environment, fn func(driver.Observed)) error {
	ids, err := r.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := r.report(ctx, e, id, fn); err != nil {
			return err
		}
	}
	return nil
}

// report tells an end that was not told yet.
func (r *Runtime) report(ctx context.Context, e *environment, id string, fn func(driver.Observed)) error {
	if !driver.ValidID(id) {
		return nil // conmon's temporary file
	}
	unlock, err := r.keys.lock(ctx, id)
	if err != nil {
		return err
	}
	o, _, found := r.look(e, id)
	tell := false
	if found && o.Phase == driver.PhaseExited {
		run := fmt.Sprint(o.FinishedAt.UnixNano(), o.StartedAt.UnixNano())
		r.mu.Lock()
		tell = r.reported[id] != run
		r.reported[id] = run
		r.mu.Unlock()
	}
	unlock()
	if tell {
		fn(o)
	}
	return nil
}

// sweep looks at every instance that should be running.
func (r *Runtime) sweep(ctx context.Context, e *environment, fn func(driver.Observed)) error {
	r.mu.Lock()
	ids := make([]string, 0, len(r.records))
	for id, rec := range r.records {
		if r.reported[id] == "" && rec.Boot == e.boot {
			ids = append(ids, id)
		}
	}
	r.mu.Unlock()
	sort.Strings(ids)
	for _, id := range ids {
		if err := r.tend(ctx, e, id); err != nil {
			return err
		}
		if err := r.report(ctx, e, id, fn); err != nil {
			return err
		}
	}
	return nil
}

// tend keeps one instance in order: its log within bounds, and an end of it where its
// supervisor was killed and nobody would collect its output or its exit code.
func (r *Runtime) tend(ctx context.Context, e *environment, id string) error {
	unlock, err := r.keys.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := r.load(id)
	if err != nil {
		return nil //nolint:nilerr // removed meanwhile
	}
	if err := r.rotate(rec); err != nil {
		r.log.Warn("log not rotated", "instance", id, "error", err)
	}
	pid := readPid(r.run("i", id, "pid"))
	if pid == 0 || exists(r.run("exit", id)) || proc.Alive(r.conmonPid(id)) {
		return nil
	}
	p, err := proc.Open(pid)
	if err != nil {
		return nil //nolint:nilerr // ended; report finds out how
	}
	defer p.Close()
	if e.groups.Contains(rec.Cgroup, pid) && !exists(r.run("exit", id)) {
		r.log.Warn("the supervisor was killed; the instance is ended", "instance", id)
		return p.Signal(proc.Kill)
	}
	return nil
}

func readNumber(s string) int {
	n := 0
	for _, c := range strings.TrimSpace(s) {
		if c < '0' || c > '9' || n > 1<<28 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}
