package api

import (
	"bytes"
	"encoding/json"
	"reflect"

	"atoll/internal/errs"
)

// StrictInto reads JSON that a person or program wrote into the struct that into
// points to, for files that are not objects. An unknown field is an errs.Invalid
// that names its path and the field that was probably meant; what names the file
// in the error.
func StrictInto(what string, data []byte, into any) error {
	var raw any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&raw); err != nil {
		return errs.New(errs.Invalid, "%s: not valid: %w", what, err)
	}
	if _, ok := raw.(map[string]any); !ok {
		return errs.New(errs.Invalid, "%s: must be an object of fields", what)
	}
	if fields := unknownFields(reflect.TypeOf(into).Elem(), raw, "", nil); len(fields) > 0 {
		return errs.InvalidFields(what, fields)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return errs.New(errs.Invalid, "%s: %s", what, describeJSONError(err))
	}
	return nil
}
