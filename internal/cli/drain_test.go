package cli

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/api"
)

// drained writes what the drain controller would.
func (r *rig) drained(state api.DrainState, edit func(*api.DrainSpec)) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := &api.Drain{Head: api.Head{K: api.KindDrain, Meta: api.Meta{Name: "isle1"}}, Spec: api.DrainSpec{Mode: "drain", State: state, StartedAt: at}}
	if edit != nil {
		edit(&d.Spec)
	}
	r.world.put(d)
}

func web(state api.DrainMoveState, after time.Duration) func(*api.DrainSpec) {
	return func(s *api.DrainSpec) {
		at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(after)
		s.Total, s.Stopped = 2, 1
		if s.Moved = 1; state == api.DrainMoveMoving {
			s.Moved, s.UnderWay = 0, 1
		}
		s.Moves = []api.DrainMove{{Instance: api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: "web"}, UID: "w", From: "isle1", To: "isle2", State: state, At: at}}
	}
}

// watching runs a command and waits until the wish is written.
func (r *rig) watching(t *testing.T, args ...string) <-chan int {
	t.Helper()
	done := make(chan int, 1)
	go func() { done <- r.run(args...) }()
	for range 1000 {
		o, err := r.world.Get(t.Context(), api.Ref{Kind: api.KindNode, Name: "isle1"})
		if err == nil && (o.(*api.Node).Spec.Maintenance != nil) == (args[0] != "restore") {
			return done
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("the wish never came: %s%s", r.out.String(), r.err.String())
	return nil
}

func (r *rig) awaitErr(t *testing.T, want string) {
	t.Helper()
	for range 1000 {
		if strings.Contains(r.err.String(), want) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%q never came:\n%s%s", want, r.out.String(), r.err.String())
}

func TestDrainIsWatchedInLines(t *testing.T) {
	r := newRig(t)
	r.drained(api.DrainRestored, nil) // of an earlier time
	done := r.watching(t, "drain", "isle1", "--yes")
	r.drained(api.DrainMoving, func(s *api.DrainSpec) {
		web(api.DrainMoveMoving, 0)(s)
		s.Waiting = []api.DrainReason{{Reason: "disruption budget acme/db spares none now", Count: 7, Instances: []api.Ref{{Tenant: "acme", Name: "db"}}}}
	})
	r.awaitErr(t, "waiting: acme/db, and 6 more: disruption budget acme/db spares none now")
	r.drained(api.DrainMoving, web(api.DrainMoveMoved, 1200*time.Millisecond))
	r.awaitErr(t, "acme/web isle1 -> isle2  1.2 s")
	r.drained(api.DrainDone, web(api.DrainMoveMoved, 1200*time.Millisecond))
	if code := <-done; code != 0 || !strings.Contains(r.out.String(), "isle1 is empty: 1 instance elsewhere, 1 stopped there until: atoll restore isle1") {
		t.Fatalf("code %d\n%s%s", code, r.out.String(), r.err.String())
	}
	done = r.watching(t, "restore", "isle1")
	r.drained(api.DrainReturning, web(api.DrainMoveMoved, 0))
	r.drained(api.DrainRestored, func(s *api.DrainSpec) {
		web(api.DrainMoveReturned, 2*time.Second)(s)
		s.Moved, s.Returned = 0, 1
	})
	if code := <-done; code != 0 || !strings.Contains(r.out.String(), "isle1 is restored: 1 instance came back") {
		t.Fatalf("code %d\n%s%s", code, r.out.String(), r.err.String())
	}
}

func TestDrainAsksAndDrawsABarOnATerminal(t *testing.T) {
	r := newRig(t)
	r.term.in, r.term.err, r.term.size = true, true, api.TermSize{Cols: 60, Rows: 20}
	r.in = strings.NewReader("n\n")
	r.fails(t, 2, "Go on? [y/N] ", "drain", "isle1")
	o, err := r.world.Get(t.Context(), api.Ref{Kind: api.KindNode, Name: "isle1"})
	if err != nil || o.(*api.Node).Spec.Maintenance != nil {
		t.Fatalf("it was refused, and done: %v %v", o, err)
	}
	r.in = strings.NewReader("y\n")
	done := r.watching(t, "drain", "isle1", "--why", "new memory")
	r.drained(api.DrainMoving, web(api.DrainMoveMoving, 0))
	r.awaitErr(t, "\r\x1b[K ████████████░░░░░░░░░░░░  1/2")
	r.drained(api.DrainMoving, web(api.DrainMoveMoved, time.Second))
	r.awaitErr(t, "████████████████████████  2/2  acme/web isle1 -> isl") // as wide as the terminal
	r.drained(api.DrainDone, web(api.DrainMoveMoved, time.Second))
	if code := <-done; code != 0 {
		t.Fatalf("code %d\n%s%s", code, r.out.String(), r.err.String())
	}
}

func TestCtrlCEndsTheWatchingOnly(t *testing.T) {
	r := newRig(t)
	done := r.watching(t, "drain", "isle1", "--yes", "-o", "json")
	r.drained(api.DrainMoving, web(api.DrainMoveMoving, 0))
	r.sig <- syscall.SIGINT
	if code := <-done; code != 130 || !strings.Contains(r.err.String(), "atoll restore isle1 takes it back") || !strings.HasPrefix(r.out.String(), "{") {
		t.Fatalf("code %d\n%s%s", code, r.out.String(), r.err.String())
	}
	o, err := r.world.Get(t.Context(), api.Ref{Kind: api.KindNode, Name: "isle1"})
	if err != nil || o.(*api.Node).Spec.Maintenance == nil {
		t.Fatalf("the drain is gone, too: %v", err)
	}
}

// A restore before anything was begun has nothing to wait for.
func TestRestoreOfWhatNeverBegan(t *testing.T) {
	r := newRig(t)
	r.must(t, "drain", "isle1", "--yes", "--no-wait")
	if out := r.must(t, "restore", "isle1"); !strings.Contains(out, "node/isle1 is in use again") {
		t.Fatal(out)
	}
}
