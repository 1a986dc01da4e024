package gpu

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// host makes a node with so much free on its devices.
func box(cpu, memory int64, free ...int16) Node {
	n := Node{CPU: cpu, Memory: memory, Devices: int8(len(free))}
	copy(n.Free[:], free)
	return n
}

func TestFitsAndTightest(t *testing.T) {
	n := box(8000, 100, 1000, 300, 700, 1000)
	for _, c := range []struct {
		what string
		it   Item
		fits bool
		set  Set
	}{
		{"no device", Item{CPU: 8000, Memory: 100}, true, 0},
		{"too many cores", Item{CPU: 8001, Count: 1, Milli: 100}, false, 0},
		{"too much memory", Item{Memory: 101}, false, 0},
		{"a share takes the device with the least that has it", Item{Count: 1, Milli: 300}, true, 1 << 1},
		{"a larger one", Item{Count: 1, Milli: 301}, true, 1 << 2},
		{"and a larger", Item{Count: 1, Milli: 701}, true, 1 << 0},
		{"a whole one takes the first that is whole", Item{Count: 1, Milli: Whole}, true, 1 << 0},
		{"two whole ones", Item{Count: 2, Milli: Whole}, true, 1<<0 | 1<<3},
		{"three are not there", Item{Count: 3, Milli: Whole}, false, 0},
		{"its model", Item{Count: 1, Milli: 10, Models: 1 << 0}, true, 1 << 1},
		{"another model", Item{Count: 1, Milli: 10, Models: 1 << 5}, false, 0},
		{"a model matters to devices only", Item{CPU: 1, Models: 1 << 5}, true, 0},
	} {
		if got := n.Fits(&c.it); got != c.fits {
			t.Errorf("%s: fits %v", c.what, got)
		}
		if !c.fits || c.it.Count == 0 {
			continue
		}
		if got := n.Tightest(&c.it, AllDevices); got != c.set {
			t.Errorf("%s: devices %b, not %b", c.what, got, c.set)
		}
	}
	if got := n.Tightest(&Item{Count: 1, Milli: 300}, 1<<0|1<<3); got != 1<<0 {
		t.Errorf("of devices 0 and 3: %b", got)
	}
	if got := n.Tightest(&Item{Count: 2, Milli: Whole}, 1<<0); got != 0 {
		t.Errorf("two of device 0 only: %b", got)
	}
}

func TestTimes(t *testing.T) {
	n := box(40_000, 100, 1000, 1000, 999, 1000, 1000, 1000)
	for want, it := range map[int64]Item{
		2: {Count: 2, Milli: Whole},                            // five whole devices
		1: {Count: 2, Milli: Whole, CPU: 20_001},               // cores for one
		0: {Count: 2, Milli: Whole, Memory: 101},               // no memory
		5: {Count: 1, Milli: Whole, CPU: 8000, Models: 1 << 0}, // of its model
	} {
		if got := n.times(&it); got != want {
			t.Errorf("%+v fits %d times, not %d", it, got, want)
		}
	}
}

// Each value is computed by hand from the definition.
func TestFrag(t *testing.T) {
	half := Typical{Item{CPU: 4000, Count: 1, Milli: 500}, 0.5}
	whole := Typical{Item{CPU: 8000, Count: 1, Milli: Whole}, 0.3}
	pair := Typical{Item{CPU: 8000, Count: 2, Milli: Whole}, 0.1}
	plain := Typical{Item{CPU: 1000}, 0.1}
	mix := []Typical{half, whole, pair, plain}
	for _, c := range []struct {
		what string
		n    Node
		want float64
	}{
		// half: both usable, 0. whole: 0. pair: 0. plain cannot use devices: 0.1*2000.
		{"two whole devices", box(8000, 0, 1000, 1000), 200},
		// idle 1400. half: 400 lost. whole: 400 lost. pair: not there, all. plain: all.
		{"one whole, one in part", box(8000, 0, 1000, 400), 0.5*400 + 0.3*400 + 0.1*1400 + 0.1*1400},
		// cores for half only: idle 2000 lost for whole, pair, plain.
		{"few cores", box(4000, 0, 1000, 1000), 0.5*2000 + 0 - 0.5*2000 + 0.3*2000 + 0.1*2000 + 0.1*2000},
		{"no cores", box(0, 0, 600, 500), 1100},
		{"nothing free", box(8000, 0, 0, 0), 0},
	} {
		if got := Frag(&c.n, mix); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v, not %v", c.what, got, c.want)
		}
	}
	other := whole
	other.Models, other.Share = 1<<3, 1
	if got := Frag(&Node{CPU: 8000, Devices: 1, Free: [MaxDevices]int16{1000}}, []Typical{other}); got != 1000 {
		t.Errorf("of another model: %v, not all of it", got)
	}
}

func TestGradient(t *testing.T) {
	mix := []Typical{{Item{CPU: 1000, Count: 1, Milli: Whole}, 1}}
	n := box(10_000, 0, 1000, 500)
	it := Item{CPU: 1000, Count: 1, Milli: 500}
	// On device 1: the lost 500 are used, F falls by 500: 100/(1+e^-0.5) = 62.2.
	// On device 0: F grows from 500 to 1000: 100/(1+e^0.5) = 37.7.
	if g, set := Gradient(&n, &it, mix); g != 62 || set != 1<<1 {
		t.Errorf("%d on %b", g, set)
	}
}

func TestTypicalOf(t *testing.T) {
	a, b, c := Item{CPU: 1, Memory: 5}, Item{CPU: 2}, Item{CPU: 3}
	items := []Item{a, b, b, {CPU: 1, Memory: 7}, b, c}
	got := TypicalOf(items, 0.8)
	if len(got) != 2 || got[0].CPU != 2 || got[1].CPU != 1 || got[1].Memory != 0 || math.Abs(got[0].Share-0.6) > 1e-9 || math.Abs(got[1].Share-0.4) > 1e-9 {
		t.Errorf("%+v", got)
	}
}

func drawItem(t *rapid.T) Item {
	it := Item{CPU: rapid.Int64Range(0, 20).Draw(t, "cpu") * 1000, Memory: rapid.Int64Range(0, 20).Draw(t, "memory")}
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 1, 2:
		it.Count, it.Milli = 1, rapid.SampledFrom([]int16{1, 250, 460, 500, 810, 1000}).Draw(t, "milli")
	case 3:
		it.Count, it.Milli = rapid.SampledFrom([]int8{2, 4, 8}).Draw(t, "count"), Whole
	}
	if rapid.IntRange(0, 4).Draw(t, "picky") == 0 {
		it.Models = uint64(rapid.IntRange(1, 7).Draw(t, "models"))
	}
	return it
}

// Whatever fits can be placed by every option, and nothing is ever given out twice.
func TestNoDeviceIsOverdrawn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := box(96_000, 96)
		n.Devices = int8(rapid.IntRange(0, MaxDevices).Draw(t, "devices"))
		for d := range n.Devices {
			n.Free[d] = Whole
		}
		for range rapid.IntRange(1, 40).Draw(t, "arrivals") {
			it := drawItem(t)
			it.Models = 0
			fits, options := n.Fits(&it), 0
			n.options(&it, AllDevices, func(s Set) {
				if !fits {
					return
				}
				options++
				after := n
				after.Take(&it, s)
				if after.Idle() != n.Idle()-it.Demand() {
					t.Fatalf("%+v on %b of %+v takes %d", it, s, n, n.Idle()-after.Idle())
				}
				for _, f := range after.Free {
					if f < 0 {
						t.Fatalf("%+v on %b of %+v overdraws", it, s, n)
					}
				}
			})
			if fits && options == 0 {
				t.Fatalf("%+v fits %+v, but no way is offered", it, n)
			}
			if fits {
				n.Take(&it, n.Tightest(&it, AllDevices))
			}
		}
	})
}
