package api

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"atoll/internal/errs"
	"atoll/internal/near"
)

// EachField visits the JSON fields of a struct, embedded structs without a name flattened.
func EachField(t reflect.Type, fn func(f reflect.StructField, name string)) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			EachField(f.Type, fn)
			continue
		}
		if !f.IsExported() || name == "-" || name == "" {
			continue
		}
		fn(f, name)
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
	EachField(t, func(f reflect.StructField, name string) { known[name] = f.Type })
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
	return near.Of(k, slices.Collect(maps.Keys(known)))
}

// Nearest finds the candidate at most two edits away from s, "" if none is.
func Nearest(s string, candidates []string) string { return near.Of(s, candidates) }

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
