package release

import "testing"

func TestCompatible(t *testing.T) {
	for _, c := range []struct {
		a, b int
		want bool
	}{{1, 1, true}, {1, 3, true}, {3, 1, true}, {1, 4, false}, {4, 1, false}, {0, 3, true}, {0, 4, false}, {7, 9, true}, {7, 10, false}} {
		if got := Compatible(c.a, c.b); got != c.want {
			t.Errorf("%d with %d: %v, want %v", c.a, c.b, got, c.want)
		}
		if (Or(c.b) >= Oldest(Or(c.a))) != c.want && c.a >= c.b {
			t.Errorf("Oldest(%d) = %d does not agree about %d", c.a, Oldest(c.a), c.b)
		}
	}
}

func TestNumberIsNeverBelowTheFirst(t *testing.T) {
	was := number
	defer func() { number = was }()
	for in, want := range map[string]int{"1": 1, "7": 7, "": First, "0": First, "-3": First, "x": First, "2.0": First} {
		if number = in; Number() != want {
			t.Errorf("%q: %d, want %d", in, Number(), want)
		}
	}
}
