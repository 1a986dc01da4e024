package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/store"
)

// poller looks again by polling, but for the tenant "soon", which it has work for.
type poller struct{ calls []string }

func (p *poller) Name() string            { return "poller" }
func (p *poller) Watches() []api.Selector { return []api.Selector{{Kind: api.KindTenant}} }
func (p *poller) Owns() []api.Kind        { return nil }
func (p *poller) Reconcile(_ context.Context, _ store.Store, ref api.Ref) (Result, error) {
	p.calls = append(p.calls, ref.Name)
	if ref.Name == "soon" {
		return Result{Again: time.Minute}, nil
	}
	return Result{Again: 10 * time.Second, Poll: true}, nil
}

func TestPollsAreNotWork(t *testing.T) {
	mem, clk := store.NewMem(), clock.NewManual(time.Unix(1000, 0))
	e := New(mem, clk, slog.New(slog.DiscardHandler), Events{})
	p := &poller{}
	e.Add(p, 1)
	put := func(name string) {
		if _, err := mem.Commit(context.Background(), store.Set(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: name}}})); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Settle(context.Background(), mem, 100); err != nil {
			t.Fatal(err)
		}
	}
	put("quiet")
	if at, ok := e.NextWork(); ok {
		t.Fatalf("work at %s, but only a poll is due", at)
	}
	if at, ok := e.NextAt(); !ok || !at.Equal(clk.Now().Add(10*time.Second)) {
		t.Fatalf("the poll is due at %s", at)
	}
	put("soon")
	if at, ok := e.NextWork(); !ok || !at.Equal(clk.Now().Add(time.Minute)) {
		t.Fatalf("work at %s", at)
	}
	p.calls = nil
	clk.Advance(time.Minute)
	if _, err := e.Settle(context.Background(), mem, 100); err != nil || fmt.Sprint(p.calls) != "[soon quiet]" {
		t.Fatalf("a poll that is due is made with the rest: %v %v", p.calls, err)
	}
}

func TestTurnLetsCallsTakeTime(t *testing.T) {
	mem, clk := store.NewMem(), clock.NewManual(time.Unix(1000, 0))
	e := New(mem, clk, slog.New(slog.DiscardHandler), Events{})
	p := &poller{}
	e.Add(p, 2)
	for i := range 5 {
		if _, err := mem.Commit(context.Background(), store.Set(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: fmt.Sprint("t", i)}}})); err != nil {
			t.Fatal(err)
		}
	}
	var open []func()
	begun := func() int {
		n, err := e.Turn(context.Background(), mem, func(call func()) { open = append(open, call) })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := begun(); n != 2 {
		t.Fatalf("%d calls of two workers", n)
	}
	if n := begun(); n != 0 {
		t.Fatalf("%d more calls while both work", n)
	}
	total := 2
	for len(open) > 0 {
		call := open[0]
		open = open[1:]
		call()
		total += begun()
	}
	if total != 5 || len(p.calls) != 5 {
		t.Fatalf("%d begun, %v", total, p.calls)
	}
}

// twin sees tenants and users of one name as one.
type twin struct{ probe }

func (*twin) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindTenant}, {Kind: api.KindUser}}
}
func (*twin) Key(ref api.Ref) api.Ref { ref.Kind = api.KindUser; return ref }

func TestRefsOfOneKeyAreOneName(t *testing.T) {
	m := store.NewMem()
	put(t, m, "a")
	if _, err := m.Commit(context.Background(), store.Set(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "a"}}})); err != nil {
		t.Fatal(err)
	}
	p := &twin{}
	e := New(m, clock.NewManual(time.Unix(0, 0)), quiet(), Events{})
	e.Add(p, 8)
	if n, err := e.Settle(context.Background(), m, 10); err != nil || n != 1 {
		t.Fatalf("%d calls for one name: %v", n, err)
	}
	p.fn = func(context.Context, store.Store, api.Ref) (Result, error) { return Result{}, nil }
	e.Enqueue("probe", api.Ref{Kind: api.KindTenant, Name: "a"})
	e.Enqueue("probe", api.Ref{Kind: api.KindUser, Name: "a"})
	if n, err := e.Settle(context.Background(), m, 10); err != nil || n != 1 {
		t.Fatalf("%d calls for one name: %v", n, err)
	}
}
