package api

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestImageName(t *testing.T) {
	for ref, want := range map[string]string{
		"busybox": "busybox", "docker.io/library/busybox:latest": "busybox", "debian:12": "debian-12", "debian:latest": "debian",
		"registry.example.com:5000/Team/app:1.4": "registry-example-com-5000-team-app-1-4", "a//b": "a-b",
	} {
		if got := ImageName(ref); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		ref := rapid.StringN(1, 200, 400).Draw(t, "ref")
		n := ImageName(ref)
		if n == "" || len(n) > 63 || strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || n[0] == '-' || n[len(n)-1] == '-' {
			t.Fatalf("%q is no DNS label", n)
		}
	})
}

func TestSharedImagesAreInTheSharedTenantOnly(t *testing.T) {
	for _, c := range []struct {
		tenant string
		shared bool
		ok     bool
	}{{"acme", false, true}, {"acme", true, false}, {SharedTenant, true, true}, {SharedTenant, false, false}} {
		i := &Image{Head: Head{K: KindImage, Meta: Meta{Name: "app", Tenant: c.tenant}}, Spec: ImageSpec{Reference: "app", Shared: c.shared}}
		if f := i.Validate(); (len(f) == 0) != c.ok {
			t.Errorf("%+v: %v", c, f)
		}
	}
	if f := (&Tenant{Head: Head{K: KindTenant, Meta: Meta{Name: SharedTenant}}}).Validate(); len(f) != 1 {
		t.Errorf("a tenant called %s: %v", SharedTenant, f)
	}
}

func TestCPUSetsAreBounded(t *testing.T) {
	for set, ok := range map[string]bool{"0-3,8": true, "0": true, "3,1": false, "0-3,2": false, "1,1": false, strings.Repeat("0-4095,", 3000) + "0": false} {
		if _, err := ParseCPUSet(set); (err == nil) != ok {
			t.Errorf("%.20s: %v", set, err)
		}
	}
	p := &PriorityClass{Spec: PriorityClassSpec{Value: 1, Default: true, Preempt: true}}
	if len(p.Validate()) == 0 {
		t.Error("who names no class would take the place of others")
	}
	many := &Instance{Spec: InstanceSpec{Image: "x", Placement: &Placement{}}}
	for range 17 {
		many.Spec.Placement.Avoid = append(many.Spec.Placement.Avoid, AffinityTerm{Labels: map[string]string{"a": "b"}})
	}
	if len(many.Validate()) == 0 {
		t.Error("no bound on terms")
	}
}
