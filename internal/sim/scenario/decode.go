package scenario

import (
	"time"

	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/errs"
)

// maxFile bounds a scenario; the largest shipped one has a few kilobytes.
const maxFile = 4 << 20

// DefaultStart is a Monday.
var defaultStart = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant of a type that has none

// Decode reads a scenario, checks it and fills in the defaults.
func Decode(data []byte) (*Scenario, error) {
	s, err := parse(data)
	if err != nil {
		return nil, err
	}
	s.Defaults()
	if err := errs.InvalidFields("scenario", s.Validate()); err != nil {
		return nil, err
	}
	return s, nil
}

// DecodeOverlay reads the part of a scenario that is laid over another world: it has
// neither hosts nor tenants of its own. It is checked when it has been laid over.
func DecodeOverlay(data []byte) (*Scenario, error) {
	s, err := parse(data)
	if err != nil {
		return nil, err
	}
	var f []errs.Field
	for _, g := range s.Hosts {
		if !g.Later {
			f = append(f, errs.Field{Field: "hosts", Value: clip(g.Name), Rule: "the hosts are the recorded ones; further ones must be later", Example: "later: true"})
		}
	}
	return s, errs.InvalidFields("overlay", f)
}

func parse(data []byte) (*Scenario, error) {
	if len(data) > maxFile {
		return nil, errs.New(errs.Invalid, "scenario: is larger than %d bytes", maxFile)
	}
	js, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, errs.New(errs.Invalid, "scenario: not valid YAML: %w", err)
	}
	s := &Scenario{}
	if err := api.StrictInto("scenario", js, s); err != nil {
		return nil, err
	}
	return s, nil
}

// Defaults fills in what was left out.
func (s *Scenario) Defaults() {
	if s.Seed == 0 {
		s.Seed = 1
	}
	if s.Start == nil {
		at := defaultStart
		s.Start = &at
	}
	if s.Sample == 0 {
		s.Sample = max(s.Duration/points, api.Duration(time.Second))
	}
	if s.Policies.Seed == 0 {
		s.Policies.Seed = 1
	}
	for i := range s.Hosts {
		s.Hosts[i].defaults()
	}
	for i := range s.Arrivals {
		s.Arrivals[i].defaults()
	}
	for i := range s.Faults {
		if s.Faults[i].Kind == FaultFlap && s.Faults[i].Times == 0 {
			s.Faults[i].Times = 5
		}
	}
}

// points is how many samples a report has when nothing else is said.
const points = 240

func (g *HostGroup) defaults() {
	if g.Runtime.CrashAfter == 0 {
		g.Runtime.CrashAfter = api.Duration(time.Minute)
	}
	g.Runtime.Start.Max = max(g.Runtime.Start.Max, g.Runtime.Start.Min)
	if len(g.Devices) > 0 {
		if g.Capacity == nil {
			g.Capacity = api.Resources{}
		}
		var mem int64
		for _, d := range g.Devices {
			mem += d.Memory
		}
		if _, given := g.Capacity[api.GPU]; !given {
			g.Capacity[api.GPU] = int64(len(g.Devices)) * 1000
		}
		if _, given := g.Capacity[api.GPUMemory]; !given && mem > 0 {
			g.Capacity[api.GPUMemory] = mem
		}
	}
}

func (a *Arrival) defaults() {
	if a.Count == 0 {
		a.Count = 1
	}
	if a.Daily != nil {
		if a.Daily.Peak == 0 {
			a.Daily.Peak = api.Duration(14 * time.Hour)
		}
		if a.Daily.Ratio == 0 {
			a.Daily.Ratio = 4
		}
	}
	if len(a.Sizes) == 0 {
		a.Sizes = []Size{{}}
	}
	for i := range a.Sizes {
		if a.Sizes[i].Weight == 0 {
			a.Sizes[i].Weight = 1
		}
	}
	if a.Lifetime.Mean > 0 && a.Lifetime.Shape == "" {
		a.Lifetime.Shape = "exponential"
	}
	if a.Lifetime.Sigma == 0 {
		a.Lifetime.Sigma = 1
		if a.Lifetime.Shape == "pareto" {
			a.Lifetime.Sigma = 1.5
		}
	}
	for _, t := range a.traces() {
		t.defaults()
	}
}

func (t *TraceIn) defaults() {
	if t.Format == "" {
		t.Format = "atoll"
	}
	if t.Speed == 0 {
		t.Speed = 1
	}
	if t.Keep == 0 {
		t.Keep = 1
	}
	if t.Scale == 0 {
		t.Scale = 1
	}
	if t.PrefillPerSecond == 0 {
		t.PrefillPerSecond = 8000
	}
	if t.DecodePerSecond == 0 {
		t.DecodePerSecond = 40
	}
}

func (a *Arrival) traces() []*TraceIn {
	var out []*TraceIn
	if a.Trace != nil {
		out = append(out, a.Trace)
	}
	for _, l := range []*Level{a.Use.CPU, a.Use.Memory, a.Use.GPU} {
		if l != nil && l.Trace != nil {
			out = append(out, l.Trace)
		}
	}
	return out
}

// Traces lists all recordings the scenario follows.
func (s *Scenario) Traces() []*TraceIn {
	var out []*TraceIn
	for i := range s.Arrivals {
		out = append(out, s.Arrivals[i].traces()...)
	}
	return out
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
