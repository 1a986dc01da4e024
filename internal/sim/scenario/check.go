package scenario

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

// Bounds on what is played. They keep a slip of the pen from filling the memory.
const (
	maxHosts     = 100_000
	maxInstances = 5_000_000 // expected arrivals
	maxDuration  = 366 * 24 * time.Hour
	maxSamples   = 20_000
	maxParts     = 10_000 // of each list
)

const nameRule = "must be 1 to 50 of a-z, 0-9 and -, starting and ending with a letter or digit"

// checker gathers what is wrong.
type checker struct {
	fields []errs.Field
	groups map[string]bool // -> later
	names  map[string]bool // of arrivals
}

func (c *checker) bad(field, value, rule, example string) {
	if len(c.fields) < 50 {
		c.fields = append(c.fields, errs.Field{Field: field, Value: clip(value), Rule: rule, Example: example})
	}
}

func (c *checker) within(field string, v, lo, hi float64, example string) {
	if v < lo || v > hi || math.IsNaN(v) {
		c.bad(field, strconv.FormatFloat(v, 'g', -1, 64), fmt.Sprintf("must be %g to %g", lo, hi), example)
	}
}

func (c *checker) span(field string, d, lo, hi time.Duration, example string) {
	if d < lo || d > hi {
		c.bad(field, d.String(), fmt.Sprintf("must be %s to %s", lo, hi), example)
	}
}

func (c *checker) oneOf(field, v string, allowed ...string) {
	if slices.Contains(allowed, v) {
		return
	}
	example := api.Nearest(v, allowed)
	if example == "" {
		example = allowed[0]
	}
	c.bad(field, v, "must be one of "+strings.Join(allowed, ", "), example)
}

func name(s string) bool { return len(s) <= 50 && api.ValidName(s) }

// Validate checks a scenario whose defaults are filled in.
func (s *Scenario) Validate() []errs.Field {
	c := &checker{groups: map[string]bool{}, names: map[string]bool{}}
	if !name(s.Name) {
		c.bad("name", s.Name, nameRule, "small-company")
	}
	c.span("duration", s.Duration.D(), time.Second, maxDuration, "24h")
	c.span("sample", s.Sample.D(), 100*time.Millisecond, maxDuration, "1m")
	if s.Sample > 0 && s.Duration/max(s.Sample, 1) > maxSamples {
		c.bad("sample", s.Sample.D().String(), fmt.Sprintf("must give at most %d points over the duration", maxSamples), (s.Duration / 240).D().Round(time.Second).String())
	}
	for _, l := range []struct {
		field string
		n     int
	}{{"hosts", len(s.Hosts)}, {"tenants", len(s.Tenants)}, {"arrivals", len(s.Arrivals)}, {"faults", len(s.Faults)}, {"changes", len(s.Changes)}} {
		if l.n > maxParts {
			c.bad(l.field, strconv.Itoa(l.n), fmt.Sprintf("must be at most %d entries", maxParts), "")
		}
	}
	c.hosts(s)
	c.tenants(s)
	for i := range s.Arrivals {
		c.arrival(fmt.Sprintf("arrivals[%d]", i), s, &s.Arrivals[i])
	}
	for i := range s.Faults {
		c.fault(fmt.Sprintf("faults[%d]", i), s, &s.Faults[i])
	}
	for i := range s.Changes {
		c.change(fmt.Sprintf("changes[%d]", i), s, &s.Changes[i])
	}
	for _, n := range sorted(s.Policies.Scorers) {
		c.within("policies.scorers."+clip(n), s.Policies.Scorers[n], 0, 1e6, "1")
	}
	if n := s.Expected(); n > maxInstances {
		c.bad("arrivals", strconv.FormatFloat(n, 'f', 0, 64), fmt.Sprintf("must be at most %d instances over the whole duration", maxInstances), "a lower rate, or most: 100000")
	}
	return c.fields
}

func sorted(m map[string]float64) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func (c *checker) hosts(s *Scenario) {
	total := 0
	for i := range s.Hosts {
		g, at := &s.Hosts[i], fmt.Sprintf("hosts[%d]", i)
		if _, twice := c.groups[g.Name]; twice || !name(g.Name) && !g.Exact {
			c.bad(at+".name", g.Name, nameRule+", and used once", "rack")
		}
		c.groups[g.Name] = g.Later
		if g.Count < 1 || g.Count > maxHosts {
			c.bad(at+".count", strconv.Itoa(g.Count), fmt.Sprintf("must be 1 to %d", maxHosts), "12")
		}
		total += max(g.Count, 0)
		if g.Capacity[api.CPU] <= 0 || g.Capacity[api.Memory] <= 0 {
			c.bad(at+".capacity", g.Capacity.String(), "must have cpu and memory above zero", "{cpu: 32, memory: 128Gi}")
		}
		c.node(at, g)
		c.power(at+".power", &g.Power)
		r := g.Runtime
		c.span(at+".runtime.start.min", r.Start.Min.D(), 0, time.Hour, "300ms")
		c.span(at+".runtime.start.max", r.Start.Max.D(), r.Start.Min.D(), time.Hour, "4s")
		c.span(at+".runtime.crashAfter", r.CrashAfter.D(), 0, maxDuration, "1m")
		c.within(at+".runtime.failures", r.Failures, 0, 1, "0.01")
		c.within(at+".runtime.crashes", r.Crashes, 0, 1, "0.02")
		c.within(at+".price", g.Price, 0, 1e6, "0.42")
	}
	if total == 0 || total > maxHosts {
		c.bad("hosts", strconv.Itoa(total), fmt.Sprintf("must be 1 to %d hosts in all", maxHosts), "[{name: rack, count: 12, capacity: {cpu: 32, memory: 128Gi}}]")
	}
}

// node checks what becomes part of the Node objects by their own rules.
func (c *checker) node(at string, g *HostGroup) {
	n := &api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "x", Labels: g.Labels}},
		Spec: api.NodeSpec{Taints: g.Taints, Region: g.Region, Overcommit: g.Overcommit}}
	if err := api.Check(n); err != nil {
		c.take(at, err)
	}
	for i, z := range g.Zones {
		if !name(z) && !g.Exact {
			c.bad(fmt.Sprintf("%s.zones[%d]", at, i), z, nameRule, "a")
		}
	}
	if len(g.Zones) > maxParts || g.Racks < 0 || g.Racks > maxParts {
		c.bad(at+".racks", strconv.Itoa(g.Racks), fmt.Sprintf("must be 0 to %d", maxParts), "4")
	}
	if len(g.Devices) > 64 {
		c.bad(at+".devices", strconv.Itoa(len(g.Devices)), "must be at most 64", "[{model: A100, memory: 85899345920}]")
	}
}

// take moves the fields of an error of another kind of object under at.
func (c *checker) take(at string, err error) {
	var e *errs.Error
	if !asError(err, &e) {
		c.bad(at, "", err.Error(), "")
		return
	}
	for _, f := range e.Fields {
		f.Field = strings.TrimPrefix(strings.TrimPrefix(f.Field, "spec."), "metadata.")
		c.bad(at+"."+f.Field, f.Value, f.Rule, f.Example)
	}
}

func (c *checker) power(at string, p *Power) {
	c.within(at+".idle", p.Idle, 0, 1e6, "90")
	c.within(at+".max", p.Max, 0, 1e6, "250")
	if p.Max > 0 && p.Idle > p.Max {
		c.bad(at+".idle", fmt.Sprint(p.Idle), "must not be above max", fmt.Sprint(p.Max))
	}
	if len(p.Curve) > 0 && (len(p.Curve) < 2 || len(p.Curve) > 101 || p.Idle > 0 || p.Max > 0) {
		c.bad(at+".curve", fmt.Sprint(len(p.Curve)), "must have 2 to 101 points, and no idle or max beside it", "[86, 92, 99, 106, 112, 117]")
	}
	for i, w := range p.Curve {
		c.within(fmt.Sprintf("%s.curve[%d]", at, i), w, 0, 1e6, "86")
	}
}

func (c *checker) tenants(s *Scenario) {
	seen := map[string]bool{}
	for i := range s.Tenants {
		t, at := &s.Tenants[i], fmt.Sprintf("tenants[%d]", i)
		if seen[t.Name] {
			c.bad(at+".name", t.Name, "is there twice", t.Name+"-2")
		}
		if p := api.ParentTenant(t.Name); p != "" && !seen[p] {
			c.bad(at+".name", t.Name, "its parent must come before it", p)
		}
		seen[t.Name] = true
		c.tenant(at, t)
	}
}

func (c *checker) tenant(at string, t *Tenant) {
	if err := api.Check(t.Object()); err != nil {
		c.take(at, err)
	}
}

// Object is the tenant as the pool keeps it.
func (t *Tenant) Object() *api.Tenant {
	return &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: t.Name}},
		Spec: api.TenantSpec{Guarantee: t.Guarantee, Limit: t.Limit, Weight: t.Weight}}
}

func (c *checker) fault(at string, s *Scenario, f *Fault) {
	c.oneOf(at+".kind", f.Kind, FaultKinds()...)
	if (len(f.At) > 0) == (f.MeanEvery != 0) {
		c.bad(at+".at", "", "give either at or meanEvery", "[2h]")
	}
	for i, t := range f.At {
		c.span(fmt.Sprintf("%s.at[%d]", at, i), t.D(), 0, maxDuration, "2h")
	}
	if f.MeanEvery != 0 {
		c.span(at+".meanEvery", f.MeanEvery.D(), time.Second, maxDuration, "6h")
	}
	c.span(at+".lasts", f.Lasts.D(), 0, maxDuration, "10m")
	c.selection(at+".where", s, &f.Where)
	switch f.Kind {
	case FaultZone:
		if f.Where.Zone == "" {
			c.bad(at+".where.zone", "", "must name the zone", "a")
		}
	case FaultSlowDisk:
		c.within(at+".factor", f.Factor, 1, 10_000, "20")
	case FaultStarts:
		c.within(at+".rate", f.Rate, 0, 1, "0.5")
	case FaultClock:
		c.span(at+".by", f.By.D(), -maxDuration, maxDuration, "-10m")
		if f.By == 0 {
			c.bad(at+".by", "0s", "must not be zero", "-10m")
		}
	case FaultFlap:
		c.span(at+".every", f.Every.D(), time.Second, maxDuration, "5m")
		c.span(at+".lasts", f.Lasts.D(), 100*time.Millisecond, f.Every.D(), "30s")
		c.within(at+".times", float64(f.Times), 1, 10_000, "5")
	}
}

func (c *checker) selection(at string, s *Scenario, w *Selection) {
	if w.Group != "" {
		if _, ok := c.groups[w.Group]; !ok {
			c.bad(at+".group", w.Group, "must be a group of hosts", firstGroup(s))
		}
	}
	if w.Pick < 0 || w.Pick > 0 && w.Share > 0 {
		c.bad(at+".pick", strconv.Itoa(w.Pick), "must be 1 or more, without share", "3")
	}
	c.within(at+".share", w.Share, 0, 1, "0.1")
	if w.Zone != "" && len(s.Hosts) > 0 {
		found := false
		for _, g := range s.Hosts {
			found = found || slices.Contains(g.Zones, w.Zone)
		}
		if !found {
			c.bad(at+".zone", w.Zone, "must be a zone of some group of hosts", "")
		}
	}
}

func firstGroup(s *Scenario) string {
	if len(s.Hosts) == 0 {
		return ""
	}
	return s.Hosts[0].Name
}

func (c *checker) change(at string, s *Scenario, h *Change) {
	c.span(at+".at", h.At.D(), 0, maxDuration, "3h")
	n := 0
	for _, has := range []bool{h.Add != "", h.Remove != nil, h.Cordon != nil, h.Open != nil, h.Drain != nil, h.Back != nil, h.Tenant != nil, h.Stop != nil} {
		if has {
			n++
		}
	}
	if n != 1 {
		c.bad(at, "", "must have exactly one of add, remove, cordon, uncordon, drain, restore, tenant and stop", "{at: 3h, cordon: {zone: a}}")
	}
	if h.Add != "" {
		if later, ok := c.groups[h.Add]; !ok || !later {
			c.bad(at+".add", h.Add, "must be a group of hosts with later: true", "")
		}
	}
	for field, w := range map[string]*Selection{".remove": h.Remove, ".cordon": h.Cordon, ".uncordon": h.Open, ".drain": h.Drain, ".restore": h.Back} {
		if w != nil {
			c.selection(at+field, s, w)
		}
	}
	if h.Tenant != nil {
		c.tenant(at+".tenant", h.Tenant)
	}
	if h.Stop != nil {
		if !c.names[h.Stop.Arrival] {
			c.bad(at+".stop.arrival", h.Stop.Arrival, "must be the name of an arrival", "")
		}
		c.within(at+".stop.share", h.Stop.Share, 0, 1, "0.5")
	}
}
