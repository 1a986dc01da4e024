package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"atoll/api"
	"atoll/internal/driver"
)

// situation is everything a decision is made from.
type situation struct {
	now  time.Time
	node string
	in   *api.Instance    // nil: not in the store
	as   *api.Assignment  // nil: not in the store
	seen *driver.Observed // nil: nothing of it on this node
	// unhealthy is set when the health check has failed often enough to count.
	unhealthy bool
	// repin is set when it should run on other cores than it does.
	repin bool
	// attached is set while an attached caller reads the output, or is still expected to.
	attached bool
	// fenced is set when this node stopped it because its lease ended, barred while it
	// must not be started because the lease is not held.
	fenced, barred bool
}

// action is one step; actions are idempotent.
type action string

const (
	actStart    action = "start"    // prepare, connect, run
	actApply    action = "apply"    // bring limits and ports of what runs in line with the spec
	actStop     action = "stop"     // signal, grace, kill
	actTeardown action = "teardown" // remove every trace on the node
	actForget   action = "forget"   // remove the object from the store, after teardown
)

// decision is what follows from a situation.
type decision struct {
	status api.InstanceStatus
	acts   []action
	again  time.Duration // look again after this even if nothing happens
}

const (
	backoffFirst = 500 * time.Millisecond
	backoffMost  = time.Minute
	// steady is how long a run must last to count as a success.
	steady = time.Minute
)

// Reasons that programs may look at.
const (
	reasonStopped     = "Stopped"     // on request
	reasonCompleted   = "Completed"   // ended with 0
	reasonError       = "Error"       // ended with another code
	reasonOOM         = "OOMKilled"   //
	reasonLost        = "Lost"        // gone without a trace, such as by a reboot of the host
	reasonStartFailed = "StartFailed" // could not be started
	reasonUnhealthy   = "Unhealthy"
)

// next decides. It is pure.
func next(s situation) decision {
	if s.in == nil || s.as == nil || s.as.Spec.Node != s.node || s.as.Spec.InstanceUID != s.in.UID || s.in.DeletedAt != nil {
		return leave(s)
	}
	d := decision{status: s.in.Status}
	st := &d.status
	st.Node, st.Assigned, st.Address = s.node, s.as.Spec.Generation, s.as.Spec.FirstAddress()
	st.RuntimeID = runtimeID(s.in.UID)
	wasStopping := st.State == api.StateStopping && st.Reason == reasonStopped
	noteStart(s, st)
	noteExit(s, st)

	running := s.seen != nil && (s.seen.Phase == driver.PhaseRunning || s.seen.Phase == driver.PhasePrepared)
	restart := s.in.Spec.Restarts != st.RestartsIn
	if s.barred && !running {
		d.again = fencePause
		return d
	}
	switch {
	case s.as.Spec.Evict != nil && running:
		st.State, st.Reason, st.Message = api.StateStopping, leaves(s.as.Spec.Evict), s.as.Spec.Evict.Reason
		d.acts = []action{actStop}
	case s.as.Spec.Evict != nil && hadEnded(s.in.Status):
		// It is over; where it is placed anew, it stays over.
	case s.as.Spec.Evict != nil && s.in.Status.State != api.StateRunning:
		st.State, st.Reason, st.Message, st.Pid, st.NextStart, st.Healthy = api.StateStopped, leaves(s.as.Spec.Evict), s.as.Spec.Evict.Reason, 0, nil, nil
	case s.in.Spec.Stopped && running:
		st.State, st.Reason, st.Message = api.StateStopping, reasonStopped, ""
		d.acts = []action{actStop}
	case s.in.Spec.Stopped:
		st.State, st.Reason, st.Message, st.Pid, st.NextStart = api.StateStopped, reasonStopped, "", 0, nil
		st.Generation, st.RestartsIn, st.Healthy = s.in.Generation, s.in.Spec.Restarts, nil
	case running && s.seen.Phase == driver.PhasePrepared:
		d.acts = []action{actStart} // a kill came between prepare and start
	case running && s.unhealthy && s.in.Spec.RestartPolicy() != "never":
		st.Reason, st.Message = reasonUnhealthy, "the health check failed; starting again"
		d.acts = []action{actStop, actStart}
	case running && restart:
		d.acts = []action{actStop, actStart}
	case running:
		st.State, st.Pid, st.NextStart = api.StateRunning, s.seen.Pid, nil
		if st.Generation != s.in.Generation || s.repin {
			d.acts = []action{actApply}
		}
		if st.Reason != reasonUnhealthy {
			st.Reason, st.Message = "", ""
		}
	case wasStopping || restart || st.Starts == 0 || st.State == api.StateStopped && (st.Reason == reasonStopped || awaitsStart(st.Reason)):
		d.acts = []action{actStart}
	default:
		afterEnd(s, &d)
	}
	return d
}

// hadEnded reports whether nothing of it will run again by itself.
func hadEnded(st api.InstanceStatus) bool {
	return (st.State == api.StateStopped || st.State == api.StateFailed) && !awaitsStart(st.Reason)
}

// leaves is the reason of what an eviction stopped.
func leaves(e *api.Eviction) string {
	if e.Stay {
		return api.ReasonMaintenance
	}
	return api.ReasonEvicted
}

// awaitsStart reports whether what was stopped for this reason is to be started again.
func awaitsStart(reason string) bool {
	return reason == api.ReasonEvicted || reason == api.ReasonMaintenance
}

// leave takes an instance off this node.
func leave(s situation) decision {
	d := decision{acts: []action{actTeardown}}
	if s.in != nil {
		d.status = s.in.Status
		assigned := s.as != nil && s.as.Spec.Node != "" && s.as.Spec.InstanceUID == s.in.UID
		ours := assigned && s.as.Spec.Node == s.node
		// Where it moved to, it may be starting already: removing it is that node's.
		if s.in.DeletedAt != nil && (ours || !assigned && s.in.Status.Node == s.node) {
			d.acts = append(d.acts, actForget)
		}
	}
	return d
}

// noteStart counts a first start whose status was never written, such as by a kill:
// what ran must not be started again as if it never had.
func noteStart(s situation, st *api.InstanceStatus) {
	if st.Starts == 0 && s.seen != nil && (s.seen.Phase == driver.PhaseRunning || s.seen.Phase == driver.PhaseExited) {
		st.Starts, st.RestartsIn = 1, s.in.Spec.Restarts
		if at := s.seen.StartedAt; !at.IsZero() {
			st.StartedAt = &at
		}
	}
}

// noteExit writes down how it ended, once per end, also when the clock was put back between start and end.
func noteExit(s situation, st *api.InstanceStatus) {
	switch {
	case s.seen != nil && s.seen.Phase == driver.PhaseExited:
		if st.State == api.StateRunning || st.State == api.StateStopping || st.State == api.StateUnknown || st.FinishedAt == nil ||
			st.StartedAt != nil && st.FinishedAt.Before(*st.StartedAt) && !st.FinishedAt.Equal(s.seen.FinishedAt) {
			end(st, s.seen.ExitCode, s.seen.OOMKilled, s.seen.FinishedAt)
			if s.fenced {
				st.Reason, st.Message = api.ReasonFenced, "its host was cut off from the pool and stopped it, as it must not run twice"
			}
		}
	case (s.seen == nil || s.seen.Phase == driver.PhaseBroken) && (st.State == api.StateRunning || st.State == api.StateUnknown):
		end(st, 255, false, s.now)
		st.Reason, st.Message = reasonLost, "it was gone without an exit code; the host may have been restarted"
	}
}

func end(st *api.InstanceStatus, code int, oom bool, at time.Time) {
	st.Pid, st.ExitCode, st.OOMKilled, st.FinishedAt, st.Healthy = 0, &code, oom, &at, nil
	st.State = api.StateFailed
	switch {
	case st.Reason == reasonUnhealthy:
	case oom:
		st.Reason, st.Message = reasonOOM, "it used more memory than its limit and was killed; raise spec.limits.memory"
	case code == 0:
		st.State, st.Reason, st.Message = api.StateStopped, reasonCompleted, ""
	default:
		st.Reason, st.Message = reasonError, fmt.Sprintf("it ended with exit code %d; see its log", code)
	}
	if st.StartedAt != nil && at.Sub(*st.StartedAt) >= steady {
		st.QuickExits = 0
	} else {
		st.QuickExits++
	}
}

// afterEnd follows the restart policy for what has ended or failed to start.
func afterEnd(s situation, d *decision) {
	st := &d.status
	failed := st.ExitCode == nil || *st.ExitCode != 0 || st.Reason == reasonUnhealthy
	policy := s.in.Spec.RestartPolicy()
	if s.in.Spec.AutoRm || policy == "never" || policy == "on-failure" && !failed {
		st.State = api.StateStopped
		if failed {
			st.State = api.StateFailed
		}
		st.NextStart = nil
		if s.in.Spec.AutoRm {
			if s.attached {
				d.again = 100 * time.Millisecond // until its output has been read
				return
			}
			d.acts = []action{actTeardown, actForget}
		}
		return
	}
	at := s.now
	if st.FinishedAt != nil {
		at = st.FinishedAt.Add(pause(st.QuickExits))
	}
	if !at.After(s.now) {
		d.acts = []action{actStart}
		return
	}
	st.State, st.NextStart = api.StateBackoff, &at
	d.again = at.Sub(s.now)
}

// pause doubles with every quick end in a row.
func pause(quick int64) time.Duration {
	if quick <= 1 {
		return backoffFirst
	}
	return min(backoffFirst<<min(quick-1, 16), backoffMost)
}

// runtimeID names an instance on its node.
func runtimeID(uid string) string { return "x" + uid[:min(len(uid), 15)] }

// fingerprint covers the parts of a spec that only a new start can change.
func fingerprint(s *api.InstanceSpec) string {
	c := *s
	c.Requests, c.Limits, c.Shaping, c.CPUs = nil, nil, nil, ""
	c.Restart, c.Stopped, c.Restarts, c.AutoRm, c.Pull = "", false, 0, false, ""
	c.Placement, c.Priority, c.Ports, c.Health, c.Logs = nil, "", nil, nil, nil
	c.StopSignal, c.StopTimeout = "", nil
	b, err := json.Marshal(c)
	if err != nil {
		return "" // a spec that came out of JSON goes back into it
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
