package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"atoll/api"
)

func pairs(m map[string]string) string {
	var out []string
	for _, k := range sortedKeys(m) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// asMap is an object as the JSON it is written as.
func asMap(o api.Object) (map[string]any, error) {
	b, err := api.Encode(o)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, json.Unmarshal(b, &m)
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func trimFloat(f float64, digits int) string {
	s := fmt.Sprintf("%.*f", digits, f)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

func shortRef(o api.Object) string {
	d, _ := api.Lookup(string(o.ObjectKind()))
	if t := o.Metadata().Tenant; t != "" {
		return d.Singular() + "/" + t + "/" + o.Metadata().Name
	}
	return d.Singular() + "/" + o.Metadata().Name
}
