package builtin

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// UpdateRoles brings the roles that came with an earlier release to what this one means by
// them, and names those it changed: kinds that came later are in none of them otherwise. A
// role whose rules somebody has edited (its generation tells), that lost its label, or that
// was removed is its editor's, and stays so.
func UpdateRoles(ctx context.Context, s store.Store) (changed []string, err error) {
	for _, want := range auth.BuiltinRoles() {
		have, err := store.Get[*api.Role](ctx, s, api.RefOf(want))
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return changed, fmt.Errorf("read %s: %w", api.RefOf(want), err)
		}
		if have.Generation > 1 || have.Labels[auth.LabelBuiltin] == "" || have.DeletedAt != nil || reflect.DeepEqual(have.Spec, want.Spec) {
			continue
		}
		next := api.Clone(have)
		next.Spec = want.Spec // of the same generation: nobody's edit
		switch _, err := s.Commit(ctx, store.Update(next)); {
		case errors.Is(err, errs.Conflict): // somebody edits it just now, or this server leads no more
		case err != nil:
			return changed, fmt.Errorf("bring %s up to date: %w", api.RefOf(want), err)
		default:
			changed = append(changed, want.Name)
		}
	}
	return changed, nil
}
