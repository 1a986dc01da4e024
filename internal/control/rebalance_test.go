package control

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/policy"
	"atoll/internal/policy/affinity"
	"atoll/internal/policy/host"
	"atoll/internal/policy/resource"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// tide is a pool with placement and rebalancing, whose agents do at once what they are told.
type tide struct {
	*world
	use   map[string]int64 // by instance
	moved int
}

func newTide(t *testing.T, c RebalanceConfig) *tide {
	t.Helper()
	w := &tide{world: &world{t: t, mem: store.NewMem(), clk: clock.NewManual(time.Unix(1000, 0))}}
	w.engine(c)
	return w
}

// engine makes the controllers.
func (w *tide) engine(c RebalanceConfig) {
	t := w.t
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	w.eng = reconcile.New(w.mem, w.clk, log, reconcile.Events{Done: func(_ string, ref api.Ref, _ time.Duration, err error) {
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}})
	c.Usage = w.usage
	cs, err := All(Deps{Clock: w.clk, Log: log, Tell: w.tell, Subnet: "10.0.0.0/16", Rebalance: c,
		Chain: policy.Chain{Filters: []policy.Filter{host.New(), resource.New(), affinity.New()}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cs {
		w.eng.Add(c, 1)
	}
}

func (w *tide) usage(ctx context.Context) (api.UsageReport, error) {
	var rep api.UsageReport
	ins, _, err := store.List[*api.Instance](ctx, w.mem, api.Selector{Kind: api.KindInstance})
	for _, in := range ins {
		v, ok := w.use[in.Name]
		if !ok {
			v = in.Spec.Requests[api.CPU]
		}
		rep.Instances = append(rep.Instances, api.InstanceUsage{Ref: api.RefOf(in), CPUMilli: v})
	}
	return rep, err
}

func (w *tide) host(name string, cpu int64) {
	w.node(name, cpu)
	n, err := store.Get[*api.Node](context.Background(), w.mem, api.Ref{Kind: api.KindNode, Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	n = api.Clone(n)
	n.Spec.IdleWatts, n.Spec.MaxWatts = 100, 200
	w.put(n)
}

// on puts an instance on a node, running for a day already.
func (w *tide) on(name, node string, cpu int64, edit func(*api.Instance)) {
	since := w.clk.Now().Add(-24 * time.Hour)
	in := w.instance(name, cpu, func(in *api.Instance) {
		in.Status = api.InstanceStatus{State: api.StateRunning, Node: node, Assigned: 1, StartedAt: &since}
		in.Spec.Networks = []api.Attach{{Name: api.NetworkNone}}
		if edit != nil {
			edit(in)
		}
	})
	ref := api.RefOf(in)
	w.put(&api.Assignment{Head: api.Head{K: api.KindAssignment, Meta: api.Meta{Name: name, Tenant: "t", UID: in.UID, Owner: &ref}},
		Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: node, Generation: 1}})
}

// agents bring every instance to where its assignment wants it.
func (w *tide) agents() {
	w.t.Helper()
	ctx := context.Background()
	as, _, err := store.List[*api.Assignment](ctx, w.mem, api.Selector{Kind: api.KindAssignment})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, a := range as {
		in, err := store.Get[*api.Instance](ctx, w.mem, api.Ref{Kind: api.KindInstance, Tenant: a.Tenant, Name: a.Name})
		if err != nil || a.Spec.Node == "" {
			continue
		}
		next, now := api.Clone(in), w.clk.Now()
		switch st := &next.Status; {
		case a.Spec.Evict != nil && st.State == api.StateRunning:
			if st.State, st.Reason = api.StateStopped, api.ReasonEvicted; a.Spec.Evict.Stay {
				st.Reason = api.ReasonMaintenance
			}
		case st.Reason == "Completed":
			continue
		case a.Spec.Evict == nil && (st.State != api.StateRunning || st.Node != a.Spec.Node):
			st.State, st.Reason, st.Node, st.Assigned, st.StartedAt = api.StateRunning, "", a.Spec.Node, a.Spec.Generation, &now
			w.moved++
		default:
			continue
		}
		w.put(next)
	}
}

// pass lets time go by, as much as is given.
func (w *tide) pass(d time.Duration) {
	w.t.Helper()
	for end := w.clk.Now().Add(d); ; {
		w.settle()
		w.agents()
		w.settle()
		if !w.clk.Now().Before(end) {
			return
		}
		w.clk.Advance(time.Second * 10)
	}
}

func (w *tide) moves() map[string]*api.Move {
	w.t.Helper()
	ms, err := listMoves(context.Background(), w.mem)
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]*api.Move{}
	for _, m := range ms {
		out[m.Name] = m
	}
	return out
}

func (w *tide) where(name string) string { return w.assignment(name).Spec.Node }

func TestRebalanceAdvises(t *testing.T) {
	w := newTide(t, RebalanceConfig{Mode: RebalanceAdvise})
	w.host("n1", 4000)
	w.host("n2", 4000)
	w.on("a", "n1", 2000, nil)
	w.on("b", "n2", 500, nil)
	w.pass(time.Hour)
	m := w.moves()["b"]
	if m == nil || m.Spec.State != api.MoveProposed || m.Spec.From != "n2" || m.Spec.To != "n1" || m.Spec.Goal != "power" || m.Spec.Gain <= m.Spec.Cost || !strings.Contains(m.Spec.Reason, "empties n2") {
		t.Fatalf("proposed: %+v", w.moves())
	}
	if !m.CreatedAt.Before(time.Unix(1000+60, 0)) {
		t.Errorf("a proposal that stands keeps its age, not %s", m.CreatedAt)
	}
	if w.moved != 0 || w.assignment("b").Spec.Evict != nil {
		t.Fatal("advice moved something")
	}
	w.use = map[string]int64{"a": 3900} // no room for both any more
	w.pass(10 * time.Minute)
	if m := w.moves()["b"]; m.Spec.State != api.MoveDropped || m.Spec.Note == "" || m.Spec.EndedAt == nil {
		t.Fatalf("what is no longer worth it stays: %+v", m.Spec)
	}
	w.pass(25 * time.Hour)
	if len(w.moves()) != 0 {
		t.Fatalf("told for ever: %+v", w.moves())
	}
}

func TestRebalanceMovesAndComesToRest(t *testing.T) {
	w := newTide(t, RebalanceConfig{Mode: RebalanceAuto})
	for i := range 4 {
		w.host(fmt.Sprintf("n%d", i), 4000)
		w.on(fmt.Sprintf("a%d", i), fmt.Sprintf("n%d", i), 700, nil)
		w.on(fmt.Sprintf("b%d", i), fmt.Sprintf("n%d", i), 100, nil)
	}
	w.pass(5 * time.Minute)
	if w.moved != 0 {
		t.Fatal("moved what was proposed a moment ago")
	}
	w.pass(time.Hour)
	used := map[string]bool{}
	for i := range 4 {
		used[w.where(fmt.Sprintf("a%d", i))], used[w.where(fmt.Sprintf("b%d", i))] = true, true
	}
	if len(used) != 1 {
		t.Fatalf("3,200m run on %d nodes of 4,000m: %v; %+v", len(used), used, w.moves())
	}
	if w.moved != 6 {
		t.Errorf("%d moves, six would do", w.moved)
	}
	for n, m := range w.moves() {
		if m.Spec.State != api.MoveDone || m.Spec.BegunAt == nil || m.Spec.EndedAt == nil || w.where(n) != m.Spec.To {
			t.Errorf("%s: %+v", n, m.Spec)
		}
	}
	w.pass(12 * time.Hour)
	if w.moved != 6 {
		t.Fatalf("%d moves in the twelve hours after", w.moved-6)
	}
}

func TestRebalanceKeepsItsBudget(t *testing.T) {
	w := newTide(t, RebalanceConfig{Mode: RebalanceAuto, PerHour: 2})
	for i := range 6 {
		w.host(fmt.Sprintf("n%d", i), 4000)
		w.on(fmt.Sprintf("a%d", i), fmt.Sprintf("n%d", i), 500, nil)
	}
	for range 3 {
		before := w.moved
		w.pass(time.Hour)
		if n := w.moved - before; n > 3 { // the hours are not those of the budget
			t.Fatalf("%d moves in an hour, two are allowed", n)
		}
	}
	if w.moved < 4 {
		t.Fatalf("only %d moves in three hours", w.moved)
	}
}

func TestRebalanceRepairs(t *testing.T) {
	w := newTide(t, RebalanceConfig{Mode: RebalanceAuto})
	w.host("n1", 4000)
	w.host("n2", 4000)
	apart := func(in *api.Instance) {
		in.Labels = map[string]string{"app": "db"}
		in.Spec.Placement = &api.Placement{Avoid: []api.AffinityTerm{{Labels: map[string]string{"app": "db"}}}}
	}
	w.on("a", "n1", 500, apart)
	w.on("b", "n1", 500, apart)
	w.pass(time.Hour)
	if w.where("a") == w.where("b") {
		t.Fatalf("still together: %+v", w.moves())
	}
	if w.moved != 1 {
		t.Fatalf("%d moves, one was needed", w.moved)
	}
}

func TestRebalanceLeavesAlone(t *testing.T) {
	for name, edit := range map[string]func(*api.Instance){
		"what keeps files on its node": func(in *api.Instance) { in.Spec.Volumes = []api.Mount{{Name: "data", Path: "/d"}} },
		"what runs once":               func(in *api.Instance) { in.Spec.Restart = "never" },
		"a gang":                       func(in *api.Instance) { in.Spec.Placement = &api.Placement{Gang: &api.Gang{Name: "g", Size: 1}} },
		"what a budget protects":       func(in *api.Instance) { in.Labels = map[string]string{"keep": "yes"} },
		"what has just started": func(in *api.Instance) {
			now := time.Unix(1000+3000, 0)
			in.Status.StartedAt = &now
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTide(t, RebalanceConfig{Mode: RebalanceAuto})
			w.host("n1", 4000)
			w.host("n2", 4000)
			none := 0
			w.put(&api.DisruptionBudget{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: "keep", Tenant: "t"}},
				Spec: api.DisruptionBudgetSpec{Labels: map[string]string{"keep": "yes"}, MaxUnavailable: &none}})
			w.on("a", "n1", 2000, edit)
			w.on("b", "n2", 500, edit)
			w.pass(time.Hour)
			if w.moved != 0 || len(w.moves()) != 0 {
				t.Fatalf("moved %d: %+v", w.moved, w.moves())
			}
		})
	}
}

func TestRebalanceDropsWhatHasBecomeImpossible(t *testing.T) {
	w := newTide(t, RebalanceConfig{Mode: RebalanceAuto, MinAge: 20 * time.Minute})
	w.host("n1", 4000)
	w.host("n2", 4000)
	w.on("a", "n1", 2000, nil)
	w.on("b", "n2", 500, nil)
	w.pass(time.Minute)
	m := api.Clone(w.moves()["b"])
	m.Spec.State = api.MoveApproved
	w.put(m)
	n, err := store.Get[*api.Node](context.Background(), w.mem, api.Ref{Kind: api.KindNode, Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	n = api.Clone(n)
	n.Spec.Cordoned = true
	w.put(n)
	w.pass(10 * time.Minute)
	if m := w.moves()["b"]; w.moved != 0 || m.Spec.State != api.MoveDropped || !strings.Contains(m.Spec.Note, "cordoned") {
		t.Fatalf("%d moved: %+v", w.moved, m.Spec)
	}
}
