package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sort"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
)

func node(name string) *api.Node {
	return &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}}
}

func TestEventsSinceGivesEveryChangeInOrder(t *testing.T) {
	ctx, m := context.Background(), NewMem()
	start := m.Revision()
	r1, err := m.Commit(ctx, Create(node("a")), Create(node("b")))
	if err != nil {
		t.Fatal(err)
	}
	r2, err := m.Commit(ctx, Remove(api.Ref{Kind: api.KindNode, Name: "a"}, Any))
	if err != nil {
		t.Fatal(err)
	}
	evs := m.EventsSince(start)
	if len(evs) != 3 || evs[0].Rev != r1 || !evs[0].More || evs[1].More || evs[2].Rev != r2 || !evs[2].Deleted {
		t.Fatalf("got %+v", evs)
	}
	if evs := m.EventsSince(r1); len(evs) != 1 {
		t.Fatalf("after %d: %+v", r1, evs)
	}
	if evs := m.EventsSince(r2); len(evs) != 0 {
		t.Fatalf("after %d: %+v", r2, evs)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	ctx, m := context.Background(), NewMemHistory(10)
	for i := range 25 {
		if _, err := m.Commit(ctx, Set(node(fmt.Sprintf("n%d", i%3))), Set(node("x"))); err != nil {
			t.Fatal(err)
		}
	}
	stop := errors.New("stop")
	err := m.Watch(ctx, api.Selector{}, 1, func(Event) error { return stop })
	if !errors.Is(err, errs.Compacted) {
		t.Fatalf("got %v", err)
	}
	if evs := m.EventsSince(m.Revision() - 5); len(evs) != 10 {
		t.Fatalf("%d events kept", len(evs))
	}
	defer func() {
		if recover() == nil {
			t.Error("a gap in the history was passed over")
		}
	}()
	m.EventsSince(m.Revision() - 6)
}

// The ordered list against a map that is sorted each time.
func TestOrderedAgainstAMap(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	o, want := &ordered{}, map[string]*entry{}
	for step := range 30000 {
		k := fmt.Sprintf("t%d\x00n%d", rnd.Intn(5), rnd.Intn(3000))
		if step%3 == 0 && step > 9000 {
			o.remove(k)
			delete(want, k)
		} else {
			e := &entry{key: k}
			o.put(e)
			want[k] = e
		}
		if step%2999 != 0 {
			continue
		}
		keys := make([]string, 0, len(want))
		for k := range want {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		lo, hi := "t1\x00n2", "t3\x01"
		var got, expect []string
		o.scan(lo, hi, func(e *entry) bool { got = append(got, e.key); return true })
		for _, k := range keys {
			if k >= lo && k < hi {
				expect = append(expect, k)
			}
			if o.get(k) != want[k] {
				t.Fatalf("step %d: get %q", step, k)
			}
		}
		if o.n != len(want) || fmt.Sprint(got) != fmt.Sprint(expect) {
			t.Fatalf("step %d: %d of %d, %d of %d", step, o.n, len(want), len(got), len(expect))
		}
	}
}
