package agent

import (
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/store"
)

// tree is a host's groups as a map.
type tree map[string]Share

func (g tree) Ensure(path string, s Share) ([]string, error) { g[path] = s; return nil, nil }
func (g tree) List(string) ([]string, error)                 { return slices.Sorted(maps.Keys(g)), nil }

func (g tree) Remove(path string) error {
	for p := range g {
		if strings.HasPrefix(p, path+"/") {
			return os.ErrExist
		}
	}
	delete(g, path)
	return nil
}

func (g tree) Usage(path string) (api.Usage, error) {
	if _, ok := g[path]; !ok {
		return api.Usage{}, os.ErrNotExist
	}
	return api.Usage{Memory: 1 << (len(path) % 50)}, nil
}

// held is a runtime that knows where its instances are.
type held struct {
	driver.Runtime
	groups map[string]string
}

func (h held) Groups(id string) []string { return []string{h.groups[id]} }

// What came with its host stays in the groups it was started in, bounded by the shares of
// its tenants' new places; they count there, and go when nothing is in them.
func TestStrays(t *testing.T) {
	s := store.NewMem()
	list := []*api.Tenant{tenant("east", 1000, 4<<30, 100, api.Resources{api.Memory: 6 << 30}), tenant("east/acme", 0, 0, 100, api.Resources{api.Pids: 50}), tenant("east/acme/lab", 0, 1<<30, 100, nil),
		tenant("acme", 0, 0, 100, api.Resources{api.Pids: 7}), tenant("other", 0, 0, 100, nil)}
	for _, tn := range list {
		if _, err := s.Commit(t.Context(), store.Create(tn)); err != nil {
			t.Fatal(err)
		}
	}
	g := tree{"atoll/acme.t": {}, "atoll/acme.t/lab.t": {}, "atoll/gone.t": {}, "atoll/demo.t": {}}
	a := New(Deps{Store: s, Groups: g, Clock: clock.NewManual(time.Unix(1e9, 0)), Log: slog.New(slog.DiscardHandler), Root: "atoll"})
	a.capacity = api.Resources{api.CPU: 4000, api.Memory: 16 << 30}
	rt := held{groups: map[string]string{"x1": "atoll/acme.t/lab.t/x1", "x2": "atoll/other.t/x2", "x3": "atoll/demo.t/x3"}}
	a.set("x1", func(l *life) {
		l.runtime, l.ref = rt, api.Ref{Kind: api.KindInstance, Tenant: "east/acme/lab", Name: "in"}
	})
	a.set("x2", func(l *life) { l.runtime, l.ref = rt, api.Ref{Kind: api.KindInstance, Tenant: "other", Name: "in"} })
	a.set("x3", func(l *life) { l.runtime, l.ref = rt, api.Ref{Kind: api.KindInstance, Tenant: "east", Name: "in"} })
	if got := a.findStrays(); !maps.Equal(got, map[string]string{"atoll/acme.t/lab.t": "east/acme/lab", "atoll/acme.t": "east/acme", "atoll/demo.t": "east"}) {
		t.Fatal(got)
	}
	if err := a.divideNode(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, ok := g["atoll/gone.t"]; ok {
		t.Error("the group of nobody is still there")
	}
	want := shares(a.capacity, list)
	// Two tenants have instances in it: both ceilings together.
	if got := g["atoll/acme.t"]; got.PidsMax != 57 || got.MemoryMax != want["acme"].MemoryMax+6<<30 {
		t.Errorf("%+v", got)
	}
	if got := g["atoll/acme.t/lab.t"]; got != want["east/acme/lab"] {
		t.Errorf("%+v, not %+v", got, want["east/acme/lab"])
	}
	if got := g["atoll/demo.t"]; got != want["east"] || got.MemoryMax != 6<<30 {
		t.Errorf("%+v, not %+v", got, want["east"])
	}
	// They count for their tenants, and for those these are in, once.
	one := func(path string) int64 { u, _ := g.Usage(path); return u.Memory }
	for name, sum := range map[string]int64{"east/acme/lab": one("atoll/acme.t/lab.t"), "east/acme": one("atoll/acme.t"), "east": one("atoll/acme.t") + one("atoll/demo.t")} {
		if u, err := a.groupUsage(name, a.strays); err != nil || u.Memory != sum {
			t.Errorf("%s: %d, not %d (%v)", name, u.Memory, sum, err)
		}
	}
	// The group of its name is made beside it, for what comes after.
	if err := a.ensureGroup(t.Context(), "east/acme/lab"); err != nil || g["atoll/east.t/acme.t/lab.t"] != want["east/acme/lab"] {
		t.Errorf("%v %v", g, err)
	}
	a.drop("x1")
	if err := a.divideNode(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, ok := g["atoll/acme.t/lab.t"]; ok || g["atoll/acme.t"] != want["acme"] {
		t.Errorf("after the last one has gone: %v", g)
	}
}
