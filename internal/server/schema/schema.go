// Package schema writes JSON schemas for the OpenAPI document: of kinds, from their
// documentation, and of other answers, from their Go types.
//
// It starts no goroutine and does no I/O. It must never say anything that the decoder of a
// kind does not do.
package schema

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/explain"
)

// Object is a JSON object.
type Object = map[string]any

// Ref refers to a schema of the document by its name.
func Ref(name string) Object { return Object{"$ref": "#/components/schemas/" + name} }

// List is the schema of a list of items.
func List(item Object) Object {
	return Object{"type": "object", "required": []string{"kind", "revision", "items"}, "properties": Object{
		"kind": Object{"type": "string"}, "revision": Object{"type": "integer", "description": "what the list is true at; watch from here"},
		"items": Object{"type": "array", "items": item}, "after": Object{"type": "string", "description": "where the next page starts; missing at the end"}}}
}

// Of makes a schema of the documentation of a field.
func Of(d explain.Field) Object {
	out := typed(d.Type, d.Children)
	if d.Doc != "" {
		out["description"] = d.Doc
	}
	if d.Example != "" {
		out["examples"] = []string{d.Example}
	}
	if d.Default != "" {
		out["x-default"] = d.Default // in words: the server does not write it into the spec
	}
	if len(d.Enum) > 0 && out["type"] == "string" {
		out["enum"] = append(slices.Clone(d.Enum), "")
	}
	return out
}

func typed(t string, children []explain.Field) Object {
	if of, ok := strings.CutPrefix(t, "list of "); ok {
		return Object{"type": "array", "items": typed(of, children)}
	}
	if of, ok := strings.CutPrefix(t, "map of "); ok {
		return Object{"type": "object", "additionalProperties": typed(of, children)}
	}
	switch t {
	case "duration":
		return Object{"type": "string", "format": "go-duration"}
	case "time":
		return Object{"type": "string", "format": "date-time"}
	case "share":
		return Object{"type": []string{"integer", "string"}, "pattern": "^[0-9]+%?$"}
	case "quantity":
		return Object{"$ref": "#/components/schemas/Quantity"}
	case "object", "resources":
		props := Object{}
		for _, c := range children {
			props[c.Name] = Of(c)
		}
		return Object{"type": "object", "properties": props, "additionalProperties": false}
	}
	return Object{"type": t}
}

// FromGo makes a schema of a Go type by its JSON tags, for answers that are no kind.
func FromGo(t reflect.Type) Object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return Object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[json.RawMessage]():
		return Object{"type": "object"}
	case t == reflect.TypeFor[api.Resources]():
		return Object{"type": "object", "additionalProperties": Ref("Quantity")}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return FromGo(t.Elem())
	case reflect.String:
		return Object{"type": "string"}
	case reflect.Bool:
		return Object{"type": "boolean"}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32:
		return Object{"type": "integer"}
	case reflect.Float64:
		return Object{"type": "number"}
	case reflect.Slice:
		return Object{"type": "array", "items": FromGo(t.Elem())}
	case reflect.Struct:
		props := Object{}
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.IsExported() && name != "" && name != "-" {
				props[name] = FromGo(f.Type)
			}
		}
		return Object{"type": "object", "properties": props}
	}
	return Object{}
}
