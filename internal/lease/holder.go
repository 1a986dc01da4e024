package lease

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

// Renewer is a way to whoever may be the leader.
type Renewer interface {
	// Renew sends a heartbeat for an epoch, or with epoch 0 takes the lease anew.
	// errs.Conflict: it is not held in this epoch. errs.Unavailable: ask another.
	Renew(ctx context.Context, b Beat) (Grant, error)
}

// HolderConfig sets a Holder up.
type HolderConfig struct {
	Interval time.Duration // between heartbeats; default 1 s
}

// HolderDeps is what a Holder works with.
type HolderDeps struct {
	HolderConfig
	Clock clock.Clock
	Log   *slog.Logger
	// Boot is the time since the host was started, also while it slept; nil: by Clock.
	Boot func() time.Duration
	// Ways lists the servers to try, best first.
	Ways func() []Renewer
	// Extended is told when the lease ends (of Boot) that was just acknowledged, and whether
	// that matters. It is called before Held says so, and must be quick.
	Extended func(end time.Duration, alone bool)
	// Shorter is told that the lease lasts shorter than before, and ends so (of Boot). When it
	// returns nil nothing on this host counts on more any longer, also if this process ends
	// now; until then the pool goes on as if it did. It should take less than Interval.
	Shorter func(ctx context.Context, end time.Duration) error
	// Took is told of every new epoch and of every other revision of the lease, Lost that the lease can no longer be counted on.
	// Both are called in the goroutine of Run.
	Took func(Grant)
	Lost func()
}

// Holder keeps a node's lease.
type Holder struct {
	HolderDeps

	mu    sync.Mutex
	grant Grant
	until time.Duration // of Boot; 0: not held
	sure  time.Duration // how long a lease lasts at most by what anything on this host knows; 0: nothing does
	said  bool          // Took was called, and not Lost since
	best  int           // the way that answered last
}

// NewHolder holds nothing before Run.
func NewHolder(d HolderDeps) *Holder {
	if d.Interval == 0 {
		d.Interval = time.Second
	}
	if d.Boot == nil {
		start := d.Clock.Now()
		d.Boot = func() time.Duration { return d.Clock.Now().Sub(start) + time.Second }
	}
	return &Holder{HolderDeps: d}
}

// Rev is the revision of the lease as last taken: what this node's commits expect.
func (h *Holder) Rev() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.grant.Rev
}

// Term is Rev and Held of the same moment.
func (h *Holder) Term() (rev int64, held bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.grant.Rev, h.held()
}

// Held reports whether what must not run twice may run now. Alone, it always may.
func (h *Holder) Held() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held()
}

func (h *Holder) held() bool {
	return h.grant.Epoch != 0 && (h.grant.Alone || h.until > h.Boot())
}

// Grant is the lease as last heard of.
func (h *Holder) Grant() Grant {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.grant
}

// Tenure is the lease as last heard of, and until when (of Boot) it may be counted on.
func (h *Holder) Tenure() (Grant, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.grant, h.until
}

// Resume goes on with a lease that an earlier process held, as far as until (of Boot),
// before a server was asked; call it before First or Run. If the lease was given up
// meanwhile, the first server that answers says so.
func (h *Holder) Resume(g Grant, until time.Duration) {
	if g.Epoch == 0 || until <= h.Boot() {
		return
	}
	g.Alone = false // others may have come
	if h.Extended != nil {
		h.Extended(until, false)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grant, h.until, h.said, h.sure = g, until, true, g.Duration
}

// margin is what of a lease is kept for stopping things before it ends.
func margin(d time.Duration) time.Duration { return d / 10 }

// First takes the lease before Run; it tries until ctx ends.
func (h *Holder) First(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, h.Interval/10) {
		err := h.beat(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if k := errs.KindOf(err); k == errs.Unauthenticated || k == errs.Denied {
			return err // this host is not, or no longer, one of the pool's
		}
		_ = h.Clock.Sleep(ctx, pause) // ends early only with ctx
	}
}

// firstPause is before the second try to take a lease: a server that has just begun leads
// in a moment.
const firstPause = 5 * time.Millisecond

// sayAgain is between words about heartbeats that fail; an edge host may be away for days.
const sayAgain = time.Minute

// Run sends heartbeats until ctx ends.
func (h *Holder) Run(ctx context.Context) error {
	last := h.Clock.Now()
	var said time.Time // when it was last said that there is no heartbeat; zero: there is
	for {
		wait := last.Add(h.Interval).Sub(h.Clock.Now())
		if left, counting := h.left(); counting {
			wait = min(wait, left)
		}
		if err := h.Clock.Sleep(ctx, max(wait, 0)); err != nil {
			return err
		}
		h.judge()
		if now := h.Clock.Now(); now.Sub(last) < h.Interval {
			continue // woken only to judge
		}
		last = h.Clock.Now()
		err := h.beat(ctx)
		if err == nil {
			said = time.Time{}
		} else if ctx.Err() == nil {
			if said.IsZero() || last.Sub(said) >= sayAgain {
				h.Log.Warn("no heartbeat", "error", err)
				said = last
			}
			last = last.Add(-h.Interval * 4 / 5) // sooner, while it fails
		}
	}
}

// left is the time until the lease must not be counted on any more.
func (h *Holder) left() (time.Duration, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until - h.Boot(), h.said && !h.grant.Alone
}

// judge says so when the lease has ended.
func (h *Holder) judge() {
	h.mu.Lock()
	lost := h.said && !h.held()
	if lost {
		h.said = false
	}
	h.mu.Unlock()
	if lost && h.Lost != nil {
		h.Lost()
	}
}

// beat sends one heartbeat, over the way that worked last, then over all others at once.
func (h *Holder) beat(ctx context.Context) error {
	h.mu.Lock()
	b, best := Beat{Epoch: h.grant.Epoch, Duration: h.sure}, h.best
	h.mu.Unlock()
	ways := h.Ways()
	if len(ways) == 0 {
		return errs.New(errs.Unavailable, "no server is known")
	}
	best %= len(ways)
	sent := h.Boot()
	first, cancel := context.WithTimeout(ctx, h.Interval/2)
	g, err := ways[best].Renew(first, b)
	cancel()
	if err != nil && !gone(err, b.Epoch) && len(ways) > 1 {
		sent = h.Boot()
		b.Duration = 0 // of two that answer, only one is heard: what the other grants must not be shorter
		best, g, err = h.anyOther(ctx, ways, best, b)
	}
	if gone(err, b.Epoch) {
		h.forget()
		return h.beat(ctx)
	}
	if err != nil {
		return err
	}
	h.accept(ctx, g, sent, best)
	return nil
}

// gone reports whether a leader said that this epoch is over.
func gone(err error, epoch int64) bool { return epoch != 0 && errors.Is(err, errs.Conflict) }

// anyOther asks all ways but one at once and takes the first good answer.
func (h *Holder) anyOther(ctx context.Context, ways []Renewer, not int, b Beat) (int, Grant, error) {
	all, cancel := context.WithTimeout(ctx, h.Interval)
	defer cancel()
	type answer struct {
		way int
		g   Grant
		err error
	}
	answers := make(chan answer, len(ways))
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, w := range ways {
		if i != not {
			wg.Go(func() {
				g, err := w.Renew(all, b)
				answers <- answer{i, g, err}
			})
		}
	}
	var why error
	for range len(ways) - 1 {
		a := <-answers
		if a.err == nil || gone(a.err, b.Epoch) {
			cancel()
			return a.way, a.g, a.err
		}
		why = a.err
	}
	return not, Grant{}, why
}

// forget ends the epoch: somebody gave the lease up.
func (h *Holder) forget() {
	h.mu.Lock()
	said := h.said
	h.grant.Epoch, h.until, h.said = 0, 0, false
	h.mu.Unlock()
	if said && h.Lost != nil {
		h.Lost()
	}
}

func (h *Holder) accept(ctx context.Context, g Grant, sent time.Duration, way int) {
	until := sent + g.Duration - margin(g.Duration)
	if h.Extended != nil {
		h.Extended(sent+g.Duration, g.Alone)
	}
	h.mu.Lock()
	took := g.Epoch != h.grant.Epoch || g.Rev != h.grant.Rev || !h.said
	if g.Duration >= h.grant.Duration {
		until = max(until, h.until)
	}
	h.grant, h.until, h.best, h.said = g, until, way, true
	shorter := g.Duration < h.sure
	if !shorter {
		h.sure = g.Duration
	}
	h.mu.Unlock()
	if took && h.Took != nil {
		h.Took(g)
	}
	if !shorter {
		return
	}
	if h.Shorter != nil {
		sctx, cancel := context.WithTimeout(ctx, h.Interval/2)
		defer cancel()
		if err := h.Shorter(sctx, sent+g.Duration); err != nil {
			h.Log.Warn("the lease lasts shorter now, but not yet for all that is done by it here", "error", err)
			return
		}
	}
	h.mu.Lock()
	h.sure = g.Duration
	h.mu.Unlock()
}

// Local is the way to the Keeper of this process; nil while it does not lead.
func Local(node string, keeper func() *Keeper) Renewer { return local{node, keeper} }

type local struct {
	node   string
	keeper func() *Keeper
}

// Renew asks the Keeper.
func (l local) Renew(ctx context.Context, b Beat) (Grant, error) {
	k := l.keeper()
	if k == nil {
		return Grant{}, notLeading()
	}
	if b.Epoch == 0 {
		return k.Take(ctx, l.node)
	}
	return k.Renew(ctx, l.node, b)
}

func notLeading() error { return errs.New(errs.Unavailable, "this server does not lead") }
