package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var curve = []float64{100, 150, 200}

func flat(load float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = load
	}
	return out
}

func inst(name string, host int, load float64, req ...int64) Instance {
	return Instance{Name: name, Host: host, Load: flat(load, 48), Request: req, Cost: 10, Rested: Never}
}

func node(name string, req ...int64) Host {
	return Host{Name: name, CPU: 10, Watts: curve, Capacity: req}
}

type want struct {
	instance string
	to       string
	goal     Goal
	reason   string // part of it
}

func TestPlan(t *testing.T) {
	swap := []Host{node("a", 4), node("b", 4), node("c", 4)}
	swapped := []Instance{{Name: "y", Host: 1, Load: flat(1, 9), Request: Vector{4}, Wrong: "is wrong", Rested: Never},
		{Name: "x", Host: 0, Load: flat(1, 9), Request: Vector{4}, Wrong: "is wrong", Rested: Never}}
	for name, c := range map[string]struct {
		pool   Pool
		config Config
		want   []want
	}{
		"nothing to do": {
			pool: Pool{Hosts: []Host{node("a", 10)}, Instances: []Instance{inst("x", 0, 5, 5)}},
		},
		"a wrong place is left, even for a sleeping host": {
			pool: Pool{Hosts: []Host{node("a", 10), {Name: "b", CPU: 10, Off: true, Capacity: Vector{10}}},
				Instances: []Instance{{Name: "x", Load: flat(1, 9), Request: Vector{1}, Rested: 0, Came: 0, Wrong: "must not stand beside y"}}},
			want: []want{{"x", "b", Repair, "beside y"}},
		},
		"a drained host is left by all that can": {
			pool: Pool{Hosts: []Host{{Name: "a", CPU: 10, Drain: "is drained", Capacity: Vector{10}}, node("b", 10)},
				Instances: []Instance{inst("x", 0, 1, 1), {Name: "y", Load: flat(1, 9), Request: Vector{1}, Fixed: "keeps data here"}}},
			want: []want{{"x", "b", Repair, "drained"}},
		},
		"pressure takes the cheapest that ends it": {
			pool: Pool{Hosts: []Host{node("a", 100), node("b", 100)},
				Instances: []Instance{inst("large", 0, 6, 1), inst("small", 0, 2, 1), inst("mid", 0, 4, 1), inst("other", 1, 1, 1)}},
			want: []want{{"small", "b", Pressure, "a is short: 120 % of its CPU is wanted"}},
		},
		"pressure wakes a host when nothing else is left": {
			pool: Pool{Hosts: []Host{node("a", 100), {Name: "b", CPU: 10, Off: true, Watts: curve, Capacity: Vector{100}}},
				Instances: []Instance{inst("x", 0, 6, 1), inst("y", 0, 6, 1)}},
			want: []want{{"x", "b", Pressure, "short"}},
		},
		"one that wants more than a core goes to a host with larger ones": {
			pool: Pool{Hosts: []Host{{Name: "a", CPU: 10, Core: 2, Capacity: Vector{10}}, {Name: "b", CPU: 10, Core: 5, Capacity: Vector{10}}},
				Instances: []Instance{inst("x", 0, 3, 1), inst("y", 1, 1, 1)}},
			want: []want{{"x", "b", Pressure, "150 %"}},
		},
		"a host with little is emptied": {
			pool: Pool{Hosts: []Host{node("a", 10), node("b", 10)},
				Instances: []Instance{inst("x", 0, 5, 5), inst("y", 1, 1, 1)}},
			want: []want{{"y", "a", Power, "empties b"}},
		},
		"not when memory is short on the other": {
			pool: Pool{Hosts: []Host{node("a", 5), node("b", 5)},
				Instances: []Instance{inst("x", 0, 3, 5), inst("y", 1, 1, 1)}},
		},
		"not by half": {
			pool: Pool{Hosts: []Host{node("a", 10), node("b", 10)},
				Instances: []Instance{inst("x", 0, 8, 1), inst("y", 1, 1, 1), inst("z", 1, 1, 1)}},
		},
		"not when the moves cost more": {
			pool: Pool{Hosts: []Host{node("a", 10), node("b", 10)},
				Instances: []Instance{{Name: "x", Load: flat(5, 9), Request: Vector{5}, Fixed: "is pinned"}, {Name: "y", Host: 1, Load: flat(1, 9), Request: Vector{1}, Rested: Never, Cost: 1e6}}},
		},
		"not while one rests": {
			pool: Pool{Hosts: []Host{node("a", 10), node("b", 10)},
				Instances: []Instance{{Name: "x", Load: flat(5, 9), Request: Vector{5}, Fixed: "is pinned"}, {Name: "y", Host: 1, Load: flat(1, 9), Request: Vector{1}, Rested: 3}}},
		},
		"not beyond the budget": {
			pool: Pool{Hosts: []Host{node("a", 10), node("b", 10)},
				Instances: []Instance{inst("x", 0, 1, 5), inst("x2", 0, 1, 1), inst("y", 1, 1, 1), inst("z", 1, 1, 1)}},
			config: Config{MaxMoves: 1},
		},
		"not back to where it came from a moment ago": {
			pool: Pool{Hosts: []Host{node("a", 100), node("b", 100), node("c", 100)},
				Instances: []Instance{{Name: "x", Host: 0, Came: 1, Rested: 2, Load: flat(6, 9), Request: Vector{1}}, {Name: "y", Host: 0, Load: flat(6, 9), Request: Vector{1}, Fixed: "is pinned"},
					{Name: "z", Host: 1, Load: flat(2, 9), Request: Vector{1}, Fixed: "is pinned"}, {Name: "w", Host: 2, Load: flat(1, 9), Request: Vector{1}, Fixed: "is pinned"}}},
			want: []want{{"x", "c", Pressure, "short"}},
		},
		"what leaves is there until it has gone": {
			pool:   Pool{Hosts: swap, Instances: swapped},
			config: Config{Goals: []Goal{Repair}},
			want:   []want{{"y", "c", Repair, "wrong"}},
		},
		"in turn its room is used": {
			pool:   Pool{Hosts: swap, Instances: swapped},
			config: Config{Goals: []Goal{Repair}, InTurn: true},
			want:   []want{{"y", "c", Repair, "wrong"}, {"x", "b", Repair, "wrong"}},
		},
		"in turn a smaller one makes way": {
			pool: Pool{Hosts: []Host{node("a", 4), node("b", 8), node("c", 6)}, Instances: []Instance{
				inst("x", 0, 1, 4), inst("s", 1, 1, 2), {Name: "y", Host: 1, Load: flat(1, 48), Request: Vector{4}, Fixed: "is pinned"},
				{Name: "z", Host: 2, Load: flat(1, 48), Request: Vector{4}, Fixed: "is pinned"}}},
			config: Config{InTurn: true},
			want:   []want{{"s", "c", Power, "empties a"}, {"x", "b", Power, "empties a"}},
		},
		"those who make way count against the budget": {
			pool: Pool{Hosts: []Host{node("a", 4), node("b", 8), node("c", 6)}, Instances: []Instance{
				inst("x", 0, 1, 4), inst("s", 1, 1, 2), {Name: "y", Host: 1, Load: flat(1, 48), Request: Vector{4}, Fixed: "is pinned"},
				{Name: "z", Host: 2, Load: flat(1, 48), Request: Vector{4}, Fixed: "is pinned"}}},
			config: Config{InTurn: true, MaxMoves: 1},
		},
		"room for a size that fits nowhere": {
			pool: Pool{Hosts: []Host{{Name: "a", CPU: 10, Capacity: Vector{8, 10}}, {Name: "b", CPU: 10, Capacity: Vector{8, 10}}},
				Instances: []Instance{inst("x", 0, 1, 4, 1), inst("y", 1, 1, 2, 1), inst("z", 1, 1, 2, 1)},
				Shapes:    []Vector{{8, 1}}},
			want: []want{{"x", "b", Defragment, "1 more on a"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := Plan(c.pool, c.config)
			if len(got) != len(c.want) {
				t.Fatalf("%d moves, not %d: %+v", len(got), len(c.want), got)
			}
			for i, w := range c.want {
				m := got[i]
				if c.pool.Instances[m.Instance].Name != w.instance || c.pool.Hosts[m.To].Name != w.to || m.Goal != w.goal || !strings.Contains(m.Reason, w.reason) {
					t.Errorf("%s -> %s for %s (%s), not %+v", c.pool.Instances[m.Instance].Name, c.pool.Hosts[m.To].Name, m.Goal, m.Reason, w)
				}
				if m.Gain <= m.Cost {
					t.Errorf("gain %.2f is not above cost %.2f", m.Gain, m.Cost)
				}
			}
		})
	}
}

// ruled is rules drawn at random, which also follow the plan.
type ruled struct {
	t     *rapid.T
	admit [][]bool
	at    []int
}

func (r *ruled) Admits(i, h int) bool { return r.admit[i][h] }

func (r *ruled) Moved(i, from, to int) {
	if r.at[i] != from {
		r.t.Fatalf("instance %d moves from %d, but is on %d", i, from, r.at[i])
	}
	r.at[i] = to
}

func drawPool(t *rapid.T) Pool {
	n := rapid.IntRange(1, 12).Draw(t, "hosts")
	var p Pool
	for h := range n {
		x := Host{Name: string(rune('a' + h)), CPU: float64(rapid.IntRange(4, 16).Draw(t, "cpu")),
			Capacity: Vector{int64(rapid.IntRange(4, 32).Draw(t, "memory")), int64(rapid.IntRange(0, 4).Draw(t, "gpus"))}}
		if rapid.Bool().Draw(t, "curve") {
			x.Watts = curve
		}
		if rapid.IntRange(0, 3).Draw(t, "cores") == 0 {
			x.Core = x.CPU / 2
		}
		p.Hosts = append(p.Hosts, x)
	}
	for i := range rapid.IntRange(0, 40).Draw(t, "instances") {
		in := Instance{Name: string(rune('A' + i)), Host: rapid.IntRange(0, n-1).Draw(t, "on"), Size: 4, Rested: Never,
			Request: Vector{int64(rapid.IntRange(0, 6).Draw(t, "mem")), int64(rapid.IntRange(0, 5).Draw(t, "gpu") / 5)},
			Load:    flat(float64(rapid.IntRange(0, 40).Draw(t, "load"))/10, rapid.IntRange(0, 30).Draw(t, "known")),
			Cost:    float64(rapid.IntRange(0, 60).Draw(t, "cost"))}
		if rapid.IntRange(0, 9).Draw(t, "fixed") == 0 {
			in.Fixed = "has a device"
		}
		p.Instances = append(p.Instances, in)
	}
	for h := range p.Hosts {
		switch k := rapid.IntRange(0, 9).Draw(t, "state"); {
		case k == 0:
			p.Hosts[h].Closed = "cordoned"
		case k == 1:
			p.Hosts[h].Drain = "drained"
		}
		p.Hosts[h].Off = len(on(p, h)) == 0
	}
	for range rapid.IntRange(0, 2).Draw(t, "shapes") {
		p.Shapes = append(p.Shapes, Vector{int64(rapid.IntRange(1, 16).Draw(t, "m")), int64(rapid.IntRange(0, 2).Draw(t, "g"))})
	}
	return p
}

func on(p Pool, h int) []int {
	var out []int
	for i := range p.Instances {
		if p.Instances[i].Host == h {
			out = append(out, i)
		}
	}
	return out
}

// What holds for every plan.
func TestPlanKeepsTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPool(t)
		chance := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "rules"), 0))
		admit := make([][]bool, len(p.Instances))
		for i := range admit {
			admit[i] = make([]bool, len(p.Hosts))
			for h := range admit[i] {
				admit[i][h] = chance.IntN(5) > 0
			}
		}
		c := Config{MaxMoves: rapid.IntRange(0, 6).Draw(t, "budget"), InTurn: rapid.Bool().Draw(t, "in turn")}
		fresh := func() *ruled {
			r := &ruled{t: t, admit: admit, at: make([]int, len(p.Instances))}
			for i := range p.Instances {
				r.at[i] = p.Instances[i].Host
			}
			return r
		}
		r := fresh()
		p.Rules = r
		moves := Plan(p, c)
		if c.MaxMoves > 0 && len(moves) > c.MaxMoves {
			t.Fatalf("%d moves, %d allowed", len(moves), c.MaxMoves)
		}
		p.Rules = fresh()
		if again := Plan(p, c); !reflect.DeepEqual(moves, again) {
			t.Fatalf("the same pool gives\n%+v\nand\n%+v", moves, again)
		}
		booked := make([]Vector, len(p.Hosts))
		for h := range booked {
			booked[h] = make(Vector, 2)
		}
		for _, in := range p.Instances {
			booked[in.Host][0] += in.Request[0]
			booked[in.Host][1] += in.Request[1]
		}
		seen, woken := map[int]bool{}, map[int]bool{}
		for _, m := range moves {
			in, to := p.Instances[m.Instance], p.Hosts[m.To]
			switch {
			case seen[m.Instance]:
				t.Fatalf("%s moves twice", in.Name)
			case in.Fixed != "" || m.From != in.Host || m.From == m.To:
				t.Fatalf("%s cannot make %+v", in.Name, m)
			case to.Closed != "" || to.Drain != "" || !admit[m.Instance][m.To]:
				t.Fatalf("%s takes nobody: %+v", to.Name, m)
			case m.Goal == Power && to.Off && !woken[m.To]:
				t.Fatalf("no power is saved by %+v", m)
			case m.Reason == "" || m.Gain <= 0 || m.Cost < 0:
				t.Fatalf("%+v does not say why", m)
			}
			seen[m.Instance], woken[m.To] = true, true
			for d := range in.Request { // it is on both for a while
				if booked[m.To][d] += in.Request[d]; booked[m.To][d] > to.Capacity[d] {
					t.Fatalf("%s is overbooked by %+v", to.Name, m)
				}
			}
			if c.InTurn {
				booked[m.From][0] -= in.Request[0]
				booked[m.From][1] -= in.Request[1]
			}
			if r.at[m.Instance] != m.To {
				t.Fatalf("the rules think that %s is on %d: %+v", in.Name, r.at[m.Instance], m)
			}
		}
		for i := range p.Instances {
			if !seen[i] && r.at[i] != p.Instances[i].Host {
				t.Fatalf("a step of %d was not taken back", i)
			}
		}
	})
}

// play makes the moves of a round.
func play(p *Pool, moves []Move) {
	for i := range p.Instances {
		if in := &p.Instances[i]; in.Rested < Never {
			in.Rested++
		}
	}
	for _, m := range moves {
		in := &p.Instances[m.Instance]
		in.Host, in.Came, in.Rested = m.To, m.From, 0
	}
	for h := range p.Hosts {
		p.Hosts[h].Off = len(on(*p, h)) == 0
	}
}

// Under constant load the moves come to an end, and do not begin again.
func TestConstantLoadComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPool(t)
		c := Config{MaxMoves: rapid.IntRange(0, 3).Draw(t, "budget"), Rest: rapid.IntRange(1, 6).Draw(t, "rest"), InTurn: rapid.Bool().Draw(t, "in turn")}
		measured := make([]float64, len(p.Instances))
		for i := range p.Instances {
			measured[i] = float64(rapid.IntRange(0, 40).Draw(t, "constant")) / 10
		}
		quiet := 0
		for round := 0; quiet < 200; round++ {
			for i := range p.Instances {
				p.Instances[i].Load = append(p.Instances[i].Load, measured[i])
			}
			moves := Plan(p, c)
			if quiet++; len(moves) > 0 {
				quiet = 0
			}
			if round > 2000 {
				t.Fatalf("no rest after %d rounds: %+v", round, moves)
			}
			play(&p, moves)
		}
	})
}

// What is proposed and not carried out is proposed again, though the load is noisy
// and others would do as well.
func TestProposalsStand(t *testing.T) {
	p := Pool{Hosts: []Host{node("a", 20), node("b", 20), node("c", 20), node("d", 20)}}
	for h := range p.Hosts {
		p.Hosts[h].CPU = 20
		p.Instances = append(p.Instances, inst(p.Hosts[h].Name+"1", h, 2, 2), inst(p.Hosts[h].Name+"2", h, 1, 1))
	}
	chance := rand.New(rand.NewPCG(7, 7))
	var first []Move
	for round := range 200 {
		for i := range p.Instances {
			in := &p.Instances[i]
			in.Load = append(in.Load, in.Load[i%2]*(1+(chance.Float64()-0.5)/10))
			in.Leans = 0
		}
		for _, m := range first {
			p.Instances[m.Instance].Leans = m.To + 1
		}
		moves := Plan(p, Config{})
		to := map[int]int{}
		for _, m := range first {
			to[m.Instance] = m.To
		}
		for _, m := range moves {
			if h, ok := to[m.Instance]; round > 0 && (len(moves) != len(first) || !ok || h != m.To) {
				t.Fatalf("round %d: %+v\nbefore: %+v", round, moves, first)
			}
		}
		first = moves
	}
	if len(first) == 0 {
		t.Fatal("nothing is proposed")
	}
}

// Small noise moves nobody back and forth.
func TestNoiseDoesNotOscillate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPool(t)
		c := Config{Rest: rapid.IntRange(3, 12).Draw(t, "rest"), InTurn: rapid.Bool().Draw(t, "in turn")}
		base := make([]float64, len(p.Instances))
		left := make([]map[int]int, len(p.Instances)) // host -> round it was left
		for i := range p.Instances {
			base[i] = float64(rapid.IntRange(0, 40).Draw(t, "base")) / 10
			left[i] = map[int]int{}
		}
		chance := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "noise"), 0))
		late := 0
		for round := range 120 {
			for i := range p.Instances {
				noise := 1 + (chance.Float64()-0.5)/25
				p.Instances[i].Load = append(p.Instances[i].Load, base[i]*noise)
			}
			moves := Plan(p, c)
			for _, m := range moves {
				if at, ok := left[m.Instance][m.To]; ok && round-at <= c.Rest {
					t.Fatalf("round %d: %s is back on %d, which it left in round %d", round, p.Instances[m.Instance].Name, m.To, at)
				}
				left[m.Instance][m.From] = round
			}
			if round >= 100 {
				late += len(moves)
			}
			play(&p, moves)
		}
		if late > 2*len(p.Instances) {
			t.Fatalf("%d moves of %d instances in the last 20 rounds", late, len(p.Instances))
		}
	})
}

func TestGuess(t *testing.T) {
	g := guesses([]Instance{{Load: flat(2, 100), Size: 4}, {Size: 8}, {Load: []float64{1}}, {Load: []float64{0, 4, 0, 4}, Size: 4}}, 12)
	if math.Abs(g[0].mean-2) > 0.05 || g[0].now != 2 {
		t.Errorf("a steady load of 2 is taken for %+v", g[0])
	}
	if g[1].mean < 3 || g[1].mean > 6 || g[1].variance <= 0 {
		t.Errorf("one of size 8, not measured yet, beside others at half their size: %+v", g[1])
	}
	if g[2].mean != 1 || g[2].variance != 0 {
		t.Errorf("one without a size: %+v", g[2])
	}
	if g[3].variance < 2 {
		t.Errorf("a load of 0 and 4 in turns: %+v", g[3])
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, c := range []struct {
		name   string
		config Config
	}{{"at once", Config{}}, {"in turn, 200 moves", Config{InTurn: true, MaxMoves: 200}}} {
		b.Run(c.name, func(b *testing.B) {
			chance := rand.New(rand.NewPCG(1, 1))
			var p Pool
			for h := range 1000 {
				p.Hosts = append(p.Hosts, Host{Name: fmt.Sprint("h", h), CPU: 64, Capacity: Vector{256, 8}, Watts: curve})
				for range 20 {
					load := make([]float64, 48)
					for k := range load {
						load[k] = chance.Float64() * 3
					}
					p.Instances = append(p.Instances, Instance{Host: h, Size: 4, Load: load, Request: Vector{int64(1 + chance.IntN(20)), int64(chance.IntN(20) / 19)}, Cost: 10, Rested: Never})
				}
			}
			p.Shapes = []Vector{{64, 4}}
			b.ResetTimer()
			for b.Loop() {
				if len(Plan(p, c.config)) == 0 {
					b.Fatal("no moves")
				}
			}
		})
	}
}
