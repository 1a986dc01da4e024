package once

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

func TestBounded(t *testing.T) {
	k := New(clock.Real{})
	for i := range maxKeys + 100 {
		s, err := k.Take(t.Context(), fmt.Sprint(i), nil)
		if err != nil {
			t.Fatal(err)
		}
		k.Give(s, &api.Tenant{})
	}
	if len(k.slots) > maxKeys || len(k.order) > maxKeys {
		t.Fatalf("%d slots, %d in order", len(k.slots), len(k.order))
	}
}

// The second attempt waits for the first, gets its answer, and is the first itself
// when that failed.
func TestOneAtATime(t *testing.T) {
	k := New(clock.Real{})
	first, err := k.Take(t.Context(), "k", []byte("body"))
	if err != nil || first.Answer != nil {
		t.Fatal(err)
	}
	got := make(chan *Slot)
	go func() {
		s, err := k.Take(t.Context(), "k", []byte("body"))
		if err != nil {
			t.Error(err)
		}
		got <- s
	}()
	select {
	case <-got:
		t.Fatal("two attempts at once")
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := k.Take(t.Context(), "k", []byte("other")); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	k.Give(first, nil)
	second := <-got
	if second == first || second.Answer != nil {
		t.Fatal("a failed attempt stuck")
	}
	k.Give(second, &api.Tenant{})
	if s, err := k.Take(t.Context(), "k", []byte("body")); err != nil || s.Answer == nil {
		t.Fatal(err)
	}
}
