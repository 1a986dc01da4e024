package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/store"
)

// What a host follows is looked at once at the start, and again at each change of it and
// of nothing else; what failed is looked at again.
func TestOnChange(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	mem := store.NewMem()
	member := func(name string, s api.MemberState) *api.Member {
		m := &api.Member{Head: api.Head{K: api.KindMember, Meta: api.Meta{Name: name}}}
		m.Spec.State = s
		return m
	}
	sel := api.Selector{Kind: api.KindMember, Name: "isle2"}
	looks, done := make(chan int), make(chan struct{})
	fail := true
	go func() {
		defer close(done)
		onChange(ctx, clock.Real{}, mem, sel, func() (int64, error) {
			list, rev, err := mem.List(ctx, sel)
			if err == nil && fail {
				fail = false
				return 0, errors.New("not now")
			}
			select {
			case looks <- len(list):
			case <-ctx.Done():
			}
			return rev, err
		})
	}()
	next := func(want int) {
		t.Helper()
		select {
		case n := <-looks:
			if n != want {
				t.Fatalf("saw %d members, not %d", n, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("did not look")
		}
	}
	next(0) // after what failed
	commit := func(op store.Op) {
		t.Helper()
		if _, err := mem.Commit(ctx, op); err != nil {
			t.Fatal(err)
		}
	}
	commit(store.Create(member("isle3", api.MemberWanted)))
	select {
	case <-looks:
		t.Fatal("looked because another host is wanted")
	case <-time.After(50 * time.Millisecond):
	}
	commit(store.Create(member("isle2", api.MemberWanted)))
	next(1)
	commit(store.Set(member("isle2", api.MemberVoter)))
	next(1)
	commit(store.Remove(api.Ref{Kind: api.KindMember, Name: "isle2"}, store.Any))
	next(0)
	cancel()
	<-done
}
