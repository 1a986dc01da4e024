package api

import (
	"fmt"
	"reflect"
	"sort"
	"strings"
	"sync"
	"time"

	"atoll/internal/errs"
)

// FieldDoc documents one field, read off the struct and its tags:
// json (name), doc (one sentence), example, default, enum (a|b|c).
type FieldDoc struct {
	Path     string // spec.limits
	Name     string
	Type     string // string, integer, boolean, duration, time, resources, object, list of T, map of T
	Doc      string
	Example  string
	Default  string
	Enum     []string
	Children []FieldDoc
}

// Explain documents a path of a kind: "instance", "instance.spec.limits", "tenant.spec".
func Explain(path string) (*FieldDoc, error) {
	parts := strings.Split(strings.Trim(path, "."), ".")
	d, ok := Lookup(parts[0])
	if !ok {
		return nil, errs.New(errs.NotFound, "unknown kind %q", clip(parts[0])).WithHint("known kinds: %s", strings.Join(KindNames(), ", "))
	}
	cur := FieldDoc{Path: d.Singular(), Name: d.Singular(), Type: "object", Doc: d.Doc,
		Children: fieldDocs(reflect.TypeOf(d.New()).Elem(), d.Singular(), 0)}
	for _, p := range parts[1:] {
		next := -1
		for i, c := range cur.Children {
			if strings.EqualFold(c.Name, p) {
				next = i
			}
		}
		if next < 0 {
			var names []string
			for _, c := range cur.Children {
				names = append(names, c.Name)
			}
			return nil, errs.New(errs.NotFound, "%s has no field %q", cur.Path, clip(p)).WithHint("fields: %s", strings.Join(names, ", "))
		}
		cur = cur.Children[next]
	}
	return &cur, nil
}

const maxSchemaDepth = 12 // no kind nests deeper; stops a type that contains itself

func fieldDocs(t reflect.Type, prefix string, depth int) []FieldDoc {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() == reflect.Map && t != reflect.TypeFor[Resources]() {
		t = t.Elem()
	}
	if t == reflect.TypeFor[Resources]() {
		var out []FieldDoc
		for _, r := range resourceTable {
			out = append(out, FieldDoc{Path: prefix + "." + string(r.name), Name: string(r.name), Type: "quantity", Doc: r.doc, Example: r.example})
		}
		return out
	}
	if t.Kind() != reflect.Struct || t == timeType || depth > maxSchemaDepth {
		return nil
	}
	var out []FieldDoc
	eachField(t, func(f reflect.StructField, name string) {
		d := FieldDoc{Path: prefix + "." + name, Name: name, Type: typeName(f.Type),
			Doc: f.Tag.Get("doc"), Example: f.Tag.Get("example"), Default: f.Tag.Get("default")}
		if e := f.Tag.Get("enum"); e != "" {
			d.Enum = strings.Split(e, "|")
		}
		d.Children = fieldDocs(f.Type, d.Path, depth+1)
		out = append(out, d)
	})
	return out
}

// eachField visits the JSON fields of a struct, embedded structs without a name flattened.
func eachField(t reflect.Type, fn func(f reflect.StructField, name string)) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			eachField(f.Type, fn)
			continue
		}
		if !f.IsExported() || name == "-" || name == "" {
			continue
		}
		fn(f, name)
	}
}

func typeName(t reflect.Type) string {
	switch {
	case t == timeType || t.Kind() == reflect.Pointer && t.Elem() == timeType:
		return "time"
	case t == reflect.TypeFor[Duration]():
		return "duration"
	case t == reflect.TypeFor[Resources]():
		return "resources"
	case t == reflect.TypeFor[Share]():
		return "share"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint16, reflect.Uint32:
		return "integer"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Map:
		return "map of " + typeName(t.Elem())
	default:
		return "object"
	}
}

// unknownFields finds the keys of raw that t does not have.
func unknownFields(t reflect.Type, raw any, path string, out []errs.Field) []errs.Field {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := raw.(type) {
	case []any:
		if t.Kind() != reflect.Slice {
			return out
		}
		for i, e := range v {
			out = unknownFields(t.Elem(), e, fmt.Sprintf("%s[%d]", path, i), out)
		}
	case map[string]any:
		if t.Kind() == reflect.Map && t != reflect.TypeFor[Resources]() {
			for k, e := range v {
				out = unknownFields(t.Elem(), e, join(path, k), out)
			}
			return out
		}
		if t.Kind() != reflect.Struct || t == timeType {
			return out
		}
		known := fieldTypes(t)
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			if ft, ok := known[k]; ok {
				out = unknownFields(ft, v[k], join(path, k), out)
				continue
			}
			f := errs.Field{Field: join(path, clip(k)), Rule: "is not a field"}
			if near := nearest(k, known); near != "" {
				f.Rule = "is not a field; did you mean " + join(path, near) + "?"
			}
			out = append(out, f)
		}
	}
	return out
}

// fieldTypes are the fields of a struct by their names in JSON. Do not change the map.
func fieldTypes(t reflect.Type) map[string]reflect.Type {
	if known, ok := ofKinds()[t]; ok {
		return known
	}
	return readFields(t)
}

func readFields(t reflect.Type) map[string]reflect.Type {
	known := map[string]reflect.Type{}
	eachField(t, func(f reflect.StructField, name string) { known[name] = f.Type })
	return known
}

// ofKinds are the fields of all structs in objects, read once: every request asks for them.
var ofKinds = sync.OnceValue(func() map[reflect.Type]map[string]reflect.Type {
	all := map[reflect.Type]map[string]reflect.Type{}
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(t.Elem())
		case reflect.Struct:
			if all[t] != nil || t == timeType {
				return
			}
			all[t] = readFields(t)
			for _, f := range all[t] {
				walk(f)
			}
		}
	}
	for _, d := range definitions {
		walk(reflect.TypeOf(d.New()))
	}
	return all
})

func join(path, k string) string {
	if path == "" {
		return k
	}
	return path + "." + k
}

func nearest(k string, known map[string]reflect.Type) string {
	best, bestD := "", 3 // at most two edits away
	names := make([]string, 0, len(known))
	for n := range known {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if d := distance(strings.ToLower(k), strings.ToLower(n)); d < bestD {
			best, bestD = n, d
		}
	}
	return best
}

// Nearest finds the candidate at most two edits away from s, "" if none is.
func Nearest(s string, candidates []string) string {
	m := map[string]reflect.Type{}
	for _, c := range candidates {
		m[c] = nil
	}
	return nearest(s, m)
}

// distance is Levenshtein's edit distance; long words are not compared.
func distance(a, b string) int {
	if len(a) > 40 || len(b) > 40 {
		return 40
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := prev
			if a[i-1] != b[j-1] {
				cost++
			}
			prev = row[j]
			row[j] = min(row[j]+1, row[j-1]+1, cost)
		}
	}
	return row[len(b)]
}

// Duration is a time.Duration written as "5s" or "1m30s".
type Duration time.Duration

// D is the duration as the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// MarshalText writes "1m30s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads "1m30s".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration (example: 30s)", clip(string(b)))
	}
	*d = Duration(v)
	return nil
}
