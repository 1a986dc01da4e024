// Package explain documents the fields of kinds, read off their structs and tags: for
// atoll explain and for the schemas of the API. It is pure.
package explain

import (
	"reflect"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

// Field documents one field, read off the struct and its tags:
// json (name), doc (one sentence), example, default, enum (a|b|c).
type Field struct {
	Path     string // spec.limits
	Name     string
	Type     string // string, integer, boolean, duration, time, resources, object, list of T, map of T
	Doc      string
	Example  string
	Default  string
	Enum     []string
	Children []Field
}

// Of documents a path of a kind: "instance", "instance.spec.limits", "tenant.spec".
func Of(path string) (*Field, error) {
	parts := strings.Split(strings.Trim(path, "."), ".")
	d, ok := api.Lookup(parts[0])
	if !ok {
		return nil, errs.New(errs.NotFound, "unknown kind %q", clip(parts[0])).WithHint("known kinds: %s", strings.Join(api.KindNames(), ", "))
	}
	cur := Field{Path: d.Singular(), Name: d.Singular(), Type: "object", Doc: d.Doc,
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

func fieldDocs(t reflect.Type, prefix string, depth int) []Field {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() == reflect.Map && t != reflect.TypeFor[api.Resources]() {
		t = t.Elem()
	}
	if t == reflect.TypeFor[api.Resources]() {
		var out []Field
		for _, r := range api.ResourceNames() {
			doc, example := api.ResourceDoc(r)
			out = append(out, Field{Path: prefix + "." + string(r), Name: string(r), Type: "quantity", Doc: doc, Example: example})
		}
		return out
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() || depth > maxSchemaDepth {
		return nil
	}
	var out []Field
	api.EachField(t, func(f reflect.StructField, name string) {
		d := Field{Path: prefix + "." + name, Name: name, Type: typeName(f.Type),
			Doc: f.Tag.Get("doc"), Example: f.Tag.Get("example"), Default: f.Tag.Get("default")}
		if e := f.Tag.Get("enum"); e != "" {
			d.Enum = strings.Split(e, "|")
		}
		d.Children = fieldDocs(f.Type, d.Path, depth+1)
		out = append(out, d)
	})
	return out
}

func typeName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Time]() || t.Kind() == reflect.Pointer && t.Elem() == reflect.TypeFor[time.Time]():
		return "time"
	case t == reflect.TypeFor[api.Duration]():
		return "duration"
	case t == reflect.TypeFor[api.Resources]():
		return "resources"
	case t == reflect.TypeFor[api.Share]():
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

// clip keeps hostile input from filling an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
