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
