package container

import (
	"context"
	"testing"
	"time"

	"atoll/internal/driver"
)

// What a watchdog does to an instance's groups ends it with all its processes, the daemon
// sees that it ended, and it can be started again.
func TestGroupsHoldAllProcesses(t *testing.T) {
	f := open(t)
	s := f.spec("fenced", "sh", "-c", "sleep 1000 & setsid sleep 1000 & (sleep 1000 &) ; wait; sleep 1000")
	for range 2 {
		if _, err := f.Ensure(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Remove(context.Background(), s.ID) }) // the test's own word is above
		if err := f.Start(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		groups := f.Groups(s.ID)
		if len(groups) != 1 {
			t.Fatal(groups)
		}
		var pids int
		for end := time.Now().Add(10 * time.Second); pids < 4 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			u, err := f.Usage(t.Context(), s.ID)
			if err != nil {
				t.Fatal(err)
			}
			pids = int(u.Pids)
		}
		if pids < 4 {
			t.Fatalf("%d processes", pids)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		began := time.Now()
		if left, err := f.env.groups.Sweep(ctx, groups, func(int) {}); err != nil {
			t.Fatal(left, err)
		}
		cancel()
		t.Logf("empty after %v", time.Since(began))
		// A group counts as empty when its last process has begun to end; it may take a moment yet.
		var o driver.Observed
		for end := time.Now().Add(5 * time.Second); o.Phase != driver.PhaseExited && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			all, err := f.Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range all {
				if x.ID == s.ID {
					o = x
				}
			}
		}
		if o.Phase != driver.PhaseExited || o.ExitCode != 137 || o.OOMKilled {
			t.Errorf("%+v", o)
		}
	}
}
