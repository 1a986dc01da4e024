package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// revise keeps the wanted template as the newest revision, before anything is made of it.
// A template that was there before becomes the newest again.
func (v *visit) revise(ctx context.Context, hash string) error {
	var last int64
	if n := len(v.revisions); n > 0 {
		if last = v.revisions[n-1].Spec.Number; v.revisions[n-1].Spec.Hash == hash {
			return nil
		}
	}
	expect := store.Expect(api.RefOf(v.d), v.d.Revision)
	var r *api.Revision
	i := slices.IndexFunc(v.revisions, func(r *api.Revision) bool { return r.Spec.Hash == hash })
	if i >= 0 {
		r = api.Clone(v.revisions[i])
		v.revisions = slices.Delete(v.revisions, i, i+1)
	} else {
		r = &api.Revision{Head: api.Head{K: api.KindRevision, Meta: api.Meta{Name: v.d.Name + "-" + hash, Tenant: v.d.Tenant,
			Labels: map[string]string{api.LabelDeployment: v.d.Name}}}}
		born(r, v.d, v.now)
		r.Spec = api.RevisionSpec{Deployment: v.d.Name, Hash: hash, Template: api.Clone(v.d).Spec.Template}
	}
	r.Spec.Number, r.Spec.Change = last+1, v.d.Annotations[api.AnnotationChange]
	rev, err := v.Commit(ctx, store.Update(r), expect) // of a new one, at no revision: it must not exist
	if err != nil {
		return fmt.Errorf("keep revision %d of %s: %w", r.Spec.Number, api.RefOf(v.d), err)
	}
	r.Revision = rev
	v.revisions = append(v.revisions, r)
	return nil
}

// prune removes the oldest revisions that nothing runs of.
func (v *visit) prune(ctx context.Context, hashes ...string) error {
	keep := map[string]bool{}
	for _, h := range hashes {
		keep[h] = true
	}
	for _, in := range v.instances {
		keep[in.Labels[api.LabelHash]] = true
	}
	extra := len(v.revisions) - 1 - v.d.Spec.History() // the present one is no history
	for _, r := range v.revisions {
		if extra <= 0 {
			return nil
		}
		if keep[r.Spec.Hash] {
			continue
		}
		extra--
		if _, err := v.Commit(ctx, store.Remove(api.RefOf(r), r.Revision)); err != nil && !errors.Is(err, errs.NotFound) {
			return fmt.Errorf("remove %s: %w", api.RefOf(r), err)
		}
	}
	return nil
}

// ownBudget reads the deployment's budget: of its name, and its own.
func (v *visit) ownBudget(ctx context.Context) (*api.DisruptionBudget, error) {
	ref := api.Ref{Kind: api.KindDisruptionBudget, Tenant: v.d.Tenant, Name: v.d.Name}
	b, err := store.Get[*api.DisruptionBudget](ctx, v, ref)
	if errors.Is(err, errs.NotFound) || err == nil && (b.Owner == nil || *b.Owner != api.RefOf(v.d)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", ref, err)
	}
	return b, nil
}

// budget keeps the budget of the deployment. One of that name that a user made is the
// user's word, and is left as it is.
func (v *visit) budget(ctx context.Context, wants int) error {
	want := v.wantedBudget(wants)
	ref := api.Ref{Kind: api.KindDisruptionBudget, Tenant: v.d.Tenant, Name: v.d.Name}
	is, err := v.ownBudget(ctx)
	if err != nil {
		return err
	}
	var op store.Op
	switch {
	case want == nil && is == nil, want != nil && is != nil && reflect.DeepEqual(*want, is.Spec):
		return nil
	case want == nil:
		op = store.Remove(ref, is.Revision)
	case is != nil:
		n := api.Clone(is)
		n.Spec, n.Generation = *want, n.Generation+1
		op = store.Update(n)
	default:
		if room, err := v.roomForBudget(ctx); err != nil || !room {
			return err
		}
		n := &api.DisruptionBudget{Head: api.Head{K: api.KindDisruptionBudget, Meta: api.Meta{Name: ref.Name, Tenant: ref.Tenant,
			Labels: map[string]string{api.LabelDeployment: v.d.Name}}}, Spec: *want}
		born(n, v.d, v.now)
		op = store.Create(n)
	}
	_, err = v.Commit(ctx, op, store.Expect(api.RefOf(v.d), v.d.Revision))
	if errors.Is(err, errs.Exists) || errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("keep the budget of %s: %w", api.RefOf(v.d), err)
	}
	return nil
}

// roomForBudget: nobody has more budgets than whoever makes room can look at, and none of
// the name is there.
func (v *visit) roomForBudget(ctx context.Context) (bool, error) {
	list, _, err := v.List(ctx, api.Selector{Kind: api.KindDisruptionBudget, Tenant: v.d.Tenant})
	if err != nil {
		return false, fmt.Errorf("list budgets of %s: %w", v.d.Tenant, err)
	}
	taken := slices.ContainsFunc(list, func(o api.Object) bool { return o.Metadata().Name == v.d.Name })
	return len(list) < api.MaxBudgets && !taken, nil
}

// wantedBudget is what the budget should say; nil: there should be none.
func (v *visit) wantedBudget(wants int) *api.DisruptionBudgetSpec {
	labels := maps.Clone(v.d.Spec.Selector.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[api.LabelDeployment] = v.d.Name
	out := &api.DisruptionBudgetSpec{Labels: labels}
	switch b := v.d.Spec.Budget; {
	case b == nil && (wants <= 1 || v.d.Spec.PerNode), b != nil && b.None:
		return nil
	case b == nil:
		n := max(wants/4, 1)
		out.MaxUnavailable = &n
	case b.MaxUnavailable != nil:
		n := *b.MaxUnavailable
		out.MaxUnavailable = &n
	default:
		out.MinAvailable = b.MinAvailable
	}
	return out
}
