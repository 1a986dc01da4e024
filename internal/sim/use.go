package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"atoll/internal/errs"
	"atoll/internal/sim/scenario"
	"atoll/internal/trace"
)

// usual is the share of a request that is used when the scenario does not say.
const usual = 0.5

// peakOfUse is the hour at which use that follows the day is highest.
const peakOfUse = 14 * time.Hour

// level is how instances of an arrival use one resource over time.
type level struct {
	spec  scenario.Level
	trace *trace.Trace
}

// kind prepares what the instances of an arrival share.
func (w *World) kind(a *scenario.Arrival) (*kindOf, error) {
	k := &kindOf{name: a.Name}
	for i, spec := range []*scenario.Level{a.Use.CPU, a.Use.Memory, a.Use.GPU} {
		l := &level{}
		k.levels[i] = l
		if spec == nil {
			continue
		}
		l.spec = *spec
		if spec.Trace == nil {
			continue
		}
		var err error
		if l.trace, err = w.load(spec.Trace); err != nil {
			return nil, err
		}
		if len(l.trace.Series) == 0 {
			return nil, errs.New(errs.Invalid, "%s: no series in it whose name contains %q", spec.Trace.File, spec.Trace.Series)
		}
	}
	return k, nil
}

// draw gives an instance its base level and its series; n is its number.
func (l *level) draw(rng *rand.Rand, n int) (base float64, series int) {
	switch {
	case l == nil:
		return usual, 0
	case l.trace != nil:
		return 1, n % len(l.trace.Series)
	case l.spec.Share != nil:
		return *l.spec.Share, 0
	case l.spec.Mean > 0:
		return max(l.spec.Mean+rng.NormFloat64()*l.spec.Spread, 0), 0
	}
	return usual, 0
}

// value is the share of its request that r uses of dimension i, t after the
// beginning, at the nth sample.
func (w *World) value(r *rec, i int, t time.Duration, nth int) float64 {
	l := r.kind.levels[i]
	if l == nil {
		return usual
	}
	v := r.level[i]
	if l.trace != nil {
		s := &l.trace.Series[r.series[i]]
		if l.spec.Trace.Loop {
			t %= max(s.Length(), 1)
		}
		v = s.At(t)
	}
	if d := l.spec.Daily; d > 0 {
		v *= 1 + d*math.Cos(2*math.Pi*(timeOfDay(w.begin.Add(t))-peakOfUse).Hours()/24)
	}
	if l.spec.Noise > 0 {
		v += l.spec.Noise * normal(r.seed+uint64(i), uint64(nth)) //nolint:gosec // a hash
	}
	return max(v, 0)
}

// normal is about a standard normal number, the same for the same two.
func normal(a, b uint64) float64 {
	x, sum := a*0x9e3779b97f4a7c15+b, 0.0
	for range 4 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		sum += float64((z^z>>31)>>11) / (1 << 53)
	}
	return (sum - 2) * math.Sqrt(3) // four uniform ones have a variance of a third
}

// measured lists the resources that are followed over time.
func (w *World) measured() []string {
	b := w.books
	out := []string{string(b.names[b.cpu]), string(b.names[b.memory])}
	for _, h := range w.hosts {
		if h.group.Capacity[b.names[b.gpu]] > 0 {
			return append(out, string(b.names[b.gpu]))
		}
	}
	return out
}

func line(resource, what string) string { return fmt.Sprintf("%s.%s", resource, what) }
