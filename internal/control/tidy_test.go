package control

import (
	"errors"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Tokens of both kinds are shown as expired for a week, then they go; one that does not expire stays.
func TestTidyTokens(t *testing.T) {
	c := clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	mem, tidy := store.NewMem(), NewTidy(Deps{Clock: c})
	end := c.Now().Add(time.Hour)
	objs := []api.Object{
		&api.Token{Head: api.Head{K: api.KindToken, Meta: api.Meta{Name: "a"}}, Spec: api.TokenSpec{User: "ci", ExpiresAt: &end}},
		&api.JoinToken{Head: api.Head{K: api.KindJoinToken, Meta: api.Meta{Name: "a"}}, Spec: api.JoinTokenSpec{ExpiresAt: &end}},
		&api.JoinToken{Head: api.Head{K: api.KindJoinToken, Meta: api.Meta{Name: "b"}}},
	}
	there := func(o api.Object) bool {
		if _, err := tidy.Reconcile(t.Context(), mem, api.RefOf(o)); err != nil {
			t.Fatal(err)
		}
		_, err := mem.Get(t.Context(), api.RefOf(o))
		return !errors.Is(err, errs.NotFound)
	}
	for _, o := range objs {
		if _, err := mem.Commit(t.Context(), store.Create(o)); err != nil {
			t.Fatal(err)
		}
	}
	c.Advance(7 * 24 * time.Hour)
	for _, o := range objs {
		if !there(o) {
			t.Errorf("%s went too early", api.RefOf(o))
		}
	}
	c.Advance(2 * time.Hour)
	for i, o := range objs {
		if there(o) != (i == 2) {
			t.Errorf("%s", api.RefOf(o))
		}
	}
}
