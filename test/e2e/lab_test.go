package e2e

import (
	"strings"
	"testing"
	"time"

	"atoll/test/lab"
	"atoll/test/rig"
)

// labOf makes hosts that run nothing yet, and takes them away without a trace at the end.
func labOf(t *testing.T, hosts int) *lab.Lab {
	t.Helper()
	if m := rig.Missing(); m != "" {
		t.Skipf("several hosts need %s", m)
	}
	bin, err := rig.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), bin, lab.Options{Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range l.Hosts {
				t.Logf("%s:\n%s", h.Name, h.Tail(6000))
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := labTraces(l); len(left) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
	})
	return l
}

// part is one part of a life that is played in turn: making a pool costs more than most
// of them.
type part struct {
	name string
	run  func(t *testing.T)
}

func inTurn(t *testing.T, parts []part) {
	for _, p := range parts {
		began := time.Now()
		if !t.Run(p.name, p.run) {
			t.FailNow() // what follows would fail for the same reason
		}
		t.Logf("%s: %.1f s", p.name, time.Since(began).Seconds())
	}
}
