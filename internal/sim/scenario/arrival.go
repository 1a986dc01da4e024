package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

func asError(err error, target **errs.Error) bool { return errors.As(err, target) }

func (c *checker) arrival(at string, s *Scenario, a *Arrival) {
	if !name(a.Name) || c.names[a.Name] {
		c.bad(at+".name", a.Name, nameRule+", and used once", "web")
	}
	c.names[a.Name] = true
	if !slices.ContainsFunc(s.Tenants, func(t Tenant) bool { return t.Name == a.Tenant }) {
		c.bad(at+".tenant", a.Tenant, "must be one of tenants", firstTenant(s))
	}
	ways := 0
	for _, has := range []bool{len(a.At) > 0, a.Poisson != nil, a.Bursts != nil, a.Daily != nil, a.Trace != nil} {
		if has {
			ways++
		}
	}
	if ways != 1 {
		c.bad(at, a.Name, "must have exactly one of at, poisson, bursts, daily and trace", "at: [0s]")
	}
	for i, t := range a.At {
		c.span(fmt.Sprintf("%s.at[%d]", at, i), t.D(), 0, maxDuration, "30m")
	}
	c.span(at+".over", a.Over.D(), 0, maxDuration, "10m")
	if a.Over > 0 && len(a.At) == 0 {
		c.bad(at+".over", a.Over.D().String(), "goes with at only", "0s")
	}
	if a.Over > 0 && a.Gang != nil {
		c.bad(at+".over", a.Over.D().String(), "cannot go with gang: its members come together", "0s")
	}
	c.span(at+".from", a.From.D(), 0, maxDuration, "1h")
	c.span(at+".until", a.Until.D(), 0, maxDuration, "8h")
	c.span(at+".retry", a.Retry.D(), 0, maxDuration, "1m")
	c.within(at+".count", float64(a.Count), 1, maxInstances, "10")
	c.within(at+".most", float64(a.Most), 0, maxInstances, "1000")
	if a.Poisson != nil {
		c.within(at+".poisson.perMinute", a.Poisson.PerMinute, 1e-6, 1e6, "3")
	}
	if b := a.Bursts; b != nil {
		c.span(at+".bursts.every", b.Every.D(), time.Second, maxDuration, "1h")
		c.span(at+".bursts.spread", b.Spread.D(), 0, b.Every.D(), "2m")
		c.span(at+".bursts.jitter", b.Jitter.D(), 0, b.Every.D(), "10m")
		c.within(at+".bursts.size", float64(b.Size), 1, maxInstances, "50")
	}
	if d := a.Daily; d != nil {
		c.within(at+".daily.perMinute", d.PerMinute, 1e-6, 1e6, "3")
		c.within(at+".daily.ratio", d.Ratio, 1, 1e6, "4")
		c.span(at+".daily.peak", d.Peak.D(), 0, 24*time.Hour, "14h")
	}
	if a.Trace != nil {
		c.trace(at+".trace", a.Trace)
	}
	c.lifetime(at+".lifetime", a)
	c.use(at+".use", &a.Use)
	c.instance(at, a)
}

func firstTenant(s *Scenario) string {
	if len(s.Tenants) == 0 {
		return ""
	}
	return s.Tenants[0].Name
}

func (c *checker) trace(at string, t *TraceIn) {
	if t.File == "" || len(t.File) > 4096 {
		c.bad(at+".file", t.File, "must name a file", "requests.csv.gz")
	}
	c.oneOf(at+".format", t.Format, "atoll", "azure-llm", "prometheus")
	c.span(at+".offset", t.Offset.D(), 0, maxDuration, "1h")
	c.within(at+".speed", t.Speed, 1e-3, 1e6, "1")
	c.within(at+".keep", t.Keep, 0, 1, "0.1")
	c.within(at+".scale", t.Scale, 0, 1e12, "0.01")
	c.within(at+".prefillPerSecond", t.PrefillPerSecond, 1e-3, 1e9, "8000")
	c.within(at+".decodePerSecond", t.DecodePerSecond, 1e-3, 1e9, "40")
}

func (c *checker) lifetime(at string, a *Arrival) {
	l := a.Lifetime
	if l.Fixed > 0 && l.Mean > 0 || l.Trace && (l.Fixed > 0 || l.Mean > 0) {
		c.bad(at, "", "must have at most one of fixed, mean and trace", "{mean: 20m}")
	}
	if l.Trace && a.Trace == nil {
		c.bad(at+".trace", "true", "needs arrivals from a trace", "{mean: 20m}")
	}
	c.span(at+".fixed", l.Fixed.D(), 0, maxDuration, "1h")
	c.span(at+".mean", l.Mean.D(), 0, maxDuration, "20m")
	c.span(at+".min", l.Min.D(), 0, maxDuration, "1m")
	if l.Max != 0 {
		c.span(at+".max", l.Max.D(), l.Min.D(), maxDuration, "24h")
	}
	if l.Mean > 0 {
		c.oneOf(at+".shape", l.Shape, "exponential", "lognormal", "uniform", "pareto")
	}
	lo := 0.0
	if l.Shape == "pareto" {
		lo = 1.01
	}
	c.within(at+".sigma", l.Sigma, lo, 10, "1.5")
}

func (c *checker) use(at string, u *Use) {
	for _, x := range []struct {
		name string
		l    *Level
	}{{"cpu", u.CPU}, {"memory", u.Memory}, {"gpu", u.GPU}} {
		l := x.l
		if l == nil {
			continue
		}
		at := at + "." + x.name
		n := 0
		for _, has := range []bool{l.Share != nil, l.Mean != 0, l.Trace != nil} {
			if has {
				n++
			}
		}
		if n != 1 {
			c.bad(at, "", "must have exactly one of share, mean and trace", "{mean: 0.4}")
		}
		if l.Share != nil {
			c.within(at+".share", *l.Share, 0, 10, "0.5")
		}
		c.within(at+".mean", l.Mean, 0, 10, "0.4")
		c.within(at+".spread", l.Spread, 0, 10, "0.1")
		c.within(at+".noise", l.Noise, 0, 10, "0.05")
		c.within(at+".daily", l.Daily, 0, 1, "0.5")
		if l.Trace != nil {
			c.trace(at+".trace", l.Trace)
		}
	}
}

// instance checks by the rules of the instances that come of it.
func (c *checker) instance(at string, a *Arrival) {
	if len(a.Sizes) > 1000 {
		c.bad(at+".sizes", strconv.Itoa(len(a.Sizes)), "must be at most 1000", "")
		return
	}
	for i, z := range a.Sizes {
		c.within(fmt.Sprintf("%s.sizes[%d].weight", at, i), z.Weight, 1e-9, 1e9, "1")
		if err := api.Check(a.Instance("x", z)); err != nil {
			c.take(fmt.Sprintf("%s.sizes[%d]", at, i), err)
		}
	}
	if a.Gang != nil {
		if a.Count < 2 && a.Bursts == nil {
			c.bad(at+".gang", "", "needs a count of 2 or more, or bursts", "count: 8")
		}
		if a.Gang.Timeout != 0 {
			c.span(at+".gang.timeout", a.Gang.Timeout.D(), time.Second, 7*24*time.Hour, "10m")
		}
	}
	if a.Placement != nil && a.Placement.Gang != nil {
		c.bad(at+".placement.gang", a.Placement.Gang.Name, "is made by the field gang of the arrival", "gang: {timeout: 10m}")
	}
}

// Program is what instances run: it lasts until it is asked to end.
func Program() []string { return []string{"sh", "-c", "trap 'exit 0' TERM; serve"} }

// Instance is one of the arrival's instances.
func (a *Arrival) Instance(name string, z Size) *api.Instance {
	labels := map[string]string{"app": a.Name}
	for k, v := range a.Labels {
		labels[k] = v
	}
	return &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: a.Tenant, Generation: 1, Labels: labels, Finalizers: []string{"node"}}},
		Spec: api.InstanceSpec{Image: "sim", Command: Program(), Requests: z.Requests, Limits: z.Limits, Placement: a.Placement,
			Priority: a.Priority, Isolation: a.Isolation, GPUModels: a.GPUModels}}
}

// Expected is about how many instances arrive; those of traces are not known here.
func (s *Scenario) Expected() float64 {
	sum := 0.0
	for i := range s.Arrivals {
		sum += s.Arrivals[i].Expected(s.Duration)
	}
	return sum
}

// Expected is about how many instances of the arrival come within d.
func (a *Arrival) Expected(d api.Duration) float64 {
	until := d
	if a.Until > 0 {
		until = min(a.Until, d)
	}
	minutes := max((until - a.From).D().Minutes(), 0)
	n := float64(len(a.At))
	switch {
	case a.Poisson != nil:
		n = a.Poisson.PerMinute * minutes
	case a.Daily != nil:
		n = a.Daily.PerMinute * minutes
	case a.Bursts != nil && a.Bursts.Every > 0:
		n = (minutes/a.Bursts.Every.D().Minutes() + 1) * float64(a.Bursts.Size)
	}
	n *= float64(a.Count)
	if a.Most > 0 {
		n = min(n, float64(a.Most))
	}
	return n
}
