package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
	"atoll/internal/trace"
	"atoll/internal/trace/azurellm"
	"atoll/internal/trace/prometheus"
)

// source makes the instances of one arrival. What it draws does not depend on what
// becomes of them, so that two policies are compared on the same arrivals.
type source struct {
	w      *World
	a      *scenario.Arrival
	kind   *kindOf
	rng    *rand.Rand // when
	draw   *rand.Rand // what
	until  time.Duration
	made   int
	times  int
	weight float64
	trace  *trace.Trace
	next   int           // place in the trace
	laps   time.Duration // of a trace that begins anew
	alive  map[*rec]bool
	order  []*rec // alive ones in the order they came, with gaps
	open   int    // instances still to be made at this time
}

// arrivals prepares all sources.
func (w *World) arrivals() error {
	for i := range w.sc.Arrivals {
		a := &w.sc.Arrivals[i]
		s := &source{w: w, a: a, rng: w.rng("arrival/" + a.Name), draw: w.rng("instance/" + a.Name), until: w.sc.Duration.D(), alive: map[*rec]bool{}}
		if a.Until > 0 {
			s.until = min(s.until, a.Until.D())
		}
		for _, z := range a.Sizes {
			s.weight += z.Weight
		}
		var err error
		if s.kind, err = w.kind(a); err != nil {
			return fmt.Errorf("arrivals[%d].use: %w", i, err)
		}
		if a.Trace != nil {
			if s.trace, err = w.load(a.Trace); err != nil {
				return fmt.Errorf("arrivals[%d].trace: %w", i, err)
			}
			if len(s.trace.Arrivals) == 0 {
				if s.trace.Arrivals, err = s.fromRate(); err != nil {
					return fmt.Errorf("arrivals[%d].trace: %w", i, err)
				}
			}
		}
		w.sources = append(w.sources, s)
		s.plan(a.From.D())
	}
	return nil
}

// load reads a recording and brings it to the scenario's time.
func (w *World) load(in *scenario.TraceIn) (*trace.Trace, error) {
	if w.opt.Open == nil {
		return nil, errs.New(errs.Unsupported, "no traces can be opened here")
	}
	f, err := w.opt.Open(in.File)
	if err != nil {
		return nil, err
	}
	t, err := readTrace(f, in)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", in.File, err)
	}
	rng := w.rng("trace/" + in.File)
	var arrivals []trace.Arrival
	for _, a := range t.Arrivals {
		at := (a.At - trace.Secs(in.Offset.D())) / trace.Seconds(in.Speed)
		if at < 0 || in.Keep < 1 && rng.Float64() >= in.Keep {
			continue
		}
		a.At = at
		arrivals = append(arrivals, a)
	}
	t.Arrivals = arrivals
	var series []trace.Series
	for _, s := range t.Series {
		skip := int(in.Offset.D() / max(s.Step.D(), 1))
		if !strings.Contains(s.Name, in.Series) || skip >= len(s.Values) {
			continue
		}
		vals := make([]float64, len(s.Values)-skip)
		for i, v := range s.Values[skip:] {
			vals[i] = v * in.Scale
		}
		series = append(series, trace.Series{Name: s.Name, Step: s.Step / trace.Seconds(in.Speed), Values: vals})
	}
	t.Series = series
	return t, nil
}

func readTrace(r io.Reader, in *scenario.TraceIn) (*trace.Trace, error) {
	switch in.Format {
	case "azure-llm":
		return azurellm.Read(r, azurellm.Speed{Prefill: in.PrefillPerSecond, Decode: in.DecodePerSecond})
	case "prometheus":
		return prometheus.Read(r)
	}
	return trace.Decode(r)
}

// fromRate draws arrivals from a recorded rate: its values are arrivals a second.
func (s *source) fromRate() ([]trace.Arrival, error) {
	var out []trace.Arrival
	for i := range s.trace.Series {
		x := &s.trace.Series[i]
		for k, v := range x.Values {
			step := x.Step.D().Seconds()
			for at := 0.0; v > 0; {
				if at += s.rng.ExpFloat64() / v; at >= step {
					break
				}
				if out = append(out, trace.Arrival{At: trace.Seconds(float64(k)*step + at)}); len(out) > trace.MaxArrivals {
					return nil, errs.New(errs.Invalid, "the series makes more than %d arrivals; give a lower scale", trace.MaxArrivals)
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, errs.New(errs.Invalid, "there is no arrival in it, and no series of that name above zero")
	}
	t := &trace.Trace{Arrivals: out}
	return t.Arrivals, t.Check() // in order
}

// plan notes the next time something comes, at or after d.
func (s *source) plan(d time.Duration) {
	at, ok := s.when(d)
	if !ok || at >= s.until && !(at == 0) || s.a.Most > 0 && s.made >= s.a.Most {
		return
	}
	s.w.agenda.note(s.w.begin.Add(at), func(ctx context.Context) error { return s.come(ctx, at) })
}

// when is the next time after d. Only At may come at d itself.
func (s *source) when(d time.Duration) (time.Duration, bool) {
	a := s.a
	s.times++
	switch {
	case len(a.At) > 0:
		if s.times > len(a.At) {
			return 0, false
		}
		return max(a.At[s.times-1].D(), a.From.D()), true
	case a.Poisson != nil:
		return d + minutes(s.rng.ExpFloat64()/a.Poisson.PerMinute), true
	case a.Daily != nil:
		return s.daily(d)
	case a.Bursts != nil:
		b := a.Bursts
		at := a.From.D() + time.Duration(s.times-1)*b.Every.D()
		if b.Jitter > 0 {
			at += time.Duration(s.rng.Int64N(int64(b.Jitter) + 1))
		}
		return at, at < s.until
	}
	return s.traced()
}

func minutes(m float64) time.Duration {
	return time.Duration(min(m, 1e7) * float64(time.Minute))
}

// daily thins out a Poisson process of the highest rate.
func (s *source) daily(d time.Duration) (time.Duration, bool) {
	top := dailyFactor(0, 0, s.a.Daily.Ratio) // at the peak
	for d < s.until {
		d += minutes(s.rng.ExpFloat64() / (s.a.Daily.PerMinute * top))
		if s.rng.Float64()*top < dailyFactor(timeOfDay(s.w.begin.Add(d)), s.a.Daily.Peak.D(), s.a.Daily.Ratio) {
			return d, true
		}
	}
	return 0, false
}

func timeOfDay(t time.Time) time.Duration {
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second
}

// dailyFactor is a cosine over the day with mean 1 whose most is ratio times its least.
func dailyFactor(at, peak time.Duration, ratio float64) float64 {
	amp := (ratio - 1) / (ratio + 1)
	return 1 + amp*math.Cos(2*math.Pi*(at-peak).Hours()/24)
}

func (s *source) traced() (time.Duration, bool) {
	if s.next >= len(s.trace.Arrivals) {
		if !s.a.Trace.Loop || len(s.trace.Arrivals) == 0 {
			return 0, false
		}
		s.next = 0
		s.laps += max(s.trace.Length(), time.Second)
	}
	s.next++
	return s.a.From.D() + s.laps + s.trace.Arrivals[s.next-1].At.D(), true
}

// overTick is how often something comes at most, of what comes evenly.
const overTick = 500 * time.Millisecond

// come makes the instances of one time.
func (s *source) come(ctx context.Context, at time.Duration) error {
	if s.open == 0 {
		s.open = s.a.Count
		if s.a.Bursts != nil {
			s.open *= s.a.Bursts.Size
		}
		if s.a.Most > 0 {
			s.open = min(s.open, s.a.Most-s.made)
		}
	}
	gang := s.open
	tick := 0 // instances of one tick, when they come one after the other
	if s.a.Over > 0 {
		tick = max(int(int64(s.a.Count)*int64(overTick)/int64(s.a.Over)), 1)
	}
	for made := 0; s.open > 0; made++ {
		if tick > 0 && made == tick {
			pause := max(overTick, s.a.Over.D()/time.Duration(s.a.Count))
			s.w.agenda.note(s.w.clk.Now().Add(pause), func(ctx context.Context) error { return s.come(ctx, at) })
			return nil
		}
		if s.w.fresh >= batch {
			// The rest comes at the same time, after all that was made has settled.
			s.w.agenda.note(s.w.clk.Now(), func(ctx context.Context) error { return s.come(ctx, at) })
			return nil
		}
		s.open--
		if err := s.make(ctx, gang); err != nil {
			return err
		}
	}
	s.plan(at)
	return nil
}

// make draws an instance and asks for it, in a burst a little later.
func (s *source) make(ctx context.Context, gang int) error {
	s.made++
	z := s.size()
	in := s.a.Instance(fmt.Sprintf("%s-%d", s.a.Name, s.made), z)
	in.UID = uid(s.draw)
	lasts := s.lifetime()
	if s.trace != nil {
		x := s.trace.Arrivals[s.next-1]
		if s.a.Lifetime.Trace {
			lasts = max(x.Lasts.D(), time.Millisecond)
		}
		if x.Requests != nil {
			in.Spec.Requests = x.Requests
		}
	}
	if s.a.Gang != nil && gang > 1 {
		p := api.Placement{}
		if s.a.Placement != nil {
			p = *s.a.Placement
		}
		p.Gang = &api.Gang{Name: fmt.Sprintf("%s-g%d", s.a.Name, s.times), Size: gang}
		if s.a.Gang.Timeout > 0 {
			p.Gang.Timeout = &s.a.Gang.Timeout
		}
		in.Spec.Placement = &p
	}
	draft := &rec{lasts: lasts, seed: s.draw.Uint64()}
	for i, l := range s.kind.levels {
		draft.level[i], draft.series[i] = l.draw(s.draw, s.made)
	}
	ask := func(ctx context.Context, first time.Duration) error {
		draft.created = first
		return s.ask(ctx, in, draft)
	}
	if b := s.a.Bursts; b != nil && b.Spread > 0 {
		late := time.Duration(s.rng.Int64N(int64(b.Spread) + 1))
		at := s.w.books.now + late
		if at < s.until {
			s.w.agenda.note(s.w.begin.Add(at), func(ctx context.Context) error { return ask(ctx, at) })
		}
		return nil
	}
	return ask(ctx, s.w.books.now)
}

func (s *source) size() scenario.Size {
	x := s.draw.Float64() * s.weight
	for _, z := range s.a.Sizes {
		if x -= z.Weight; x < 0 {
			return z
		}
	}
	return s.a.Sizes[len(s.a.Sizes)-1]
}

// lifetime draws how long an instance stays once it runs; 0: to the end.
func (s *source) lifetime() time.Duration {
	l := s.a.Lifetime
	if l.Fixed > 0 {
		return l.Fixed.D()
	}
	if l.Mean <= 0 {
		return 0
	}
	mean, f := float64(l.Mean), 1.0
	switch l.Shape {
	case "lognormal":
		f = math.Exp(s.draw.NormFloat64()*l.Sigma - l.Sigma*l.Sigma/2)
	case "uniform":
		f = 2 * s.draw.Float64()
	case "pareto":
		f = (l.Sigma - 1) / l.Sigma / math.Pow(1-s.draw.Float64(), 1/l.Sigma)
	default:
		f = s.draw.ExpFloat64()
	}
	d := time.Duration(min(mean*f, float64(trace.MaxTime)))
	if l.Max > 0 {
		d = min(d, l.Max.D())
	}
	return max(d, l.Min.D(), time.Millisecond)
}

// ask creates an instance, as a user does.
func (s *source) ask(ctx context.Context, in *api.Instance, draft *rec) error {
	w := s.w
	now := w.clk.Now()
	in.CreatedAt = &now
	r := w.books.expect(in, s.kind)
	r.created, r.lasts, r.level, r.series, r.seed = draft.created, draft.lasts, draft.level, draft.series, draft.seed
	_, err := w.gate.Commit(ctx, store.Create(in))
	w.fresh++
	if err == nil {
		w.created++
		r.tenant.created++
		s.alive[r] = true
		s.order = append(s.order, r)
		return nil
	}
	delete(w.books.byUID, in.UID)
	kind := errs.KindOf(err)
	if kind != errs.Quota && kind != errs.NoCapacity && kind != errs.Denied {
		return fmt.Errorf("create %s: %w", api.RefOf(in), err)
	}
	w.refused++
	w.refusals[string(kind)]++
	r.tenant.refused++
	if kind == errs.NoCapacity && w.books.promisedTo(r.tenant, in) {
		r.tenant.refusedInner++
	}
	if s.a.Retry > 0 && w.books.now+s.a.Retry.D() < s.until {
		w.agenda.note(now.Add(s.a.Retry.D()), func(ctx context.Context) error { return s.ask(ctx, in, draft) })
	}
	return nil
}

// recorded puts the instances of the pool's own past on the agenda.
func (w *World) recorded() {
	s := &source{w: w, a: &scenario.Arrival{Name: "recorded"}, kind: &kindOf{name: "recorded"}, until: w.sc.Duration.D(), alive: map[*rec]bool{}}
	for _, x := range w.opt.Recorded {
		w.agenda.note(w.begin.Add(x.At), func(ctx context.Context) error {
			return s.ask(ctx, x.Instance, &rec{lasts: x.Lasts, created: x.At})
		})
	}
	if len(w.opt.Recorded) > 0 {
		w.sources = append(w.sources, s)
	}
}

// promisedTo reports whether an instance would be within its tenant's guarantee.
func (b *books) promisedTo(a *account, in *api.Instance) bool {
	req, some := b.vector(in.Spec.Requests), false
	for _, i := range b.promised() {
		if req[i] == 0 {
			continue
		}
		if a.want[i]+req[i] > a.guarantee[i] {
			return false
		}
		some = true
	}
	return some
}

// started is told when an instance runs for the first time: now its time counts.
func (w *World) started(r *rec) {
	if r.lasts <= 0 {
		return
	}
	w.agenda.note(w.clk.Now().Add(r.lasts), func(ctx context.Context) error { return w.remove(ctx, r) })
}

// ended is told when an instance is gone from the store.
func (w *World) ended(r *rec) {
	w.removed++
	for _, s := range w.sources {
		if s.kind == r.kind {
			delete(s.alive, r)
		}
	}
}

// remove asks for the removal of an instance, as a user does.
func (w *World) remove(ctx context.Context, r *rec) error {
	if r.asked || r.gone {
		return nil
	}
	in, err := store.Get[*api.Instance](ctx, w.view, r.ref)
	if err != nil || in.UID != r.uid {
		w.violate("%s was lost: it is not in the store, and nobody asked for that", r.ref)
		return nil
	}
	r.asked, r.removal = true, w.books.now
	now := w.clk.Now()
	next := api.Clone(in)
	next.DeletedAt = &now
	w.fresh++
	if _, err := w.gate.Commit(ctx, store.Update(next)); err != nil {
		return fmt.Errorf("remove %s: %w", r.ref, err)
	}
	return nil
}

// stop removes a share of what a source made and is still there.
func (s *source) stop(ctx context.Context, share float64) error {
	var left []*rec
	rng := s.w.rng("stop/" + s.a.Name)
	for _, r := range s.order {
		if !s.alive[r] {
			continue
		}
		left = append(left, r)
		if share == 0 || rng.Float64() < share {
			if err := s.w.remove(ctx, r); err != nil {
				return err
			}
		}
	}
	s.order = left
	return nil
}
