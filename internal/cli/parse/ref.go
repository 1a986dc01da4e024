package parse

import (
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

// UnknownKind says which kind was probably meant.
func UnknownKind(name string) error {
	e := errs.New(errs.Invalid, "unknown kind %q", name).WithHint("known kinds: %s", strings.Join(api.KindNames(), ", "))
	if near := api.Nearest(name, api.KindNames()); near != "" {
		e.Hint = "did you mean " + near + "? atoll api-resources lists all"
	}
	return e
}

// Ref takes "instance/web", "instance/acme/research/web" or "tenant/acme/research"
// apart; ok is false when s does not begin with a kind.
func Ref(s string) (d *api.Definition, tenant, name string, ok bool) {
	kind, rest, has := strings.Cut(s, "/")
	d, known := api.Lookup(kind)
	if !has || !known || rest == "" {
		return nil, "", "", false
	}
	if !d.Tenanted {
		return d, "", rest, true
	}
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		return d, rest[:i], rest[i+1:], true
	}
	return d, "", rest, true
}
