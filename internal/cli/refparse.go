package cli

import (
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

func unknownKind(name string) error {
	e := errs.New(errs.Invalid, "unknown kind %q", name).WithHint("known kinds: %s", strings.Join(api.KindNames(), ", "))
	if near := api.Nearest(name, api.KindNames()); near != "" {
		e.Hint = "did you mean " + near + "? atoll api-resources lists all"
	}
	return e
}

// splitRef takes "instance/web", "instance/acme/research/web" or "tenant/acme/research"
// apart; ok is false when s does not begin with a kind.
func splitRef(s string) (d *api.Definition, tenant, name string, ok bool) {
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

func article(s string) string {
	if strings.ContainsRune("aeiou", rune(s[0])) {
		return "an " + s
	}
	return "a " + s
}
