package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

func testLife(t *testing.T, s *suite) {
	s.gone(refOf("t", "a"))
	r1 := s.commit(store.Create(thing("t", "a", "x", "1")))
	a := s.get(refOf("t", "a"))
	if a.Revision != r1 || a.Labels["x"] != "1" || a.UID != "uid-a" {
		t.Fatalf("got %+v", a)
	}
	b := api.Clone(a)
	b.Spec.Node = "isle1"
	r2 := s.commit(store.Update(b))
	if got := s.get(refOf("t", "a")); got.Revision != r2 || r2 <= r1 || got.Spec.Node != "isle1" {
		t.Fatalf("after update at %d: %+v", r2, got)
	}
	s.commit(store.Remove(refOf("t", "a"), r2))
	s.gone(refOf("t", "a"))
	s.commit(store.Create(thing("t", "a")))
	if got := s.get(refOf("t", "a")); got.Spec.Node != "" || got.Labels != nil {
		t.Fatalf("something of the old object is left: %+v", got)
	}
}

func testExists(t *testing.T, s *suite) {
	r := s.commit(store.Create(thing("t", "a")))
	s.fails(errs.Exists, store.Create(thing("t", "a")))
	s.commit(store.Create(thing("t2", "a"))) // the same name elsewhere is another object
	if got := s.get(refOf("t", "a")); got.Revision != r {
		t.Fatalf("the refused create changed it: %+v", got)
	}
}

func testConflicts(_ *testing.T, s *suite) {
	r1 := s.commit(store.Create(thing("t", "a")))
	old := s.get(refOf("t", "a"))
	r2 := s.commit(store.Update(old))
	s.fails(errs.Conflict, store.Update(old))
	s.fails(errs.Conflict, store.Remove(refOf("t", "a"), r1))
	s.commit(store.Remove(refOf("t", "a"), r2))
	s.fails(errs.NotFound, store.Remove(refOf("t", "a"), r2))
	s.fails(errs.NotFound, store.Remove(refOf("t", "a"), store.Any))
	s.fails(errs.NotFound, store.Update(old))
}

func testAny(t *testing.T, s *suite) {
	s.commit(store.Set(thing("t", "a", "v", "1")))
	r := s.commit(store.Set(thing("t", "a", "v", "2")))
	if got := s.get(refOf("t", "a")); got.Revision != r || got.Labels["v"] != "2" {
		t.Fatalf("got %+v", got)
	}
	s.commit(store.Remove(refOf("t", "a"), store.Any))
	s.gone(refOf("t", "a"))
}

func testCheck(_ *testing.T, s *suite) {
	r := s.commit(store.Create(thing("t", "a")))
	s.commit(store.Expect(refOf("t", "a"), r), store.Expect(refOf("t", "b"), 0), store.Expect(refOf("t", "c"), store.Any), store.Create(thing("t", "b")))
	s.fails(errs.Conflict, store.Expect(refOf("t", "a"), r+100), store.Create(thing("t", "c")))
	s.fails(errs.Conflict, store.Expect(refOf("t", "b"), 0), store.Create(thing("t", "c")))
	s.fails(errs.Conflict, store.Expect(refOf("t", "d"), r), store.Create(thing("t", "c")))
	s.gone(refOf("t", "c"))
	// An object may be checked and written in one commit.
	s.commit(store.Expect(refOf("t", "a"), r), store.Set(thing("t", "a")))
	before := s.rev()
	if rev := s.commit(store.Expect(refOf("t", "x"), 0)); rev < before {
		s.t.Fatalf("a check alone gave revision %d, the store is at %d", rev, before)
	}
	if rev := s.commit(); rev < before {
		s.t.Fatalf("nothing gave revision %d, the store is at %d", rev, before)
	}
}

func testInvalid(_ *testing.T, s *suite) {
	s.fails(errs.Invalid, store.Op{})
	s.fails(errs.Invalid, store.Create(thing("t", "")))
	s.fails(errs.Invalid, store.Create(thing("t", "a")), store.Set(thing("t", "a")))
	s.fails(errs.Invalid, store.Create(thing("t", "a")), store.Remove(refOf("t", "a"), store.Any))
	s.fails(errs.Invalid, store.Remove(refOf("t", "a"), 0))
	s.fails(errs.Invalid, store.Op{Verb: store.Put, Object: thing("t", "a"), Rev: -7})
	s.fails(errs.Invalid, store.Op{Verb: 99, Ref: refOf("t", "a")})
	s.want(things, "")
}

func testAtomic(_ *testing.T, s *suite) {
	r := s.commit(store.Create(thing("t", "a")))
	s.fails(errs.Exists, store.Create(thing("t", "b")), store.Create(thing("t", "a")), store.Create(thing("t", "c")))
	s.fails(errs.Conflict, store.Remove(refOf("t", "a"), r), store.Create(thing("t", "b")), store.Expect(refOf("t", "z"), 7))
	s.fails(errs.NotFound, store.Create(thing("t", "b")), store.Remove(refOf("t", "z"), store.Any))
	s.want(things, "t/a")
	s.commit(store.Create(thing("t", "b")), store.Remove(refOf("t", "a"), r), store.Create(thing("u", "c")))
	s.want(things, "t/b u/c")
	if s.get(refOf("t", "b")).Revision != s.get(refOf("u", "c")).Revision {
		s.t.Fatal("one commit gave two revisions")
	}
	var many []store.Op
	for i := range 100 {
		many = append(many, store.Create(thing("many", numbered(i))))
	}
	s.commit(many...)
	if objs, _, err := s.List(s.ctx, api.Selector{Kind: api.KindAssignment, Tenant: "many"}); err != nil || len(objs) != 100 {
		s.t.Fatalf("%d of 100 are there, %v", len(objs), err)
	}
}

func testRevisions(t *testing.T, s *suite) {
	last := s.rev()
	if last < 1 {
		t.Fatalf("an empty store is at revision %d", last)
	}
	for i := range 20 {
		rev := s.commit(store.Set(thing("t", numbered(i%3))))
		if rev <= last {
			t.Fatalf("%d after %d", rev, last)
		}
		last = rev
		if at := s.rev(); at < rev {
			t.Fatalf("list is true at %d, the commit was %d", at, rev)
		}
	}
	s.fails(errs.Exists, store.Create(thing("t", numbered(0))))
}

func testIsolation(t *testing.T, s *suite) {
	mine := thing("t", "a", "x", "1")
	mine.Finalizers = []string{"node"}
	before := api.Clone(mine)
	s.commit(store.Create(mine))
	if mine.Revision != before.Revision {
		t.Fatalf("the commit changed the caller's object: revision %d", mine.Revision)
	}
	mine.Labels["x"], mine.Finalizers[0], mine.Spec.Node = "changed", "changed", "changed"
	if got := s.get(refOf("t", "a")); got.Labels["x"] != "1" || got.Finalizers[0] != "node" || got.Spec.Node != "" {
		t.Fatalf("the caller's later changes are seen: %+v", got)
	}
	// And what was handed out does not change under its holder.
	held := s.get(refOf("t", "a"))
	next := api.Clone(held)
	next.Labels["x"] = "2"
	s.commit(store.Update(next))
	if held.Labels["x"] != "1" {
		t.Fatal("an object handed out earlier was changed by a commit")
	}
}

func seedTree(s *suite) {
	// a-b sorts between a and the tenants nested in a.
	for _, tn := range []string{"b", "a/x", "a-b", "a", "a/x/y", "a0", "ab"} {
		s.commit(store.Create(thing(tn, "two", "app", "db")), store.Create(thing(tn, "one", "app", "web", "tier", "1")))
	}
	s.commit(store.Create(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle1"}}}))
}

func testListOrder(t *testing.T, s *suite) {
	s.want(things, "")
	seedTree(s)
	objs, rev, err := s.List(s.ctx, things)
	if err != nil || len(objs) != 14 {
		t.Fatalf("%d objects, %v", len(objs), err)
	}
	for i := 1; i < len(objs); i++ {
		if api.SortKey(api.RefOf(objs[i-1])) >= api.SortKey(api.RefOf(objs[i])) {
			t.Fatalf("out of order: %s", join(objs))
		}
	}
	if again := s.rev(); again < rev {
		t.Fatalf("revision went from %d to %d", rev, again)
	}
	k := api.KindAssignment
	s.want(api.Selector{Kind: k, Tenant: "a"}, "a/one a/two")
	s.want(api.Selector{Kind: k, Tenant: "a", Nested: true}, "a/one a/two a/x/one a/x/two a/x/y/one a/x/y/two")
	s.want(api.Selector{Kind: k, Tenant: "a", Nested: true, Name: "two"}, "a/two a/x/two a/x/y/two")
	s.want(api.Selector{Kind: k, Tenant: "a/x"}, "a/x/one a/x/two")
	s.want(api.Selector{Kind: k, Tenant: "a", Name: "two"}, "a/two")
	s.want(api.Selector{Kind: k, Name: "two"}, "a/two a-b/two a/x/two a/x/y/two a0/two ab/two b/two")
	s.want(api.Selector{Kind: k, Tenant: "nobody"}, "")
	s.want(api.Selector{Kind: api.KindNode}, "/isle1")
}

func testPages(t *testing.T, s *suite) {
	seedTree(s)
	for _, sel := range []api.Selector{
		things,
		{Kind: api.KindAssignment, Tenant: "a", Nested: true},
		{Kind: api.KindAssignment, Name: "two"},
		{Kind: api.KindAssignment, Labels: []api.LabelTerm{{Key: "tier"}}},
	} {
		whole, _, err := s.List(s.ctx, sel)
		if err != nil {
			t.Fatal(err)
		}
		for limit := 1; limit <= 15; limit += 3 {
			var got []api.Object
			for page := sel; ; {
				page.Limit = limit
				objs, _, err := s.List(s.ctx, page)
				if err != nil || len(objs) > limit {
					t.Fatalf("limit %d: %d objects, %v", limit, len(objs), err)
				}
				got = append(got, objs...)
				if len(objs) < limit {
					break
				}
				page.After = api.SortKey(api.RefOf(objs[len(objs)-1]))
			}
			if join(got) != join(whole) {
				t.Fatalf("in pages of %d: %s\nat once: %s", limit, join(got), join(whole))
			}
		}
	}
	// A page goes on also where the object it stopped at is gone.
	s.want(api.Selector{Kind: api.KindAssignment, After: api.SortKey(refOf("a/x", "p")), Limit: 2}, "a/x/two a/x/y/one")
	s.want(api.Selector{Kind: api.KindAssignment, After: api.SortKey(refOf("zzz", "p"))}, "")
}

func testSelectors(t *testing.T, s *suite) {
	seedTree(s)
	placed := thing("c", "placed", "app", "db")
	placed.Spec.Node = "isle1"
	s.commit(store.Create(placed))
	k := api.KindAssignment
	labels := func(text string) []api.LabelTerm {
		terms, err := api.ParseLabels(text)
		if err != nil {
			t.Fatal(err)
		}
		return terms
	}
	s.want(api.Selector{Kind: k, Tenant: "a", Labels: labels("app=db")}, "a/two")
	s.want(api.Selector{Kind: k, Tenant: "a", Labels: labels("!tier")}, "a/two")
	s.want(api.Selector{Kind: k, Labels: labels("app in (db cache),!tier"), Limit: 2}, "a/two a-b/two")
	s.want(api.Selector{Kind: k, Fields: map[string]string{"spec.node": "isle1"}}, "c/placed")
	s.want(api.Selector{Kind: k, Fields: map[string]string{"spec.node": "isle2"}}, "")
}

func testListAll(t *testing.T, s *suite) {
	s.commit(store.Create(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle1"}}}), store.Create(thing("t", "b")))
	rev := s.commit(store.Create(thing("t", "a")), store.Create(&api.User{Head: api.Head{K: api.KindUser, Meta: api.Meta{Name: "ann"}}}))
	objs, at, err := s.List(s.ctx, api.Selector{})
	if err != nil || at < rev {
		t.Fatalf("at %d, committed %d: %v", at, rev, err)
	}
	var got string
	for _, o := range objs {
		got += api.RefOf(o).String() + " "
	}
	if got != "assignment/t/a assignment/t/b node/isle1 user/ann " {
		t.Fatalf("got %s", got)
	}
}

func testReadYourWrites(t *testing.T, s *suite) {
	for i := range 200 {
		name := numbered(i)
		rev := s.commit(store.Create(thing("t", name)))
		if got := s.get(refOf("t", name)); got.Revision != rev {
			t.Fatalf("%s is at %d, written at %d", name, got.Revision, rev)
		}
		objs, at, err := s.List(s.ctx, api.Selector{Kind: api.KindAssignment, MinRev: rev})
		if err != nil || at < rev || len(objs) != i+1 {
			t.Fatalf("after %d creates: %d objects at %d, %v", i+1, len(objs), at, err)
		}
	}
	for i := range 50 {
		s.commit(store.Remove(refOf("t", numbered(i)), store.Any))
		s.gone(refOf("t", numbered(i)))
	}
}

func testCanceled(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Commit(ctx, store.Create(thing("t", "a"))); err == nil {
		t.Error("a commit went through")
	}
	if err := s.Watch(ctx, things, s.rev(), func(store.Event) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("watch gave %v", err)
	}
	s.gone(refOf("t", "a"))
}

func testCounter(t *testing.T, s *suite) {
	s.commit(store.Create(thing("t", "counter")))
	const writers = 100
	done := make(chan error, writers)
	for range writers {
		go func() { done <- increment(s) }()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := s.get(refOf("t", "counter")).Spec.Generation; got != writers {
		t.Fatalf("the counter is at %d after %d increments", got, writers)
	}
}

func increment(s *suite) error {
	for {
		a, err := store.Get[*api.Assignment](s.ctx, s.Store, refOf("t", "counter"))
		if err != nil {
			return err
		}
		a = api.Clone(a)
		a.Spec.Generation++
		_, err = s.Commit(s.ctx, store.Update(a))
		if !errors.Is(err, errs.Conflict) {
			return err
		}
	}
}

func testCreateRace(t *testing.T, s *suite) {
	const writers = 50
	done := make(chan error, writers)
	for i := range writers {
		go func() {
			a := thing("t", "one")
			a.Spec.Node = fmt.Sprint(i)
			_, err := s.Commit(s.ctx, store.Create(a), store.Create(thing("t", numbered(i))))
			done <- err
		}()
	}
	won := 0
	for range writers {
		switch err := <-done; {
		case err == nil:
			won++
		case !errors.Is(err, errs.Exists):
			t.Error(err)
		}
	}
	objs, _, err := s.List(s.ctx, things)
	if won != 1 || err != nil || len(objs) != 2 {
		t.Fatalf("%d creates of one object succeeded; %d objects, %v", won, len(objs), err)
	}
}

func testUniqueRevisions(t *testing.T, s *suite) {
	const writers, each = 10, 20
	revs := make(chan int64, writers*each)
	done := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := range each {
				rev, err := s.Commit(s.ctx, store.Create(thing(numbered(w), numbered(i))))
				if err != nil {
					done <- err
					return
				}
				revs <- rev
			}
			done <- nil
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	close(revs)
	seen := map[int64]bool{}
	for r := range revs {
		if seen[r] {
			t.Fatalf("two commits are revision %d", r)
		}
		seen[r] = true
	}
}
