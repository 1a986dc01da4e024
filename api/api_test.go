package api

import (
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"

	"atoll/internal/errs"
)

func TestQuantities(t *testing.T) {
	for _, c := range []struct {
		r    Resource
		in   string
		want int64
		out  string
	}{
		{CPU, "500m", 500, "500m"}, {CPU, "2", 2000, "2"}, {CPU, "1.5", 1500, "1500m"}, {CPU, "0", 0, "0"},
		{Memory, "512Mi", 512 << 20, "512Mi"}, {Memory, "10G", 10e9, "10G"}, {Memory, "1.5Gi", 1536 << 20, "1536Mi"},
		{Memory, "123", 123, "123"}, {Memory, "7Ei", 7 << 60, "7Ei"}, {Instances, "50", 50, "50"}, {IOPS, "2k", 2000, "2000"},
	} {
		got, err := ParseQuantity(c.r, c.in)
		if err != nil || got != c.want {
			t.Errorf("%s %s: got %d %v, want %d", c.r, c.in, got, err, c.want)
		}
		if s := FormatQuantity(c.r, got); s != c.out {
			t.Errorf("%s %s: formatted %s, want %s", c.r, c.in, s, c.out)
		}
	}
	for _, bad := range []string{"", "x", "-1", "1.0001m", "1e3", "9Ei9", "16Ei", "1/2", "0x10", "1Qi", "++1", "."} {
		if v, err := ParseQuantity(CPU, bad); err == nil {
			t.Errorf("cpu %q: accepted as %d", bad, v)
		}
	}
}

func TestStrictDecodeNamesThePathAndTheLikelyField(t *testing.T) {
	_, err := DecodeStrict([]byte(`{"kind":"instance","metadata":{"name":"a","tenant":"t"},"spec":{"imge":"x","helth":{"tcp":"1"},"ports":[{"port":1,"publsh":2}]}}`))
	if !errors.Is(err, errs.Invalid) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"spec.imge", "did you mean spec.image?", "spec.helth", "spec.health", "spec.ports[0].publsh"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	o, err := DecodeStrict([]byte(`{"kind":"instance","metadata":{"name":"a","tenant":"t"},"spec":{"image":"x"}}`))
	if err != nil || o.ObjectKind() != KindInstance {
		t.Fatalf("%v %v", o, err)
	}
}

func TestCheckNamesFieldValueRuleExample(t *testing.T) {
	in := &Instance{Head: Head{K: KindInstance, Meta: Meta{Name: "Bad_Name", Tenant: "t"}},
		Spec: InstanceSpec{Image: "x", Requests: Resources{CPU: 2000}, Limits: Resources{CPU: 1000}, Restart: "sometimes"}}
	err := Check(in)
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Invalid {
		t.Fatalf("got %v", err)
	}
	got := map[string]errs.Field{}
	for _, f := range e.Fields {
		got[f.Field] = f
		if f.Rule == "" {
			t.Errorf("no rule: %+v", f)
		}
	}
	for _, want := range []string{"metadata.name", "spec.requests.cpu", "spec.restart"} {
		if got[want].Value == "" || got[want].Example == "" {
			t.Errorf("%s: no value or example in %+v", want, got[want])
		}
	}
}

func TestNamesOfKindsDoNotClash(t *testing.T) {
	seen := map[string]Kind{}
	for _, d := range Definitions() {
		for _, n := range append([]string{d.Singular(), d.Plural}, d.Aliases...) {
			if k, twice := seen[n]; twice && k != d.Kind {
				t.Errorf("%q names %s and %s", n, k, d.Kind)
			}
			seen[n] = d.Kind
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	b := true
	a := &Instance{Head: Head{K: KindInstance, Meta: Meta{Name: "a", Labels: map[string]string{"x": "1"}, Finalizers: []string{"node"}}},
		Spec: InstanceSpec{Requests: Resources{CPU: 1}, Placement: &Placement{Tolerate: []Taint{{Key: "k"}}}}, Status: InstanceStatus{Healthy: &b}}
	c := Clone(a)
	if !reflect.DeepEqual(a, c) {
		t.Fatalf("%+v\n%+v", a, c)
	}
	c.Labels["x"], c.Finalizers[0], c.Spec.Requests[CPU], c.Spec.Placement.Tolerate[0].Key, *c.Status.Healthy = "2", "q", 9, "z", false
	if a.Labels["x"] != "1" || a.Finalizers[0] != "node" || a.Spec.Requests[CPU] != 1 || a.Spec.Placement.Tolerate[0].Key != "k" || !*a.Status.Healthy {
		t.Fatalf("shared: %+v", a)
	}
}

func TestTenantPaths(t *testing.T) {
	if got := TenantChain("a/b/c"); !reflect.DeepEqual(got, []string{"a/b/c", "a/b", "a"}) {
		t.Fatal(got)
	}
	if !WithinTenant("a/b", "a") || WithinTenant("ab", "a") || !WithinTenant("x", "") || ParentTenant("a/b") != "a" || ParentTenant("a") != "" {
		t.Fatal("nesting")
	}
	for _, bad := range []string{"", "/a", "a/", "A", "a//b", "a/b/c/d/e", "..", "a/../b"} {
		if ValidTenantPath(bad) {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestClasses(t *testing.T) {
	for _, c := range []struct {
		req, lim Resources
		want     Class
	}{
		{nil, nil, ClassBestEffort},
		{nil, Resources{CPU: 1000}, ClassBestEffort},
		{Resources{CPU: 1}, nil, ClassBurstable},
		{Resources{CPU: 1, Memory: 1}, Resources{CPU: 1, Memory: 2}, ClassBurstable},
		{Resources{CPU: 1, Memory: 1}, Resources{CPU: 1, Memory: 1}, ClassGuaranteed},
	} {
		s := InstanceSpec{Requests: c.req, Limits: c.lim}
		if got := s.Class(); got != c.want {
			t.Errorf("%v %v: %s, want %s", c.req, c.lim, got, c.want)
		}
	}
}

func TestSelectors(t *testing.T) {
	o := &Instance{Head: Head{K: KindInstance, Meta: Meta{Name: "a", Tenant: "acme/x", Labels: map[string]string{"app": "db", "tier": "1"}}}, Status: InstanceStatus{Node: "n1"}}
	for sel, want := range map[string]bool{"app=db": true, "app!=db": false, "app": true, "!app": false, "!old": true, "app in (web db)": true, "app=web": false, "x!=1": true} {
		terms, err := ParseLabels(sel)
		if err != nil {
			t.Fatal(err)
		}
		if got := (Selector{Kind: KindInstance, Labels: terms}).Matches(o); got != want {
			t.Errorf("%s: %v", sel, got)
		}
	}
	if (Selector{Kind: KindInstance, Tenant: "acme"}).Matches(o) || !(Selector{Kind: KindInstance, Tenant: "acme", Nested: true}).Matches(o) {
		t.Error("tenant")
	}
	d, _ := Lookup("instances")
	f, err := ParseFields(d, "status.node=n1")
	if err != nil || !(Selector{Kind: KindInstance, Fields: f}).Matches(o) {
		t.Error("fields")
	}
	if _, err := ParseFields(d, "status.nod=n1"); !errors.Is(err, errs.Invalid) {
		t.Error("unknown field accepted")
	}
}

func FuzzDecodeStrict(f *testing.F) {
	f.Add([]byte(`{"kind":"Instance","metadata":{"name":"a"},"spec":{"image":"x","requests":{"cpu":"1"}}}`))
	f.Add([]byte(`{"kind":"Tenant","metadata":{"name":"a/b"},"spec":{"limit":{"cpu":1}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := DecodeStrict(data)
		if err != nil {
			return
		}
		_ = Check(o)
		b, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		c, _ := json.Marshal(again)
		if string(c) != string(b) {
			t.Fatalf("changed:\n%s\n%s", b, c)
		}
	})
}

func FuzzParseQuantity(f *testing.F) {
	f.Add("500m")
	f.Add("1.5Gi")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range ResourceNames() {
			v, err := ParseQuantity(r, s)
			if err != nil {
				continue
			}
			if back, err := ParseQuantity(r, FormatQuantity(r, v)); err != nil || back != v {
				t.Fatalf("%s %q = %d, back %d %v", r, s, v, back, err)
			}
		}
	})
}

// The short way gives what exact fractions give.
func TestWholeQuantity(t *testing.T) {
	for _, r := range []Resource{CPU, Memory, Pids} {
		row, _ := rowFor(r)
		for _, num := range []string{"0", "1", "7", "500", "1000", "1023", "999999", "123456789012345", "1234567890123456", "1.5", "-1", "+2"} {
			for _, suffix := range []string{"", "m", "k", "K", "M", "G", "T", "P", "E", "ki", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "GiB", "MB", "x", "xi"} {
				v, ok := wholeQuantity(row.unit, num, suffix)
				if !ok {
					continue
				}
				scale, known := suffixScale(suffix)
				if !known {
					t.Errorf("%s %s%s: there is no such unit", r, num, suffix)
					continue
				}
				want, _ := new(big.Rat).SetString(num)
				want.Mul(want, scale)
				if row.unit == milli {
					want.Mul(want, big.NewRat(1000, 1))
				}
				if want.Cmp(new(big.Rat).SetInt64(v)) != 0 {
					t.Errorf("%s %s%s is %d, not %s", r, num, suffix, v, want)
				}
			}
		}
	}
	for _, s := range []string{"1", "500m"} {
		if num, suffix := splitSuffix(s); true {
			if _, ok := wholeQuantity(milli, num, suffix); !ok {
				t.Errorf("%s goes the long way", s)
			}
		}
	}
	if _, ok := wholeQuantity(bytesUnit, "512", "Mi"); !ok {
		t.Error("512Mi goes the long way")
	}
}
