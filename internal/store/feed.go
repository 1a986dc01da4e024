package store

import (
	"context"
	"sort"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
)

// change is one object's step from was to is; nil: not there.
type change struct {
	rev     int64
	was, is api.Object
}

// feed is a bounded history of changes that any number of readers follow, each at
// its own pace: a slow one never holds up a writer, but finds its place gone
// (errs.Compacted) once it is more than the bound behind.
type feed struct {
	mu    sync.Mutex
	limit int
	ring  []change
	first uint64 // number of the oldest change kept; it lies at first % limit
	next  uint64 // number the next change gets
	lost  int64  // highest revision of what was dropped
	wake  chan struct{}
	index index // who waits for some changes only
}

// feedBatch bounds what a reader copies at once, whole revisions apart.
const feedBatch = 256

func newFeed(limit int) *feed { return &feed{limit: limit} }

func (f *feed) at(n uint64) *change { return &f.ring[n%uint64(f.limit)] }

// add appends whole revisions; it never waits.
func (f *feed) add(list ...change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range list {
		if f.next-f.first == uint64(f.limit) {
			f.drop()
		}
		if len(f.ring) < f.limit {
			f.ring = append(f.ring, c)
		} else {
			*f.at(f.next) = c
		}
		f.index.changed(f.next, &c)
		f.next++
	}
	f.signal()
}

func (f *feed) drop() {
	c := f.at(f.first)
	f.lost = max(f.lost, c.rev)
	*c = change{}
	f.first++
}

// signal wakes all who wait for any change.
func (f *feed) signal() {
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
}

// forget drops what is at or before rev.
func (f *feed) forget(rev int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.first < f.next && f.at(f.first).rev <= rev {
		f.drop()
	}
	f.lost = max(f.lost, rev)
}

// reset starts another history at rev: who followed the old one finds its place gone.
func (f *feed) reset(rev int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ring = make([]change, f.limit)
	f.next++
	f.first, f.lost = f.next, rev
	f.index.all()
	f.signal()
}

// place finds the number of the first change after rev.
func (f *feed) place(rev int64) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rev < f.lost {
		return 0, f.gone(rev)
	}
	n := int(f.next - f.first)
	return f.first + uint64(sort.Search(n, func(i int) bool { return f.at(f.first+uint64(i)).rev > rev })), nil
}

func (f *feed) gone(rev int64) error {
	return errs.New(errs.Compacted, "the history after revision %d is gone; it starts after %d", rev, f.lost).WithHint("list again and watch from the revision of the answer")
}

// read copies changes from number n on; with none there it gives a channel that tells
// when there are. With a seat it does so only for what may concern the one who sits
// there, who goes on from seat.from.
func (f *feed) read(n uint64, buf []change, s *seat) ([]change, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n < f.first {
		return nil, nil, f.gone(f.lost)
	}
	buf = buf[:0]
	for ; n < f.next; n++ {
		c := *f.at(n)
		if len(buf) >= feedBatch && c.rev != buf[len(buf)-1].rev {
			break // whole revisions only, so that More can be told
		}
		buf = append(buf, c)
	}
	if len(buf) > 0 {
		return buf, nil, nil
	}
	if s != nil {
		f.index.sit(s)
		return nil, s.ready, nil
	}
	return nil, f.waiter(), nil
}

// seat gives a watch its place in the index; nil: it is woken by every change.
func (f *feed) seat(sel api.Selector) *seat {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index.seat(sel)
}

// leave ends the wait of a watch that ends.
func (f *feed) leave(s *seat) {
	if s == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index.rise(s)
}

// end is the number that the next change will get.
func (f *feed) end() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.next
}

// each calls fn for the changes from number n on and gives the next number.
func (f *feed) each(n uint64, fn func(was, is api.Object)) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n < f.first {
		return 0, f.gone(f.lost)
	}
	for ; n < f.next; n++ {
		c := f.at(n)
		fn(c.was, c.is)
	}
	return n, nil
}

func (f *feed) waiter() <-chan struct{} {
	if f.wake == nil {
		f.wake = make(chan struct{})
	}
	return f.wake
}

// all gives every change after rev at once.
func (f *feed) all(rev int64) ([]change, error) {
	n, err := f.place(rev)
	if err != nil {
		return nil, err
	}
	var out, buf []change
	for {
		buf, _, err = f.read(n, buf, nil)
		if err != nil || len(buf) == 0 {
			return out, err
		}
		out = append(out, buf...)
		n += uint64(len(buf))
	}
}

// watch is Store.Watch over the feed.
func (f *feed) watch(ctx context.Context, sel api.Selector, rev int64, fn func(Event) error) error {
	n, err := f.place(rev)
	if err != nil {
		return err
	}
	s := f.seat(sel)
	var buf []change
	var evs []Event
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		list, wait, err := f.read(n, buf, s)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			buf, evs = nil, nil // thousands wait at once, and most of them for long
			select {
			case <-wait:
				if s != nil {
					n = s.from
				}
			case <-ctx.Done():
				f.leave(s)
				return ctx.Err()
			}
			continue
		}
		n += uint64(len(list))
		evs = events(evs[:0], sel, rev, list)
		clear(list) // do not keep objects alive while waiting
		buf = list
		for _, ev := range evs {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(ev); err != nil {
				return err
			}
		}
		clear(evs)
	}
}

// events translates changes for sel; the start of a watch may lie in the future.
func events(out []Event, sel api.Selector, after int64, list []change) []Event {
	for _, c := range list {
		if c.rev <= after {
			continue
		}
		if ev, ok := Seen(sel, c.rev, c.was, c.is); ok {
			out = append(out, ev)
		}
	}
	MarkMore(out)
	return out
}
