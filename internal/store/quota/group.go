package quota

import (
	"context"
	"errors"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// groupOps bounds one joint transaction, ledgers but the pool's included; etcd's default is 128.
const groupOps = 120

// ask is one caller's commit on its way through the turn. Its caller waits until it is
// answered, or takes it back while nobody has begun with it.
type ask struct {
	ops  []store.Op
	done chan struct{} // closed when rev and err are set
	rev  int64
	err  error
	in   *group // who works on it; nil: it waits. Guarded by line.mu
	plan *plan  // of the present attempt; for who has the turn
}

func (a *ask) answer(rev int64, err error) {
	if err != nil {
		rev = 0
	}
	a.rev, a.err = rev, err
	close(a.done)
}

func (a *ask) answered() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// group are asks that are committed together.
type group struct {
	asks []*ask
	left int                // callers that do not wait any more. Guarded by line.mu
	stop context.CancelFunc // ends the work when all have left
}

// line is what waits for the turn, oldest first.
type line struct {
	mu   sync.Mutex
	asks []*ask
}

func (l *line) add(a *ask) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asks = append(l.asks, a)
}

// leave takes an ask back; false when it is being worked on.
func (l *line) leave(a *ask) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := a.in; g != nil {
		if g.left++; g.left == len(g.asks) {
			g.stop()
		}
		return false
	}
	for i, b := range l.asks {
		if a == b {
			l.asks = append(l.asks[:i], l.asks[i+1:]...)
			return true
		}
	}
	return false
}

// next takes the oldest ask and all that may share its transaction: what only makes,
// changes or removes instances, each object once. A tenant changes what the others are
// judged by, so it goes alone.
func (l *line) next(stop context.CancelFunc) *group {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := &group{stop: stop}
	used, books, size := map[api.Ref]bool{}, map[string]bool{"": true}, 0
	var rest []*ask
	for i, a := range l.asks {
		n := weight(a.ops, books)
		if i > 0 && (size+n > groupOps || alone(g.asks[0].ops)) {
			rest = append(rest, l.asks[i:]...)
			break
		}
		if i > 0 && (alone(a.ops) || clash(a.ops, used)) {
			rest = append(rest, a)
			continue
		}
		for _, op := range a.ops {
			ref := op.Target()
			used[ref] = true
			for _, path := range api.TenantChain(ref.Tenant) {
				books[path] = true
			}
		}
		size += n
		a.in = g
		g.asks = append(g.asks, a)
	}
	l.asks = rest
	return g
}

// weight bounds the ops that an ask adds to a transaction: its own, and the ledgers that
// are not in it yet.
func weight(ops []store.Op, books map[string]bool) int {
	n, last := len(ops), ""
	for _, op := range ops {
		t := op.Target().Tenant
		if t == last {
			continue
		}
		last = t
		for _, path := range api.TenantChain(t) {
			if !books[path] {
				n++
			}
		}
	}
	return n
}

func alone(ops []store.Op) bool {
	for _, op := range ops {
		if k := op.Target().Kind; op.Verb != store.Check && (k == api.KindTenant || k == api.KindLedger) {
			return true
		}
	}
	return false
}

// clash reports whether ops are about something that others of the group are about.
func clash(ops []store.Op, used map[api.Ref]bool) bool {
	for _, op := range ops {
		if used[op.Target()] {
			return true
		}
	}
	return false
}

// join commits ops when it is their turn, or lets another caller do it who has the turn.
func (q *Store) join(ctx context.Context, ops []store.Op) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	a := &ask{ops: ops, done: make(chan struct{})}
	q.line.add(a)
	select {
	case <-a.done:
	case q.turn <- struct{}{}:
		q.lead(ctx, a)
		<-q.turn
	case <-ctx.Done():
		if q.line.leave(a) {
			return 0, ctx.Err()
		}
		<-a.done // the ops are in use until then
	}
	if a.err != nil && ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return a.rev, a.err
}

// lead commits what waits until own is answered. The work goes on for the others when
// own's caller gives up, and ends when all have.
func (q *Store) lead(ctx context.Context, own *ask) {
	for !own.answered() {
		if ctx.Err() != nil && q.line.leave(own) {
			own.answer(0, ctx.Err())
			return
		}
		run, stop := context.WithCancel(context.WithoutCancel(ctx))
		g := q.line.next(stop)
		quit := func() bool { return false }
		if own.in == g {
			quit = context.AfterFunc(ctx, func() { q.line.leave(own) })
		}
		q.settle(run, g.asks)
		quit()
		stop()
	}
}

// settle answers all asks: it plans each on what those before it leave and commits
// together what is admitted. The others are told why not only when that went through,
// as they may have been refused for what it takes.
func (q *Store) settle(ctx context.Context, asks []*ask) {
	wait := pauseMin
	for range attempts {
		rev, err := q.attempt(ctx, asks)
		var refused *store.Refused
		switch {
		case err == nil:
			for _, a := range asks {
				a.answer(rev, a.err)
			}
			return
		case errors.As(err, &refused):
			all := len(asks)
			if asks = dismiss(asks, refused.Ref, err); len(asks) < all {
				if len(asks) == 0 {
					return
				}
				continue // the others need not wait
			}
		case len(asks) > 1 && !general(err):
			for i := range asks {
				q.settle(ctx, asks[i:i+1])
			}
			return
		default:
			answer(asks, err)
			return
		}
		if err := q.Clock.Sleep(ctx, wait); err != nil {
			answer(asks, err)
			return
		}
		wait = min(wait*2, pauseMax)
	}
	answer(asks, errs.New(errs.Unavailable, "the ledgers change faster than this commit could be admitted").WithHint("try again"))
}

// attempt plans and commits once. An ask that is not admitted has its error.
func (q *Store) attempt(ctx context.Context, asks []*ask) (rev int64, err error) {
	b, ops, admitted := newBooks(q), make([]store.Op, 0, 2*len(asks)), false
	for _, a := range asks {
		a.plan, a.err = b.plan(ctx, a.ops)
		if a.err == nil {
			a.err = a.plan.judge(ctx)
		}
		if a.err == nil {
			admitted = true
			b.enter(a.plan)
			ops = append(ops, a.plan.ops...)
		}
	}
	if !admitted {
		return 0, nil
	}
	return q.Store.Commit(ctx, append(ops, b.ledgers()...)...)
}

// dismiss answers the one whose object was not as it had to be. What a plan added is
// nobody's fault: it is planned again.
func dismiss(asks []*ask, ref api.Ref, err error) []*ask {
	var rest []*ask
	for _, a := range asks {
		if a.err == nil && !a.plan.ours(err) && concerns(a.ops, ref) {
			a.answer(0, err)
			continue
		}
		rest = append(rest, a)
	}
	return rest
}

func concerns(ops []store.Op, ref api.Ref) bool {
	for _, op := range ops {
		if op.Target() == ref {
			return true
		}
	}
	return false
}

// general reports whether an error is not about what was committed, but the store or the wait.
func general(err error) bool {
	k := errs.KindOf(err)
	return k == errs.Unavailable || k == errs.Timeout || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func answer(asks []*ask, err error) {
	for _, a := range asks {
		a.answer(0, err)
	}
}
