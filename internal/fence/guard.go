package fence

import (
	"time"

	"atoll/internal/errs"
)

// farthest bounds a deadline: an edge host may be out of reach for 720 hours. What is later is an error of whoever says it.
const farthest = 31 * 24 * time.Hour

// guard is what a watchdog knows and decides, without a kernel: the deadline, what is
// guarded, and who may change it. Every call says what time it is.
type guard struct {
	deadline time.Duration
	items    []Item
	owner    int64 // the newest connection that changed something; older ones are daemons that are gone
	idle     time.Duration
	since    time.Duration // when there was last something to guard, or someone to talk to about it
	fenced   uint64
}

// expired takes what must be stopped now. It goes before everything else, also before
// a new deadline that came too late.
func (g *guard) expired(now time.Duration) []Item {
	if len(g.items) == 0 || g.deadline > now {
		return nil
	}
	out := g.items
	g.items, g.since = nil, now
	g.fenced += uint64(len(out))
	return out
}

// claim refuses what an earlier daemon wrote before it died and that is read only now.
func (g *guard) claim(conn int64) error {
	if conn < g.owner {
		return errs.New(errs.Conflict, "a newer daemon has taken over")
	}
	g.owner = conn
	return nil
}

func (g *guard) set(now, deadline time.Duration, conn int64) error {
	if deadline > now+farthest {
		return errs.New(errs.Invalid, "a deadline in %s is farther than %s", (deadline - now).Round(time.Second), farthest)
	}
	if err := g.claim(conn); err != nil {
		return err
	}
	g.deadline = deadline
	return nil
}

func (g *guard) replace(now time.Duration, items []Item, conn int64) error {
	if len(items) > 0 && g.deadline <= now {
		return errs.New(errs.Conflict, "no deadline is set that is still to come")
	}
	if err := g.claim(conn); err != nil {
		return err
	}
	g.items, g.since = items, now
	return nil
}

// done reports whether it has had nothing to guard for so long that it may end.
func (g *guard) done(now time.Duration) bool { return len(g.items) == 0 && now >= g.since+g.idle }

// next is when to look again.
func (g *guard) next() time.Duration {
	if len(g.items) > 0 {
		return g.deadline
	}
	return g.since + g.idle
}

func (g *guard) state(pid int) State {
	return State{Pid: uint32(pid), Deadline: g.deadline, Guarded: uint32(len(g.items)), Fenced: g.fenced}
}
