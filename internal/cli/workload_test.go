package cli

import (
	"strings"
	"testing"
	"time"
)

// On a terminal a rollout is a bar; elsewhere it is lines.
func TestARolloutIsABarOnATerminal(t *testing.T) {
	for _, terminal := range []bool{true, false} {
		r := newRig(t)
		r.term.err = terminal
		r.must(t, "tenant", "create", "acme")
		stall := make(chan struct{})
		r.world.mu.Lock()
		r.world.stall = stall
		r.world.mu.Unlock()
		r.err.reset()
		done := make(chan int)
		go func() {
			done <- r.run("create", "deployment", "web", "--image", "busybox", "--replicas", "3", "--", "sleep")
		}()
		seen := false
		for range 1000 {
			if seen = strings.Contains(r.err.String(), "3 of 3 updated, 0 available"); seen {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		close(stall)
		if code := <-done; code != 0 || !seen {
			t.Fatalf("code %d, seen %v: %q", code, seen, r.err.String())
		}
		if bar := strings.Contains(r.err.String(), "0/3"); bar != terminal {
			t.Errorf("terminal %v: %q", terminal, r.err.String())
		}
	}
}
