package sim

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/policy/affinity"
	"atoll/internal/policy/binpack"
	hosts "atoll/internal/policy/host"
	"atoll/internal/policy/port"
	"atoll/internal/policy/resource"
	"atoll/internal/policy/spread"
	"atoll/internal/sim/report"
	"atoll/internal/sim/scenario"
)

func testChain(scenario.Policies) (policy.Chain, error) {
	return policy.Chain{
		Filters: []policy.Filter{hosts.New(), resource.New(), port.New(), spread.New(), affinity.New()},
		Scorers: []policy.Weighted{{Scorer: binpack.New(), Weight: 1}, {Scorer: spread.New(), Weight: 1}, {Scorer: affinity.New(), Weight: 1}},
	}, nil
}

func between(r *rand.Rand, lo, hi time.Duration) api.Duration {
	return api.Duration(lo + time.Duration(r.Int64N(int64(hi-lo)+1)))
}

// draw makes a scenario of its own from a seed: a small pool in which everything goes wrong.
func draw(seed uint64) *scenario.Scenario {
	r := rand.New(rand.NewPCG(seed, 7))
	sc := &scenario.Scenario{Name: "random", Seed: seed + 1, Duration: api.Duration(4 * time.Minute), Sample: api.Duration(10 * time.Second)}
	sc.Policies.Unlimited = r.IntN(3) == 0
	for i := range 1 + r.IntN(3) {
		g := scenario.HostGroup{Name: fmt.Sprintf("g%d", i), Count: 1 + r.IntN(4), Zones: []string{"a", "b"}[:1+r.IntN(2)], Later: i == 2,
			Capacity: api.Resources{api.CPU: int64(1+r.IntN(8)) * 1000, api.Memory: int64(1+r.IntN(16)) << 30},
			Price:    0.1, Power: scenario.Power{Idle: 50, Max: 200},
			Runtime: scenario.Runtime{Start: scenario.Range{Max: between(r, 0, 3*time.Second)}, Failures: r.Float64() * 0.3, Crashes: r.Float64() * 0.3, CrashAfter: between(r, time.Second, 20*time.Second)}}
		if r.IntN(3) == 0 {
			g.Overcommit = api.Overcommit{Guaranteed: 100 + r.IntN(16), Burstable: 100 + r.IntN(100)}
		}
		sc.Hosts = append(sc.Hosts, g)
	}
	for i := range 1 + r.IntN(3) {
		t := scenario.Tenant{Name: fmt.Sprintf("t%d", i)}
		if r.IntN(2) == 0 {
			t.Limit = api.Resources{api.CPU: int64(1+r.IntN(10)) * 1000}
		}
		sc.Tenants = append(sc.Tenants, t)
		size := api.Resources{api.CPU: int64(100 + r.IntN(2000)), api.Memory: int64(1+r.IntN(4)) << 29}
		a := scenario.Arrival{Name: fmt.Sprintf("a%d", i), Tenant: t.Name, Lifetime: scenario.Lifetime{Mean: between(r, 10*time.Second, 100*time.Second)},
			Sizes: []scenario.Size{{Requests: api.Resources{api.CPU: 100, api.Memory: 64 << 20}}, {Requests: size}, {Requests: size, Limits: size}, {}},
			Use:   scenario.Use{CPU: &scenario.Level{Mean: 0.5, Spread: 0.2, Noise: 0.1}}}
		switch r.IntN(4) {
		case 0:
			a.Bursts = &scenario.Bursts{Every: between(r, 20*time.Second, time.Minute), Size: 1 + r.IntN(12), Spread: api.Duration(time.Second)}
		case 1:
			a.Daily = &scenario.Daily{PerMinute: 5 + r.Float64()*20}
		default:
			a.Poisson = &scenario.Rate{PerMinute: 5 + r.Float64()*30}
		}
		if r.IntN(4) == 0 {
			a.Retry = between(r, time.Second, 20*time.Second)
		}
		switch r.IntN(6) {
		case 0:
			a.Placement = &api.Placement{MaxPerNode: 1 + r.IntN(3)}
		case 1:
			a.Placement = &api.Placement{Spread: []api.SpreadTerm{{Topology: "zone", MaxSkew: r.IntN(3)}}}
		case 2:
			a.Priority = "high"
		case 3:
			a.Priority = "low"
		}
		sc.Arrivals = append(sc.Arrivals, a)
	}
	for range 1 + r.IntN(4) {
		f := scenario.Fault{Kind: scenario.FaultKinds()[r.IntN(len(scenario.FaultKinds()))], MeanEvery: between(r, 20*time.Second, 2*time.Minute),
			Where: scenario.Selection{Pick: 1 + r.IntN(2)}, Lasts: between(r, time.Second, 40*time.Second), Every: api.Duration(41 * time.Second), Times: 1 + r.IntN(3), Factor: 1 + r.Float64()*30, Rate: r.Float64(),
			By: between(r, -time.Minute, time.Minute)}
		if f.Kind == scenario.FaultZone {
			f.Where = scenario.Selection{Zone: sc.Hosts[0].Zones[0]}
		}
		if f.Kind == scenario.FaultClock && r.IntN(2) == 0 {
			f.Where = scenario.Selection{}
		}
		sc.Faults = append(sc.Faults, f)
	}
	at := func() api.Duration { return between(r, 0, 4*time.Minute) }
	for range r.IntN(4) {
		where := &scenario.Selection{Pick: 1}
		switch r.IntN(6) {
		case 5:
			from := at()
			sc.Changes = append(sc.Changes, scenario.Change{At: from, Drain: where}, scenario.Change{At: from + between(r, 0, time.Minute), Back: &scenario.Selection{}})
		case 0:
			sc.Changes = append(sc.Changes, scenario.Change{At: at(), Cordon: where}, scenario.Change{At: at(), Open: &scenario.Selection{}})
		case 1:
			sc.Changes = append(sc.Changes, scenario.Change{At: at(), Stop: &scenario.Stop{Arrival: "a0", Share: r.Float64()}})
		case 2:
			sc.Changes = append(sc.Changes, scenario.Change{At: at(), Tenant: &scenario.Tenant{Name: "t0", Weight: 200, Limit: api.Resources{api.CPU: int64(1+r.IntN(20)) * 1000}}})
		case 3:
			if len(sc.Hosts) == 3 {
				sc.Changes = append(sc.Changes, scenario.Change{At: at(), Add: "g2"})
			}
		case 4:
			sc.Changes = append(sc.Changes, scenario.Change{At: at(), Remove: where})
		}
	}
	sc.Defaults()
	return sc
}

func play(t *testing.T, sc *scenario.Scenario, opt Options) (*report.Report, error) {
	t.Helper()
	if err := errs.InvalidFields("scenario", sc.Validate()); err != nil {
		t.Fatal(err)
	}
	opt.Chain = testChain
	w, err := New(context.Background(), sc, opt)
	if err != nil {
		t.Fatal(err)
	}
	return w.Run(context.Background())
}

// ATOLL_SIM_RUNS asks for more random scenarios, ATOLL_SIM_FROM for another first seed.
func TestRandomScenariosKeepTheInvariants(t *testing.T) {
	runs, from := 200, uint64(0)
	if testing.Short() {
		runs = 40
	}
	if v, err := strconv.Atoi(os.Getenv("ATOLL_SIM_RUNS")); err == nil {
		runs = v
	}
	if v, err := strconv.ParseUint(os.Getenv("ATOLL_SIM_FROM"), 10, 64); err == nil {
		from = v
	}
	var created, starts, failed, checks, refused, faults int
	for seed := from; seed < from+uint64(runs); seed++ {
		rep, err := play(t, draw(seed), Options{})
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
			continue
		}
		created, starts, checks, refused = created+rep.Totals.Created, starts+rep.Totals.Starts, checks+rep.Totals.Checks, refused+rep.Totals.Refused
		failed += rep.Totals.FailedStarts
		for _, f := range rep.Faults {
			faults += f.N
		}
	}
	if created < 20*runs || starts < created/2 || checks < created || faults < runs || refused == 0 || failed == 0 {
		t.Fatalf("too little happened: %d created, %d starts, %d checks, %d refused, %d faults", created, starts, checks, refused, faults)
	}
}

func TestTheSameSeedGivesTheSameBytes(t *testing.T) {
	runs := uint64(8)
	if v, err := strconv.ParseUint(os.Getenv("ATOLL_SIM_RUNS"), 10, 64); err == nil {
		runs = max(v/10, runs)
	}
	for seed := range runs {
		var out [2]bytes.Buffer
		for i := range out {
			rep, err := play(t, draw(seed), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := report.JSON(&out[i], rep); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(out[0].Bytes(), out[1].Bytes()) {
			t.Errorf("seed %d: two runs differ", seed)
		}
	}
}
