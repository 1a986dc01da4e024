package main

import (
	"fmt"
	"math"
	"math/rand"
	"runtime"
	"slices"
	"sync"
	"time"

	"atoll/bench/lib"
	"atoll/internal/policy/gpu"
	"atoll/internal/trace/openb"
)

// report is what came of a list: outcomes by policy, in the order of seeds.
type report struct {
	list     string
	outcomes map[string][]outcome
	took     map[string]time.Duration // deciding, of all seeds
}

// play runs every policy on every seed of a list, as many runs at once as there are
// cores; the runs share nothing.
func play(c *cluster, o options, list string) (*report, error) {
	pods, err := loadPods(o.data, list)
	if err != nil {
		return nil, err
	}
	typical := gpu.TypicalOf(c.items(pods), 0.95)
	r := &report{list: list, outcomes: map[string][]outcome{}, took: map[string]time.Duration{}}
	for _, p := range o.policies {
		r.outcomes[p] = make([]outcome, o.seeds)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // over took
	turn := make(chan struct{}, runtime.GOMAXPROCS(0))
	for s := range o.seeds {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			seed := int64(firstSeed + s)
			items := c.items(openb.Arrivals(pods, c.capacity, 1.3, seed))
			for _, p := range o.policies {
				began := time.Now()
				r.outcomes[p][s] = playOne(c, o.conf, p, items, typical, seed)
				mu.Lock()
				r.took[p] += time.Since(began)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return r, nil
}

func playOne(c *cluster, conf gpu.Config, policy string, items []gpu.Item, typical []gpu.Typical, seed int64) outcome {
	switch policy {
	case "fgd":
		return run(c.nodes, items, &fgd{typical}, nil)
	case "bestfit":
		return run(c.nodes, items, bestFit{}, rand.New(rand.NewSource(seed)))
	}
	return run(c.nodes, items, newAtoll(c, conf), nil)
}

// mean of a number over the seeds.
func (r *report) mean(policy string, of func(*outcome) float64) float64 {
	sum := 0.0
	for i := range r.outcomes[policy] {
		sum += of(&r.outcomes[policy][i])
	}
	return sum / float64(len(r.outcomes[policy]))
}

func at(k int) func(*outcome) float64      { return func(o *outcome) float64 { return o.Alloc[k] } }
func earlyMulti(o *outcome) float64        { return float64(o.EarlyMulti) }
func cpuOnly(o *outcome) float64           { return float64(o.CPUOnly) }
func decisions(o *outcome) float64         { return float64(o.Decisions) }
func micros(d time.Duration) float64       { return float64(d.Nanoseconds()) / 1000 }
func (r *report) decided(p string) float64 { return r.mean(p, decisions) * float64(len(r.outcomes[p])) }

func (r *report) print(policies []string) {
	for _, p := range policies {
		fmt.Printf("%-12s %-8s %7.2f %7.2f %8.1f %8.1f %8.1f %9.1f\n", r.list, p, r.mean(p, at(130)), r.mean(p, at(100)),
			r.mean(p, func(o *outcome) float64 { return float64(o.Dropped) }), r.mean(p, earlyMulti), r.mean(p, cpuOnly), micros(r.took[p])/r.decided(p))
	}
}

// over is the largest difference of ours to FGD's, of any list and seed, and their sum.
func over(all []*report, of func(*outcome) float64) (most, sum float64) {
	most = math.Inf(-1)
	for _, r := range all {
		for i := range r.outcomes["atoll"] {
			d := of(&r.outcomes["atoll"][i]) - of(&r.outcomes["fgd"][i])
			most, sum = max(most, d), sum+d
		}
	}
	return most, sum
}

// summary is the last line; what was not played is left out.
func summary(o options, all []*report) map[string]any {
	m := map[string]any{"bench": "openb", "lists": len(all), "seeds": o.seeds}
	has := func(p string) bool { return slices.Contains(o.policies, p) }
	mean := func(p string, k int) float64 {
		sum := 0.0
		for _, r := range all {
			sum += r.mean(p, at(k))
		}
		return lib.Round(sum/float64(len(all)), 3)
	}
	for _, p := range o.policies {
		took, n := time.Duration(0), 0.0
		for _, r := range all {
			took, n = took+r.took[p], n+r.decided(p)
		}
		m[p+"_mean"], m[p+"_mean_100"], m[p+"_us"] = mean(p, 130), mean(p, 100), lib.Round(micros(took)/n, 1)
	}
	if has("fgd") && has("atoll") {
		worst := math.Inf(1)
		for _, r := range all {
			worst = min(worst, r.mean("atoll", at(130))-r.mean("fgd", at(130)))
		}
		m["worst_delta"] = lib.Round(worst, 3)
		m["early_multigpu_drops_over_fgd"], m["early_multigpu_drops_over_fgd_sum"] = over(all, earlyMulti)
		m["cpu_only_drops_over_fgd"], m["cpu_only_drops_over_fgd_sum"] = over(all, cpuOnly)
	}
	return m
}
