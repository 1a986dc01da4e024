package host

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/release"
)

// decision is what follows from a situation.
type decision struct {
	status api.UpgradeStatus
	level  int  // of the pool; grows when the upgrade is finalised
	busy   bool // time alone may change it: look again soon
}

// The states of a host's line.
const (
	hostWaiting    = "waiting"
	hostStaging    = "staging"
	hostStaged     = "staged"
	hostActivating = "activating"
	hostActive     = "active"
	hostReturning  = "returning"
	hostBack       = "back"
	hostAbsent     = "absent"
	hostFailed     = "failed"
)

// nextUpgrade decides the next step. It is pure.
func nextUpgrade(s upgradeSituation) decision {
	w := walk{upgradeSituation: s, d: decision{level: s.level, status: api.UpgradeStatus{EndedAt: s.up.Status.EndedAt}}}
	for _, h := range s.hosts {
		l := api.UpgradeHost{Name: h.name}
		if old := s.up.Status.Host(h.name); old != nil {
			l = *old
		}
		l.Version, l.Release, l.Member = h.version, release.Or(h.release), h.member
		w.lines = append(w.lines, l)
	}
	switch s.up.Spec.Phase {
	case api.UpgradePrepare:
		w.prepare()
	case api.UpgradeActivate:
		w.activate()
	case api.UpgradeAbort:
		w.abort()
	case api.UpgradeFinalise:
		w.finalise()
	}
	w.d.status.Hosts = w.lines
	return w.d
}

// walk is one decision on its way.
type walk struct {
	upgradeSituation
	lines []api.UpgradeHost // as hosts
	d     decision
}

// to moves a line to a state, with the time it came there.
func (w *walk) to(l *api.UpgradeHost, state, why string) {
	if l.State != state || l.Error != why {
		l.State, l.Error, l.Since = state, why, w.now
	}
}

func (w *walk) give(l *api.UpgradeHost, t api.UpgradeTask) {
	l.Task, l.Try = t, w.up.Spec.Try
}

func (w *walk) say(state api.UpgradeState, format string, args ...any) {
	w.d.status.State, w.d.status.Message = state, fmt.Sprintf(format, args...)
}

// refused is why a host could not do its task; "" while it has not said so.
func refused(h *upgradeHost, l *api.UpgradeHost) string {
	if h.told.Error != "" && h.told.Try == l.Try && l.Task != api.TaskNone {
		return h.told.Error
	}
	return ""
}

// stage gives a host the task to have the programs, and notes how far it is.
func (w *walk) stage(h *upgradeHost, l *api.UpgradeHost) {
	if l.Task != api.TaskStage || l.Try != w.up.Spec.Try {
		w.give(l, api.TaskStage)
	}
	switch why := refused(h, l); {
	case slices.Contains(h.told.Staged, w.up.Spec.Version):
		w.to(l, hostStaged, "")
	case !h.live:
		w.to(l, hostAbsent, "")
	case why != "":
		w.to(l, hostFailed, why)
	default:
		w.to(l, hostStaging, "")
	}
}

func (w *walk) prepare() {
	for i := range w.lines {
		w.stage(&w.hosts[i], &w.lines[i])
	}
	failed, busy, absent := w.in(hostFailed), w.in(hostStaging), w.in(hostAbsent)
	switch {
	case len(failed) > 0:
		w.say(api.UpgradePreparing, "%s: %s", failed[0], w.line(failed[0]).Error)
	case len(busy) > 0:
		w.say(api.UpgradePreparing, "waits for the programs to be on %s", some(busy))
	case len(absent) > 0:
		w.say(api.UpgradePrepared, "ready; not there now: %s", some(absent))
	default:
		w.say(api.UpgradePrepared, "ready")
	}
}

func (w *walk) line(name string) *api.UpgradeHost {
	for i := range w.lines {
		if w.lines[i].Name == name {
			return &w.lines[i]
		}
	}
	return nil
}

func (w *walk) in(state string) []string {
	var out []string
	for _, l := range w.lines {
		if l.State == state {
			out = append(out, l.Name)
		}
	}
	return out
}

// some names a few hosts.
func some(names []string) string {
	if len(names) > 5 {
		return strings.Join(names[:5], ", ") + fmt.Sprintf(" and %d more", len(names)-5)
	}
	return strings.Join(names, ", ")
}

// turn is one direction of the walk.
type turn struct {
	task            api.UpgradeTask
	during, after   string // states of a line
	running, done   api.UpgradeState
	there           func(h *upgradeHost, l *api.UpgradeHost) bool // it has arrived
	wanted          func(h *upgradeHost, l *api.UpgradeHost) bool // it is to go
	nothing, begins string
}

func (w *walk) activate() {
	v := w.up.Spec.Version
	w.step(turn{task: api.TaskActivate, during: hostActivating, after: hostActive, running: api.UpgradeActivating, done: api.UpgradeActivated,
		there:   func(h *upgradeHost, _ *api.UpgradeHost) bool { return h.version == v && h.told.Active == v },
		wanted:  func(h *upgradeHost, _ *api.UpgradeHost) bool { return w.chosen(h.name) },
		nothing: "all hosts run it; finalise it, or go back", begins: "goes over"})
}

func (w *walk) abort() {
	v := w.up.Spec.Version
	for i, l := range w.lines { // it may still arrive: which way it has to go is not known yet
		if l.State == hostActivating && w.hosts[i].told.Try < l.Try && w.now.Sub(l.Since) < upgradePatience {
			w.say(api.UpgradeAborting, "waits for %s, which is changing", l.Name)
			w.d.busy = true
			return
		}
	}
	w.step(turn{task: api.TaskBack, during: hostReturning, after: hostBack, running: api.UpgradeAborting, done: api.UpgradeAborted,
		there: func(h *upgradeHost, l *api.UpgradeHost) bool {
			return h.version != v && h.told.Active == h.version || l.From == "" || l.From == v
		},
		wanted:  func(*upgradeHost, *api.UpgradeHost) bool { return true },
		nothing: "all hosts run what they ran before", begins: "goes back"})
	if w.d.status.State == api.UpgradeAborted && w.d.status.EndedAt == nil {
		w.d.status.EndedAt = &w.now
	}
}

// chosen reports whether a host takes part at all.
func (w *walk) chosen(name string) bool {
	return len(w.up.Spec.Hosts) == 0 || slices.Contains(w.up.Spec.Hosts, name)
}

// step lets at most one host change at a time, and looks at it until it is well.
func (w *walk) step(t turn) {
	under, waiting := -1, []int(nil)
	for i := range w.lines {
		h, l := &w.hosts[i], &w.lines[i]
		switch {
		case l.Task == t.task && l.Try == w.up.Spec.Try && l.State == t.during:
			if w.judge(h, l, t); l.State == t.during {
				under = i
			}
		case l.Task == t.task && l.Try == w.up.Spec.Try && l.State == hostFailed:
		case t.there(h, l):
			w.to(l, t.after, "")
			l.Task = api.TaskNone
		case !t.wanted(h, l):
			w.to(l, hostWaiting, "")
		case !h.live:
			w.to(l, hostAbsent, "")
		case t.task == api.TaskActivate && !slices.Contains(h.told.Staged, w.up.Spec.Version):
			w.stage(h, l)
		default:
			w.to(l, hostWaiting, "")
			waiting = append(waiting, i)
		}
	}
	w.conclude(t, under, waiting)
}

// judge looks at a host that is changing.
func (w *walk) judge(h *upgradeHost, l *api.UpgradeHost, t turn) {
	late := w.now.Sub(l.Since) > upgradePatience
	switch why := refused(h, l); {
	case why != "":
		w.to(l, hostFailed, why)
	case t.there(h, l) && h.live && (!h.member || h.voter):
		runs, restarted := w.seen(h.name, l.Since)
		l.Runs = runs
		if restarted > 0 {
			w.to(l, hostFailed, fmt.Sprintf("%d of %d instances were started anew while it changed", restarted, runs))
			return
		}
		w.to(l, t.after, "")
	case late && !h.live:
		w.to(l, hostFailed, "it has not come back")
	case late:
		w.to(l, hostFailed, "it does not become well: it runs "+h.version)
	}
}

// conclude says how it stands, and lets the next host begin when nothing is against it.
func (w *walk) conclude(t turn, under int, waiting []int) {
	failed, absent, staging := w.in(hostFailed), w.in(hostAbsent), w.in(hostStaging)
	switch {
	case len(failed) > 0:
		w.say(api.UpgradeStopped, "%s: %s", failed[0], w.line(failed[0]).Error)
		w.d.busy = under >= 0
	case under >= 0:
		w.say(t.running, "%s %s", w.lines[under].Name, t.begins)
		w.d.busy = true
	case w.up.Spec.Paused:
		w.say(t.running, "paused")
	case len(waiting) > 0:
		w.next(t, waiting)
	case len(staging) > 0:
		w.say(t.running, "waits for the programs to be on %s", some(staging))
	case len(absent) > 0:
		w.say(t.done, "those that are there are done; not there now: %s", some(absent))
	case slices.ContainsFunc(w.lines, func(l api.UpgradeHost) bool { return l.State == hostWaiting }):
		w.say(t.done, "the chosen hosts are done")
	default:
		w.say(t.done, "%s", t.nothing)
	}
}

// next begins with one of the hosts that wait.
func (w *walk) next(t turn, waiting []int) {
	w.order(waiting)
	i := waiting[0]
	h, l := &w.hosts[i], &w.lines[i]
	if wait := w.rest(t); wait > 0 {
		w.say(t.running, "%s is next, after the pause", h.name)
		w.d.busy = true
		return
	}
	if bad := w.weak(h); bad != "" {
		w.say(t.running, "%s is next; waits for %s, which keeps the state with it", h.name, bad)
		return
	}
	if t.task == api.TaskActivate {
		l.From = h.version
	}
	w.give(l, t.task)
	w.to(l, t.during, "")
	w.say(t.running, "%s %s", h.name, t.begins)
	w.d.busy = true
}

// rest is what is left of the pause after the last host.
func (w *walk) rest(t turn) time.Duration {
	var last time.Time
	for _, l := range w.lines {
		if l.State == t.after && l.Try == w.up.Spec.Try && l.Since.After(last) {
			last = l.Since
		}
	}
	if last.IsZero() {
		return 0
	}
	return w.up.Spec.Pause.D() - w.now.Sub(last)
}

// weak is a member that is not well: while there is one, no other member is restarted,
// or those that are left would be no majority.
func (w *walk) weak(h *upgradeHost) string {
	if !h.member {
		return ""
	}
	for _, m := range w.hosts {
		if m.member && m.name != h.name && (!m.live || !m.voter) {
			return m.name
		}
	}
	return ""
}

// order brings hosts into the order in which they change: as asked for; otherwise those
// that keep no state first, and the one that leads last.
func (w *walk) order(list []int) {
	rank := func(i int) int {
		h := &w.hosts[i]
		if n := slices.Index(w.up.Spec.Hosts, h.name); n >= 0 && w.up.Spec.Phase == api.UpgradeActivate {
			return n
		}
		switch {
		case h.name == w.self:
			return 1<<30 + 2
		case h.member:
			return 1<<30 + 1
		}
		return 1 << 30
	}
	slices.SortFunc(list, func(a, b int) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(w.hosts[a].name, w.hosts[b].name))
	})
}

// finalise ends the way back, unless a host that is there could not follow. Those that
// were left behind change over when they return, without waiting for each other: they
// can do nothing else in the pool any more.
func (w *walk) finalise() {
	v := w.up.Spec.Version
	for i := range w.lines {
		h, l := &w.hosts[i], &w.lines[i]
		switch why := refused(h, l); {
		case h.version == v && (h.told.Active == v || !h.live):
			w.to(l, hostActive, "")
			l.Task = api.TaskNone
		case why != "":
			w.to(l, hostFailed, why)
		default:
			if l.Task != api.TaskActivate {
				l.From = h.version
				w.give(l, api.TaskActivate)
			}
			if h.live && w.level >= w.up.Spec.Release {
				w.to(l, hostActivating, "")
			} else {
				w.to(l, hostAbsent, "")
			}
		}
	}
	if w.level < w.up.Spec.Release {
		for i, l := range w.lines {
			if l.State != hostActive && (w.hosts[i].live || !slices.Contains(w.up.Spec.Absent, l.Name)) {
				w.say(api.UpgradeActivated, "cannot be finalised: %s runs %s", l.Name, cmp.Or(l.Version, "an unknown version"))
				w.revoke()
				return
			}
		}
	}
	w.d.level = max(w.level, w.up.Spec.Release)
	w.say(api.UpgradeFinalised, "done")
	if left := w.in(hostAbsent); len(left) > 0 {
		w.say(api.UpgradeFinalised, "done; follow when they return: %s", some(left))
	}
	if w.d.status.EndedAt == nil {
		w.d.status.EndedAt = &w.now
	}
}

// revoke takes tasks back that were only thought of.
func (w *walk) revoke() {
	for i := range w.lines {
		if w.lines[i].State != hostActive {
			w.lines[i].Task = api.TaskNone
		}
	}
}
