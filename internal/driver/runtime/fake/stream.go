package fake

import (
	"context"
	"fmt"
	"io"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Exec plays a command; "cat" copies st.In to st.Out. Time passes on the clock.
func (r *Runtime) Exec(ctx context.Context, id string, req api.ExecRequest, st driver.Stream) (int, error) {
	p, err := parse(req.Argv)
	if err != nil {
		return 127, err
	}
	r.mu.Lock()
	in, err := r.find(id)
	if err == nil {
		r.settle(in)
		if in.phase != driver.PhaseRunning {
			err = errs.New(errs.Conflict, "instance %s is not running", id)
		}
	}
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	var done time.Duration
	for _, s := range p.steps {
		if err := r.clk.Sleep(ctx, s.at-done); err != nil {
			return 137, err
		}
		done = s.at
		if _, err := io.WriteString(pick(st, s.stderr), s.text); err != nil {
			return 137, fmt.Errorf("exec in %s: %w", id, err)
		}
	}
	if p.stdin && st.In != nil {
		if _, err := io.Copy(st.Out, st.In); err != nil {
			return 137, fmt.Errorf("exec in %s: %w", id, err)
		}
	}
	if p.forever {
		<-ctx.Done()
		return 137, ctx.Err()
	}
	if p.lasts > done {
		if err := r.clk.Sleep(ctx, p.lasts-done); err != nil {
			return 137, err
		}
	}
	return p.code, nil
}

func pick(st driver.Stream, stderr bool) io.Writer {
	w := st.Out
	if stderr && st.Err != nil {
		w = st.Err
	}
	if w == nil {
		return io.Discard
	}
	return w
}

// Attach feeds st.In to a running "cat"; others only swallow it.
func (r *Runtime) Attach(ctx context.Context, id string, st driver.Stream) error {
	r.mu.Lock()
	in, err := r.find(id)
	r.mu.Unlock()
	if err != nil || st.In == nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for ctx.Err() == nil {
		n, err := st.In.Read(buf)
		r.mu.Lock()
		if in.phase == driver.PhaseRunning && in.play.stdin && n > 0 {
			in.log = append(in.log, line{at: r.clk.Now(), text: string(buf[:n])})
			in.stdin += int64(n)
		}
		if err != nil && in.play.stdin && in.phase == driver.PhaseRunning {
			in.stdin = -1
			in.play.lasts = r.clk.Now().Sub(in.started)
		}
		r.changed()
		r.mu.Unlock()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("attach to %s: %w", id, err)
		}
	}
	return ctx.Err()
}

// Logs writes what was "printed" by now, and what follows.
func (r *Runtime) Logs(ctx context.Context, id string, req api.LogRequest, st driver.Stream) error {
	sent := -1
	for {
		r.mu.Lock()
		in, err := r.find(id)
		if err != nil {
			r.mu.Unlock()
			if sent >= 0 {
				return nil // removed while it was followed
			}
			return err
		}
		r.settle(in)
		lines := in.log
		if in.phase == driver.PhaseRunning {
			lines = append(append([]line(nil), lines...), in.output(r.clk.Now())...)
		}
		if sent < 0 {
			sent = first(lines, req)
		}
		lines = lines[min(sent, len(lines)):]
		sent += len(lines)
		over := in.phase == driver.PhaseExited || !req.Follow
		wake, t := r.wake, r.nextLine(in)
		r.mu.Unlock()
		for _, l := range lines {
			text := l.text
			if req.Timestamps {
				text = l.at.UTC().Format(time.RFC3339Nano) + " " + text
			}
			if _, err := io.WriteString(pick(st, l.stderr), text); err != nil {
				t.stop()
				return fmt.Errorf("logs of %s: %w", id, err)
			}
		}
		if over {
			t.stop()
			return nil
		}
		select {
		case <-wake:
		case <-t.c:
		case <-ctx.Done():
			t.stop()
			return ctx.Err()
		}
		t.stop()
	}
}

type waiter struct {
	c    <-chan time.Time
	stop func()
}

// nextLine wakes when the run prints or ends next. Called with mu held.
func (r *Runtime) nextLine(in *instance) waiter {
	now, next := r.clk.Now(), 24*time.Hour
	if in.phase == driver.PhaseRunning {
		for _, s := range in.play.steps {
			if d := in.started.Add(s.at).Sub(now); d > 0 {
				next = min(next, d)
			}
		}
		if at, ok := in.endTime(); ok {
			next = min(next, max(at.Sub(now), 0))
		}
	}
	t := r.clk.NewTimer(next)
	return waiter{c: t.C, stop: func() { t.Stop() }}
}

func first(lines []line, req api.LogRequest) int {
	i := 0
	for i < len(lines) && lines[i].at.Before(req.Since) {
		i++
	}
	switch {
	case req.Tail < 0:
		return len(lines)
	case req.Tail > 0:
		return max(i, len(lines)-req.Tail)
	}
	return i
}

// Usage is the configured load, or what SetUsage fixed.
func (r *Runtime) Usage(_ context.Context, id string) (api.Usage, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in, err := r.find(id)
	if err != nil {
		return api.Usage{}, err
	}
	r.settle(in)
	now := r.clk.Now()
	if in.usage != nil {
		u := *in.usage
		u.At = now
		return u, nil
	}
	u := api.Usage{At: now}
	if in.phase != driver.PhaseRunning {
		return u, nil
	}
	req := in.spec.Instance.Spec.Requests
	u.CPU = time.Duration(float64(now.Sub(in.started)) * float64(req[api.CPU]) / 1000 * r.cfg.Load)
	u.Memory = int64(float64(req[api.Memory]) * r.cfg.Load)
	u.MemoryPeak, u.Pids = u.Memory, 1
	return u, nil
}

var (
	_ driver.Runtime  = (*Runtime)(nil)
	_ driver.Execer   = (*Runtime)(nil)
	_ driver.Attacher = (*Runtime)(nil)
	_ driver.Logger   = (*Runtime)(nil)
	_ driver.Measurer = (*Runtime)(nil)
	_ driver.Grouper  = (*Runtime)(nil)
)

// Groups is the group of the spec; nothing is in it.
func (r *Runtime) Groups(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if in := r.all[id]; in != nil && in.spec.Cgroup.Path != "" {
		return []string{in.spec.Cgroup.Path}
	}
	return nil
}
