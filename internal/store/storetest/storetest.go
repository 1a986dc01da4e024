// Package storetest holds every store.Store to the contract: Run is called from
// the tests of each implementation. The goroutines it starts end with the test
// that started them. It must never know which implementation it looks at.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Compactor is implemented by stores whose history a test can cut: what is at or
// before rev is forgotten.
type Compactor interface {
	Compact(ctx context.Context, rev int64) error
}

// Open makes an empty store for one test and closes it with the test.
type Open func(t *testing.T) store.Store

// patience bounds every test; no store needs nearly as long.
const patience = 30 * time.Second

// Run checks the store that open makes against the contract.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		fn   func(*testing.T, *suite)
	}{
		{"CreateGetUpdateRemove", testLife},
		{"Exists", testExists},
		{"ConflictAndNotFound", testConflicts},
		{"AnyRevision", testAny},
		{"Check", testCheck},
		{"InvalidOps", testInvalid},
		{"AllOrNothing", testAtomic},
		{"RevisionsGrow", testRevisions},
		{"ObjectsAreIsolated", testIsolation},
		{"ListOrderAndTenants", testListOrder},
		{"ListPages", testPages},
		{"ListSelectors", testSelectors},
		{"ListEveryKind", testListAll},
		{"ReadYourWrites", testReadYourWrites},
		{"CanceledContext", testCanceled},
		{"WatchFromRevision", testWatch},
		{"WatchManyCommits", testWatchMany},
		{"WatchWhileCommitting", testWatchConcurrent},
		{"WatchLeavesSelection", testWatchLeave},
		{"WatchTellsWholeCommits", testWatchMore},
		{"WatchStopsWithFn", testWatchStops},
		{"SlowWatcher", testSlowWatcher},
		{"Compacted", testCompacted},
		{"Counter", testCounter},
		{"CreateRace", testCreateRace},
		{"RevisionsAreUnique", testUniqueRevisions},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			c.fn(t, &suite{Store: open(t), t: t, ctx: ctx})
		})
	}
}

// suite is a store and what a test of it needs.
type suite struct {
	store.Store
	t   *testing.T
	ctx context.Context
}

// Assignments are used throughout: they have tenants, labels and a field to
// select on, and no decorator of a store gives them a meaning of its own.
func thing(tenant, name string, labels ...string) *api.Assignment {
	a := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: name, Tenant: tenant, UID: "uid-" + name}}}
	for i := 0; i+1 < len(labels); i += 2 {
		if a.Labels == nil {
			a.Labels = map[string]string{}
		}
		a.Labels[labels[i]] = labels[i+1]
	}
	return a
}

func refOf(tenant, name string) api.Ref {
	return api.Ref{Kind: api.KindAssignment, Tenant: tenant, Name: name}
}

var things = api.Selector{Kind: api.KindAssignment}

func (s *suite) commit(ops ...store.Op) int64 {
	s.t.Helper()
	rev, err := s.Commit(s.ctx, ops...)
	if err != nil {
		s.t.Fatalf("commit: %v", err)
	}
	return rev
}

func (s *suite) fails(kind errs.Kind, ops ...store.Op) {
	s.t.Helper()
	if rev, err := s.Commit(s.ctx, ops...); errs.KindOf(err) != kind || err == nil {
		s.t.Fatalf("got revision %d and %v, want %s", rev, err, kind)
	}
}

func (s *suite) get(ref api.Ref) *api.Assignment {
	s.t.Helper()
	a, err := store.Get[*api.Assignment](s.ctx, s.Store, ref)
	if err != nil {
		s.t.Fatalf("get: %v", err)
	}
	return a
}

func (s *suite) gone(ref api.Ref) {
	s.t.Helper()
	if o, err := s.Get(s.ctx, ref); !errors.Is(err, errs.NotFound) {
		s.t.Fatalf("get %s: %+v %v, want not found", ref, o, err)
	}
}

// names lists as "tenant/name ...".
func (s *suite) names(sel api.Selector) string {
	s.t.Helper()
	objs, _, err := s.List(s.ctx, sel)
	if err != nil {
		s.t.Fatalf("list: %v", err)
	}
	return join(objs)
}

func join(objs []api.Object) string {
	out := make([]string, len(objs))
	for i, o := range objs {
		out[i] = o.Metadata().Tenant + "/" + o.Metadata().Name
	}
	return strings.Join(out, " ")
}

func (s *suite) want(sel api.Selector, names string) {
	s.t.Helper()
	if got := s.names(sel); got != names {
		s.t.Fatalf("list %+v\n got %q\nwant %q", sel, got, names)
	}
}

func (s *suite) rev() int64 {
	s.t.Helper()
	_, rev, err := s.List(s.ctx, things)
	if err != nil {
		s.t.Fatalf("list: %v", err)
	}
	return rev
}

// watcher collects the events of a watch in the background.
type watcher struct {
	evs  chan store.Event
	done chan error
	stop context.CancelFunc
}

func (s *suite) watch(sel api.Selector, rev int64) *watcher {
	ctx, cancel := context.WithCancel(s.ctx)
	w := &watcher{evs: make(chan store.Event, 100_000), done: make(chan error, 1), stop: cancel}
	go func() {
		w.done <- s.Watch(ctx, sel, rev, func(ev store.Event) error { w.evs <- ev; return nil })
	}()
	s.t.Cleanup(func() {
		cancel()
		<-w.done
	})
	return w
}

func (s *suite) next(w *watcher) store.Event {
	s.t.Helper()
	select {
	case ev := <-w.evs:
		return ev
	case err := <-w.done:
		w.done <- err
		s.t.Fatalf("the watch ended: %v", err)
	case <-s.ctx.Done():
		s.t.Fatal("no event came")
	}
	return store.Event{}
}

func (s *suite) expect(w *watcher, rev int64, text string) {
	s.t.Helper()
	ev := s.next(w)
	if got := show(ev); got != text || ev.Rev != rev {
		s.t.Fatalf("got %q at %d, want %q at %d", got, ev.Rev, text, rev)
	}
	if !ev.Deleted && ev.Object.Metadata().Revision != rev {
		s.t.Fatalf("%s carries revision %d in an event of %d", text, ev.Object.Metadata().Revision, rev)
	}
}

func show(ev store.Event) string {
	verb := "put "
	if ev.Deleted {
		verb = "deleted "
	}
	return verb + api.RefOf(ev.Object).String()
}

func numbered(i int) string { return fmt.Sprintf("n%04d", i) }
