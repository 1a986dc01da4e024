package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"atoll/api"
	"atoll/internal/sim/scenario"
	"atoll/internal/store"
)

// plans puts faults and changes on the agenda.
func (w *World) plans() {
	for i := range w.sc.Faults {
		f := &w.sc.Faults[i]
		rng := w.rng(fmt.Sprintf("fault/%d", i))
		for _, at := range f.At {
			w.agenda.note(w.begin.Add(at.D()), func(ctx context.Context) error { return w.fault(ctx, f, rng) })
		}
		if f.MeanEvery > 0 {
			w.again(f, rng)
		}
	}
	for i := range w.sc.Changes {
		c := &w.sc.Changes[i]
		rng := w.rng(fmt.Sprintf("change/%d", i))
		w.agenda.note(w.begin.Add(c.At.D()), func(ctx context.Context) error {
			if err := w.change(ctx, c, rng); err != nil {
				return fmt.Errorf("changes[%d]: %w", i, err)
			}
			return nil
		})
	}
}

func (w *World) again(f *scenario.Fault, rng *rand.Rand) {
	at := w.clk.Now().Add(max(time.Duration(rng.ExpFloat64()*float64(f.MeanEvery)), time.Millisecond))
	if at.After(w.end) {
		return
	}
	w.agenda.note(at, func(ctx context.Context) error {
		w.again(f, rng)
		return w.fault(ctx, f, rng)
	})
}

// choose gives the hosts of a selection, in their order.
func (w *World) choose(s *scenario.Selection, rng *rand.Rand) []*host {
	var out []*host
	for _, h := range w.hosts {
		if h.member && (s.Host == "" || h.name == s.Host) && (s.Group == "" || h.group.Name == s.Group) &&
			(s.Zone == "" || h.zone == s.Zone) && (s.Rack == "" || h.zone+"/"+h.rack == s.Rack) {
			out = append(out, h)
		}
	}
	n := s.Pick
	if s.Share > 0 {
		n = int(float64(len(out))*s.Share + 0.5)
	}
	if n <= 0 || n >= len(out) {
		return out
	}
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	out = out[:n]
	slices.SortFunc(out, func(a, b *host) int { return a.idx - b.idx })
	return out
}

// later undoes a fault, if it ends.
func (w *World) later(d api.Duration, do func(ctx context.Context) error) {
	if d > 0 {
		w.agenda.note(w.clk.Now().Add(d.D()), do)
	}
}

func (w *World) fault(ctx context.Context, f *scenario.Fault, rng *rand.Rand) error {
	hosts := w.choose(&f.Where, rng)
	w.faults[f.Kind]++
	switch f.Kind {
	case scenario.FaultClock:
		if f.Where == (scenario.Selection{}) {
			w.ctl.offset += f.By.D()
		}
		for _, h := range hosts {
			h.clock.offset += f.By.D()
			h.changed = true
			w.mark(h)
		}
		return nil
	case scenario.FaultFlap:
		for _, h := range hosts {
			w.flap(h, f, f.Times)
		}
		return nil
	case scenario.FaultAgents:
		for _, h := range hosts {
			if !h.up {
				continue
			}
			w.stopAgent(h)
			if err := w.startAgent(ctx, h); err != nil {
				return err
			}
		}
		return nil
	}
	for _, h := range hosts {
		if err := w.strike(ctx, f, h); err != nil {
			return err
		}
	}
	w.later(f.Lasts, func(ctx context.Context) error {
		for _, h := range hosts {
			if err := w.mend(ctx, f, h); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}

func (w *World) strike(ctx context.Context, f *scenario.Fault, h *host) error {
	switch f.Kind {
	case scenario.FaultHosts, scenario.FaultZone:
		w.powerOff(h)
	case scenario.FaultSlowDisk:
		h.slow = f.Factor
		if h.up {
			h.rt.Slow(f.Factor)
		}
	case scenario.FaultStarts:
		h.failures = f.Rate
		if h.up {
			h.rt.StartFailures(f.Rate)
		}
	case scenario.FaultPartition:
		if h.up && h.wire.frozen == nil {
			w.route() // what was said before the cut is heard
			return h.wire.cut(ctx)
		}
	}
	return nil
}

func (w *World) mend(ctx context.Context, f *scenario.Fault, h *host) error {
	switch f.Kind {
	case scenario.FaultHosts, scenario.FaultZone:
		return w.powerOn(ctx, h)
	case scenario.FaultSlowDisk:
		h.slow = 0
		if h.up {
			h.rt.Slow(1)
		}
	case scenario.FaultStarts:
		h.failures = 0
		if h.up {
			h.rt.StartFailures(h.group.Runtime.Failures)
		}
	case scenario.FaultPartition:
		h.wire.heal()
		if h.up {
			w.mark(h)
		}
	}
	return nil
}

// flap takes a host's power again and again.
func (w *World) flap(h *host, f *scenario.Fault, times int) {
	w.powerOff(h)
	w.later(f.Lasts, func(ctx context.Context) error { return w.powerOn(ctx, h) })
	if times > 1 {
		w.later(f.Every, func(context.Context) error {
			w.flap(h, f, times-1)
			return nil
		})
	}
}

// change is what the operator does.
func (w *World) change(ctx context.Context, c *scenario.Change, rng *rand.Rand) error {
	switch {
	case c.Add != "":
		for _, h := range w.hosts {
			if h.group.Name != c.Add || h.member {
				continue
			}
			if err := w.join(ctx, h); err != nil {
				return err
			}
		}
	case c.Remove != nil:
		for _, h := range w.choose(c.Remove, rng) {
			if err := w.leave(ctx, h); err != nil {
				return err
			}
		}
	case c.Cordon != nil:
		return w.decide(ctx, w.choose(c.Cordon, rng), func(s *api.NodeSpec) { s.Cordoned = true })
	case c.Open != nil:
		return w.decide(ctx, w.choose(c.Open, rng), func(s *api.NodeSpec) { s.Cordoned = false })
	case c.Drain != nil:
		since := w.ctl.Now().UTC()
		return w.decide(ctx, w.choose(c.Drain, rng), func(s *api.NodeSpec) { s.Maintenance = &api.Maintenance{Mode: "drain", Since: since} })
	case c.Back != nil:
		return w.decide(ctx, w.choose(c.Back, rng), func(s *api.NodeSpec) { s.Maintenance = nil })
	case c.Tenant != nil:
		return w.setTenant(ctx, c.Tenant)
	case c.Stop != nil:
		for _, s := range w.sources {
			if s.a.Name == c.Stop.Arrival {
				return s.stop(ctx, c.Stop.Share)
			}
		}
	}
	return nil
}

// decide changes what the operator says of hosts.
func (w *World) decide(ctx context.Context, hosts []*host, edit func(*api.NodeSpec)) error {
	for _, h := range hosts {
		n, err := store.Get[*api.Node](ctx, w.view, api.Ref{Kind: api.KindNode, Name: h.name})
		if err != nil {
			return err
		}
		next := api.Clone(n)
		edit(&next.Spec)
		next.Generation++
		if _, err := w.gate.Commit(ctx, store.Update(next)); err != nil {
			return err
		}
	}
	return nil
}
