package workload

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
)

var t0 = time.Unix(1_000_000, 0).UTC()

// many makes instances: "a+" is available and of template a, "a~" ready, "a-" neither, "ax" leaves.
func many(words ...string) []one {
	var out []one
	for i, w := range words {
		o := one{name: fmt.Sprintf("%s%d", w[:1], i), hash: w[:1], created: t0.Add(time.Duration(i) * time.Second)}
		switch w[1] {
		case '+':
			o.ready, o.available = true, true
		case '~':
			o.ready = true
		case 'x':
			o.leaving = true
		}
		if len(w) > 2 {
			o.node = w[2:]
		}
		out = append(out, o)
	}
	return out
}

func TestNextStep(t *testing.T) {
	rolled := api.DeploymentStatus{Hash: "b", Complete: "a", Desired: 4, ProgressAt: &t0, Progress: -9}
	for name, c := range map[string]struct {
		edit   func(*situation)
		ones   []one
		create int
		hash   string
		remove string
	}{
		"nothing there":                           {nil, nil, 4, "b", ""},
		"first step":                              {nil, many("a+", "a+", "a+", "a+"), 1, "b", "a3"},
		"new one is not ready":                    {nil, many("a+", "a+", "a+", "b-"), 1, "b", ""},
		"new ones are not ready":                  {nil, many("a+", "a+", "a+", "b-", "b-"), 0, "", ""},
		"new ones are ready, not yet available":   {nil, many("a+", "a+", "a+", "b~", "b~"), 0, "", ""},
		"new ones are available":                  {nil, many("a+", "a+", "a+", "b+", "b+"), 0, "", "a2 a1"},
		"the broken goes first":                   {nil, many("a+", "a-", "a+", "a+"), 1, "b", "a1"},
		"all old are broken: not all at once":     {nil, many("a-", "a-", "a-", "a-"), 1, "b", "a3"},
		"a third template goes like the old":      {nil, many("a+", "a+", "a+", "c-", "c-"), 0, "", "c4 c3"},
		"what leaves is not counted":              {nil, many("a+", "a+", "a+", "ax", "bx"), 2, "b", ""},
		"done":                                    {nil, many("b+", "b+", "b+", "b+"), 0, "", ""},
		"one too many: the broken goes":           {nil, many("b+", "b+", "b-", "b+", "b+"), 0, "", "b2"},
		"scaled down in the middle":               {func(s *situation) { s.wants = 2; s.surge = 1; s.unavailable = 0 }, many("a+", "a+", "a+", "b+", "b-"), 0, "", "a2 a1"},
		"scaled to nothing":                       {func(s *situation) { s.wants = 0; s.surge = 0; s.unavailable = 1 }, many("a+", "b+"), 0, "", "b1 a0"},
		"no surge: one by one":                    {func(s *situation) { s.surge = 0 }, many("a+", "a+", "a+", "a+"), 0, "", "a3"},
		"no unavailable: first a new one":         {func(s *situation) { s.unavailable = 0 }, many("a+", "a+", "a+", "a+"), 1, "b", ""},
		"recreate: old ones go first":             {func(s *situation) { s.recreate = true }, many("a+", "a+"), 0, "", "a1 a0"},
		"recreate: until they are gone":           {func(s *situation) { s.recreate = true }, many("ax", "ax"), 0, "", ""},
		"recreate: then the new ones":             {func(s *situation) { s.recreate = true }, many("b+"), 3, "b", ""},
		"paused: nothing is replaced":             {func(s *situation) { s.paused = true }, many("a+", "a+", "a+", "a+"), 0, "", ""},
		"paused: one is missing":                  {func(s *situation) { s.paused = true }, many("a+", "a+", "a+"), 1, "a", ""},
		"paused: scaled down":                     {func(s *situation) { s.paused = true; s.wants = 2 }, many("a+", "a-", "a+", "a+"), 0, "", "a1 a3"},
		"paused before the first":                 {func(s *situation) { s.paused = true; s.last = api.DeploymentStatus{} }, nil, 0, "", ""},
		"stuck: nothing more is taken away":       {func(s *situation) { s.now = t0.Add(time.Hour); s.last.Progress = 9 }, many("a+", "a+", "a+", "b-", "b-"), 0, "", ""},
		"stuck: an old one is lost":               {func(s *situation) { s.now = t0.Add(time.Hour); s.last.Progress = 9 }, many("a+", "a+", "b-", "b-"), 1, "a", ""},
		"stuck in the first rollout: one is lost": {func(s *situation) { s.now = t0.Add(time.Hour); s.last.Progress = 9; s.last.Complete = "" }, many("b-", "b-", "b-"), 1, "b", ""},
		"stuck, and gone on":                      {func(s *situation) { s.now = t0.Add(time.Hour); s.last.Progress = -2 }, many("a+", "a+", "a+", "b+", "b-"), 0, "", "a2"},
		"stuck, undone":                           {func(s *situation) { s.now = t0.Add(time.Hour); s.hash = "a"; s.last.Progress = 9 }, many("a+", "a+", "a+", "b-", "b-"), 0, "", "b4 b3"},
	} {
		t.Run(name, func(t *testing.T) {
			s := situation{now: t0, wants: 4, surge: 1, unavailable: 1, deadline: time.Minute, hash: "b", last: rolled, ones: c.ones}
			if c.edit != nil {
				c.edit(&s)
			}
			d := next(s)
			if len(d.create) != c.create {
				t.Errorf("creates %v, want %d", d.create, c.create)
			}
			for _, o := range d.create {
				if o.hash != c.hash {
					t.Errorf("creates one of %q, want %q", o.hash, c.hash)
				}
			}
			if got := fmt.Sprint(d.remove); got != "["+c.remove+"]" {
				t.Errorf("removes %v, want [%s]", got, c.remove)
			}
		})
	}
}

func TestOneOnEveryNode(t *testing.T) {
	open := func(n string) place { return place{name: n, admits: true, takes: true} }
	for name, c := range map[string]struct {
		edit   func(*situation)
		ones   []one
		create string
		remove string
	}{
		"empty pool":                    {nil, nil, "[{b n1} {b n2} {b n3}]", "[]"},
		"one at a time":                 {nil, many("a+n1", "a+n2", "a+n3"), "[]", "[a2]"},
		"the broken first":              {nil, many("a+n1", "a-n2", "a+n3"), "[]", "[a1]"},
		"never two on a node":           {nil, many("a+n1", "a+n2", "axn3"), "[]", "[]"},
		"the new one comes up":          {nil, many("a+n1", "a+n2", "b-n3"), "[]", "[]"},
		"the next":                      {nil, many("a+n1", "a+n2", "b+n3"), "[]", "[a1]"},
		"a node went":                   {func(s *situation) { s.nodes = s.nodes[:2] }, many("b+n1", "b+n2", "b+n3"), "[]", "[b2]"},
		"a node is not for it":          {func(s *situation) { s.nodes[1].admits = false }, many("b+n1", "b+n2", "b+n3"), "[]", "[b1]"},
		"a node is closed: it stays":    {func(s *situation) { s.nodes[0].closed, s.nodes[0].takes = true, false }, many("b+n1", "b+n2", "b+n3"), "[]", "[]"},
		"a closed node gets none":       {func(s *situation) { s.nodes[0].closed, s.nodes[0].takes = true, false }, many("b+n2", "b+n3"), "[]", "[]"},
		"stopped on a closed node":      {func(s *situation) { s.nodes[0].closed, s.nodes[0].takes = true, false }, many("b-n1", "b+n2", "b+n3"), "[]", "[b0]"},
		"a node is away: what is there": {func(s *situation) { s.nodes[0].takes = false }, many("b-n1", "b+n2", "b+n3"), "[]", "[]"},
		"two on a node: the new stays":  {nil, many("a+n1", "b-n1", "b+n2", "b+n3"), "[]", "[a0]"},
		"stuck":                         {func(s *situation) { s.now = t0.Add(time.Hour) }, many("a+n1", "b-n3"), "[{a n2}]", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			s := situation{now: t0, perNode: true, unavailable: 1, deadline: time.Minute, hash: "b", ones: c.ones, nodes: []place{open("n1"), open("n2"), open("n3")},
				last: api.DeploymentStatus{Hash: "b", Complete: "a", Desired: 3, ProgressAt: &t0, Progress: 9}}
			if c.edit != nil {
				c.edit(&s)
			}
			d := next(s)
			if got := fmt.Sprint(d.create); got != c.create {
				t.Errorf("creates %s, want %s", got, c.create)
			}
			if got := fmt.Sprint(d.remove); got != c.remove {
				t.Errorf("removes %s, want %s", got, c.remove)
			}
		})
	}
}

// model is a pool in which a rollout's decisions come true.
type model struct {
	s     situation
	made  int
	fails map[string]bool // templates that never become ready
}

func (m *model) apply(d decision) {
	for _, o := range d.create {
		m.made++
		m.s.ones = append(m.s.ones, one{name: fmt.Sprint("i", m.made), hash: o.hash, node: o.node, created: m.s.now})
	}
	for _, name := range d.remove {
		i := slices.IndexFunc(m.s.ones, func(o one) bool { return o.name == name })
		m.s.ones[i].leaving = true
	}
	m.s.last = d.status
}

// tick lets what is new come up, and what leaves go, all or some of it.
func (m *model) tick(some func() bool) {
	m.s.now = m.s.now.Add(time.Second)
	m.s.ones = slices.DeleteFunc(m.s.ones, func(o one) bool { return o.leaving && some() })
	for i := range m.s.ones {
		o := &m.s.ones[i]
		if !m.fails[o.hash] && some() {
			o.ready, o.available = true, true
		}
	}
}

func living(list []one) (n, ok int) {
	for _, o := range list {
		if !o.leaving {
			n++
			if o.available {
				ok++
			}
		}
	}
	return n, ok
}

func drawModel(t *rapid.T) *model {
	wants := rapid.IntRange(0, 12).Draw(t, "wants")
	spec := api.DeploymentSpec{Strategy: api.Strategy{
		MaxSurge:       api.Share(rapid.SampledFrom([]string{"", "0", "1", "3", "10%", "100%"}).Draw(t, "surge")),
		MaxUnavailable: api.Share(rapid.SampledFrom([]string{"", "0", "1", "3", "10%", "100%"}).Draw(t, "unavailable"))}}
	m := &model{fails: map[string]bool{}, s: situation{now: t0, wants: wants, deadline: time.Hour, hash: "a"}}
	m.s.surge, m.s.unavailable = spec.Bounds(wants)
	if rapid.Bool().Draw(t, "perNode") {
		m.s.perNode, m.s.surge = true, 0
		m.s.unavailable = max(m.s.unavailable, 1)
		for i := range wants {
			m.s.nodes = append(m.s.nodes, place{name: fmt.Sprint("n", i), admits: true, takes: true})
		}
	}
	return m
}

// converge steps until nothing is left to do, checking every step.
func (m *model) converge(t *rapid.T, steps int, some func() bool) {
	for range steps {
		before, okBefore := living(m.s.ones)
		d := next(m.s)
		m.apply(d)
		after, okAfter := living(m.s.ones)
		if after > max(before, m.s.wants+m.s.surge) {
			t.Fatalf("%d instances, at most %d+%d: %+v", after, m.s.wants, m.s.surge, d)
		}
		if least := m.s.wants - m.s.unavailable; okAfter < min(okBefore, least) {
			t.Fatalf("took %d available to %d, at least %d must stay: %+v", okBefore, okAfter, least, d)
		}
		m.tick(some)
	}
}

func (m *model) hashes() map[string]int {
	out := map[string]int{}
	for _, o := range m.s.ones {
		if !o.leaving {
			out[o.hash]++
		}
	}
	return out
}

// However instances come up, a rollout keeps its bounds and comes to its end; a template
// that never works takes no more away than maxUnavailable; going back ends where it began.
func TestRolloutProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		all := func() bool { return true }
		some := func() bool { return rapid.Bool().Draw(t, "now") }
		m.converge(t, 4*m.s.wants+8, all)
		if h := m.hashes(); h["a"] != m.s.wants || len(h) > 1 || m.s.last.Complete != "a" {
			t.Fatalf("the first rollout came to %v, %+v", h, m.s.last)
		}

		m.s.hash, m.fails["bad"] = "bad", true
		m.converge(t, 30, some)
		if _, ok := living(m.s.ones); ok < m.s.wants-m.s.unavailable {
			t.Fatalf("a template that never works left %d of %d", ok, m.s.wants)
		}
		m.s.now = m.s.now.Add(2 * time.Hour)
		m.converge(t, 5, all)
		if d := next(m.s); m.s.wants > 0 && !d.stalled || len(d.create)+len(d.remove) > 0 {
			t.Fatalf("two hours later: %+v", d)
		}
		if _, ok := living(m.s.ones); ok < m.s.wants-m.s.unavailable {
			t.Fatalf("two hours later %d of %d are left", ok, m.s.wants)
		}

		m.s.hash = rapid.SampledFrom([]string{"a", "c"}).Draw(t, "then")
		m.converge(t, 10, some)
		m.converge(t, 4*m.s.wants+8, all)
		if h := m.hashes(); h[m.s.hash] != m.s.wants || len(h) > 1 || m.s.last.Complete != m.s.hash {
			t.Fatalf("came to %v, want %d of %s", h, m.s.wants, m.s.hash)
		}
		if d := next(m.s); len(d.create)+len(d.remove) > 0 || d.stalled {
			t.Fatalf("does not rest: %+v", d)
		}
	})
}

// Whatever is there, scaling while a rollout is paused keeps the number and replaces nothing.
func TestPausedReplacesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		all := func() bool { return true }
		m.converge(t, 4*m.s.wants+8, all)
		m.s.hash, m.s.paused = "b", true
		if !m.s.perNode {
			m.s.wants = rapid.IntRange(0, 12).Draw(t, "scaled")
		}
		for range 10 {
			m.apply(next(m.s))
			m.tick(all)
		}
		if h := m.hashes(); h["b"] > 0 || h["a"] != m.s.wants {
			t.Fatalf("paused at %d, there are %v", m.s.wants, h)
		}
		m.s.paused = false
		m.converge(t, 4*m.s.wants+8, all)
		if h := m.hashes(); h["b"] != m.s.wants {
			t.Fatalf("resumed, there are %v", h)
		}
	})
}
