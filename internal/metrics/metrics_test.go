package metrics

import (
	"strings"
	"sync"
	"testing"
)

func text(t *testing.T, r *Registry) string {
	t.Helper()
	var b strings.Builder
	if n, err := r.WriteTo(&b); err != nil || int(n) != b.Len() {
		t.Fatalf("%d bytes of %d, %v", n, b.Len(), err)
	}
	return b.String()
}

func TestText(t *testing.T) {
	r := New()
	c := r.Counter("x_total", "Xs.", "who")
	c.With(`a"b`).Inc()
	c.With(`a"b`).Inc()
	r.Gauge("g", "G.").With().Set(2.5)
	h := r.Histogram("h_seconds", "H.", []float64{0.1, 1})
	for _, v := range []float64{0.05, 0.1, 0.5, 3} {
		h.With().Observe(v)
	}
	r.Func("f", "F.", func() float64 { return 7 })
	want := `# HELP f F.
# TYPE f gauge
f 7
# HELP g G.
# TYPE g gauge
g 2.5
# HELP h_seconds H.
# TYPE h_seconds histogram
h_seconds_bucket{le="0.1"} 2
h_seconds_bucket{le="1"} 3
h_seconds_bucket{le="+Inf"} 4
h_seconds_sum 3.65
h_seconds_count 4
# HELP x_total Xs.
# TYPE x_total counter
x_total{who="a\"b"} 2
`
	if got := text(t, r); got != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSeriesAreBounded(t *testing.T) {
	r := New()
	c := r.Counter("x_total", "Xs.", "who")
	for i := range maxSeries + 500 {
		c.With(strings.Repeat("a", i)).Inc()
	}
	if n := strings.Count(text(t, r), "\nx_total{"); n > maxSeries+1 {
		t.Fatalf("%d series", n)
	}
	if n := c.With("other").Count(); n != 500 {
		t.Fatalf("the rest is counted as %d", n)
	}
}

func TestConcurrent(t *testing.T) {
	r := New()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				r.Counter("c", "C.", "l").With("v").Inc()
				r.Gauge("g", "G.").With().Add(1)
				r.Histogram("h", "H.", []float64{1}).With().Observe(0.5)
			}
		})
	}
	wg.Wait()
	if n := r.Counter("c", "C.", "l").With("v").Count(); n != 8000 {
		t.Fatal(n)
	}
	if v := r.Gauge("g", "G.").With().Value(); v != 8000 {
		t.Fatal(v)
	}
}

func TestRuntime(t *testing.T) {
	r := New()
	Runtime(r)
	if s := text(t, r); !strings.Contains(s, "\ngo_goroutines ") || strings.Contains(s, "go_memory_total_bytes 0\n") {
		t.Fatal(s)
	}
}
