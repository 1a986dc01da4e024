package store

import (
	"context"
	"sync"

	"atoll/api"
)

// Mirror keeps objects that its owner is told of, one change after the other, and lets
// many read and follow them. It has no source and waits for nothing.
//
// Its revisions only grow. They are those the owner gives, as long as these grow, too;
// a change that comes late, or that has none, gets the next number. So they order what a
// reader of this Mirror saw, and need not be what metadata.revision says.
type Mirror struct {
	mu   sync.RWMutex
	rev  int64
	objs *table
	feed *feed
}

// NewMirror is empty, and remembers so many changes for those who follow.
func NewMirror(history int) *Mirror {
	return &Mirror{objs: newTable(), feed: newFeed(max(history, 1))}
}

// Get reads one object; false when it is not here.
func (m *Mirror) Get(ref api.Ref) (api.Object, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.objs.get(ref)
	if e == nil {
		return nil, false
	}
	return e.obj, true
}

// List reads the chosen objects, and the revision to follow from.
func (m *Mirror) List(sel api.Selector) ([]api.Object, int64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return objectsOf(m.objs.list(sel)), m.rev
}

// Reach moves the revision on without a change.
func (m *Mirror) Reach(rev int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev = max(m.rev, rev)
}

// Apply shows changes at once, as one revision; rev is what it should be. A deletion of
// what is not here is nothing. The objects are kept and must not be changed any more.
func (m *Mirror) Apply(rev int64, evs ...Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rev = max(rev, m.rev+1)
	changes := make([]change, 0, len(evs))
	for _, ev := range evs {
		ref := api.RefOf(ev.Object)
		c := change{rev: rev}
		if e := m.objs.get(ref); e != nil {
			c.was = e.obj
		}
		switch {
		case !ev.Deleted:
			c.is = ev.Object
			m.objs.put(newEntry(ev.Object))
		case c.was == nil:
			continue
		default:
			m.objs.remove(ref)
		}
		changes = append(changes, c)
	}
	if len(changes) == 0 {
		return
	}
	m.rev = rev
	m.feed.add(changes...)
}

// Watch follows the changes after rev; see Store.
func (m *Mirror) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(Event) error) error {
	return m.feed.watch(ctx, sel, rev, fn)
}
