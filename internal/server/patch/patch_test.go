package patch

import (
	"encoding/json"
	"testing"

	"atoll/api"
)

func FuzzPatch(f *testing.F) {
	for _, s := range []string{`{"a":null}`, `{"metadata":{"labels":{"a":null}}}`, `{"spec":[]}`, `{"spec":{"env":null}}`, `1`, `{"kind":"Tenant"}`} {
		f.Add(s)
	}
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: "a", Tenant: "acme"}}, Spec: api.InstanceSpec{Image: "busybox"}}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse([]byte(s))
		if err != nil {
			return
		}
		b, err := Apply(in, p)
		if err == nil && !json.Valid(b) {
			t.Fatalf("%s", b)
		}
	})
}
