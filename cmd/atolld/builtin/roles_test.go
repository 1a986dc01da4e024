package builtin

import (
	"reflect"
	"slices"
	"testing"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Roles of an earlier release get the kinds that came later, unless somebody made them their own.
func TestUpdateRoles(t *testing.T) {
	m := store.NewMem()
	wanted := map[string]api.RoleSpec{}
	for _, r := range auth.BuiltinRoles() {
		wanted[r.Name] = api.Clone(r).Spec
		r = api.Clone(r) // they share a list of kinds
		r.Generation = 1
		switch r.Name {
		case "admin":
			continue // removed by its pool
		case "operator": // as of long ago
			r.Spec.Rules = r.Spec.Rules[:1]
			r.Spec.Rules[0].Kinds = slices.DeleteFunc(r.Spec.Rules[0].Kinds, func(k string) bool { return k == "deployment" || k == "member" })
		case "developer": // edited
			r.Spec.Rules = r.Spec.Rules[1:]
			r.Generation = 2
		}
		if _, err := m.Commit(t.Context(), store.Create(r)); err != nil {
			t.Fatal(err)
		}
	}
	own := &api.Role{Head: api.Head{K: api.KindRole, Meta: api.Meta{Name: "own", Generation: 1}}, Spec: api.RoleSpec{Rules: []api.RoleRule{{Verbs: []api.Verb{api.VerbGet}, Kinds: []string{"node"}}}}}
	if _, err := m.Commit(t.Context(), store.Create(own)); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{{"operator"}, nil} { // then there is nothing left to do
		changed, err := UpdateRoles(t.Context(), m)
		if err != nil || !slices.Equal(changed, want) {
			t.Fatal(changed, want, err)
		}
	}
	get := func(name string) *api.Role {
		r, err := store.Get[*api.Role](t.Context(), m, api.Ref{Kind: api.KindRole, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, name := range []string{"operator", "viewer"} {
		if r := get(name); !reflect.DeepEqual(r.Spec, wanted[name]) || r.Generation != 1 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if len(get("developer").Spec.Rules) != 1 || len(get("own").Spec.Rules) != 1 {
		t.Error("an edited role was changed back")
	}
	if _, err := m.Get(t.Context(), api.Ref{Kind: api.KindRole, Name: "admin"}); errs.KindOf(err) != errs.NotFound {
		t.Error("a removed role is there again:", err)
	}
	unlabelled := api.Clone(get("viewer"))
	unlabelled.Labels, unlabelled.Spec.Rules = nil, unlabelled.Spec.Rules[:1]
	if _, err := m.Commit(t.Context(), store.Set(unlabelled)); err != nil {
		t.Fatal(err)
	}
	if changed, err := UpdateRoles(t.Context(), m); err != nil || len(changed) != 0 {
		t.Error(changed, err)
	}
}
