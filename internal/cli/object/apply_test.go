package object

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestThreeWay(t *testing.T) {
	obj := func(s string) map[string]any {
		if s == "" {
			return nil
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(s), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, c := range []struct{ name, before, mine, live, want string }{
		{"new key", `{"a":1}`, `{"a":1,"b":2}`, `{"a":1}`, `{"a":1,"b":2}`},
		{"removed key", `{"a":1,"b":2}`, `{"a":1}`, `{"a":1,"b":2}`, `{"a":1}`},
		{"others' key stays", `{"a":1}`, `{"a":2}`, `{"a":1,"c":3}`, `{"a":2,"c":3}`},
		{"deep", `{"s":{"x":1,"y":2}}`, `{"s":{"x":5}}`, `{"s":{"x":1,"y":2,"z":3}}`, `{"s":{"x":5,"z":3}}`},
		{"removed map keeps what others put in", `{"l":{"a":1}}`, `{}`, `{"l":{"a":1,"b":2}}`, `{"l":{"b":2}}`},
		{"removed map", `{"l":{"a":1}}`, `{}`, `{"l":{"a":1}}`, `{}`},
		{"lists are one value", `{"l":[1,2]}`, `{"l":[2]}`, `{"l":[1,2]}`, `{"l":[2]}`},
		{"never applied", ``, `{"a":2}`, `{"a":1,"c":3}`, `{"a":2,"c":3}`},
	} {
		if got := threeWay(obj(c.before), obj(c.mine), obj(c.live)); !reflect.DeepEqual(got, obj(c.want)) {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}
