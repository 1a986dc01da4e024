package store

import (
	"context"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
)

// memHistory is how many changes Mem remembers for watches that start in the past.
const memHistory = 10_000

// Mem is a Store in memory: for tests and for the simulator. It starts no
// goroutine: a watch runs in its caller's and only pulls, so a slow watcher holds
// nobody up. Given the same calls it gives the same answers.
type Mem struct {
	mu   sync.RWMutex
	rev  int64
	objs *table
	feed *feed
}

// NewMem makes an empty store at revision 1; the first commit gets 2, as in etcd.
func NewMem() *Mem { return NewMemHistory(memHistory) }

// NewMemHistory is NewMem remembering at least n changes, for who reads EventsSince rarely.
func NewMemHistory(n int) *Mem {
	return &Mem{rev: 1, objs: newTable(), feed: newFeed(max(n, 1))}
}

// Get reads one object.
func (m *Mem) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.objs.get(ref)
	if e == nil {
		return nil, notFound(ref)
	}
	return e.obj, nil
}

func notFound(ref api.Ref) error { return errs.New(errs.NotFound, "%s does not exist", ref) }

// List reads the chosen objects.
func (m *Mem) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	if err := m.reach(ctx, sel.MinRev); err != nil {
		return nil, 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return objectsOf(m.objs.list(sel)), m.rev, nil
}

// reach waits until the store is at rev.
func (m *Mem) reach(ctx context.Context, rev int64) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.mu.RLock()
		there := m.rev >= rev
		var wait <-chan struct{}
		if !there { // taken under the lock, so that no commit falls between look and wait
			m.feed.mu.Lock()
			wait = m.feed.waiter()
			m.feed.mu.Unlock()
		}
		m.mu.RUnlock()
		if there {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Commit applies all ops or none.
func (m *Mem) Commit(ctx context.Context, ops ...Op) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := CheckOps(ops); err != nil {
		return 0, err
	}
	copies := make([]api.Object, len(ops)) // made before the lock is taken: copying is the slow part
	for i, op := range ops {
		if op.Verb == Put {
			copies[i] = api.Clone(op.Object)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	writes := 0
	for _, op := range ops {
		if err := Judge(op, m.revOf(op.Target())); err != nil {
			return 0, err
		}
		if op.Verb != Check {
			writes++
		}
	}
	if writes == 0 {
		return m.rev, nil
	}
	m.rev++
	changes := make([]change, 0, writes)
	for i, op := range ops {
		if op.Verb != Check {
			changes = append(changes, m.apply(op, copies[i]))
		}
	}
	m.feed.add(changes...)
	return m.rev, nil
}

func (m *Mem) revOf(ref api.Ref) int64 {
	if e := m.objs.get(ref); e != nil {
		return e.obj.Metadata().Revision
	}
	return 0
}

func (m *Mem) apply(op Op, o api.Object) change {
	ref := op.Target()
	c := change{rev: m.rev}
	if e := m.objs.get(ref); e != nil {
		c.was = e.obj
	}
	if op.Verb == Delete {
		m.objs.remove(ref)
		return c
	}
	o.Metadata().Revision = m.rev
	m.objs.put(newEntry(o))
	c.is = o
	return c
}

// Watch follows the changes after rev.
func (m *Mem) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(Event) error) error {
	return m.feed.watch(ctx, sel, rev, fn)
}

// Revision is the revision of the last commit.
func (m *Mem) Revision() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.rev
}

// EventsSince gives all changes after rev at once, for a caller that must not wait:
// the simulator. Asking for more history than was kept is a mistake in the
// program (see NewMemHistory) and panics, as an answer with a gap would be wrong
// without anybody noticing.
func (m *Mem) EventsSince(rev int64) []Event {
	list, err := m.feed.all(rev)
	if err != nil {
		panic(err)
	}
	return events(make([]Event, 0, len(list)), api.Selector{}, rev, list)
}

// Compact forgets the history up to rev.
func (m *Mem) Compact(_ context.Context, rev int64) error {
	m.feed.forget(rev)
	return nil
}
