package agent

import (
	"reflect"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
)

var t0 = time.Unix(1000, 0)

func given(edit func(*situation)) situation {
	s := situation{now: t0, node: "n1",
		in: &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "a", Tenant: "t", UID: "0123456789abcdef0123456789abcdef", Generation: 1}}, Spec: api.InstanceSpec{Image: "x"}},
		as: &api.Assignment{Spec: api.AssignmentSpec{InstanceUID: "0123456789abcdef0123456789abcdef", Node: "n1", Generation: 1, Address: "10.0.0.2"}}}
	edit(&s)
	return s
}

func ran(s *situation, code int, finished time.Time) {
	started := t0.Add(-2 * time.Hour)
	s.in.Status = api.InstanceStatus{State: api.StateRunning, Node: "n1", Starts: 1, Generation: 1, StartedAt: &started}
	s.seen = &driver.Observed{Phase: driver.PhaseExited, ExitCode: code, FinishedAt: finished}
}

func TestNext(t *testing.T) {
	now := t0
	for name, c := range map[string]struct {
		edit   func(*situation)
		acts   []action
		state  api.State
		reason string
	}{
		"new":                    {func(s *situation) {}, []action{actStart}, "", ""},
		"new but stopped":        {func(s *situation) { s.in.Spec.Stopped = true }, nil, api.StateStopped, reasonStopped},
		"prepared, then killed":  {func(s *situation) { s.seen = &driver.Observed{Phase: driver.PhasePrepared} }, []action{actStart}, "", ""},
		"gone from store":        {func(s *situation) { s.in = nil }, []action{actTeardown}, "", ""},
		"moved away":             {func(s *situation) { s.as.Spec.Node = "n2" }, []action{actTeardown}, "", ""},
		"another of that name":   {func(s *situation) { s.as.Spec.InstanceUID = "other" }, []action{actTeardown}, "", ""},
		"deleted":                {func(s *situation) { s.in.DeletedAt = &now }, []action{actTeardown, actForget}, "", ""},
		"deleted, moved away":    {func(s *situation) { s.in.DeletedAt = &now; s.as.Spec.Node = "n2" }, []action{actTeardown}, "", ""},
		"deleted, was here":      {func(s *situation) { s.in.DeletedAt = &now; s.in.Status.Node = "n1"; s.as.Spec.Node = "" }, []action{actTeardown, actForget}, "", ""},
		"deleted, starts there":  {func(s *situation) { s.in.DeletedAt = &now; s.in.Status.Node = "n1"; s.as.Spec.Node = "n2" }, []action{actTeardown}, "", ""},
		"ended well, always":     {func(s *situation) { ran(s, 0, t0) }, nil, api.StateBackoff, reasonCompleted},
		"ended well, pause over": {func(s *situation) { ran(s, 0, t0.Add(-time.Second)) }, []action{actStart}, api.StateStopped, reasonCompleted},
		"ended well, never":      {func(s *situation) { ran(s, 0, t0); s.in.Spec.Restart = "never" }, nil, api.StateStopped, reasonCompleted},
		"failed, never":          {func(s *situation) { ran(s, 7, t0); s.in.Spec.Restart = "never" }, nil, api.StateFailed, reasonError},
		"ended well, on-failure": {func(s *situation) { ran(s, 0, t0); s.in.Spec.Restart = "on-failure" }, nil, api.StateStopped, reasonCompleted},
		"failed, on-failure":     {func(s *situation) { ran(s, 7, t0); s.in.Spec.Restart = "on-failure" }, nil, api.StateBackoff, reasonError},
		"oom":                    {func(s *situation) { ran(s, 137, t0); s.seen.OOMKilled = true; s.in.Spec.Restart = "never" }, nil, api.StateFailed, reasonOOM},
		"rm":                     {func(s *situation) { ran(s, 0, t0); s.in.Spec.AutoRm = true }, []action{actTeardown, actForget}, api.StateStopped, reasonCompleted},
		"rm while read":          {func(s *situation) { ran(s, 0, t0); s.in.Spec.AutoRm = true; s.attached = true }, nil, api.StateStopped, reasonCompleted},
		"host rebooted":          {func(s *situation) { ran(s, 0, t0); s.seen = nil }, nil, api.StateBackoff, reasonLost},
		"runs":                   {func(s *situation) { ran(s, 0, t0); s.seen.Phase = driver.PhaseRunning }, nil, api.StateRunning, ""},
		"edited":                 {func(s *situation) { ran(s, 0, t0); s.seen.Phase = driver.PhaseRunning; s.in.Generation = 2 }, []action{actApply}, api.StateRunning, ""},
		"stop asked":             {func(s *situation) { ran(s, 0, t0); s.seen.Phase = driver.PhaseRunning; s.in.Spec.Stopped = true }, []action{actStop}, api.StateStopping, reasonStopped},
		"restart asked":          {func(s *situation) { ran(s, 0, t0); s.seen.Phase = driver.PhaseRunning; s.in.Spec.Restarts = 1 }, []action{actStop, actStart}, api.StateRunning, ""},
		"ended, its start never written": {func(s *situation) {
			s.in.Spec.Restart = "never"
			s.seen = &driver.Observed{Phase: driver.PhaseExited, ExitCode: 3, StartedAt: t0.Add(-time.Minute), FinishedAt: t0}
		}, nil, api.StateFailed, reasonError},
		"evicted": {func(s *situation) {
			ran(s, 0, t0)
			s.seen.Phase = driver.PhaseRunning
			s.as.Spec.Evict = &api.Eviction{}
		}, []action{actStop}, api.StateStopping, api.ReasonEvicted},
		"eviction done": {func(s *situation) {
			ran(s, 143, t0)
			s.in.Status.State, s.in.Status.Reason, s.as.Spec.Evict = api.StateStopping, api.ReasonEvicted, &api.Eviction{}
		}, nil, api.StateStopped, api.ReasonEvicted},
		"stopped for its host": {func(s *situation) {
			ran(s, 0, t0)
			s.seen.Phase = driver.PhaseRunning
			s.as.Spec.Evict = &api.Eviction{Stay: true}
		}, []action{actStop}, api.StateStopping, api.ReasonMaintenance},
		"stopped for its host, done": {func(s *situation) {
			ran(s, 143, t0)
			s.in.Status.State, s.in.Status.Reason, s.as.Spec.Evict = api.StateStopping, api.ReasonMaintenance, &api.Eviction{Stay: true}
		}, nil, api.StateStopped, api.ReasonMaintenance},
		"stays stopped for its host": {func(s *situation) {
			ran(s, 143, t0)
			s.in.Status.State, s.in.Status.Reason, s.in.Status.FinishedAt, s.as.Spec.Evict = api.StateStopped, api.ReasonMaintenance, &now, &api.Eviction{Stay: true}
		}, nil, api.StateStopped, api.ReasonMaintenance},
		"its host is restored": {func(s *situation) {
			ran(s, 143, t0)
			s.in.Status.State, s.in.Status.Reason, s.in.Status.FinishedAt = api.StateStopped, api.ReasonMaintenance, &now
		}, []action{actStart}, api.StateStopped, api.ReasonMaintenance},
		"its host is restored after a boot": {func(s *situation) {
			ran(s, 143, t0)
			s.in.Spec.Restart = "never"
			s.in.Status.State, s.in.Status.Reason, s.in.Status.FinishedAt, s.seen = api.StateStopped, api.ReasonMaintenance, &now, nil
		}, []action{actStart}, api.StateStopped, api.ReasonMaintenance},
		"evicted before it ran": {func(s *situation) { s.as.Spec.Evict = &api.Eviction{} }, nil, api.StateStopped, api.ReasonEvicted},
		"evicted when over": {func(s *situation) {
			ran(s, 7, t0)
			s.in.Status.State, s.in.Status.Reason, s.in.Status.FinishedAt, s.as.Spec.Evict = api.StateFailed, reasonError, &now, &api.Eviction{}
		}, nil, api.StateFailed, reasonError},
		"placed anew after an eviction": {func(s *situation) {
			ran(s, 0, t0)
			s.in.Status.State, s.in.Status.Reason, s.seen = api.StateStopped, api.ReasonEvicted, nil
		}, []action{actStart}, api.StateStopped, api.ReasonEvicted},
		"start after stop": {func(s *situation) {
			ran(s, 143, t0)
			s.in.Spec.Restart = "never"
			s.in.Status.State, s.in.Status.Reason, s.in.Status.FinishedAt = api.StateStopped, reasonStopped, &now
		}, []action{actStart}, api.StateStopped, reasonStopped},
		"unhealthy": {func(s *situation) { ran(s, 0, t0); s.seen.Phase = driver.PhaseRunning; s.unhealthy = true }, []action{actStop, actStart}, api.StateRunning, reasonUnhealthy},
	} {
		t.Run(name, func(t *testing.T) {
			d := next(given(c.edit))
			if !reflect.DeepEqual(d.acts, c.acts) || d.status.State != c.state || d.status.Reason != c.reason {
				t.Fatalf("got %v %s %s; want %v %s %s", d.acts, d.status.State, d.status.Reason, c.acts, c.state, c.reason)
			}
		})
	}
}

func TestPauseGrowsAndIsBounded(t *testing.T) {
	last := time.Duration(0)
	for i := range int64(100) {
		p := pause(i)
		if p < last || p > backoffMost || p < backoffFirst {
			t.Fatalf("pause(%d) = %s after %s", i, p, last)
		}
		last = p
	}
	if last != backoffMost {
		t.Fatalf("ends at %s", last)
	}
}

func TestLimitsAreNotInTheFingerprint(t *testing.T) {
	a := api.InstanceSpec{Image: "x", Limits: api.Resources{api.CPU: 1000}}
	b := api.InstanceSpec{Image: "x", Restart: "never", Ports: []api.Port{{Port: 1}}}
	if fingerprint(&a) != fingerprint(&b) {
		t.Fatal("live parts change the fingerprint")
	}
	b.Command = []string{"y"}
	if fingerprint(&a) == fingerprint(&b) {
		t.Fatal("the command does not change the fingerprint")
	}
}

// A clock that was put back makes an end come before its start; it is still one end.
func TestAnEndIsNotedOnce(t *testing.T) {
	s := given(func(s *situation) { ran(s, 1, t0.Add(-3*time.Hour)) })
	s.in.Status = next(s).status
	if s.in.Status.QuickExits != 1 {
		t.Fatalf("%+v", s.in.Status)
	}
	if again := next(s).status; again.QuickExits != 1 {
		t.Fatalf("the same end counts again: %+v", again)
	}
}
