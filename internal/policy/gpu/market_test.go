package gpu

import (
	"maps"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// site is a pool without an engine, for tests.
type site struct {
	sizes []Node
	nodes []Node
	items [][]Item
}

func drawSite(t *rapid.T) *site {
	s := &site{}
	for range rapid.IntRange(1, 6).Draw(t, "nodes") {
		n := box(rapid.SampledFrom([]int64{32_000, 96_000}).Draw(t, "cores"), rapid.Int64Range(50, 100).Draw(t, "memory"))
		n.Devices, n.Model = rapid.SampledFrom([]int8{1, 2, 8}).Draw(t, "devices"), int8(rapid.IntRange(0, 2).Draw(t, "model"))
		for d := range n.Devices {
			n.Free[d] = Whole
		}
		s.sizes, s.nodes, s.items = append(s.sizes, n), append(s.nodes, n), append(s.items, nil)
	}
	return s
}

func (s *site) fill(m *Market) {
	for i := range s.sizes {
		s.nodes[i].Class = m.Set(i, s.sizes[i], s.nodes[i], s.items[i])
	}
}

// place puts an item on the cheapest node, as an engine would.
func (s *site) place(m *Market, it *Item) int {
	m.Epoch()
	best, cost, set := -1, math.Inf(1), Set(0)
	for i := range s.nodes {
		if s.nodes[i].Fits(it) {
			if c, k := m.Cost(&s.nodes[i], it, AllDevices); c < cost {
				best, cost, set = i, c, k
			}
		}
	}
	if best >= 0 {
		s.nodes[best].Take(it, set)
		s.items[best] = append(s.items[best], *it)
		m.Set(best, s.sizes[best], s.nodes[best], s.items[best])
	}
	return best
}

func (s *site) clear(m *Market, i int) {
	class := s.nodes[i].Class
	s.nodes[i], s.items[i] = s.sizes[i], nil
	s.nodes[i].Class = class
	m.Set(i, s.sizes[i], s.nodes[i], nil)
}

func same(a, b tally) bool {
	return a.n == b.n && a.demand == b.demand && a.cpu == b.cpu && a.memory == b.memory && a.multi == b.multi && maps.Equal(a.by, b.by)
}

// A market that followed every change counts the same as one that sees the end only.
func TestMarketCountsExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, m := drawSite(t), NewMarket(Defaults())
		s.fill(m)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch i := rapid.IntRange(0, len(s.sizes)-1).Draw(t, "which"); rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				s.clear(m, i)
			case 1:
				m.Remove(i)
				s.nodes[i].Class = m.Set(i, s.sizes[i], s.nodes[i], s.items[i])
			case 2: // other hardware under the same name
				s.sizes[i].CPU += 50_000
				s.nodes[i].CPU += 50_000
				s.nodes[i].Class = m.Set(i, s.sizes[i], s.nodes[i], s.items[i])
			default:
				it := drawItem(t)
				s.place(m, &it)
			}
		}
		m.priceRooms()
		fresh := NewMarket(Defaults())
		s.fill(fresh)
		fresh.priceRooms()
		if m.idle != fresh.idle || m.cpu != fresh.cpu || m.memory != fresh.memory || m.devices != fresh.devices || m.models != fresh.models {
			t.Fatalf("idle %d, cpu %d, memory %d, devices %d; counted anew %d, %d, %d, %d", m.idle, m.cpu, m.memory, m.devices, fresh.idle, fresh.cpu, fresh.memory, fresh.devices)
		}
		if !same(m.tally, fresh.tally) || !slices.Equal(m.rooms, fresh.rooms) {
			t.Fatalf("%+v\n%+v\ncounted anew\n%+v\n%+v", m.tally, m.rooms, fresh.tally, fresh.rooms)
		}
		for id, h := range m.hosts {
			of, anew := &m.classes[h.class], &fresh.classes[fresh.hosts[id].class]
			if of.untouched != anew.untouched || !same(of.tally, anew.tally) {
				t.Fatalf("class of %d: %d untouched, %+v; counted anew %d, %+v", id, of.untouched, of.tally, anew.untouched, anew.tally)
			}
		}
	})
}

// The same course gives the same choices; within an epoch the same question the same answer.
func TestMarketIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSite(t)
		twin := &site{sizes: s.sizes, nodes: append([]Node(nil), s.nodes...), items: make([][]Item, len(s.items))}
		a, b := NewMarket(Defaults()), NewMarket(Defaults())
		s.fill(a)
		twin.fill(b)
		for range rapid.IntRange(1, 40).Draw(t, "arrivals") {
			it := drawItem(t)
			fits := false
			for i := range s.nodes {
				fits = fits || s.nodes[i].Fits(&it)
			}
			x, y := s.place(a, &it), twin.place(b, &it)
			if x != y || a.Epoch() != b.Epoch() {
				t.Fatalf("%+v went to %d and to %d", it, x, y)
			}
			if (x >= 0) != fits {
				t.Fatalf("%+v fits: %v, placed on %d", it, fits, x)
			}
			e := a.Epoch()
			for i := range s.nodes {
				if !s.nodes[i].Fits(&it) {
					continue
				}
				c1, s1 := a.Cost(&s.nodes[i], &it, AllDevices)
				c2, s2 := a.Cost(&s.nodes[i], &it, AllDevices)
				if c1 != c2 || s1 != s2 || a.Epoch() != e || math.IsNaN(c1) || math.IsInf(c1, 0) {
					t.Fatalf("%v on %b, then %v on %b", c1, s1, c2, s2)
				}
			}
		}
	})
}

// What the pieces of the price do, one by one.
func TestPrices(t *testing.T) {
	one, four := Item{CPU: 4000, Count: 1, Milli: Whole}, Item{CPU: 16_000, Count: 4, Milli: Whole}
	t.Run("load gathers", func(t *testing.T) {
		m := NewMarket(Defaults())
		used := box(60_000, 100, 0, 1000, 1000, 1000)
		used.Touched = true
		empty := box(64_000, 100, 1000, 1000, 1000, 1000)
		m.Set(0, empty, used, []Item{one})
		m.Set(1, empty, empty, nil)
		m.Epoch()
		a, _ := m.Cost(&used, &one, AllDevices)
		b, _ := m.Cost(&empty, &one, AllDevices)
		if a >= b {
			t.Errorf("on a used node %v, on an untouched one %v", a, b)
		}
	})
	t.Run("the last room for four", func(t *testing.T) {
		m := NewMarket(Defaults())
		size := box(64_000, 100, 1000, 1000, 1000, 1000)
		room := size
		broken := box(60_000, 100, 1000, 1000, 1000, 300)
		full := box(0, 0, 0, 0, 0, 0)
		room.Touched, broken.Touched, full.Touched = true, true, true
		m.Set(0, size, room, nil)
		m.Set(1, size, broken, []Item{one})
		m.Set(2, size, full, []Item{four})
		m.Epoch()
		a, _ := m.Cost(&broken, &one, AllDevices)
		b, _ := m.Cost(&room, &one, AllDevices)
		if b < a+float64(four.Count)*m.conf.Reserve/2 {
			t.Errorf("in the only room %v, beside it %v", b, a)
		}
	})
	t.Run("a model others need", func(t *testing.T) {
		m := NewMarket(Defaults())
		common, rare := box(64_000, 100, 1000, 1000), box(64_000, 100, 1000, 1000)
		common.Touched, rare.Touched, rare.Model = true, true, 1
		only := Item{CPU: 1000, Count: 1, Milli: 500, Models: 1 << 1}
		size := rare
		rare.Free[0] = 500
		common.Class = m.Set(0, common, common, []Item{one})
		rare.Class = m.Set(1, size, rare, []Item{only})
		m.Epoch()
		if m.price[0] != 0 || m.price[1] <= 0 {
			t.Errorf("prices %v", m.price[:2])
		}
	})
	t.Run("a share goes where it fits exactly", func(t *testing.T) {
		m := NewMarket(Defaults())
		size := box(64_000, 100, 1000, 1000)
		half := box(60_000, 100, 500, 1000)
		half.Touched = true
		share := Item{CPU: 4000, Count: 1, Milli: 500}
		m.Set(0, size, half, []Item{share})
		m.Epoch()
		if _, set := m.Cost(&half, &share, AllDevices); set != 1<<0 {
			t.Errorf("devices %b", set)
		}
	})
}

// By hand: fourteen hosts of four devices; one instance of four and nine of one, three
// to a host, are placed. 43 devices are idle; at 1.3 devices an item 33.08 more come,
// a tenth of them of four: 3.308, with three deviations and one 9.764. Ten rooms are
// left: (1.5 - 10/9.764) / 0.5 = 0.952 of the full price.
func TestRoomsByHand(t *testing.T) {
	one, four := Item{Count: 1, Milli: Whole}, Item{Count: 4, Milli: Whole}
	size := box(64_000, 100, Whole, Whole, Whole, Whole)
	m := NewMarket(Defaults())
	for i := range 14 {
		free, items := size, []Item(nil)
		switch {
		case i == 0:
			free, items = box(64_000, 100, 0, 0, 0, 0), []Item{four}
		case i < 4:
			free, items = box(64_000, 100, 0, 0, 0, Whole), []Item{one, one, one}
		}
		free.Touched = len(items) > 0
		m.Set(i, size, free, items)
	}
	m.Epoch()
	if len(m.rooms) != 1 || m.rooms[0].left != 10 {
		t.Fatalf("%+v", m.rooms)
	}
	coming := 43.0 / 1.3
	need := coming/10 + 3*math.Sqrt(coming/10) + 1
	want := (1.5 - 10/need) / 0.5
	if got := m.rooms[0]; math.Abs(got.urgent-want) > 1e-9 || math.Abs(want-0.952) > 0.001 || math.Abs(got.price-want*1200) > 1e-6 {
		t.Errorf("%+v, not %v", got, want)
	}
	// Of the room a single takes, that price is the whole of it; elsewhere there is none.
	after := size
	after.Take(&one, 1)
	if got := m.roomCost(&size, &after); math.Abs(got-want*1200) > 1e-6 {
		t.Errorf("breaking a room costs %v", got)
	}
	broken := box(64_000, 100, 0, 0, 0, Whole)
	after = broken
	after.Take(&one, 1<<3)
	if got := m.roomCost(&broken, &after); got != 0 {
		t.Errorf("beside a room it costs %v", got)
	}
}
