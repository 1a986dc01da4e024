package server

import (
	"testing"

	"atoll/internal/errs"
)

// What belongs to a tenant is not made in one that is not there.
func TestNetworksNeedTheirTenant(t *testing.T) {
	f := newFixture(t, Config{})
	for path, spec := range map[string]string{"networks": `{"cidr":"10.1.0.0/16"}`, "securitygroups": `{"select":{"app":"db"},"ingress":[]}`} {
		body := func(tenant string) string {
			return `{"metadata":{"name":"main","tenant":"` + tenant + `"},"spec":` + spec + `}`
		}
		f.do(root(), "POST", "/v1/"+path, body("nobody")).problem(errs.NotFound)
		f.do(root(), "POST", "/v1/"+path, body("acme")).want(201)
	}
}
