package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/policy/affinity"
	"atoll/internal/policy/binpack"
	"atoll/internal/policy/host"
	"atoll/internal/policy/image"
	"atoll/internal/policy/port"
	"atoll/internal/policy/resource"
	"atoll/internal/policy/spread"
)

func chain() policy.Chain {
	return policy.Chain{
		Filters: []policy.Filter{host.New(), resource.New(), port.New(), spread.New(), affinity.New()},
		Scorers: []policy.Weighted{{Scorer: binpack.New(), Weight: 1}, {Scorer: spread.New(), Weight: 1}, {Scorer: affinity.New(), Weight: 1}, {Scorer: image.New(), Weight: 1}},
	}
}

// draw makes a scenario of its own from a seed.
func draw(seed uint64) Scenario {
	r := rand.New(rand.NewPCG(seed, 7))
	sc := Scenario{Seed: seed, Chain: chain(), Duration: api.Duration(3 * time.Minute), Faults: Faults{
		StartFailures: r.Float64() * 0.3, Crashes: r.Float64() * 0.3,
		RebootEvery: api.Duration(time.Duration(20+r.IntN(60)) * time.Second), RestartEvery: api.Duration(time.Duration(10+r.IntN(60)) * time.Second)}}
	for range 1 + r.IntN(2) {
		sc.Hosts = append(sc.Hosts, Host{Count: 1 + r.IntN(4), Zone: fmt.Sprintf("z%d", r.IntN(2)),
			Capacity: api.Resources{api.CPU: int64(1+r.IntN(8)) * 1000, api.Memory: int64(1+r.IntN(16)) << 30}})
	}
	for i := range 1 + r.IntN(3) {
		sc.Tenants = append(sc.Tenants, Tenant{Name: fmt.Sprintf("t%d", i), Rate: 5 + r.Float64()*40, Life: api.Duration(time.Duration(10+r.IntN(90)) * time.Second),
			Sizes: []api.Resources{{api.CPU: 100, api.Memory: 64 << 20}, {api.CPU: int64(100 + r.IntN(2000)), api.Memory: int64(1+r.IntN(4)) << 29}, nil}})
	}
	return sc
}

func TestRandomFaultsKeepTheInvariants(t *testing.T) {
	runs := 60
	if testing.Short() {
		runs = 10
	}
	for seed := range uint64(runs) {
		p, err := New(context.Background(), draw(seed))
		if err != nil {
			t.Fatal(err)
		}
		rep, err := p.Run(context.Background())
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if rep.Created < 5 || rep.Calls == 0 {
			t.Fatalf("seed %d: nothing happened: %+v", seed, rep)
		}
	}
}

func TestTheSameSeedGivesTheSameBytes(t *testing.T) {
	once := func() string {
		sc := draw(42)
		out := ""
		sc.Observe = func(r *Report) {
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			out += string(b) + "\n"
		}
		p, err := New(context.Background(), sc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if a, b := once(), once(); a != b {
		t.Fatalf("two runs differ:\n%s\n%s", a, b)
	}
}

// A checker that finds nothing proves nothing: break a rule and see.
func TestTheChecksSeeABrokenRule(t *testing.T) {
	p, err := New(context.Background(), draw(1))
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if err := p.step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	p.dies[api.Ref{Kind: api.KindInstance, Tenant: "t0", Name: "lost"}] = p.clk.Now().Add(time.Hour)
	if err := p.check(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(p.report.Violations) == 0 {
		t.Fatal("a lost instance was not noticed")
	}
}
