package sim

import (
	"context"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
)

// A host is emptied and restored while instances come and go; the invariants hold all
// the time, and what could leave left and came back.
func TestDrainAndRestore(t *testing.T) {
	for name, restored := range map[string]bool{"drained": false, "restored": true} {
		t.Run(name, func(t *testing.T) {
			sc := &scenario.Scenario{Name: "maintenance", Seed: 3, Duration: api.Duration(10 * time.Minute), Sample: api.Duration(10 * time.Second)}
			sc.Hosts = []scenario.HostGroup{{Name: "server", Count: 3, Capacity: api.Resources{api.CPU: 16000, api.Memory: 64 << 30},
				Runtime: scenario.Runtime{Start: scenario.Range{Max: api.Duration(2 * time.Second)}}}}
			sc.Tenants = []scenario.Tenant{{Name: "acme"}}
			sc.Arrivals = []scenario.Arrival{{Name: "web", Tenant: "acme", Poisson: &scenario.Rate{PerMinute: 20}, Lifetime: scenario.Lifetime{Mean: api.Duration(20 * time.Minute)},
				Sizes: []scenario.Size{{Requests: api.Resources{api.CPU: 100, api.Memory: 128 << 20}}}}}
			host := &scenario.Selection{Host: "server-1"}
			sc.Changes = []scenario.Change{{At: api.Duration(4 * time.Minute), Drain: host}}
			if restored {
				sc.Changes = append(sc.Changes, scenario.Change{At: api.Duration(7 * time.Minute), Back: host})
			}
			sc.Defaults()
			if err := errs.InvalidFields("scenario", sc.Validate()); err != nil {
				t.Fatal(err)
			}
			w, err := New(context.Background(), sc, Options{Chain: testChain})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Run(context.Background()); err != nil {
				t.Fatal(err)
			}
			d, err := store.Get[*api.Drain](context.Background(), w.view, api.Ref{Kind: api.KindDrain, Name: "server-1"})
			if err != nil {
				t.Fatal(err)
			}
			as, _, err := store.List[*api.Assignment](context.Background(), w.view, api.Selector{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": "server-1"}})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d moved, %d came back, %d are there", d.Spec.State, d.Spec.Moved, d.Spec.Returned, len(as))
			if restored {
				if d.Spec.State != api.DrainRestored || d.Spec.Returned < 10 || len(as) < d.Spec.Returned/2 {
					t.Fatalf("%+v; %d are there", d.Spec, len(as))
				}
				return
			}
			if d.Spec.State != api.DrainDone || d.Spec.Moved < 10 || len(as) != 0 {
				t.Fatalf("%+v; %d are there", d.Spec, len(as))
			}
		})
	}
}
