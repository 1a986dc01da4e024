package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// change edits an object as it is now.
func change[T api.Object](w *tide, ref api.Ref, edit func(T)) {
	w.t.Helper()
	o, err := store.Get[T](context.Background(), w.mem, ref)
	if err != nil {
		w.t.Fatal(err)
	}
	o = api.Clone(o)
	edit(o)
	w.put(o)
}

func (w *tide) maintain(node string, m *api.Maintenance) {
	w.t.Helper()
	if m != nil && m.Since.IsZero() {
		m.Since = w.clk.Now().UTC()
	}
	change(w, api.Ref{Kind: api.KindNode, Name: node}, func(n *api.Node) { n.Spec.Maintenance = m })
}

func (w *tide) drain(node string) *api.DrainSpec {
	w.t.Helper()
	d, err := store.Get[*api.Drain](context.Background(), w.mem, api.Ref{Kind: api.KindDrain, Name: node})
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return &d.Spec
}

func (w *tide) get(name string) *api.Instance {
	w.t.Helper()
	in, err := store.Get[*api.Instance](context.Background(), w.mem, api.Ref{Kind: api.KindInstance, Tenant: "t", Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

func (w *tide) runs(name string) bool { return w.get(name).Status.State == api.StateRunning }

// budget protects the instances with the label app=name.
func (w *tide) budget(name string, away int) {
	w.put(&api.DisruptionBudget{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: name, Tenant: "t"}},
		Spec: api.DisruptionBudgetSpec{Labels: map[string]string{"app": name}, MaxUnavailable: &away}})
}

func app(name string) func(*api.Instance) {
	return func(in *api.Instance) { in.Labels = map[string]string{"app": name} }
}

func volume(in *api.Instance) { in.Spec.Volumes = []api.Mount{{Name: "data", Path: "/d"}} }

// reasons are those of a drain with the names of the instances.
func reasons(d *api.DrainSpec) string {
	var out []string
	for _, r := range d.Waiting {
		var names []string
		for _, i := range r.Instances {
			names = append(names, i.Name)
		}
		out = append(out, r.Reason+": "+strings.Join(names, " "))
	}
	return strings.Join(out, "; ")
}

func TestDrainMovesWhatCanMove(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 4000)
	w.host("n2", 4000)
	w.host("n3", 4000)
	for i := range 6 {
		w.on(fmt.Sprintf("a%d", i), "n1", 500, nil)
	}
	w.on("off", "n1", 500, func(in *api.Instance) { in.Spec.Stopped = true })
	w.on("own", "n1", 100, func(in *api.Instance) { in.Annotations = map[string]string{api.AnnotationPerNode: "true"} })
	w.maintain("n1", &api.Maintenance{Mode: "drain", Why: "new memory"})
	w.settle()
	a := w.assignment("a0")
	if a.Spec.Evict == nil || a.Spec.Evict.To == "" || a.Spec.Evict.To == "n1" || a.Spec.Evict.Reason != "n1 is in maintenance: new memory" {
		t.Fatalf("asked to leave: %+v", a.Spec.Evict)
	}
	if len(w.told) != 6 || !slices.Contains(w.told, "a0 normal Maintenance: leaves n1: n1 is in maintenance: new memory") {
		t.Errorf("told: %q", w.told)
	}
	if d := w.drain("n1"); d == nil || d.State != api.DrainMoving || d.UnderWay != 6 || d.Total != 7 || d.Left != 1 || d.Kept != 1 {
		t.Fatalf("told meanwhile: %+v", d)
	}
	w.pass(time.Minute)
	for i := range 6 {
		if n := fmt.Sprintf("a%d", i); w.where(n) == "n1" || !w.runs(n) {
			t.Errorf("%s is on %s, running: %v", n, w.where(n), w.runs(n))
		}
	}
	d := w.drain("n1")
	if d.State != api.DrainDone || d.Moved != 6 || d.Left != 1 || d.Kept != 1 || d.Stopped != 0 || d.EndedAt == nil || len(d.Moves) != 6 || d.Why != "new memory" {
		t.Fatalf("told at the end: %+v", d)
	}
	if w.where("off") != "n1" || w.where("own") != "n1" || !w.runs("own") {
		t.Error("what is stopped, or belongs to the host, was moved")
	}
	w.instance("fresh", 100, nil)
	w.settle()
	if w.where("fresh") == "n1" {
		t.Error("something new was placed on a host in maintenance")
	}
	before, _ := w.mem.Get(context.Background(), api.Ref{Kind: api.KindDrain, Name: "n1"})
	w.pass(10 * time.Minute)
	after, _ := w.mem.Get(context.Background(), api.Ref{Kind: api.KindDrain, Name: "n1"})
	if before.Metadata().Revision != after.Metadata().Revision {
		t.Error("nothing happened, and the drain was written again")
	}
	w.maintain("n1", nil)
	w.pass(time.Minute)
	for i := range 6 {
		if n := fmt.Sprintf("a%d", i); w.where(n) != "n1" || !w.runs(n) {
			t.Errorf("after restoring %s is on %s, running: %v", n, w.where(n), w.runs(n))
		}
	}
	if len(w.told) != 12 || !slices.ContainsFunc(w.told, func(s string) bool {
		return strings.HasPrefix(s, "a0 ") && strings.HasSuffix(s, "goes back to n1, which is restored")
	}) {
		t.Errorf("told: %q", w.told)
	}
	if d := w.drain("n1"); d.State != api.DrainRestored || d.Returned != 6 || d.Moved != 0 {
		t.Fatalf("restored: %+v", d)
	}
	w.pass(25 * time.Hour)
	if w.drain("n1") != nil {
		t.Fatal("told for ever")
	}
}

func TestDrainKeepsPace(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 40000)
	w.host("n2", 40000)
	for i := range 25 {
		w.on(fmt.Sprintf("a%02d", i), "n1", 100, nil)
	}
	w.maintain("n1", &api.Maintenance{Mode: "evacuate"})
	for range 5 {
		w.settle()
		if n := w.leaving(); n > 10 {
			t.Fatalf("%d under way at once", n)
		}
		w.clk.Advance(5 * time.Second) // and no agent does anything
	}
	if n := w.leaving(); n != 10 {
		t.Fatalf("%d under way, ten may be", n)
	}
	w.pass(time.Minute)
	if d := w.drain("n1"); d.State != api.DrainDone || d.Moved != 25 {
		t.Fatalf("%+v", d)
	}
}

// leaving counts what is asked to leave and has not been placed.
func (w *tide) leaving() (n int) {
	as, _, err := store.List[*api.Assignment](context.Background(), w.mem, api.Selector{Kind: api.KindAssignment})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, a := range as {
		if a.Spec.Evict != nil || a.Spec.Node == "" {
			n++
		}
	}
	return n
}

func TestDrainKeepsBudgets(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 4000)
	w.host("n2", 4000)
	w.budget("web", 1)
	w.budget("db", 0)
	for i := range 4 {
		w.on(fmt.Sprintf("w%d", i), "n1", 100, app("web"))
	}
	w.on("db", "n1", 100, app("db"))
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	for range 60 {
		w.settle()
		down := 0
		for i := range 4 {
			if n := fmt.Sprintf("w%d", i); w.assignment(n).Spec.Evict != nil || !w.runs(n) {
				down++
			}
		}
		if down > 1 {
			t.Fatalf("%d of web are down, one may be", down)
		}
		w.clk.Advance(time.Second)
		w.agents()
	}
	d := w.drain("n1")
	if d.State != api.DrainWaiting || d.Moved != 4 || d.Left != 1 || reasons(d) != "disruption budget t/db spares none now: db" {
		t.Fatalf("%+v: %s", d, reasons(d))
	}
	change(w, api.Ref{Kind: api.KindNode, Name: "n1"}, func(n *api.Node) { n.Spec.Maintenance.Mode = "evacuate" })
	w.pass(time.Minute)
	if d := w.drain("n1"); d.State != api.DrainDone || d.Moved != 5 || d.Mode != "evacuate" {
		t.Fatalf("evacuating passes budgets over: %+v", d)
	}
}

func TestDrainOfWhatCannotMove(t *testing.T) {
	for name, c := range map[string]struct {
		m             api.Maintenance
		running       bool
		left, stopped int
	}{
		"stops it, and it starts again there":  {api.Maintenance{Mode: "drain"}, false, 0, 2},
		"leaves it when asked to":              {api.Maintenance{Mode: "drain", Leave: true}, true, 2, 0},
		"evacuating stops it, too":             {api.Maintenance{Mode: "evacuate"}, false, 0, 2},
		"evacuating leaves it, too, if wanted": {api.Maintenance{Mode: "evacuate", Leave: true}, true, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTide(t, RebalanceConfig{})
			w.host("n1", 4000)
			w.host("n2", 4000)
			w.on("db", "n1", 500, volume)
			w.on("pin", "n1", 500, func(in *api.Instance) { in.Spec.Placement = &api.Placement{Node: "n1"} })
			w.on("web", "n1", 500, nil)
			w.maintain("n1", &c.m)
			w.settle()
			if w.assignment("db").Spec.Evict != nil {
				t.Fatal("it was stopped before the others had gone")
			}
			w.pass(time.Minute)
			d := w.drain("n1")
			if d.State != api.DrainDone || d.Left != c.left || d.Kept != c.left || d.Stopped != c.stopped || d.Moved != 1 {
				t.Fatalf("%+v", d)
			}
			in := w.get("db")
			if w.where("db") != "n1" || w.runs("db") != c.running || in.Spec.Stopped || w.where("web") != "n2" {
				t.Fatalf("db is on %s, %+v", w.where("db"), in.Status)
			}
			gen := w.assignment("db").Spec.Generation
			w.maintain("n1", nil)
			w.pass(time.Minute)
			if a := w.assignment("db"); a.Spec.Evict != nil || a.Spec.Node != "n1" || a.Spec.Generation != gen || !w.runs("db") || !w.runs("pin") || w.where("web") != "n1" {
				t.Fatalf("after restoring: %+v %+v", a.Spec, w.get("db").Status)
			}
		})
	}
}

func TestDrainWithoutRoom(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 4000)
	w.host("n2", 1000)
	w.put(&api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: "high"}}, Spec: api.PriorityClassSpec{Value: 100}})
	w.on("big", "n1", 2000, nil)
	w.on("low", "n1", 800, nil)
	w.on("top", "n1", 700, func(in *api.Instance) { in.Spec.Priority = "high" })
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	w.pass(time.Minute)
	d := w.drain("n1")
	if w.where("top") != "n2" || w.where("low") != "n1" || !w.runs("low") || !w.runs("big") {
		t.Fatal("what matters most has the room there is, and the rest runs on")
	}
	if d.State != api.DrainWaiting || d.Left != 2 || reasons(d) != "no other host can run it: not enough CPU: big low" {
		t.Fatalf("%+v: %s", d, reasons(d))
	}
	w.host("n3", 1000)
	w.pass(time.Minute)
	if w.where("low") != "n3" {
		t.Fatal("room came, and nobody looked")
	}
	w.maintain("n1", &api.Maintenance{Mode: "evacuate"})
	w.pass(time.Minute)
	if d := w.drain("n1"); w.runs("big") || w.where("big") != "n1" || d.State != api.DrainDone || d.Stopped != 1 {
		t.Fatalf("evacuated, so stopped in good order: %+v", d)
	}
	w.host("n4", 4000)
	w.pass(2 * time.Minute)
	if w.where("big") != "n4" || !w.runs("big") {
		t.Fatalf("it was stopped for want of room, which is there now: %s", w.where("big"))
	}
}

func TestDrainWaitsForWhatRunsToItsEnd(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 4000)
	w.host("n2", 4000)
	once := func(in *api.Instance) { in.Spec.Restart = "never" }
	w.on("job", "n1", 500, once)
	w.on("long", "n1", 500, once)
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	w.pass(30 * time.Minute)
	if d := w.drain("n1"); d.State != api.DrainWaiting || !strings.HasPrefix(reasons(d), "runs to its end, and is waited for until 1970-01-01 01:16 UTC: job long") {
		t.Fatalf("%+v: %s", d, reasons(d))
	}
	change(w, api.RefOf(w.get("job")), func(in *api.Instance) { in.Status.State, in.Status.Reason = api.StateStopped, "Completed" })
	w.pass(31 * time.Minute)
	if d := w.drain("n1"); d.State != api.DrainDone || w.where("long") != "n2" || w.where("job") != "n1" {
		t.Fatalf("%+v, long is on %s", d, w.where("long"))
	}
	w.maintain("n1", nil)
	w.pass(time.Minute)
	if d := w.drain("n1"); d.State != api.DrainRestored || w.where("long") != "n2" || d.Moves[0].State != api.DrainMoveStays || d.Moves[0].Note != "it runs once, and would begin anew" {
		t.Fatalf("%+v, long is on %s", d, w.where("long"))
	}
}

func TestRestoreLeavesWhereTheyAre(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 4000)
	w.host("n2", 4000)
	w.on("web", "n1", 500, nil)
	w.on("db", "n1", 500, volume)
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	w.pass(time.Minute)
	since := w.drain("n1").Since
	change(w, api.Ref{Kind: api.KindNode, Name: "n1"}, func(n *api.Node) {
		n.Spec.Maintenance, n.Annotations = nil, map[string]string{api.AnnotationLeftAway: api.LeftAway(since)}
	})
	w.pass(time.Minute)
	if d := w.drain("n1"); w.where("web") != "n2" || !w.runs("db") || d.State != api.DrainRestored || d.Returned != 0 || d.Moved != 1 {
		t.Fatalf("web is on %s: %+v", w.where("web"), d)
	}
	w.clk.Advance(time.Second)
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	w.pass(time.Minute)
	w.on("late", "n1", 100, nil)
	w.pass(2 * time.Minute)
	w.maintain("n1", nil)
	w.pass(time.Minute)
	if w.where("late") != "n1" {
		t.Fatal("the next maintenance is another one: what left by it comes back")
	}
}

func TestRestoreMakesNothingWorse(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 1000)
	w.host("n2", 4000)
	w.on("web", "n1", 800, nil)
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	w.pass(time.Minute)
	change(w, api.Ref{Kind: api.KindNode, Name: "n1"}, func(n *api.Node) { n.Status.Allocatable = api.Resources{api.CPU: 500, api.Memory: 1 << 40} })
	w.maintain("n1", nil)
	w.pass(time.Minute)
	if d := w.drain("n1"); w.where("web") != "n2" || w.moved != 1 || d.State != api.DrainRestored || d.Moves[0].Note != "not enough CPU" {
		t.Fatalf("web is on %s after %d starts: %+v", w.where("web"), w.moved, d)
	}
}

func TestRestoreAmidADrain(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 4000)
	w.host("n2", 4000)
	w.budget("web", 1)
	for i := range 3 {
		w.on(fmt.Sprintf("w%d", i), "n1", 100, app("web"))
	}
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	w.settle()
	w.agents()
	w.settle()
	w.maintain("n1", nil)
	w.pass(2 * time.Minute)
	for i := range 3 {
		if n := fmt.Sprintf("w%d", i); w.where(n) != "n1" || !w.runs(n) {
			t.Errorf("%s is on %s", n, w.where(n))
		}
	}
	if d := w.drain("n1"); d.State != api.DrainRestored {
		t.Fatalf("%+v", d)
	}
}

// A controller that begins anew, as after a crash, finds what the last one had begun.
func TestDrainOutlivesItsController(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.host("n1", 4000)
	w.host("n2", 4000)
	w.on("web", "n1", 500, nil)
	w.on("db", "n1", 500, volume)
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	w.pass(time.Minute)
	w.maintain("n1", nil)
	next := newTide(t, RebalanceConfig{})
	next.mem, next.uid = w.mem, w.uid
	next.clk = w.clk
	next.engine(RebalanceConfig{})
	next.pass(time.Minute)
	if next.where("web") != "n1" || !next.runs("db") || next.drain("n1").State != api.DrainRestored {
		t.Fatalf("web is on %s: %+v", next.where("web"), next.drain("n1"))
	}
}

func TestTwoHostsAtOnceShareBudgets(t *testing.T) {
	w := newTide(t, RebalanceConfig{})
	w.budget("web", 1)
	for i := range 4 {
		w.host(fmt.Sprintf("n%d", i), 4000)
	}
	for i := range 6 {
		w.on(fmt.Sprintf("w%d", i), fmt.Sprintf("n%d", i%2), 100, app("web"))
	}
	w.maintain("n0", &api.Maintenance{Mode: "drain"})
	w.maintain("n1", &api.Maintenance{Mode: "drain"})
	for range 100 {
		w.settle()
		if n := w.leaving(); n > 1 {
			t.Fatalf("%d are away, one may be", n)
		}
		w.clk.Advance(time.Second)
		w.agents()
	}
	for _, n := range []string{"n0", "n1"} {
		if d := w.drain(n); d.State != api.DrainDone || d.Moved != 3 {
			t.Fatalf("%s: %+v", n, d)
		}
	}
}

// Random pools: no budget is ever broken, everything that can move moves, what cannot
// is stopped or left as asked, and restoring brings everything back to where it was.
func TestDrainProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newTide(t, RebalanceConfig{})
		hosts := rapid.IntRange(2, 5).Draw(rt, "hosts")
		for i := range hosts {
			w.host(fmt.Sprintf("n%d", i), 4000)
		}
		apps := map[string]int{}
		for i := range rapid.IntRange(0, 3).Draw(rt, "budgets") {
			apps[fmt.Sprintf("app%d", i)] = rapid.IntRange(0, 2).Draw(rt, "away")
		}
		for _, name := range slices.Sorted(maps.Keys(apps)) {
			w.budget(name, apps[name])
		}
		home, load, member, bound := map[string]string{}, map[string]int64{}, map[string][]string{}, map[string]bool{}
		for i := range rapid.IntRange(1, 25).Draw(rt, "instances") {
			name, node := fmt.Sprintf("i%02d", i), fmt.Sprintf("n%d", rapid.IntRange(0, hosts-1).Draw(rt, "node"))
			cpu := rapid.Int64Range(1, 12).Draw(rt, "cpu") * 100
			if load[node]+cpu > 4000 {
				continue
			}
			label := fmt.Sprintf("app%d", rapid.IntRange(0, 3).Draw(rt, "app"))
			local := rapid.IntRange(0, 5).Draw(rt, "local") == 0
			w.on(name, node, cpu, func(in *api.Instance) {
				if app(label)(in); local {
					volume(in)
				}
			})
			home[name], bound[name], load[node] = node, local, load[node]+cpu
			member[label] = append(member[label], name)
		}
		m := api.Maintenance{Mode: rapid.SampledFrom([]string{"drain", "drain", "evacuate"}).Draw(rt, "mode"), Leave: rapid.Bool().Draw(rt, "leave")}
		gone := []string{"n0"}
		if hosts > 3 && rapid.Bool().Draw(rt, "two") {
			gone = append(gone, "n1")
		}
		watch := func(mode string) {
			for label, away := range apps {
				down := 0
				for _, n := range member[label] {
					if w.assignment(n).Spec.Evict != nil || !w.runs(n) {
						down++
					}
				}
				if down > away && mode == "drain" {
					rt.Fatalf("%d of %s are down, %d may be", down, label, away)
				}
			}
		}
		play := func(mode string, step time.Duration, done func() bool) {
			for range 400 {
				w.settle()
				watch(mode)
				if done() {
					return
				}
				w.clk.Advance(step)
				w.agents()
			}
			rt.Fatalf("it does not come to rest")
		}
		for _, n := range gone {
			x := m
			w.maintain(n, &x)
		}
		play(m.Mode, time.Second, func() bool {
			return !slices.ContainsFunc(gone, func(n string) bool { d := w.drain(n); return d == nil || d.State == api.DrainMoving })
		})
		for name, was := range home {
			here := slices.Contains(gone, w.where(name))
			d := w.drain(was)
			switch {
			case !slices.Contains(gone, was):
				if w.where(name) != was || !w.runs(name) {
					rt.Fatalf("%s was on another host and was touched", name)
				}
			case here && w.runs(name) && m.Leave && (bound[name] || m.Mode == "evacuate"):
			case here && !w.runs(name) && !m.Leave && (bound[name] || m.Mode == "evacuate"):
			case here && w.runs(name) && strings.Contains(reasons(d), name):
			case here && w.runs(name) && bound[name] && len(d.Waiting) > 0: // the end is not there yet
			case !here && w.runs(name) && !bound[name]:
			default:
				rt.Fatalf("%s is on %s, running %v: %+v %s", name, w.where(name), w.runs(name), d, reasons(d))
			}
			if here && slices.Contains(gone, was) && !bound[name] && m.Mode == "evacuate" && w.room(name, gone) {
				rt.Fatalf("%s could move and did not: %s", name, reasons(d))
			}
		}
		for _, n := range gone {
			w.maintain(n, nil)
		}
		play(m.Mode, 10*time.Second, func() bool {
			return !slices.ContainsFunc(gone, func(n string) bool { return w.drain(n).State != api.DrainRestored })
		})
		for name, was := range home {
			if away, bounded := apps[w.get(name).Labels["app"]]; m.Mode == "evacuate" && bounded && away == 0 {
				continue // a budget that spares none keeps it where it is
			}
			if w.where(name) != was || !w.runs(name) {
				rt.Fatalf("%s is on %s after restoring, running %v; it was on %s", name, w.where(name), w.runs(name), was)
			}
		}
	})
}

// room reports whether another host has the CPU for an instance.
func (w *tide) room(name string, without []string) bool {
	used := map[string]int64{}
	ins, _, err := store.List[*api.Instance](context.Background(), w.mem, api.Selector{Kind: api.KindInstance})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, in := range ins {
		used[w.where(in.Name)] += in.Spec.Requests[api.CPU]
	}
	ns, _, err := store.List[*api.Node](context.Background(), w.mem, api.Selector{Kind: api.KindNode})
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.ContainsFunc(ns, func(n *api.Node) bool {
		return !slices.Contains(without, n.Name) && used[n.Name]+w.get(name).Spec.Requests[api.CPU] <= n.Status.Allocatable[api.CPU]
	})
}
