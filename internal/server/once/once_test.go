package once

import (
	"fmt"
	"testing"

	"atoll/api"
	"atoll/internal/clock"
)

func TestRingIsBounded(t *testing.T) {
	k := New(clock.Real{})
	for i := range maxKeys + 100 {
		s, err := k.Take(t.Context(), fmt.Sprint(i), nil)
		if err != nil {
			t.Fatal(err)
		}
		k.Give(s, &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "a"}}})
	}
	if len(k.slots) > maxKeys || len(k.order) > maxKeys {
		t.Fatalf("%d slots, %d in order", len(k.slots), len(k.order))
	}
}
