package droplist

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// gate is a barrier that remembers what it was told.
type gate struct {
	list []netip.Prefix
	told int
	err  error
}

func (g *gate) Drop(_ context.Context, ps []netip.Prefix) error {
	g.told++
	g.list = ps
	return g.err
}

func (g *gate) Dropped(context.Context) (map[netip.Prefix]uint64, error) {
	out := map[netip.Prefix]uint64{}
	for i, p := range g.list {
		out[p] = uint64(i + 1)
	}
	return out, nil
}

func (g *gate) Own(context.Context) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.254")}, nil
}

type scene struct {
	*testing.T
	l   *List
	g   *gate
	st  store.Store
	clk *clock.Manual
}

func newScene(t *testing.T) *scene {
	x := &scene{T: t, g: &gate{}, st: store.NewMem(), clk: clock.NewManual(time.Unix(1e9, 0))}
	x.l = New(Deps{Node: "isle1", Store: x.st, Clock: x.clk, Log: slog.New(slog.DiscardHandler), Barrier: x.g})
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle2"}}}
	n.Status.Addresses = []string{"198.51.100.2"}
	x.commit(store.Create(n))
	return x
}

func (x *scene) commit(op store.Op) {
	x.Helper()
	if _, err := x.st.Commit(x.Context(), op); err != nil {
		x.Fatal(err)
	}
}

func (x *scene) rule(name string, s api.DropRuleSpec) {
	x.Helper()
	r := &api.DropRule{Head: api.Head{K: api.KindDropRule, Meta: api.Meta{Name: name}}, Spec: s}
	if err := api.Check(r); err != nil {
		x.Fatal(err)
	}
	x.commit(store.Create(r))
}

// look reconciles once; it gives the list, and when it is looked at again.
func (x *scene) look() (string, time.Duration) {
	x.Helper()
	res, err := controller{x.l}.Reconcile(x.Context(), x.st, api.Ref{})
	if err != nil {
		x.Fatal(err)
	}
	return fmt.Sprint(x.g.list), res.Again
}

func TestRules(t *testing.T) {
	x := newScene(t)
	x.look()
	if x.g.told != 1 {
		t.Error("what an earlier life left was not taken away")
	}
	if x.look(); x.g.told != 1 {
		t.Error("an empty list is told again and again")
	}
	end := x.clk.Now().Add(20 * time.Second)
	x.rule("a", api.DropRuleSpec{Prefix: "203.0.113.0/24"})
	x.rule("b", api.DropRuleSpec{Prefix: "2001:db8::7", ExpiresAt: &end})
	x.rule("own", api.DropRuleSpec{Prefix: "192.0.0.0/16"})
	x.rule("gateway", api.DropRuleSpec{Prefix: "192.0.2.254"})
	x.rule("other", api.DropRuleSpec{Prefix: "198.51.100.0/24"})
	if got, next := x.look(); got != "[2001:db8::7/128 203.0.113.0/24]" || next != 20*time.Second {
		t.Errorf("the list is %s, looked at again in %s", got, next)
	}
	counts := fmt.Sprint(x.l.Counts(t.Context()))
	want := "[{a 2 } {b 1 } {gateway 0 it has 192.0.2.254, an address of host isle1 or of its gateway} {other 0 it has 198.51.100.2, an address of host isle2} {own 0 it has 192.0.2.1, an address of host isle1 or of its gateway}]"
	if counts != want {
		t.Errorf("counts %s\nwant   %s", counts, want)
	}
	x.clk.Advance(20 * time.Second)
	x.rule("forced", api.DropRuleSpec{Prefix: "198.51.100.2", Force: true})
	if got, next := x.look(); got != "[198.51.100.2/32 203.0.113.0/24]" || next != time.Minute {
		t.Errorf("the list is %s, looked at again in %s", got, next)
	}
	for _, n := range []string{"a", "b", "own", "gateway", "other", "forced"} {
		x.commit(store.Remove(api.Ref{Kind: api.KindDropRule, Name: n}, store.Any))
	}
	if got, _ := x.look(); got != "[]" || x.l.Counts(t.Context()) != nil {
		t.Errorf("left: %s", got)
	}
}

func TestHostThatCannot(t *testing.T) {
	x := newScene(t)
	x.g.err = errs.New(errs.Unsupported, "no XDP here")
	x.rule("a", api.DropRuleSpec{Prefix: "203.0.113.0/24"})
	if _, next := x.look(); next != again {
		t.Errorf("looked at again in %s", next)
	}
	if got := x.l.Counts(t.Context()); len(got) != 1 || got[0].Refused != "no XDP here" {
		t.Errorf("told %+v", got)
	}
}
