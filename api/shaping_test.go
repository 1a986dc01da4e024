package api

import (
	"strings"
	"testing"
)

func TestShapingIsChecked(t *testing.T) {
	for _, c := range []struct {
		name string
		spec InstanceSpec
		bad  string // part of what is said; "": nothing
	}{
		{"both", InstanceSpec{Limits: Resources{NetBandwidth: 100e6}, Requests: Resources{NetBandwidth: 10e6}}, ""},
		{"one direction", InstanceSpec{Shaping: &Shaping{Egress: &Rate{Limit: "100M", Burst: "1Mi"}}}, ""},
		{"counts", InstanceSpec{Networks: []Attach{{Name: "main"}}, Shaping: &Shaping{ConnectionsPerSecond: 500, PacketsPerSecond: 50000}}, ""},
		{"counts on the bridge", InstanceSpec{Shaping: &Shaping{PacketsPerSecond: 50000}}, "needs a network of the tenant"},
		{"a negative count", InstanceSpec{Networks: []Attach{{Name: "main"}}, Shaping: &Shaping{ConnectionsPerSecond: -1}}, "must be 1 to"},
		{"too little", InstanceSpec{Limits: Resources{NetBandwidth: 1000}}, "at least 64k"},
		{"nothing at all", InstanceSpec{Limits: Resources{NetBandwidth: 0}}, "at least 64k"},
		{"no rate", InstanceSpec{Shaping: &Shaping{Ingress: &Rate{Limit: "fast"}}}, "spec.shaping.ingress.limit"},
		{"above the limit", InstanceSpec{Limits: Resources{NetBandwidth: 1e6}, Shaping: &Shaping{Ingress: &Rate{Limit: "2M"}}}, "must not be more than spec.limits.netBandwidth"},
		{"below the guarantee", InstanceSpec{Requests: Resources{NetBandwidth: 5e6}, Shaping: &Shaping{Egress: &Rate{Limit: "2M"}}}, "must not be less than spec.requests.netBandwidth"},
		{"a guarantee above the limit", InstanceSpec{Requests: Resources{NetBandwidth: 5e6}, Limits: Resources{NetBandwidth: 1e6}}, "must not be more than spec.limits.netBandwidth"},
		{"a burst alone", InstanceSpec{Shaping: &Shaping{Egress: &Rate{Burst: "1Mi"}}}, "needs a limit"},
		{"a burst of nothing", InstanceSpec{Shaping: &Shaping{Egress: &Rate{Limit: "1M", Burst: "1"}}}, "2Ki to 1Gi"},
		{"no network of its own", InstanceSpec{Networks: []Attach{{Name: NetworkHost}}, Limits: Resources{NetBandwidth: 1e6}}, "which it does not have on network host"},
	} {
		in := &Instance{Head: Head{K: KindInstance, Meta: Meta{Name: "a", Tenant: "acme"}}, Spec: c.spec}
		in.Spec.Image = "busybox"
		err := Check(in)
		switch {
		case c.bad == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%s: %v, want %q", c.name, err, c.bad)
		}
	}
}

func TestBands(t *testing.T) {
	s := InstanceSpec{Requests: Resources{NetBandwidth: 1e6}, Limits: Resources{NetBandwidth: 10e6}, Shaping: &Shaping{Egress: &Rate{Limit: "5M", Burst: "64Ki"}}}
	in, out := s.Bands()
	if in != (Band{1e6, 10e6, 0}) || out != (Band{1e6, 5e6, 64 << 10}) {
		t.Errorf("%+v %+v", in, out)
	}
}

func TestDropRuleIsChecked(t *testing.T) {
	for p, bad := range map[string]string{"203.0.113.0/24": "", "203.0.113.7": "", "2001:db8::/32": "", "203.0.113.7/24": "other bits", "host": "must be an address", "0.0.0.0/0": "127.0.0.0/8", "fe80::/64": "fe80::/10", "::ffff:203.0.113.7": "must be an address"} {
		r := &DropRule{Head: Head{K: KindDropRule, Meta: Meta{Name: "a"}}, Spec: DropRuleSpec{Prefix: p}}
		err := Check(r)
		if bad == "" && err != nil || bad != "" && (err == nil || !strings.Contains(err.Error(), bad)) {
			t.Errorf("%s: %v, want %q", p, err, bad)
		}
		r.Spec.Force = true
		if q, ok := r.Spec.Parse(); ok && (Check(r) != nil || !ValidName(DropRuleName(q))) {
			t.Errorf("%s by force: %v, %s", p, Check(r), DropRuleName(q))
		}
	}
}
