package store

import (
	"context"
	"encoding/json"
	"errors"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

const (
	cacheHistory  = 10_000                 // changes kept per kind for watches that start in the past
	cacheCatchUp  = 250 * time.Millisecond // a read waits so long for the mirror, then asks the source
	cacheRetryMin = 20 * time.Millisecond
	cacheRetryMax = 5 * time.Second
)

// Cache mirrors some kinds of another Store in memory and is a Store itself:
// reads and watches of those kinds are served from the mirror, commits and
// everything else go through. A read is never older than what this Cache's own
// Commit acknowledged, nor than sel.MinRev. A commit becomes visible as a whole.
//
// The life: NewCache; Run in a goroutine of the caller's for as long as the Cache
// is used; reads before the first load wait for it a moment. When the source fails, what is
// mirrored is still served, and Run comes back to the source by itself.
type Cache struct {
	// Clock is what waits are measured with; set before Run. Default: the machine's.
	Clock clock.Clock
	// Events tells what happens to the mirror; set before Run.
	Events CacheEvents

	src   Store
	kinds []api.Kind
	feeds map[api.Kind]*feed // one a kind, so that a change wakes only who asked for it
	acked atomic.Int64       // newest own commit that the mirror must show

	mu     sync.RWMutex
	loaded bool
	rev    int64              // every change up to here is in the mirror
	base   map[api.Kind]int64 // revision each kind was last listed at; may be ahead of rev
	objs   *table
	wake   chan struct{}
}

// CacheEvents are called from Run.
type CacheEvents struct {
	Lost   func(err error) // the source could not be followed; it is tried again
	Loaded func(rev int64) // listed anew
}

// NewCache makes a mirror of the given kinds of s, or of all kinds when none is given.
func NewCache(s Store, kinds ...api.Kind) *Cache {
	if len(kinds) == 0 {
		for _, d := range api.Definitions() {
			kinds = append(kinds, d.Kind)
		}
	}
	c := &Cache{Clock: clock.Real{}, src: s, kinds: kinds, feeds: map[api.Kind]*feed{}, base: map[api.Kind]int64{}, objs: newTable()}
	for _, k := range kinds {
		c.feeds[k] = newFeed(cacheHistory)
	}
	return c
}

// Run keeps the mirror until ctx ends, and returns its error. It starts no goroutine.
func (c *Cache) Run(ctx context.Context) error {
	wait := cacheRetryMin
	for {
		before := c.Revision()
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if c.Events.Lost != nil {
			c.Events.Lost(err)
		}
		if c.Revision() > before || errors.Is(err, errs.Compacted) {
			wait = cacheRetryMin
		}
		if err := c.Clock.Sleep(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, cacheRetryMax)
	}
}

// follow lists everything and then watches, until something fails.
func (c *Cache) follow(ctx context.Context) error {
	if err := c.load(ctx); err != nil {
		return err
	}
	sel := api.Selector{}
	if len(c.kinds) == 1 {
		sel.Kind = c.kinds[0]
	}
	var commit []Event // the changes of one revision, so that it is shown at once
	return c.src.Watch(ctx, sel, c.Revision(), func(ev Event) error {
		if n := len(commit); n > 0 && commit[n-1].Rev != ev.Rev {
			c.apply(commit)
			commit = commit[:0]
		}
		commit = append(commit, ev)
		if !ev.More {
			c.apply(commit)
			clear(commit)
			commit = commit[:0]
		}
		return nil
	})
}

// load lists each kind and turns what differs from the mirror into changes.
func (c *Cache) load(ctx context.Context) error {
	lists, revs := map[api.Kind][]api.Object{}, map[api.Kind]int64{}
	low := int64(0)
	for _, k := range c.kinds {
		objs, rev, err := c.src.List(ctx, api.Selector{Kind: k})
		if err != nil {
			return err
		}
		lists[k], revs[k] = objs, rev
		if low == 0 || rev < low {
			low = rev
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if low < c.rev { // another history: the source was put back to an older state
		c.acked.Store(0)
		for _, f := range c.feeds {
			f.reset(low)
		}
		c.base = map[api.Kind]int64{}
	}
	for k, objs := range lists {
		c.replace(k, objs, revs[k])
	}
	c.rev, c.loaded = low, true
	c.signal()
	if c.Events.Loaded != nil {
		c.Events.Loaded(low)
	}
	return nil
}

// replace makes objs, true at rev, the mirror of a kind. Watchers hear of the differences.
func (c *Cache) replace(k api.Kind, objs []api.Object, rev int64) {
	old := c.objs.kinds[k]
	fresh := &ordered{}
	var changes []change
	for _, o := range objs {
		e := newEntry(o)
		was := (*entry)(nil)
		if old != nil {
			was = old.get(e.key)
		}
		m := o.Metadata()
		switch {
		case was == nil:
			changes = append(changes, change{rev: m.Revision, is: o})
		case was.obj.Metadata().Revision == m.Revision:
			e = was // with its encoding
		case was.obj.Metadata().UID != m.UID: // gone and made again while nobody looked
			changes = append(changes, change{rev: m.Revision, was: was.obj}, change{rev: m.Revision, is: o})
		default:
			changes = append(changes, change{rev: m.Revision, was: was.obj, is: o})
		}
		fresh.put(e)
	}
	if old != nil {
		old.scan("", "", func(e *entry) bool {
			if fresh.get(e.key) == nil {
				changes = append(changes, change{rev: rev, was: e.obj})
			}
			return true
		})
	}
	c.objs.kinds[k] = fresh
	c.base[k] = rev
	if !c.loaded {
		c.feeds[k].forget(rev)
		return
	}
	sort.SliceStable(changes, func(i, j int) bool { return changes[i].rev < changes[j].rev })
	c.feeds[k].add(changes...)
}

// apply shows one commit.
func (c *Cache) apply(commit []Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rev := commit[0].Rev
	var changes []change // of one kind and revision: told as a whole
	var kind api.Kind
	tell := func() {
		if len(changes) > 0 {
			c.feeds[kind].add(changes...)
			changes = changes[:0]
		}
	}
	for _, ev := range commit {
		ref := api.RefOf(ev.Object)
		f := c.feeds[ref.Kind]
		if f == nil || rev <= c.base[ref.Kind] {
			continue // not ours, or in the list already
		}
		ch := change{rev: rev}
		if e := c.objs.get(ref); e != nil {
			ch.was = e.obj
		}
		if ev.Deleted {
			if ch.was == nil {
				continue
			}
			c.objs.remove(ref)
		} else {
			ch.is = ev.Object
			c.objs.put(newEntry(ev.Object))
		}
		if ref.Kind != kind {
			tell()
			kind = ref.Kind
		}
		changes = append(changes, ch)
	}
	tell()
	c.rev = max(c.rev, rev)
	c.signal()
}

func (c *Cache) signal() {
	if c.wake != nil {
		close(c.wake)
		c.wake = nil
	}
}

// Revision is how far the mirror has come; 0 before the first load.
func (c *Cache) Revision() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.rev
}

// at is the revision the mirror of a kind is true at.
func (c *Cache) at(k api.Kind) int64 { return max(c.rev, c.base[k]) }

// WaitLoaded returns when the mirror was loaded for the first time, or with ctx's error.
func (c *Cache) WaitLoaded(ctx context.Context) error {
	for {
		wait := c.waiter() // before looking, so that nothing falls between
		c.mu.RLock()
		loaded := c.loaded
		c.mu.RUnlock()
		if loaded {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waiter gives a channel that is closed when the mirror moves next.
func (c *Cache) waiter() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wake == nil {
		c.wake = make(chan struct{})
	}
	return c.wake
}

// reach waits until the mirror of kind k shows minRev and all own commits. It
// answers false when that takes so long that the source should be asked instead.
func (c *Cache) reach(ctx context.Context, k api.Kind, minRev int64) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	want := max(minRev, c.acked.Load())
	c.mu.RLock()
	there := c.loaded && c.at(k) >= want
	c.mu.RUnlock()
	if there {
		return true, nil
	}
	timer := c.Clock.NewTimer(cacheCatchUp)
	defer timer.Stop()
	for {
		wait := c.waiter() // before looking, so that nothing falls between
		c.mu.RLock()
		there = c.loaded && c.at(k) >= want
		c.mu.RUnlock()
		if there {
			return true, nil
		}
		select {
		case <-wait:
		case <-timer.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// Get reads one object from the mirror.
func (c *Cache) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	if c.feeds[ref.Kind] == nil {
		return c.src.Get(ctx, ref)
	}
	ok, err := c.reach(ctx, ref.Kind, 0)
	if err != nil {
		return nil, err
	}
	if !ok {
		return c.src.Get(ctx, ref)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.objs.get(ref)
	if e == nil {
		return nil, notFound(ref)
	}
	return e.obj, nil
}

// List reads the chosen objects from the mirror.
func (c *Cache) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	list, rev, ok, err := c.entries(ctx, sel)
	if err != nil {
		return nil, 0, err
	}
	if !ok {
		return c.src.List(ctx, sel)
	}
	return objectsOf(list), rev, nil
}

// ListEncoded is List giving each object's JSON, which is made once and kept
// until the object changes. The bytes are shared: do not change them.
func (c *Cache) ListEncoded(ctx context.Context, sel api.Selector) (items []json.RawMessage, rev int64, err error) {
	list, rev, ok, err := c.entries(ctx, sel)
	if err != nil {
		return nil, 0, err
	}
	if !ok {
		objs, at, err := c.src.List(ctx, sel)
		if err != nil {
			return nil, 0, err
		}
		rev = at
		for _, o := range objs {
			list = append(list, newEntry(o))
		}
	}
	items = make([]json.RawMessage, len(list))
	for i, e := range list {
		if items[i], err = e.encoded(); err != nil {
			return nil, 0, errs.New(errs.Internal, "encode %s: %w", api.RefOf(e.obj), err)
		}
	}
	return items, rev, nil
}

// entries answers ok = false when the source must be asked.
func (c *Cache) entries(ctx context.Context, sel api.Selector) (list []*entry, rev int64, ok bool, err error) {
	if c.feeds[sel.Kind] == nil {
		return nil, 0, false, nil
	}
	if ok, err = c.reach(ctx, sel.Kind, sel.MinRev); err != nil || !ok {
		return nil, 0, false, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.objs.list(sel), c.at(sel.Kind), true, nil
}

// Commit goes to the source; reads of this Cache that follow will see it.
func (c *Cache) Commit(ctx context.Context, ops ...Op) (int64, error) {
	rev, err := c.src.Commit(ctx, ops...)
	if err == nil && c.shows(ops) {
		for old := c.acked.Load(); old < rev && !c.acked.CompareAndSwap(old, rev); old = c.acked.Load() {
		}
	}
	return rev, err
}

// shows reports whether a commit of ops will come by in what Run watches.
func (c *Cache) shows(ops []Op) bool {
	for _, op := range ops {
		if op.Verb != Check && (len(c.kinds) > 1 || op.Target().Kind == c.kinds[0]) {
			return true
		}
	}
	return false
}

// Follow calls fn for what changed of a kind since an earlier call, and gives the place
// to go on from; from 0 it tells everything there is, as new. errs.Compacted: the
// changes since are gone, begin at 0 again; errs.Unavailable: the mirror is behind, ask
// List. fn must not call the Cache.
func (c *Cache) Follow(ctx context.Context, k api.Kind, from uint64, fn func(was, is api.Object)) (next uint64, err error) {
	f := c.feeds[k]
	if f == nil {
		return 0, errs.New(errs.Unavailable, "%s is not mirrored", k)
	}
	switch ok, err := c.reach(ctx, k, 0); {
	case err != nil:
		return 0, err
	case !ok:
		return 0, errs.New(errs.Unavailable, "the mirror of %s is behind", k)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if from > 0 {
		next, err = f.each(from-1, fn)
		return next + 1, err
	}
	if all := c.objs.kinds[k]; all != nil {
		all.scan("", "", func(e *entry) bool { fn(nil, e.obj); return true })
	}
	return f.end() + 1, nil
}

// Watch follows the mirror; what it does not know goes to the source.
func (c *Cache) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(Event) error) error {
	f := c.feeds[sel.Kind]
	if f == nil {
		return c.src.Watch(ctx, sel, rev, fn)
	}
	if err := c.WaitLoaded(ctx); err != nil {
		return err
	}
	if _, err := f.place(rev); err != nil {
		return c.src.Watch(ctx, sel, rev, fn) // its history may go back further
	}
	return f.watch(ctx, sel, rev, fn)
}
