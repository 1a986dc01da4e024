package lease

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// mute is a store whose answers can be lost.
type mute struct {
	*store.Mem
	lose bool // the next answer; what was asked for is done
}

func (m *mute) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	rev, err := m.Mem.Commit(ctx, ops...)
	if m.lose {
		m.lose = false
		return 0, errs.New(errs.Unavailable, "no answer")
	}
	return rev, err
}

// led is a Keeper that leads on a store, its clock standing still.
func led(t *testing.T) (*Keeper, *mute, *clock.Manual) {
	t.Helper()
	m, clk := &mute{Mem: store.NewMem()}, clock.NewManual(time.Unix(1e9, 0))
	rev, err := Lead(t.Context(), m, clk, "s0")
	if err != nil {
		t.Fatal(err)
	}
	k := NewKeeper(Deps{Store: store.Fenced(m, api.LeaderLease(), func() int64 { return rev }), Fresh: m, Term: rev, Clock: clk, Log: slog.New(slog.DiscardHandler)})
	if err := k.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k, m, clk
}

// look lets time pass as Run would.
func look(t *testing.T, k *Keeper, clk *clock.Manual, d time.Duration) (err error) {
	t.Helper()
	for ; d > 0; d -= stall / 2 {
		clk.Advance(min(d, stall/2))
		if _, err = k.Look(t.Context()); err != nil {
			return err
		}
	}
	return nil
}

// The end of a lease was written, but the Keeper never heard so: from then on nothing
// runs by that lease, however soon the host is heard of again.
func TestGivenUpWithoutAnAnswer(t *testing.T) {
	k, m, clk := led(t)
	if _, err := k.Take(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	clk.Advance(time.Millisecond)
	m.lose = false
	for range 9 {
		if err := look(t, k, clk, stall/2); err != nil {
			t.Fatal(err)
		}
	}
	m.lose = true
	if err := look(t, k, clk, stall); !errors.Is(err, errs.Unavailable) {
		t.Fatal("the end was to be written without an answer:", err)
	}
	if l, err := store.Get[*api.Lease](t.Context(), m, api.NodeLease("n")); err != nil || l.Held() {
		t.Fatal(l, err)
	}
	if g, err := k.Renew(t.Context(), "n", Beat{Epoch: 1}); err == nil {
		t.Fatalf("acknowledged by a lease that had ended: %+v", g)
	}
	if err := look(t, k, clk, stall/2); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Renew(t.Context(), "n", Beat{Epoch: 1}); !errors.Is(err, errs.Conflict) {
		t.Fatal("the host should take its lease anew:", err)
	}
	if g, err := k.Take(t.Context(), "n"); err != nil || g.Epoch != 2 {
		t.Fatal(g, err)
	}
}

// A lease was taken, but neither Keeper nor host heard so: it ends as any other.
func TestTakenWithoutAnAnswer(t *testing.T) {
	for _, before := range []bool{false, true} { // it held one before
		k, m, clk := led(t)
		if before {
			if _, err := k.Take(t.Context(), "n"); err != nil {
				t.Fatal(err)
			}
		}
		m.lose = true
		if _, err := k.Take(t.Context(), "n"); !errors.Is(err, errs.Unavailable) {
			t.Fatal(err)
		}
		if err := look(t, k, clk, 8*time.Second); err != nil {
			t.Error(err)
		}
		if l, err := store.Get[*api.Lease](t.Context(), m, api.NodeLease("n")); err != nil || l.Held() {
			t.Errorf("still held: %v %v", l, err)
		}
	}
}

// When another epoch is begun for nobody, the host cannot act by its own any more, and the
// lease ends only when the host must have noticed.
func TestTakenAwayInTime(t *testing.T) {
	k, m, clk := led(t)
	id := &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: "n"}}}
	if _, err := m.Commit(t.Context(), store.Create(id)); err != nil {
		t.Fatal(err)
	}
	g, err := k.Take(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	read := func() *api.Lease {
		l, err := store.Get[*api.Lease](t.Context(), m, api.NodeLease("n"))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if err := look(t, k, clk, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Renew(t.Context(), "n", Beat{Epoch: g.Epoch}); err != nil {
		t.Fatal(err)
	}
	next := api.Clone(read())
	next.Spec.Epoch++
	id, err = store.Get[*api.NodeIdentity](t.Context(), m, api.RefOf(id))
	if err != nil {
		t.Fatal(err)
	}
	id = api.Clone(id)
	id.Spec.Revoked = "removed by force"
	if _, err := m.Commit(t.Context(), store.Update(next), store.Update(id)); err != nil {
		t.Fatal(err)
	}
	if err := look(t, k, clk, stall/2); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Renew(t.Context(), "n", Beat{Epoch: g.Epoch}); !errors.Is(err, errs.Conflict) {
		t.Error("it goes on in its old epoch:", err)
	}
	if _, err := k.Take(t.Context(), "n"); !errors.Is(err, errs.Denied) {
		t.Error("it was turned away, and takes its lease anew:", err)
	}
	if err := look(t, k, clk, 4*time.Second); err != nil {
		t.Fatal(err)
	}
	if !read().Held() {
		t.Error("over while the host may believe to hold it")
	}
	if err := look(t, k, clk, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	if read().Held() {
		t.Error("it never ends")
	}
}

// Who removes a host, or gives up its lease by force, is believed.
func TestTakenAway(t *testing.T) {
	for _, gone := range []bool{false, true} {
		k, m, clk := led(t)
		g, err := k.Take(t.Context(), "n")
		if err != nil {
			t.Fatal(err)
		}
		l, err := store.Get[*api.Lease](t.Context(), m, api.NodeLease("n"))
		if err != nil {
			t.Fatal(err)
		}
		op := store.Remove(api.RefOf(l), l.Revision)
		if !gone {
			l = api.Clone(l)
			l.Spec.State = api.LeaseExpired
			op = store.Update(l)
		}
		if _, err := m.Commit(t.Context(), op); err != nil {
			t.Fatal(err)
		}
		if err := look(t, k, clk, stall/2); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Renew(t.Context(), "n", Beat{Epoch: g.Epoch}); !errors.Is(err, errs.Conflict) {
			t.Errorf("removed %v: still acknowledged: %v", gone, err)
		}
	}
}
