// Package drivertest holds the conformance suites of the driver contracts. Every
// implementation, the fakes included, runs them from its own tests. The suites start
// goroutines only inside a test and wait for them.
package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Host is a runtime under test and how to use it.
type Host struct {
	// Runtime is ready for use: Probe succeeded.
	Runtime driver.Runtime
	// Spec is an instance with this command in an image that has sh, echo, sleep, cat, true and false.
	Spec func(id string, command ...string) driver.Spec
	// Reopen is a new life of the daemon on the same host; the old runtime is not used any more.
	Reopen func() driver.Runtime
}

const patience = 10 * time.Second

// Runtime checks that a driver keeps the contract of driver.Runtime and of the
// optional abilities it has.
func Runtime(t *testing.T, open func(t *testing.T) Host) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, h Host)
	}{
		{"probe", probe},
		{"life", life},
		{"prepared", prepared},
		{"again", again},
		{"identity", identity},
		{"generation", generation},
		{"stop", stop},
		{"stopIgnored", stopIgnored},
		{"remove", remove},
		{"unknown", unknown},
		{"noSuchProgram", noSuchProgram},
		{"exitsWhileAway", exitsWhileAway},
		{"reopen", reopen},
		{"together", together},
		{"logs", logs},
		{"follow", follow},
		{"exec", execute},
		{"execEndsWithContext", execEndsWithContext},
		{"attach", attach},
		{"usage", usage},
		{"groups", groups},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	t.Cleanup(cancel)
	return ctx
}

func ensure(t *testing.T, r driver.Runtime, s driver.Spec) driver.Observed {
	t.Helper()
	o, err := r.Ensure(ctxOf(t), s)
	if err != nil {
		t.Fatalf("ensure %s: %v", s.ID, err)
	}
	t.Cleanup(func() {
		if err := r.Remove(context.Background(), s.ID); err != nil {
			t.Errorf("remove %s: %v", s.ID, err)
		}
	})
	return o
}

func run(t *testing.T, r driver.Runtime, s driver.Spec) driver.Observed {
	t.Helper()
	o := ensure(t, r, s)
	if err := r.Start(ctxOf(t), s.ID); err != nil {
		t.Fatalf("start %s: %v", s.ID, err)
	}
	return o
}

func see(t *testing.T, r driver.Runtime, id string) (driver.Observed, bool) {
	t.Helper()
	all, err := r.Observe(ctxOf(t))
	if err != nil {
		t.Fatalf("observe: %v", err)
	}
	for _, o := range all {
		if o.ID == id {
			return o, true
		}
	}
	return driver.Observed{}, false
}

func awaitPhase(t *testing.T, r driver.Runtime, id string, want driver.Phase) driver.Observed {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		o, ok := see(t, r, id)
		if ok && o.Phase == want {
			return o
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still %q (known: %v) after %v, want %q", id, o.Phase, ok, patience, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// listen collects exits until the returned function is called.
func listen(t *testing.T, r driver.Runtime) (next func() driver.Observed, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan driver.Observed, 100)
	done := make(chan error, 1)
	go func() { done <- r.Exits(ctx, func(o driver.Observed) { got <- o }) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("exits: %v", err)
				}
			case <-time.After(patience):
				t.Error("Exits does not return when its context ends")
			}
		})
	}
	t.Cleanup(stop)
	return func() driver.Observed {
		t.Helper()
		select {
		case o := <-got:
			return o
		case <-time.After(patience):
			t.Fatal("no exit was reported")
		}
		return driver.Observed{}
	}, stop
}

func probe(t *testing.T, h Host) {
	c, err := h.Runtime.Probe(ctxOf(t))
	if err != nil || c.Type != "runtime" || c.Name == "" {
		t.Fatalf("%+v %v", c, err)
	}
}

func life(t *testing.T, h Host) {
	next, _ := listen(t, h.Runtime)
	s := h.Spec("life", "sh", "-c", "echo one; exit 7")
	o := ensure(t, h.Runtime, s)
	if o.Phase != driver.PhasePrepared || o.Pid <= 0 {
		t.Fatalf("after Ensure: %+v", o)
	}
	if o.NetNS == "" {
		t.Fatal("no network namespace between Ensure and Start")
	}
	if err := h.Runtime.Start(ctxOf(t), s.ID); err != nil {
		t.Fatal(err)
	}
	got := next()
	if got.ID != s.ID || got.Phase != driver.PhaseExited || got.ExitCode != 7 || got.OOMKilled {
		t.Fatalf("exit: %+v", got)
	}
	o = awaitPhase(t, h.Runtime, s.ID, driver.PhaseExited)
	if o.ExitCode != 7 || o.FinishedAt.IsZero() || o.StartedAt.IsZero() || o.FinishedAt.Before(o.StartedAt) || o.Pid != 0 || o.NetNS != "" {
		t.Fatalf("after the exit: %+v", o)
	}
	if err := h.Runtime.Start(ctxOf(t), s.ID); !errors.Is(err, errs.Conflict) {
		t.Fatalf("start of an ended one: %v, want a conflict", err)
	}
	o = ensure(t, h.Runtime, s) // prepares anew
	if o.Phase != driver.PhasePrepared || o.Pid <= 0 {
		t.Fatalf("after the second Ensure: %+v", o)
	}
	if err := h.Runtime.Start(ctxOf(t), s.ID); err != nil {
		t.Fatal(err)
	}
	if got := next(); got.ExitCode != 7 {
		t.Fatalf("second exit: %+v", got)
	}
}

func prepared(t *testing.T, h Host) {
	s := h.Spec("prepared", "sh", "-c", "echo ran")
	ensure(t, h.Runtime, s)
	time.Sleep(50 * time.Millisecond)
	if o, ok := see(t, h.Runtime, s.ID); !ok || o.Phase != driver.PhasePrepared {
		t.Fatalf("%+v %v", o, ok)
	}
	if l, ok := h.Runtime.(driver.Logger); ok {
		var out bytes.Buffer
		if err := l.Logs(ctxOf(t), s.ID, api.LogRequest{}, driver.Stream{Out: &out, Err: &out}); err != nil || out.Len() != 0 {
			t.Fatalf("an instance that was not started printed %q (%v)", &out, err)
		}
	}
	if err := h.Runtime.Remove(ctxOf(t), s.ID); err != nil {
		t.Fatal(err)
	}
	if o, ok := see(t, h.Runtime, s.ID); ok {
		t.Fatalf("still there: %+v", o)
	}
}

func again(t *testing.T, h Host) {
	s := h.Spec("again", "sleep", "1000")
	first := run(t, h.Runtime, s)
	if err := h.Runtime.Start(ctxOf(t), s.ID); err != nil {
		t.Fatalf("start of a running one: %v", err)
	}
	o, err := h.Runtime.Ensure(ctxOf(t), s)
	if err != nil || o.Phase != driver.PhaseRunning || o.Pid != first.Pid {
		t.Fatalf("ensure of a running one: %+v %v, was %+v", o, err, first)
	}
}

func identity(t *testing.T, h Host) {
	s := h.Spec("identity", "sleep", "1000")
	run(t, h.Runtime, s)
	o, _ := see(t, h.Runtime, s.ID)
	if o.Ref != api.RefOf(s.Instance) || o.UID != s.Instance.UID || o.Generation != s.Generation || o.ImageDigest != s.Image.Digest {
		t.Fatalf("%+v", o)
	}
}

func generation(t *testing.T, h Host) {
	s := h.Spec("generation", "sleep", "1000")
	s.Generation = 5
	run(t, h.Runtime, s)
	s.Generation = 4
	if _, err := h.Runtime.Ensure(ctxOf(t), s); !errors.Is(err, errs.Conflict) {
		t.Fatalf("older generation: %v, want a conflict", err)
	}
	s.Generation = 6
	if o, err := h.Runtime.Ensure(ctxOf(t), s); err != nil || o.Generation != 6 || o.Phase != driver.PhaseRunning {
		t.Fatalf("newer generation: %+v %v", o, err)
	}
}

func stop(t *testing.T, h Host) {
	s := h.Spec("stop", "sh", "-c", "trap 'exit 9' TERM; echo up; sleep 1000 & wait")
	run(t, h.Runtime, s)
	awaitOutput(t, h.Runtime, s.ID, "up")
	begin := time.Now()
	if err := h.Runtime.Stop(ctxOf(t), s.ID, "TERM", patience); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > patience/2 {
		t.Errorf("took %v: the signal was not heard", d)
	}
	if o := awaitPhase(t, h.Runtime, s.ID, driver.PhaseExited); o.ExitCode != 9 {
		t.Fatalf("%+v", o)
	}
	if err := h.Runtime.Stop(ctxOf(t), s.ID, "TERM", time.Second); err != nil {
		t.Fatalf("stop of an ended one: %v", err)
	}
}

func awaitOutput(t *testing.T, r driver.Runtime, id, want string) {
	t.Helper()
	l, ok := r.(driver.Logger)
	if !ok {
		time.Sleep(time.Second)
		return
	}
	deadline := time.Now().Add(patience)
	for {
		var out bytes.Buffer
		if err := l.Logs(ctxOf(t), id, api.LogRequest{}, driver.Stream{Out: &out, Err: &out}); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("output is %q, want %q in it", &out, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func stopIgnored(t *testing.T, h Host) {
	s := h.Spec("ignore", "sh", "-c", "trap '' TERM; echo up; sleep 1000; sleep 1000")
	run(t, h.Runtime, s)
	awaitOutput(t, h.Runtime, s.ID, "up")
	begin := time.Now()
	if err := h.Runtime.Stop(ctxOf(t), s.ID, "TERM", 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d < 250*time.Millisecond {
		t.Errorf("killed after %v, before its grace was over", d)
	}
	if o := awaitPhase(t, h.Runtime, s.ID, driver.PhaseExited); o.ExitCode != 137 {
		t.Fatalf("%+v", o)
	}
}

func remove(t *testing.T, h Host) {
	s := h.Spec("remove", "sleep", "1000")
	run(t, h.Runtime, s)
	for i := range 2 {
		if err := h.Runtime.Remove(ctxOf(t), s.ID); err != nil {
			t.Fatalf("remove %d: %v", i, err)
		}
	}
	if o, ok := see(t, h.Runtime, s.ID); ok {
		t.Fatalf("still there: %+v", o)
	}
	run(t, h.Runtime, s) // the same ID may come back
}

func unknown(t *testing.T, h Host) {
	ctx := ctxOf(t)
	if err := h.Runtime.Start(ctx, "nobody"); !errors.Is(err, errs.NotFound) {
		t.Errorf("start: %v", err)
	}
	if err := h.Runtime.Stop(ctx, "nobody", "TERM", time.Second); !errors.Is(err, errs.NotFound) {
		t.Errorf("stop: %v", err)
	}
	if err := h.Runtime.Remove(ctx, "nobody"); err != nil {
		t.Errorf("remove: %v", err)
	}
	s := h.Spec("bad", "true")
	for _, id := range []string{"", "../x", "A", strings.Repeat("x", 65), "a/b", "."} {
		s.ID = id
		if _, err := h.Runtime.Ensure(ctx, s); !errors.Is(err, errs.Invalid) {
			t.Errorf("ensure of %q: %v", id, err)
		}
	}
}

func noSuchProgram(t *testing.T, h Host) {
	s := h.Spec("nosuch", "/no-such-program")
	_, err := h.Runtime.Ensure(ctxOf(t), s)
	if err == nil {
		err = h.Runtime.Start(ctxOf(t), s.ID)
	}
	defer func() { _ = h.Runtime.Remove(context.Background(), s.ID) }()
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no-such-program") {
		t.Fatalf("got %v, want an invalid error that names the program", err)
	}
}

func exitsWhileAway(t *testing.T, h Host) {
	s := h.Spec("away", "sh", "-c", "exit 3")
	run(t, h.Runtime, s)
	awaitPhase(t, h.Runtime, s.ID, driver.PhaseExited)
	next, _ := listen(t, h.Runtime)
	if o := next(); o.ID != s.ID || o.ExitCode != 3 {
		t.Fatalf("%+v", o)
	}
}

func reopen(t *testing.T, h Host) {
	runs, ends := h.Spec("reopen-runs", "sleep", "1000"), h.Spec("reopen-ends", "sh", "-c", "sleep 0.3; exit 4")
	first := run(t, h.Runtime, runs)
	run(t, h.Runtime, ends)
	waits := h.Spec("reopen-waits", "sh", "-c", "exit 5")
	ensure(t, h.Runtime, waits)
	r := h.Reopen()
	if o, ok := see(t, r, runs.ID); !ok || o.Phase != driver.PhaseRunning || o.Pid != first.Pid || o.UID != runs.Instance.UID {
		t.Fatalf("not adopted: %+v", o)
	}
	next, _ := listen(t, r)
	if o := next(); o.ID != ends.ID || o.ExitCode != 4 {
		t.Fatalf("%+v", o)
	}
	if o, ok := see(t, r, waits.ID); !ok || o.Phase != driver.PhasePrepared {
		t.Fatalf("a prepared one became %+v", o)
	}
	if err := r.Start(ctxOf(t), waits.ID); err != nil {
		t.Fatal(err)
	}
	if o := next(); o.ID != waits.ID || o.ExitCode != 5 {
		t.Fatalf("%+v", o)
	}
	if err := r.Remove(ctxOf(t), runs.ID); err != nil {
		t.Fatal(err)
	}
	if _, ok := see(t, r, runs.ID); ok {
		t.Fatal("still there")
	}
}

// together does many things at once, also several for the same instance.
func together(t *testing.T, h Host) {
	ctx := ctxOf(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			s := h.Spec(fmt.Sprintf("together-%d", i/2), "sleep", "1000")
			if _, err := h.Runtime.Ensure(ctx, s); err != nil {
				t.Errorf("ensure %s: %v", s.ID, err)
				return
			}
			if err := h.Runtime.Start(ctx, s.ID); err != nil {
				t.Errorf("start %s: %v", s.ID, err)
			}
		})
	}
	wg.Wait()
	all, err := h.Runtime.Observe(ctx)
	if err != nil || len(all) != 3 {
		t.Errorf("%d there, want 3 (%v)", len(all), err)
	}
	for i := range 6 {
		wg.Go(func() {
			if err := h.Runtime.Remove(ctx, fmt.Sprintf("together-%d", i/2)); err != nil {
				t.Errorf("remove: %v", err)
			}
		})
	}
	wg.Wait()
	if all, err := h.Runtime.Observe(ctx); err != nil || len(all) != 0 {
		t.Errorf("left: %+v %v", all, err)
	}
}

func logs(t *testing.T, h Host) {
	l, ok := h.Runtime.(driver.Logger)
	if !ok {
		t.Skip("not a Logger")
	}
	s := h.Spec("logs", "sh", "-c", "echo one; echo two; echo three >&2; exit 0")
	run(t, h.Runtime, s)
	awaitPhase(t, h.Runtime, s.ID, driver.PhaseExited)
	for _, c := range []struct {
		req      api.LogRequest
		out, err string
	}{
		{api.LogRequest{}, "one\ntwo\n", "three\n"},
		{api.LogRequest{Raw: true}, "one\ntwo\n", "three\n"},
		{api.LogRequest{Follow: true}, "one\ntwo\n", "three\n"},
		{api.LogRequest{Tail: 2, Follow: true}, "two\n", "three\n"},
		{api.LogRequest{Tail: 1}, "", "three\n"},
		{api.LogRequest{Tail: -1}, "", ""},
		{api.LogRequest{Tail: 100}, "one\ntwo\n", "three\n"},
		{api.LogRequest{Since: time.Now().Add(time.Hour)}, "", ""},
	} {
		var out, errw bytes.Buffer
		if err := l.Logs(ctxOf(t), s.ID, c.req, driver.Stream{Out: &out, Err: &errw}); err != nil {
			t.Fatalf("%+v: %v", c.req, err)
		}
		if c.req.Tail != 0 && out.Len()+errw.Len() == len(c.out)+len(c.err) {
			continue // stdout and stderr are two pipes: which line was last is not certain
		}
		if out.String() != c.out || errw.String() != c.err {
			t.Errorf("%+v: %q %q, want %q %q", c.req, &out, &errw, c.out, c.err)
		}
	}
	if err := l.Logs(ctxOf(t), "nobody", api.LogRequest{}, driver.Stream{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("logs of nobody: %v", err)
	}
}

func follow(t *testing.T, h Host) {
	l, ok := h.Runtime.(driver.Logger)
	if !ok {
		t.Skip("not a Logger")
	}
	s := h.Spec("follow", "sh", "-c", "echo one; sleep 0.2; echo two; sleep 0.2; echo three; exit 0")
	ensure(t, h.Runtime, s)
	var out bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- l.Logs(ctxOf(t), s.ID, api.LogRequest{Follow: true, Raw: true}, driver.Stream{Out: &out, Err: io.Discard})
	}()
	time.Sleep(20 * time.Millisecond)
	if err := h.Runtime.Start(ctxOf(t), s.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil || out.String() != "one\ntwo\nthree\n" {
			t.Fatalf("%q %v", &out, err)
		}
	case <-time.After(patience):
		t.Fatal("following does not end with the instance")
	}
}

func execute(t *testing.T, h Host) {
	e, ok := h.Runtime.(driver.Execer)
	if !ok {
		t.Skip("not an Execer")
	}
	s := h.Spec("exec", "sleep", "1000")
	ensure(t, h.Runtime, s)
	if _, err := e.Exec(ctxOf(t), s.ID, api.ExecRequest{Argv: []string{"true"}}, driver.Stream{}); !errors.Is(err, errs.Conflict) {
		t.Errorf("exec before the start: %v, want a conflict", err)
	}
	if err := h.Runtime.Start(ctxOf(t), s.ID); err != nil {
		t.Fatal(err)
	}
	var out, errw bytes.Buffer
	code, err := e.Exec(ctxOf(t), s.ID, api.ExecRequest{Argv: []string{"sh", "-c", "echo a; echo b >&2; exit 5"}}, driver.Stream{Out: &out, Err: &errw})
	if err != nil || code != 5 || out.String() != "a\n" || errw.String() != "b\n" {
		t.Fatalf("%d %v %q %q", code, err, &out, &errw)
	}
	out.Reset()
	big := strings.Repeat("0123456789abcdef", 20_000)
	code, err = e.Exec(ctxOf(t), s.ID, api.ExecRequest{Argv: []string{"cat"}, Stdin: true}, driver.Stream{In: strings.NewReader(big), Out: &out, Err: &errw})
	if err != nil || code != 0 || out.String() != big {
		t.Fatalf("cat: %d %v, %d bytes of %d", code, err, out.Len(), len(big))
	}
	if code, err := e.Exec(ctxOf(t), s.ID, api.ExecRequest{Argv: []string{"no-such-program"}}, driver.Stream{Out: &out, Err: &errw}); !errors.Is(err, errs.Invalid) || code != 127 {
		t.Errorf("no such program: %d %v", code, err)
	}
	if _, err := e.Exec(ctxOf(t), "nobody", api.ExecRequest{Argv: []string{"true"}}, driver.Stream{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("exec in nobody: %v", err)
	}
}

func execEndsWithContext(t *testing.T, h Host) {
	e, ok := h.Runtime.(driver.Execer)
	if !ok {
		t.Skip("not an Execer")
	}
	s := h.Spec("execctx", "sleep", "1000")
	run(t, h.Runtime, s)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := e.Exec(ctx, s.ID, api.ExecRequest{Argv: []string{"sleep", "1000"}}, driver.Stream{})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > patience/2 {
		t.Fatalf("%v after %v", err, time.Since(begin))
	}
}

func attach(t *testing.T, h Host) {
	a, ok := h.Runtime.(driver.Attacher)
	l, okL := h.Runtime.(driver.Logger)
	if !ok || !okL {
		t.Skip("not an Attacher and Logger")
	}
	s := h.Spec("attach", "cat")
	s.Instance.Spec.Stdin = true
	run(t, h.Runtime, s)
	if err := a.Attach(ctxOf(t), s.ID, driver.Stream{In: strings.NewReader("hello\nworld\n")}); err != nil {
		t.Fatal(err)
	}
	if o := awaitPhase(t, h.Runtime, s.ID, driver.PhaseExited); o.ExitCode != 0 {
		t.Fatalf("%+v", o)
	}
	var out bytes.Buffer
	if err := l.Logs(ctxOf(t), s.ID, api.LogRequest{Follow: true, Raw: true}, driver.Stream{Out: &out}); err != nil || out.String() != "hello\nworld\n" {
		t.Fatalf("%q %v", &out, err)
	}
}

func usage(t *testing.T, h Host) {
	m, ok := h.Runtime.(driver.Measurer)
	if !ok {
		t.Skip("not a Measurer")
	}
	s := h.Spec("usage", "sleep", "1000")
	s.Instance.Spec.Requests = api.Resources{api.CPU: 100, api.Memory: 32 << 20}
	run(t, h.Runtime, s)
	u, err := m.Usage(ctxOf(t), s.ID)
	if err != nil || u.Memory <= 0 || u.Pids < 1 || u.At.IsZero() {
		t.Fatalf("%+v %v", u, err)
	}
	if _, err := m.Usage(ctxOf(t), "nobody"); !errors.Is(err, errs.NotFound) {
		t.Errorf("usage of nobody: %v", err)
	}
}

func groups(t *testing.T, h Host) {
	g, ok := h.Runtime.(driver.Grouper)
	if !ok {
		t.Skip("not a Grouper")
	}
	s := h.Spec("groups", "sleep", "1000")
	if got := g.Groups(s.ID); len(got) != 0 {
		t.Errorf("before it is there: %v", got)
	}
	ensure(t, h.Runtime, s)
	got := g.Groups(s.ID)
	if s.Cgroup.Path != "" && (len(got) == 0 || got[0] != s.Cgroup.Path) {
		t.Errorf("prepared in %q: %v", s.Cgroup.Path, got)
	}
	if h.Reopen != nil { // a daemon's successor must know them, too
		if g, ok = h.Reopen().(driver.Grouper); !ok || len(g.Groups(s.ID)) != len(got) {
			t.Errorf("after the daemon came back: %v", got)
		}
	}
	if err := h.Runtime.Remove(ctxOf(t), s.ID); err != nil {
		t.Fatal(err)
	}
	if h.Reopen != nil {
		g = h.Reopen().(driver.Grouper)
	}
	if got := g.Groups(s.ID); len(got) != 0 {
		t.Errorf("after it was removed: %v", got)
	}
}
