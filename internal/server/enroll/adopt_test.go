package enroll

import (
	"bytes"
	"fmt"
	"testing"

	"atoll/api"
	"atoll/internal/join/adopt"
)

// Whatever a host sends is read or refused, and what is read can be planned with; nothing
// of it comes to be outside of the tenant, on another host, or under a name that is none.
func FuzzAdoption(f *testing.F) {
	one := func(objects string) []byte {
		return fmt.Appendf(nil, `{"csr":"x","node":"isle9","was":"isle9","tenant":"acme","subnet":"10.88.0.0/16","objects":[%s]}`, objects)
	}
	tenant := `{"kind":"Tenant","metadata":{"name":"shop"},"status":{"uidBase":4194304,"uidCount":65536}}`
	f.Add(one(tenant + `,{"kind":"Instance","metadata":{"name":"web","tenant":"shop","uid":"abababababababababababababababab","owner":{"kind":"Deployment","tenant":"other","name":"x"}},"spec":{"image":"busybox","placement":{"node":"isle9"}},"status":{"node":"isle1"}}`))
	f.Add(one(tenant + `,{"kind":"Assignment","metadata":{"name":"../x","tenant":"shop"},"spec":{"node":"isle9","evict":{"to":"isle9"}}}`))
	f.Add(one(tenant + `,{"kind":"Image","metadata":{"name":"a","tenant":"shared"},"spec":{"reference":"a","digest":"sha256:","shared":true}},null,{},7`))
	f.Add(one(`{"kind":"CronJob","metadata":{"name":"c","tenant":"shop"},"spec":{"job":{"spec":{"template":{"spec":{"image":"a"}}}}}}`))
	f.Add([]byte(`{"objects":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readAdoption(bytes.NewReader(b))
		if err != nil {
			return
		}
		v := adopt.View{Tenants: map[string]*api.Tenant{"acme": {}}, Subnet: "10.88.0.0/16"}
		p := adopt.Make(a.tenant, a.old, v)
		if len(p.Clashes) > 0 {
			return
		}
		for _, o := range p.Objects {
			m := o.Metadata()
			if where := m.Tenant + m.Name; !api.WithinTenant(m.Tenant, a.tenant) && o.ObjectKind() != api.KindTenant || !api.WithinTenant(m.Name, a.tenant) && o.ObjectKind() == api.KindTenant || where == a.tenant {
				t.Fatalf("%s is not in %s", api.RefOf(o), a.tenant)
			}
			if err := api.Check(o); err != nil {
				t.Fatal(err)
			}
			if m.Owner != nil && m.Owner.Tenant != "" && !api.WithinTenant(m.Owner.Tenant, a.tenant) {
				t.Fatalf("%s belongs to %s", api.RefOf(o), m.Owner)
			}
			switch o := o.(type) {
			case *api.Instance:
				if n := o.Status.Node; n != "" && n != a.req.Node {
					t.Fatal(n)
				}
			case *api.Assignment:
				if n := o.Spec.Node; n != "" && n != a.req.Node {
					t.Fatal(n)
				}
			}
		}
	})
}
