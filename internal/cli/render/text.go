package render

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"atoll/api"
)

// Pairs is a map as key=value, sorted.
func Pairs(m map[string]string) string {
	var out []string
	for _, k := range SortedKeys(m) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ", ")
}

// SortedKeys is the keys of a map in order.
func SortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Map is an object as the JSON it is written as.
func Map(o api.Object) (map[string]any, error) {
	b, err := api.Encode(o)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, json.Unmarshal(b, &m)
}

// Plural counts: "1 node", "3 nodes".
func Plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// Dash shows that there is nothing.
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// TrimFloat is a number with so many digits at most behind the point.
func TrimFloat(f float64, digits int) string {
	s := fmt.Sprintf("%.*f", digits, f)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// ShortRef is an object as a person would type it: instance/acme/web.
func ShortRef(o api.Object) string {
	d, _ := api.Lookup(string(o.ObjectKind()))
	if t := o.Metadata().Tenant; t != "" {
		return d.Singular() + "/" + t + "/" + o.Metadata().Name
	}
	return d.Singular() + "/" + o.Metadata().Name
}

// Article is a word with a or an before it.
func Article(s string) string {
	if strings.ContainsRune("aeiou", rune(s[0])) {
		return "an " + s
	}
	return "a " + s
}
