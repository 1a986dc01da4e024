package exact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/balance"
	"atoll/internal/errs"
	"atoll/internal/policy"
	"atoll/internal/policy/binpack"
	"atoll/internal/policy/resource"
	"atoll/internal/sched"
)

func solver(t *testing.T) string {
	t.Helper()
	path, err := Find()
	if errors.Is(err, errs.Unsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSolve(t *testing.T) {
	path := solver(t)
	hosts := []Host{{Capacity: []int64{10}, Price: 5}, {Capacity: []int64{10}, Price: 3}, {Capacity: []int64{4}, Price: 1}}
	for name, c := range map[string]struct {
		p     Problem
		price float64
		err   error
	}{
		"the cheapest that holds all":    {Problem{Hosts: hosts, Items: []Item{{Request: []int64{6}, Host: Nowhere}, {Request: []int64{4}, Host: Nowhere}}}, 3, nil},
		"two where one is too small":     {Problem{Hosts: hosts, Items: []Item{{Request: []int64{6}, Host: Nowhere}, {Request: []int64{5}, Host: Nowhere}}}, 8, nil},
		"staying is free":                {Problem{Hosts: hosts, Items: []Item{{Request: []int64{4}, Host: 0, Move: 5}}}, 5, nil},
		"moving is worth it":             {Problem{Hosts: hosts, Items: []Item{{Request: []int64{4}, Host: 0, Move: 3.5}}}, 4.5, nil},
		"a denied host is not used":      {Problem{Hosts: hosts, Items: []Item{{Request: []int64{4}, Host: Nowhere, Deny: []int{2}}}}, 3, nil},
		"one goes without":               {Problem{Hosts: hosts[2:], Items: []Item{{Request: []int64{4}, Host: Nowhere, Without: 7}, {Request: []int64{4}, Host: Nowhere, Without: 9}}}, 8, nil},
		"no place at all":                {Problem{Hosts: hosts[2:], Items: []Item{{Request: []int64{5}, Host: Nowhere}}}, 0, errs.NoCapacity},
		"in place there is no swap":      {Problem{Hosts: []Host{{Capacity: []int64{4}, Price: 9}, {Capacity: []int64{4}, Price: 1}}, Items: []Item{{Request: []int64{4}, Host: 0}, {Request: []int64{4}, Host: 1, Deny: []int{1}, Without: 100}}, InPlace: true}, 109, nil},
		"no more moves than are allowed": {Problem{Hosts: hosts, Items: []Item{{Request: []int64{2}, Host: 0}, {Request: []int64{2}, Host: 0}}, MaxMoves: 1}, 5, nil},
		"nothing":                        {Problem{Hosts: hosts}, 0, nil},
		"dimensions differ":              {Problem{Hosts: hosts, Items: []Item{{Request: []int64{1, 2}}}}, 0, errs.Invalid},
		"a host that is not there":       {Problem{Hosts: hosts, Items: []Item{{Request: []int64{1}, Host: 3}}}, 0, errs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Solve(context.Background(), path, &c.p, 10*time.Second)
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Fatalf("%v, not %v", err, c.err)
				}
				return
			}
			if err != nil || !s.Proven || s.Price < c.price-1e-6 || s.Price > c.price+1e-6 {
				t.Fatalf("%+v, %v; the best is %.2f", s, err, c.price)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	p := &Problem{Hosts: []Host{{Capacity: []int64{3}, Price: 1}}, Items: []Item{{Request: []int64{2}, Host: Nowhere, Without: 1}}}
	f.Add("Optimal - objective value 1.0\n      0 x0_0   1   0\n")
	f.Add("Infeasible - objective value 0\n")
	f.Add("Stopped on time - objective value 2\n** 1 x0_0 0.999 0\n")
	f.Add("Optimal\n 0 x7_0 1 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Read(strings.NewReader(text), p)
		if err != nil {
			return
		}
		if price, ok := p.Price(s.At); !ok || price != s.Price {
			t.Fatalf("%+v is not allowed", s)
		}
	})
}

func TestWriteIsBounded(t *testing.T) {
	p := &Problem{Hosts: make([]Host, 500), Items: make([]Item, 500)}
	if err := Write(&bytes.Buffer{}, p); !errors.Is(err, errs.Invalid) {
		t.Fatalf("%d pairs: %v", 500*500, err)
	}
	text := &bytes.Buffer{}
	if err := Write(text, &Problem{Hosts: make([]Host, 50), Items: make([]Item, 40)}); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(text.String(), "\n") {
		if len(line) > 255 {
			t.Fatalf("a line of %d characters", len(line))
		}
	}
}

// small draws a pool of a few hosts that is badly filled, in both languages.
func small(seed uint64) (balance.Pool, Problem) {
	r := rand.New(rand.NewPCG(seed, 1))
	pool, p := balance.Pool{}, Problem{}
	for h := range 6 + r.IntN(5) {
		idle := 60 + float64(r.IntN(5))*20
		c := []int64{int64(8 + 4*r.IntN(3)), int64(8 + 4*r.IntN(3))}
		pool.Hosts = append(pool.Hosts, balance.Host{Name: string(rune('a' + h)), CPU: 1e6, Capacity: c, Watts: []float64{idle, idle}})
		p.Hosts = append(p.Hosts, Host{Capacity: c, Price: idle})
	}
	used := make([][2]int64, len(pool.Hosts))
	for range 10 + r.IntN(20) {
		v := []int64{int64(1 + r.IntN(5)), int64(1 + r.IntN(5))}
		h := r.IntN(len(used))
		if used[h][0]+v[0] > pool.Hosts[h].Capacity[0] || used[h][1]+v[1] > pool.Hosts[h].Capacity[1] {
			continue
		}
		used[h][0], used[h][1] = used[h][0]+v[0], used[h][1]+v[1]
		pool.Instances = append(pool.Instances, balance.Instance{Host: h, Request: v, Load: []float64{1}, Rested: balance.Never})
		p.Items = append(p.Items, Item{Request: v, Host: h})
	}
	for h := range pool.Hosts {
		pool.Hosts[h].Off = used[h] == [2]int64{}
	}
	return pool, p
}

// How far consolidation stays behind the best there is, when any arrangement may be
// reached at no price: on small random pools, in idle watts.
func TestConsolidationBesideTheBest(t *testing.T) {
	path := solver(t)
	var before, ours, optimum float64
	const cases = 15
	for seed := range uint64(cases) {
		pool, p := small(seed)
		s, err := Solve(context.Background(), path, &p, 20*time.Second)
		if err != nil {
			t.Fatalf("case %d: %v", seed, err)
		}
		at := func() []int {
			out := make([]int, len(pool.Instances))
			for i := range out {
				out[i] = pool.Instances[i].Host
			}
			return out
		}
		price := func() float64 {
			v, ok := p.Price(at())
			if !ok {
				t.Fatalf("case %d: not allowed: %v", seed, at())
			}
			return v
		}
		start := price()
		for round := 0; ; round++ {
			moves := balance.Plan(pool, balance.Config{Horizon: 1, InTurn: true})
			if len(moves) == 0 {
				break
			}
			for _, m := range moves {
				pool.Instances[m.Instance].Host = m.To
			}
			for h := range pool.Hosts {
				pool.Hosts[h].Off = true
				for _, in := range pool.Instances {
					pool.Hosts[h].Off = pool.Hosts[h].Off && in.Host != h
				}
			}
			if round > 100 {
				t.Fatalf("case %d does not come to rest", seed)
			}
		}
		if got := price(); s.Proven && got < s.Price-1e-6 {
			t.Fatalf("case %d: %.1f W is below the proven best of %.1f W", seed, got, s.Price)
		}
		before, ours, optimum = before+start, ours+price(), optimum+s.Price
	}
	gap := 100 * (ours/optimum - 1)
	t.Logf("%d pools: %.0f W before, %.0f W after, %.0f W at best: %.1f %% above the best, %.0f %% of the saving there was", cases, before, ours, optimum, gap, 100*(before-ours)/(before-optimum))
	if gap > 15 {
		t.Errorf("consolidation stays %.1f %% above the best", gap)
	}
}

// How many of the instances that could all be placed, or the most that could, the
// scheduler places when it sees them one by one: on small random pools that are asked
// for about what they have.
func TestPlacementBesideTheBest(t *testing.T) {
	path := solver(t)
	chain := policy.Chain{Filters: []policy.Filter{resource.New()}, Scorers: []policy.Weighted{{Scorer: binpack.New(), Weight: 1}}}
	var ours, optimum int
	const cases = 15
	for seed := range uint64(cases) {
		r := rand.New(rand.NewPCG(seed, 2))
		v, p := policy.NewView(), Problem{}
		var free [2]int64
		for h := range 6 {
			c := [2]int64{int64(8 + 4*r.IntN(3)), int64(8 + 4*r.IntN(3))}
			free[0], free[1] = free[0]+c[0], free[1]+c[1]
			v.SetNode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: fmt.Sprint("n", h)}},
				Status: api.NodeStatus{Allocatable: api.Resources{api.CPU: c[0], api.Memory: c[1]}}})
			p.Hosts = append(p.Hosts, Host{Capacity: c[:]})
		}
		var items []*policy.Item
		for i := 0; free[0] > 0 && free[1] > 0; i++ {
			a := [2]int64{int64(1 + r.IntN(5)), int64(1 + r.IntN(5))}
			free[0], free[1] = free[0]-a[0], free[1]-a[1]
			items = append(items, policy.ItemOf(&api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: fmt.Sprint("i", i), Tenant: "t", UID: fmt.Sprint("u", i)}},
				Spec: api.InstanceSpec{Requests: api.Resources{api.CPU: a[0], api.Memory: a[1]}}}))
			p.Items = append(p.Items, Item{Request: a[:], Host: Nowhere, Without: 1})
		}
		s, err := Solve(context.Background(), path, &p, 5*time.Second)
		if err != nil {
			t.Fatalf("case %d: %v", seed, err)
		}
		placed := 0
		for _, x := range sched.Plan(v, items, chain, seed) {
			if x.Node != "" {
				placed++
			}
		}
		best := len(items) - int(s.Price+0.5)
		if s.Proven && placed > best {
			t.Fatalf("case %d: %d placed, at most %d can be", seed, placed, best)
		}
		ours, optimum = ours+placed, optimum+best
	}
	gap := 100 * (1 - float64(ours)/float64(optimum))
	t.Logf("%d pools: %d placed of at most %d: %.1f %% fewer", cases, ours, optimum, gap)
	if gap > 10 {
		t.Errorf("placement one by one stays %.1f %% behind the best", gap)
	}
}
