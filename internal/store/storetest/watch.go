package storetest

import (
	"context"
	"errors"
	"maps"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

func testWatch(t *testing.T, s *suite) {
	start := s.rev()
	r1 := s.commit(store.Create(thing("t", "a")))
	past := s.watch(things, start)
	s.expect(past, r1, "put assignment/t/a")
	live := s.watch(things, r1)
	every := s.watch(api.Selector{}, start)
	r2 := s.commit(store.Set(thing("t", "a")))
	r3 := s.commit(store.Create(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle1"}}}))
	r4 := s.commit(store.Remove(refOf("t", "a"), r2))
	for _, w := range []*watcher{past, live} {
		s.expect(w, r2, "put assignment/t/a")
		s.expect(w, r4, "deleted assignment/t/a")
	}
	s.expect(every, r1, "put assignment/t/a")
	s.expect(every, r2, "put assignment/t/a")
	s.expect(every, r3, "put node/isle1")
	ev := s.next(every)
	if ev.Rev != r4 || !ev.Deleted || ev.Object.Metadata().UID != "uid-a" {
		t.Fatalf("the deletion does not say what was there: %+v", ev)
	}
	if one := s.watch(api.Selector{Kind: api.KindAssignment, Name: "b"}, r4); true {
		s.commit(store.Create(thing("t", "a")))
		r := s.commit(store.Create(thing("t", "b")))
		s.expect(one, r, "put assignment/t/b")
	}
}

// Watches from every revision see exactly what came after it.
func testWatchMany(t *testing.T, s *suite) {
	start := s.rev()
	var want []string
	var revs []int64
	for i := range 60 {
		name := numbered(i % 7)
		if i%5 == 4 {
			revs = append(revs, s.commit(store.Remove(refOf("t", numbered((i-1)%7)), store.Any)))
			want = append(want, "deleted "+refOf("t", numbered((i-1)%7)).String())
			continue
		}
		revs = append(revs, s.commit(store.Set(thing("t", name))))
		want = append(want, "put "+refOf("t", name).String())
	}
	for from := 0; from < len(revs); from += 7 {
		at := start
		if from > 0 {
			at = revs[from-1]
		}
		w := s.watch(things, at)
		for i := from; i < len(revs); i++ {
			s.expect(w, revs[i], want[i])
		}
		select {
		case ev := <-w.evs:
			t.Fatalf("one event too many: %s", show(ev))
		default:
		}
		w.stop()
	}
}

// Watchers that start anywhere during the writes end with the same picture as the store.
func testWatchConcurrent(t *testing.T, s *suite) {
	const writers, each = 8, 40
	start := s.rev()
	done := make(chan error, writers)
	for w := range writers {
		go func() { done <- churn(s, w, each) }()
	}
	var mirrors []*watcher
	var states []map[string]int64
	for range 5 {
		objs, rev, err := s.List(s.ctx, things)
		if err != nil {
			t.Fatal(err)
		}
		state := map[string]int64{}
		for _, o := range objs {
			state[api.RefOf(o).String()] = o.Metadata().Revision
		}
		mirrors, states = append(mirrors, s.watch(things, rev)), append(states, state)
	}
	mirrors, states = append(mirrors, s.watch(things, start)), append(states, map[string]int64{})
	for range writers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	last := s.commit(store.Create(thing("zzz", "last")))
	objs, _, err := s.List(s.ctx, things)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{}
	for _, o := range objs {
		want[api.RefOf(o).String()] = o.Metadata().Revision
	}
	for i, w := range mirrors {
		// A store that had to start anew may tell of a removal after what came later.
		for at := int64(0); at < last || !maps.Equal(states[i], want); {
			ev := s.next(w)
			if ev.Rev < at {
				t.Fatalf("revision %d after %d", ev.Rev, at)
			}
			at = ev.Rev
			key := api.RefOf(ev.Object).String()
			if ev.Deleted {
				delete(states[i], key)
			} else if states[i][key] >= ev.Rev {
				t.Fatalf("%s at %d came after %d", key, ev.Rev, states[i][key])
			} else {
				states[i][key] = ev.Rev
			}
		}
	}
}

func churn(s *suite, w, each int) error {
	for i := range each {
		name := numbered(w*10 + i%4)
		op := store.Set(thing("t", name))
		if i%4 == 3 {
			op = store.Remove(refOf("t", numbered(w*10)), store.Any)
		}
		if _, err := s.Commit(s.ctx, op); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	return nil
}

func testWatchLeave(t *testing.T, s *suite) {
	start := s.rev()
	terms, err := api.ParseLabels("app=db")
	if err != nil {
		t.Fatal(err)
	}
	byLabel := s.watch(api.Selector{Kind: api.KindAssignment, Labels: terms}, start)
	byField := s.watch(api.Selector{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": "isle1"}}, start)
	a := thing("t", "a", "app", "db")
	a.Spec.Node = "isle1"
	r1 := s.commit(store.Create(a))
	for _, w := range []*watcher{byLabel, byField} {
		s.expect(w, r1, "put assignment/t/a")
	}
	a.Spec.Node = "isle2"
	r2 := s.commit(store.Set(a))
	s.expect(byField, r2, "deleted assignment/t/a")
	s.expect(byLabel, r2, "put assignment/t/a")
	a.Labels["app"] = "web"
	r3 := s.commit(store.Set(a))
	s.expect(byLabel, r3, "deleted assignment/t/a")
	s.commit(store.Remove(refOf("t", "a"), store.Any)) // concerns neither any more
	a.Labels["app"], a.Spec.Node = "db", "isle1"
	r5 := s.commit(store.Create(a))
	s.expect(byLabel, r5, "put assignment/t/a")
	s.expect(byField, r5, "put assignment/t/a")
	r6 := s.commit(store.Remove(refOf("t", "a"), store.Any))
	s.expect(byLabel, r6, "deleted assignment/t/a")
	s.expect(byField, r6, "deleted assignment/t/a")
}

func testWatchMore(t *testing.T, s *suite) {
	w := s.watch(things, s.rev())
	rev := s.commit(store.Create(thing("t", "a")), store.Create(thing("t", "b")),
		store.Create(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle1"}}}), store.Create(thing("t", "c")))
	after := s.commit(store.Remove(refOf("t", "a"), rev))
	seen := map[string]bool{}
	for i := range 3 {
		ev := s.next(w)
		if ev.Rev != rev || ev.More && i == 2 {
			t.Fatalf("event %d of a commit: %+v", i, ev)
		}
		seen[ev.Object.Metadata().Name] = true
	}
	if len(seen) != 3 {
		t.Fatalf("got %v", seen)
	}
	s.expect(w, after, "deleted assignment/t/a")
}

func testWatchStops(t *testing.T, s *suite) {
	start := s.rev()
	s.commit(store.Create(thing("t", "a")))
	s.commit(store.Create(thing("t", "b")))
	enough, calls := errors.New("enough"), 0
	err := s.Watch(s.ctx, things, start, func(store.Event) error {
		calls++
		return enough
	})
	if !errors.Is(err, enough) || calls != 1 {
		t.Fatalf("%d calls, %v", calls, err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	err = s.Watch(ctx, things, start, func(store.Event) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func testSlowWatcher(t *testing.T, s *suite) {
	start, release := s.rev(), make(chan struct{})
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	entered, done := make(chan struct{}, 1), make(chan error, 1)
	var got []int64
	go func() {
		done <- s.Watch(ctx, things, start, func(ev store.Event) error {
			select {
			case entered <- struct{}{}:
			default:
			}
			<-release
			if got = append(got, ev.Rev); len(got) == 301 {
				cancel()
			}
			return nil
		})
	}()
	s.commit(store.Create(thing("t", "first")))
	select {
	case <-entered:
	case <-s.ctx.Done():
		t.Fatal("no event came")
	}
	fast := s.watch(things, start)
	s.next(fast)
	for i := range 300 { // none of these may wait for the one who sleeps
		s.expect(fast, s.commit(store.Create(thing("t", numbered(i)))), "put "+refOf("t", numbered(i)).String())
	}
	close(release)
	if err := <-done; !errors.Is(err, context.Canceled) || len(got) != 301 {
		t.Fatalf("the slow one got %d of 301, %v", len(got), err)
	}
}

func testCompacted(t *testing.T, s *suite) {
	c, ok := s.Store.(Compactor)
	if !ok {
		t.Skip("the history of this store cannot be cut by a test")
	}
	start := s.rev()
	var last int64
	for i := range 10 {
		last = s.commit(store.Set(thing("t", numbered(i%2))))
	}
	if err := c.Compact(s.ctx, last-2); err != nil {
		t.Fatal(err)
	}
	err := s.Watch(s.ctx, things, start, func(ev store.Event) error {
		t.Errorf("event %d although the history is gone", ev.Rev)
		return errors.New("unexpected")
	})
	if !errors.Is(err, errs.Compacted) {
		t.Fatalf("got %v", err)
	}
	w := s.watch(things, last-2)
	s.expect(w, last-1, "put "+refOf("t", numbered(0)).String())
	s.expect(w, last, "put "+refOf("t", numbered(1)).String())
	if got := s.names(things); got != "t/n0000 t/n0001" {
		t.Fatalf("compaction changed what is there: %s", got)
	}
}
