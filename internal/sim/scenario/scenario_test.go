package scenario

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

const small = `
name: small
duration: 1h
hosts:
  - {name: h, count: 2, capacity: {cpu: 4, memory: 8Gi}, zones: [a]}
  - {name: more, count: 1, later: true, capacity: {cpu: 4, memory: 8Gi}}
tenants: [{name: t, guarantee: {cpu: 1}}]
arrivals:
  - name: web
    tenant: t
    poisson: {perMinute: 2}
    sizes: [{requests: {cpu: 100m}}]
`

func TestDefaultsAreFilledIn(t *testing.T) {
	s, err := Decode([]byte(small))
	if err != nil {
		t.Fatal(err)
	}
	if s.Seed != 1 || s.Sample.D() != 15*time.Second || s.Start.Weekday() != time.Monday || s.Arrivals[0].Count != 1 || s.Arrivals[0].Sizes[0].Weight != 1 {
		t.Fatalf("%+v", s)
	}
	if n := s.Expected(); n != 120 {
		t.Fatalf("%g instances", n)
	}
}

// Every mistake is named with its field, and what would do.
func TestMistakesAreNamed(t *testing.T) {
	for name, c := range map[string]struct{ from, to, field, says string }{
		"unknown field":    {"perMinute: 2", "perMinutes: 2", "arrivals[0].poisson.perMinutes", "did you mean arrivals[0].poisson.perMinute?"},
		"no way to arrive": {"poisson: {perMinute: 2}", "count: 2", "arrivals[0]", "exactly one of at, poisson"},
		"two ways":         {"poisson: {perMinute: 2}", "poisson: {perMinute: 2}\n    at: [0s]", "arrivals[0]", "exactly one of"},
		"unknown tenant":   {"tenant: t", "tenant: u", "arrivals[0].tenant", "must be one of tenants"},
		"negative rate":    {"perMinute: 2", "perMinute: -2", "arrivals[0].poisson.perMinute", "must be 1e-06 to"},
		"too much":         {"perMinute: 2", "perMinute: 900000", "arrivals", "at most 5000000 instances"},
		"no memory":        {"{cpu: 4, memory: 8Gi}, zones", "{cpu: 4}, zones", "hosts[0].capacity", "cpu and memory above zero"},
		"too many hosts":   {"count: 2", "count: 200000", "hosts[0].count", "must be 1 to 100000"},
		"bad name":         {"name: web", "name: Web", "arrivals[0].name", "a-z"},
		"too long":         {"duration: 1h", "duration: 99999h", "duration", "must be 1s to"},
		"bad size":         {"requests: {cpu: 100m}", "requests: {gpuMemory: 1Gi}", "arrivals[0].sizes[0].requests.gpuMemory", "needs spec.requests.gpu"},
		"bad guarantee":    {"guarantee: {cpu: 1}", "guarantee: {cpu: 1}, limit: {cpu: 500m}", "tenants[0].guarantee.cpu", "must not be more than"},
	} {
		text := strings.Replace(small, c.from, c.to, 1)
		if text == small {
			t.Fatalf("%s: nothing was replaced", name)
		}
		_, err := Decode([]byte(text))
		if !named(err, c.field, c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct{ more, field, says string }{
		"fault kind":    {"faults: [{kind: fire, at: [1m]}]", "faults[0].kind", "must be one of hosts, zone"},
		"fault when":    {"faults: [{kind: hosts}]", "faults[0].at", "either at or meanEvery"},
		"fault where":   {"faults: [{kind: hosts, at: [1m], where: {zone: b}}]", "faults[0].where.zone", "some group"},
		"flap":          {"faults: [{kind: flap, at: [1m], every: 1m, lasts: 2m}]", "faults[0].lasts", "must be 100ms to 1m"},
		"no change":     {"changes: [{at: 1m}]", "changes[0]", "exactly one of add"},
		"add of nobody": {"changes: [{at: 1m, add: h}]", "changes[0].add", "later: true"},
		"stop":          {"changes: [{at: 1m, stop: {arrival: db}}]", "changes[0].stop.arrival", "name of an arrival"},
		"weights":       {"policies: {scorers: {binpack: -1}}", "policies.scorers.binpack", "must be 0 to"},
	} {
		if _, err := Decode([]byte(small + c.more + "\n")); !named(err, c.field, c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func named(err error, field, says string) bool {
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Invalid {
		return false
	}
	for _, f := range e.Fields {
		if f.Field == field && strings.Contains(f.Rule, says) {
			return true
		}
	}
	return false
}

func TestAnOverlayBringsNoHosts(t *testing.T) {
	if _, err := DecodeOverlay([]byte("faults: [{kind: hosts, at: [1m]}]")); err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeOverlay([]byte(small)); !errors.Is(err, errs.Invalid) {
		t.Fatalf("%v", err)
	}
}

func TestPowerFollowsTheCurve(t *testing.T) {
	p := Power{Curve: []float64{100, 200, 400}}
	for load, want := range map[float64]float64{-1: 100, 0: 100, 0.25: 150, 0.5: 200, 0.75: 300, 1: 400, 3: 400} {
		if w := p.At(load); math.Abs(w-want) > 1e-9 {
			t.Errorf("at %g: %g", load, w)
		}
	}
	if w := (&Power{Idle: 50, Max: 150}).At(0.5); w != 100 {
		t.Errorf("%g", w)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(small))
	f.Add([]byte("faults: [{kind: flap, at: [1m], every: 1m, lasts: 2m}]\nchanges: [{at: 1m, remove: {pick: 2}}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			return
		}
		if s.Expected() > maxInstances || s.Duration <= 0 || len(s.Hosts) == 0 {
			t.Fatalf("%+v", s)
		}
		for i := range s.Arrivals {
			if err := api.Check(s.Arrivals[i].Instance("x", s.Arrivals[i].Sizes[0])); err != nil {
				t.Fatal(err)
			}
		}
	})
}
