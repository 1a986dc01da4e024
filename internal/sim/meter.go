package sim

import (
	"context"
	"maps"
	"slices"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/sim/report"
)

// meter takes a sample of the pool from time to time and adds up what the report tells.
type meter struct {
	w      *World
	wanted bool
	nth    int

	at     []float64
	lines  map[string][]float64
	shapes []shape

	kW         float64 // at the last sample
	kWh        float64
	peakKW     float64
	last       time.Duration
	hostTime   float64 // samples of hosts that were up
	overloaded float64 // of them with more CPU asked than they have
	overCores  float64 // core-hours that could not be given
	over       float64 // millicores too much at the last sample
	capacity   [3]float64
	lastMoves  int
	power      bool
}

// shape is a typical request.
type shape struct {
	need   []dim
	weight float64
}

type dim struct {
	i int
	v int64
}

// maxShapes bounds the typical requests that fragmentation is measured with.
const maxShapes = 16

func newMeter(w *World) *meter {
	m := &meter{w: w, lines: map[string][]float64{}}
	for i := range w.sc.Hosts {
		m.power = m.power || w.sc.Hosts[i].Power.Known()
	}
	weights, needs := map[string]float64{}, map[string]vector{}
	add := func(r api.Resources, weight float64) {
		if len(r) == 0 {
			return
		}
		weights[r.String()] += weight
		needs[r.String()] = w.books.vector(r)
	}
	for i := range w.sc.Arrivals {
		a := &w.sc.Arrivals[i]
		sum := 0.0
		for _, z := range a.Sizes {
			sum += z.Weight
		}
		for _, z := range a.Sizes {
			add(z.Requests, z.Weight/sum*max(a.Expected(w.sc.Duration), 1))
		}
	}
	for _, o := range w.opt.State {
		if in, ok := o.(*api.Instance); ok {
			add(in.Spec.Requests, 1)
		}
	}
	names := slices.Sorted(maps.Keys(weights))
	sort.SliceStable(names, func(i, j int) bool { return weights[names[i]] > weights[names[j]] })
	for _, n := range names[:min(len(names), maxShapes)] {
		s := shape{weight: weights[n]}
		for i, v := range needs[n] {
			if v > 0 {
				s.need = append(s.need, dim{i, v})
			}
		}
		m.shapes = append(m.shapes, s)
	}
	return m
}

// sampleAt notes the samples from t on.
func (w *World) sampleAt(t time.Time) {
	w.agenda.note(t, func(context.Context) error {
		w.meter.wanted = true
		if t.Before(w.end) {
			next := t.Add(w.sc.Sample.D())
			if next.After(w.end) {
				next = w.end
			}
			w.sampleAt(next)
		}
		return nil
	})
}

func (m *meter) put(name string, v float64) {
	m.lines[name] = append(m.lines[name], report.Round(v))
}

// sample looks at everything once.
func (m *meter) sample() {
	w, b := m.w, m.w.books
	hours := (b.now - m.last).Hours()
	m.kWh += m.kW * hours
	m.overCores += m.over / 1000 * hours
	m.last = b.now
	at := b.promised()
	var capacity, requested, used [3]float64
	watts, over, up, cost := 0.0, 0.0, 0, 0.0
	for _, h := range w.hosts {
		cost += h.group.Price * h.memberHours(b.now)
		if !h.serves() {
			continue
		}
		up++
		m.useOf(h, at)
		for k, i := range at {
			capacity[k] += float64(h.room[i])
			requested[k] += float64(h.used[i])
			used[k] += h.use[k]
		}
		room := float64(h.room[b.cpu])
		m.hostTime++
		if h.use[0] > room {
			m.overloaded++
			over += h.use[0] - room
		}
		if m.power && !(h.group.Power.Off && h.running == 0 && h.object != nil && h.object.Spec.Closed() != "") {
			watts += h.group.Power.At(h.use[0] / max(float64(h.group.Capacity[api.CPU]), 1))
		}
	}
	m.over, m.kW = over, watts/1000
	m.peakKW = max(m.peakKW, m.kW)
	m.nth++
	m.at = append(m.at, report.Round(b.now.Seconds()))
	for k, name := range w.measured() {
		m.capacity[k] += capacity[k]
		m.put(line(name, "requested"), share(requested[k], capacity[k]))
		m.put(line(name, "used"), share(used[k], capacity[k]))
		m.put(line(name, "fragmented"), m.fragmented(at[k]))
	}
	short := 0.0
	for _, a := range b.order {
		if a.lacks {
			short++
		}
		if capacity[0] > 0 {
			a.cpuSum += float64(a.have[b.cpu]) / capacity[0]
		}
	}
	m.put("up", float64(up))
	m.put("running", float64(b.running))
	m.put("waiting", float64(len(b.waiting)))
	m.put("moves", float64(b.moves-m.lastMoves))
	m.put("short", short)
	m.put("kW", m.kW)
	m.put("cost", cost)
	m.lastMoves = b.moves
	if w.opt.Progress != nil {
		w.opt.Progress(Progress{At: b.now, Of: w.sc.Duration.D(), Running: b.running, Waiting: len(b.waiting)})
	}
}

// useOf adds up what runs on a host.
func (m *meter) useOf(h *host, at [3]int) {
	h.use = [3]float64{}
	for _, r := range h.recs {
		if len(r.on) == 0 || r.on[0] != h {
			continue
		}
		for k, i := range at {
			if r.req[i] > 0 {
				h.use[k] += float64(r.req[i]) * m.w.value(r, k, m.w.books.now, m.nth)
			}
		}
	}
}

func (h *host) memberHours(now time.Duration) float64 {
	if h.member {
		return h.hours + (now - h.since).Hours()
	}
	return h.hours
}

func share(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// fragmented is the share of what is free of dimension i that lies on hosts where a
// typical request for it does not fit.
func (m *meter) fragmented(i int) float64 {
	lost, all := 0.0, 0.0
	for _, s := range m.shapes {
		asks := false
		for _, d := range s.need {
			asks = asks || d.i == i
		}
		if !asks {
			continue
		}
		for _, h := range m.w.hosts {
			if !h.serves() || !h.known || h.object.Spec.Closed() != "" {
				continue
			}
			free := float64(max(h.room[i]-h.used[i], 0)) * s.weight
			all += free
			for _, d := range s.need {
				if h.used[d.i]+d.v > h.room[d.i] {
					lost += free
					break
				}
			}
		}
	}
	return share(lost, all)
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return report.Round(share(sum, float64(len(v))))
}

func top(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return slices.Max(v)
}

func counts(m map[string]int) []report.Count {
	var out []report.Count
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, report.Count{What: k, N: m[k]})
	}
	return out
}

// report puts everything together.
func (w *World) report() *report.Report {
	b, m := w.books, w.meter
	r := &report.Report{Scenario: w.sc.Name, Description: w.sc.Description, Seed: w.sc.Seed, Start: w.begin, Duration: w.sc.Duration,
		Sample: w.sc.Sample, Policies: w.policyNames(), Broken: w.broken, Faults: counts(w.faults), Refusals: counts(w.refusals)}
	hosts, never := 0, 0
	for _, h := range w.hosts {
		hosts += btoi(h.member)
		x := h.memberHours(b.now)
		r.Cost += h.group.Price * x
	}
	for _, x := range b.byUID {
		never += btoi(x.started < 0 && !x.gone && x.counts)
	}
	r.Cost = report.Round(r.Cost)
	r.Totals = report.Totals{Hosts: hosts, Created: w.created, Refused: w.refused, Removed: w.removed, Running: b.running, Waiting: len(b.waiting),
		Peak: b.peak, Starts: b.starts, Ends: b.ends, FailedStarts: b.failed, Moves: b.moves, Calls: w.calls, Commits: w.view.commits, Checks: b.checks}
	r.Pending = report.NewDist(slices.Clone(b.pendings), never)
	samples := float64(max(m.nth, 1))
	for k, name := range w.measured() {
		q, u := m.lines[line(name, "requested")], m.lines[line(name, "used")]
		r.Use = append(r.Use, report.Resource{Name: name, Capacity: int64(m.capacity[k] / samples), Requested: mean(q), RequestedPeak: top(q),
			Used: mean(u), UsedPeak: top(u), Fragmented: mean(m.lines[line(name, "fragmented")])})
	}
	for _, a := range b.order {
		slices.Sort(a.pending)
		r.Tenants = append(r.Tenants, report.Tenant{Name: a.name, Guarantee: a.guaranteed, Created: a.created, Refused: a.refused, Peak: a.peak,
			Short: report.Round(a.seconds), ShortCPU: report.Round(a.cpuSeconds / 3600 / 1000), PendingP50: report.Round(report.Quantile(a.pending, 0.5)),
			PendingP99: report.Round(report.Quantile(a.pending, 0.99)), MeanShare: report.Round(a.cpuSum / samples), RefusedInner: a.refusedInner})
	}
	r.Power = report.Power{KWh: report.Round(m.kWh), MeanKW: report.Round(share(m.kWh, b.now.Hours())), PeakKW: report.Round(m.peakKW), Known: m.power}
	r.Overload = report.Overload{HostShare: report.Round(share(m.overloaded, m.hostTime)), CoreHours: report.Round(m.overCores)}
	r.Series = report.Series{Seconds: m.at}
	for _, name := range slices.Sorted(maps.Keys(m.lines)) {
		r.Series.Lines = append(r.Series.Lines, report.NamedLine{Name: name, Values: m.lines[name]})
	}
	return r
}
