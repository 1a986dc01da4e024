// Package patch is the JSON merge patch of RFC 7396, applied to objects.
//
// It starts no goroutine and does no I/O. A patch is hostile: it must never end in more
// than the object's own decoder lets through, which reads what Apply gives.
package patch

import (
	"bytes"
	"encoding/json"

	"atoll/api"
	"atoll/internal/errs"
)

// Parse reads a merge patch.
func Parse(b []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var p map[string]any
	if err := dec.Decode(&p); err != nil {
		return nil, errs.New(errs.Invalid, "the patch is not a JSON object: %w", err).WithHint(`example: {"spec":{"stopped":true}}; null removes a field`)
	}
	if p == nil || dec.More() {
		return nil, errs.New(errs.Invalid, "the patch must be one JSON object").WithHint(`example: {"spec":{"stopped":true}}; null removes a field`)
	}
	return p, nil
}

// Apply changes an object by a merge patch (RFC 7396) and gives its JSON.
func Apply(o api.Object, patch map[string]any) ([]byte, error) {
	b, err := api.Encode(o)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var doc map[string]any
	if err := dec.Decode(&doc); err != nil {
		return nil, errs.New(errs.Internal, "decode %s: %w", api.RefOf(o), err)
	}
	out, err := json.Marshal(merge(doc, patch))
	if err != nil {
		return nil, errs.New(errs.Invalid, "apply the patch: %w", err)
	}
	return out, nil
}

func merge(doc any, patch map[string]any) any {
	m, ok := doc.(map[string]any)
	if !ok {
		m = map[string]any{}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(m, k)
		case map[string]any:
			m[k] = merge(m[k], v)
		default:
			m[k] = v
		}
	}
	return m
}
