// Package metrics is a small registry of numbers in Prometheus' text format:
// counters, gauges and histograms with labels. It starts no goroutines; an update
// is one atomic operation once a series exists. It must never grow without bound:
// each family holds a limited number of series and counts the rest in one.
package metrics

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// maxSeries bounds the series of one family; further label values share the series "other".
const maxSeries = 2000

// Registry holds families of series.
type Registry struct {
	mu       sync.Mutex
	families map[string]*family
}

// New makes an empty registry.
func New() *Registry { return &Registry{families: map[string]*family{}} }

type family struct {
	name, help, kind string
	labels           []string
	bounds           []float64
	read             func() float64

	mu     sync.RWMutex
	series map[string]*Series
}

// Series is one line of numbers of a family.
type Series struct {
	values []string
	bits   atomic.Uint64 // float64 of a gauge, or a histogram's sum
	count  atomic.Int64  // a counter, or a histogram's count
	bounds []float64
	bucket []atomic.Int64
}

func (r *Registry) add(f *family) *family {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.families[f.name]; ok {
		return old
	}
	f.series = map[string]*Series{}
	r.families[f.name] = f
	return f
}

// Counter declares a family that only grows. Declaring it again gives the same family.
func (r *Registry) Counter(name, help string, labels ...string) *Vec {
	return &Vec{r.add(&family{name: name, help: help, kind: "counter", labels: labels})}
}

// Gauge declares a family that goes up and down.
func (r *Registry) Gauge(name, help string, labels ...string) *Vec {
	return &Vec{r.add(&family{name: name, help: help, kind: "gauge", labels: labels})}
}

// Histogram declares a family that counts observations up to each bound.
func (r *Registry) Histogram(name, help string, bounds []float64, labels ...string) *Vec {
	return &Vec{r.add(&family{name: name, help: help, kind: "histogram", labels: labels, bounds: bounds})}
}

// Func declares a gauge that is read when it is asked for.
func (r *Registry) Func(name, help string, read func() float64) {
	r.add(&family{name: name, help: help, kind: "gauge", read: read})
}

// Vec gives the series of a family.
type Vec struct{ f *family }

// With finds the series of these label values, one for each label, and makes it at first.
func (v *Vec) With(values ...string) *Series {
	f := v.f
	key := strings.Join(values, "\xff")
	f.mu.RLock()
	s, ok := f.series[key]
	f.mu.RUnlock()
	if ok {
		return s
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s, ok := f.series[key]; ok {
		return s
	}
	if len(f.series) >= maxSeries {
		values = make([]string, len(f.labels))
		for i := range values {
			values[i] = "other"
		}
		key = strings.Join(values, "\xff")
		if s, ok := f.series[key]; ok {
			return s
		}
	}
	s = &Series{values: slices.Clone(values), bounds: f.bounds}
	if f.bounds != nil {
		s.bucket = make([]atomic.Int64, len(f.bounds))
	}
	f.series[key] = s
	return s
}

// Inc adds one to a counter.
func (s *Series) Inc() { s.count.Add(1) }

// Add adds to a gauge.
func (s *Series) Add(d float64) {
	for {
		old := s.bits.Load()
		if s.bits.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+d)) {
			return
		}
	}
}

// Set sets a gauge.
func (s *Series) Set(v float64) { s.bits.Store(math.Float64bits(v)) }

// Observe counts v in a histogram.
func (s *Series) Observe(v float64) {
	if i, _ := slices.BinarySearch(s.bounds, v); i < len(s.bucket) {
		s.bucket[i].Add(1)
	}
	s.count.Add(1)
	s.Add(v)
}

// Count is a counter's value, or how often a histogram was given something.
func (s *Series) Count() int64 { return s.count.Load() }

// Value is a gauge's value.
func (s *Series) Value() float64 { return math.Float64frombits(s.bits.Load()) }

// WriteTo writes everything in Prometheus' text format, sorted.
func (r *Registry) WriteTo(w io.Writer) (int64, error) {
	r.mu.Lock()
	list := make([]*family, 0, len(r.families))
	for _, f := range r.families {
		list = append(list, f)
	}
	r.mu.Unlock()
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	c := &counting{w: w}
	b := bufio.NewWriter(c)
	for _, f := range list {
		f.write(b)
	}
	err := b.Flush()
	return c.n, err
}

type counting struct {
	w io.Writer
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (f *family) write(b *bufio.Writer) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
	if f.read != nil {
		fmt.Fprintf(b, "%s %s\n", f.name, number(f.read()))
		return
	}
	f.mu.RLock()
	keys := make([]string, 0, len(f.series))
	for k := range f.series {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	list := make([]*Series, len(keys))
	for i, k := range keys {
		list[i] = f.series[k]
	}
	f.mu.RUnlock()
	for _, s := range list {
		switch f.kind {
		case "counter":
			fmt.Fprintf(b, "%s%s %d\n", f.name, f.tags(s, ""), s.count.Load())
		case "gauge":
			fmt.Fprintf(b, "%s%s %s\n", f.name, f.tags(s, ""), number(s.Value()))
		default:
			var sum int64
			for i, le := range s.bounds {
				sum += s.bucket[i].Load()
				fmt.Fprintf(b, "%s_bucket%s %d\n", f.name, f.tags(s, number(le)), sum)
			}
			n := max(s.count.Load(), sum)
			fmt.Fprintf(b, "%s_bucket%s %d\n", f.name, f.tags(s, "+Inf"), n)
			fmt.Fprintf(b, "%s_sum%s %s\n%s_count%s %d\n", f.name, f.tags(s, ""), number(s.Value()), f.name, f.tags(s, ""), n)
		}
	}
}

func (f *family) tags(s *Series, le string) string {
	var parts []string
	for i, l := range f.labels {
		if i < len(s.values) {
			parts = append(parts, l+`="`+escape(s.values[i])+`"`)
		}
	}
	if le != "" {
		parts = append(parts, `le="`+le+`"`)
	}
	if len(parts) == 0 {
		return ""
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(s)
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
