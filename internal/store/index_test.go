package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/errs"
)

// told is what a watch heard, as text.
func told(ev Event) string {
	return fmt.Sprintf("%d %v more=%v %s on %s", ev.Rev, ev.Deleted, ev.More, api.RefOf(ev.Object), ev.Object.(*api.Assignment).Spec.Node)
}

// history is commits of assignments that come, move and go.
func history(t *rapid.T) [][]change {
	now := map[string]*api.Assignment{}
	var out [][]change
	for rev := int64(2); rev < int64(rapid.IntRange(3, 60).Draw(t, "commits")); rev++ {
		var commit []change
		names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 3, rapid.ID).Draw(t, "names")
		for _, name := range names {
			c := change{rev: rev}
			if was := now[name]; was != nil {
				c.was = was
			}
			if node := rapid.SampledFrom([]string{"n1", "n2", "n3", "", "gone"}).Draw(t, "node"); node != "gone" {
				a := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: "t", Name: name, Revision: rev}}}
				a.Spec.Node = node
				c.is, now[name] = a, a
			} else if delete(now, name); c.was == nil {
				continue
			}
			commit = append(commit, c)
		}
		if len(commit) > 0 {
			out = append(out, commit)
		}
	}
	return out
}

// A watch that is woken by the index hears what one hears that looks at every change:
// the same events, in the same order, from every start, however the two are woken.
func TestIndexLosesNothing(t *testing.T) {
	sels := []api.Selector{
		{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": "n1"}},
		{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": "n2"}},
		{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": ""}},
		{Kind: api.KindAssignment, Name: "a"},
		{Kind: api.KindAssignment, Tenant: "t", Name: "b", Fields: map[string]string{"spec.node": "n3"}},
		{Kind: api.KindAssignment, Tenant: "other", Name: "b"},
		{Kind: api.KindAssignment, Fields: map[string]string{"no.such": "n1"}},
		{Kind: api.KindNode, Name: "n1"},
		{Kind: api.KindAssignment},
		{},
	}
	rapid.Check(t, func(t *rapid.T) {
		commits := history(t)
		f := newFeed(1000)
		end := int64(1)
		if len(commits) > 0 {
			end = commits[len(commits)-1][0].rev
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := make([][]string, len(sels))
		after := make([]int64, len(sels))
		for i, sel := range sels {
			after[i] = rapid.Int64Range(1, end+1).Draw(t, "after")
			if after[i] > 1 && rapid.Bool().Draw(t, "from the beginning") {
				after[i] = 1
			}
			wg.Go(func() {
				_ = f.watch(ctx, sel, after[i], func(ev Event) error { // ends with ctx
					mu.Lock()
					defer mu.Unlock()
					got[i] = append(got[i], told(ev))
					return nil
				})
			})
		}
		var all []change
		for _, c := range commits {
			f.add(c...)
			all = append(all, c...)
			if rapid.Bool().Draw(t, "let them read") {
				time.Sleep(50 * time.Microsecond)
			}
		}
		for i, sel := range sels {
			var want []string
			for _, ev := range events(nil, sel, after[i], all) {
				want = append(want, told(ev))
			}
			deadline := time.Now().Add(5 * time.Second)
			for {
				mu.Lock()
				have := slices.Clone(got[i])
				mu.Unlock()
				if len(have) >= len(want) || time.Now().After(deadline) {
					if !slices.Equal(have, want) {
						t.Fatalf("%+v after %d heard\n%s\nnot\n%s", sel, after[i], strings.Join(have, "\n"), strings.Join(want, "\n"))
					}
					break
				}
				time.Sleep(50 * time.Microsecond)
			}
		}
		cancel()
		wg.Wait()
		for i, sel := range sels { // nothing comes late, and nobody is left in the index
			if want := len(events(nil, sel, after[i], all)); len(got[i]) != want {
				t.Fatalf("%+v heard %d events, not %d", sel, len(got[i]), want)
			}
		}
		for _, shelves := range f.index.kinds {
			for _, s := range shelves {
				if len(s.seats) > 0 {
					t.Fatalf("seats are left: %v", s.seats)
				}
			}
		}
	})
}

// Who waits for something that does not come is not behind, however much passes by; and
// hears of a history that ends.
func TestIndexedWatchSleepsThroughTheRest(t *testing.T) {
	f := newFeed(16)
	heard := make(chan Event, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- f.watch(t.Context(), api.Selector{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": "mine"}}, 0, func(ev Event) error {
			heard <- ev
			return nil
		})
	}()
	waiting := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		s := f.index.kinds[api.KindAssignment]
		return len(s) == 1 && len(s[0].seats) == 1
	}
	until := func() {
		for deadline := time.Now().Add(5 * time.Second); !waiting(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the watch does not wait")
			}
		}
	}
	until()
	as := func(rev int64, node string) change {
		a := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: "t", Name: "x", Revision: rev}}}
		a.Spec.Node = node
		return change{rev: rev, is: a}
	}
	for rev := int64(1); rev <= 100; rev++ { // many times what the feed keeps
		f.add(as(rev, "other"))
	}
	if !waiting() {
		t.Error("a change on another host woke it")
	}
	f.add(as(101, "mine"))
	if ev := <-heard; ev.Rev != 101 {
		t.Fatalf("heard %+v", ev)
	}
	until()
	f.reset(7)
	if err := <-ended; !errors.Is(err, errs.Compacted) {
		t.Fatalf("the history ended, and the watch says %v", err)
	}
}

// BenchmarkFeed is one change of one assignment with 5000 watches open, as a thousand
// hosts have: by=node is what they ask for, by=kind the same watches without a field.
func BenchmarkFeed(b *testing.B) {
	for _, by := range []string{"node", "kind"} {
		b.Run("by="+by, func(b *testing.B) {
			const watches = 5000
			f := newFeed(cacheHistory)
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			heard := make(chan struct{}, watches)
			for i := range watches {
				sel := api.Selector{Kind: api.KindAssignment}
				if by == "node" {
					sel.Fields = map[string]string{"spec.node": fmt.Sprint("n", i)}
				}
				wg.Go(func() {
					_ = f.watch(ctx, sel, 0, func(Event) error { // ends with ctx
						heard <- struct{}{}
						return nil
					})
				})
			}
			want := map[string]int{"node": 1, "kind": watches}[by]
			rev := int64(0)
			for b.Loop() {
				rev++
				a := &api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Tenant: "t", Name: "x", Revision: rev}}}
				a.Spec.Node = fmt.Sprint("n", rev%watches)
				f.add(change{rev: rev, is: a})
				for range want {
					<-heard
				}
			}
			cancel()
			wg.Wait()
		})
	}
}
