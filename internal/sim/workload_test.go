package sim

import (
	"context"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
)

// A deployment is changed while hosts lose power, are cut off and fail to start things: the
// real controllers, admission, placement and agents never have more of it than they may,
// and when the accidents are over all of it is the new one, on every seed.
func TestADeploymentIsRolledOutUnderFaults(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		rollUnderFaults(t, seed)
	}
}

const (
	wanted = 8
	surge  = 2
)

func rollUnderFaults(t *testing.T, seed uint64) {
	t.Helper()
	ctx := context.Background()
	sc := &scenario.Scenario{Name: "rollout", Seed: seed + 1, Duration: api.Duration(40 * time.Minute), Sample: api.Duration(time.Minute),
		Hosts: []scenario.HostGroup{{Name: "h", Count: 6, Zones: []string{"a", "b"}, Capacity: api.Resources{api.CPU: 4000, api.Memory: 8 << 30},
			Runtime: scenario.Runtime{Start: scenario.Range{Max: api.Duration(5 * time.Second)}, Failures: 0.2, Crashes: 0.1, CrashAfter: api.Duration(20 * time.Second)}}},
		Tenants: []scenario.Tenant{{Name: "t"}}}
	for _, k := range []string{scenario.FaultHosts, scenario.FaultAgents, scenario.FaultPartition, scenario.FaultClock} {
		for i := range 4 {
			sc.Faults = append(sc.Faults, scenario.Fault{Kind: k, At: []api.Duration{api.Duration(9*time.Minute + time.Duration(i)*30*time.Second)},
				Where: scenario.Selection{Pick: 1}, Lasts: api.Duration(time.Minute), By: api.Duration(time.Duration(i-2) * time.Minute)})
		}
	}
	sc.Defaults()
	w, err := New(ctx, sc, Options{Chain: testChain})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ref := api.Ref{Kind: api.KindDeployment, Tenant: "t", Name: "web"}
	replicas, at := wanted, w.clk.Now()
	d := &api.Deployment{Head: api.Head{K: api.KindDeployment, Meta: api.Meta{Name: "web", Tenant: "t", UID: "d0", Generation: 1, CreatedAt: &at, Finalizers: []string{api.FinalizerWorkload}}},
		Spec: api.DeploymentSpec{Replicas: &replicas, Template: api.Template{Labels: map[string]string{"app": "web"}, Spec: api.InstanceSpec{Image: "v1", Command: []string{"serve"}, Requests: api.Resources{api.CPU: 500, api.Memory: 512 << 20}}}}}
	if _, err := w.gate.Commit(ctx, store.Create(d)); err != nil {
		t.Fatal(err)
	}
	w.agenda.note(w.begin.Add(10*time.Minute), func(ctx context.Context) error {
		old, err := store.Get[*api.Deployment](ctx, w.view, ref)
		if err != nil {
			return err
		}
		n := api.Clone(old)
		n.Spec.Template.Spec.Image = "v2"
		n.Generation++
		_, err = w.gate.Commit(ctx, store.Update(n))
		return err
	})
	w.sampleAt(w.begin)
	old, most := 0, 0
	for w.clk.Now().Before(w.end) {
		if err := w.step(ctx); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(w.broken) > 0 {
			t.Fatalf("seed %d after %s: %v", seed, w.books.now, w.broken)
		}
		total, v1 := 0, 0
		list, _, err := store.List[*api.Instance](ctx, w.view, api.Selector{Kind: api.KindInstance})
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range list {
			if in.DeletedAt == nil {
				total++
				if in.Spec.Image == "v1" {
					v1++
				}
			}
		}
		if total > wanted+surge {
			t.Fatalf("seed %d after %s: %d instances", seed, w.books.now, total)
		}
		old, most = v1, max(most, total)
	}
	d, err = store.Get[*api.Deployment](ctx, w.view, ref)
	if err != nil {
		t.Fatal(err)
	}
	if !d.RolledOut() || old > 0 || d.Status.Revision != 2 {
		t.Errorf("seed %d: at the end %d old ones, %+v", seed, old, d.Status)
	}
	if most <= wanted {
		t.Errorf("seed %d: never more than %d: nothing was rolled out", seed, most)
	}
	faults := 0
	for _, n := range w.faults {
		faults += n
	}
	if faults == 0 {
		t.Errorf("seed %d: no faults", seed)
	}
}
