// Package workload holds the controllers of what makes instances: deployments, jobs
// and cron jobs, one file each. What each decides is one pure function (rollout.go,
// jobplan.go, cronplan.go); the controllers read what it is decided from, and commit
// what follows. They are called by the engine of package reconcile, which owns their
// goroutines.
//
// They act with the control plane's own rights, so everything dangerous in a template
// must have been authorized when it was written. They must never touch an instance that
// is not their own.
package workload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// All lists the controllers.
func All(c clock.Clock) []reconcile.Controller {
	return []reconcile.Controller{NewDeployments(c), NewJobs(c), NewCronJobs(c)}
}

const (
	// atOnce bounds what one commit makes; etcd takes 128 ops, and admission adds some.
	atOnce = 40
	// retryRefused is how often what was refused, such as by a quota, is tried again.
	retryRefused = 15 * time.Second
	// writeTries bounds how often a write is repeated against an agent that reports meanwhile.
	writeTries = 5
)

// owners remembers whose an object was, for when it is gone.
type owners struct {
	mu sync.Mutex
	of map[api.Ref]api.Ref
}

func newOwners() *owners { return &owners{of: map[api.Ref]api.Ref{}} }

// wake finds whose an object is: the one to look at when the object changed or is gone.
func (w *owners) wake(ctx context.Context, s store.Store, ref api.Ref, kind api.Kind, label string) (reconcile.Result, error) {
	o, err := s.Get(ctx, ref)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		owner, known := w.of[ref]
		delete(w.of, ref)
		if !known {
			return reconcile.Result{}, nil
		}
		return reconcile.Result{Also: []api.Ref{owner}}, nil
	}
	m := o.Metadata()
	var owner api.Ref
	switch {
	case m.Owner != nil && m.Owner.Kind == kind:
		owner = *m.Owner
	case m.Owner == nil && m.Labels[label] != "":
		owner = api.Ref{Kind: kind, Tenant: m.Tenant, Name: m.Labels[label]}
	default:
		return reconcile.Result{}, nil
	}
	w.of[ref] = owner
	return reconcile.Result{Also: []api.Ref{owner}}, nil
}

// family is what an object made.
type family struct {
	ref   api.Ref
	mine  []api.Object
	names map[string]bool // every name of the kind in the tenant, whoever's it is
}

// familyOf reads all that an object of one kind made of another. What nobody owns but
// was labelled as its own, such as after a removal that left it, is adopted if fits.
func familyOf(ctx context.Context, s store.Store, owner api.Object, kind api.Kind, label string, fits func(api.Object) bool) (*family, error) {
	f := &family{ref: api.RefOf(owner), names: map[string]bool{}}
	list, _, err := s.List(ctx, api.Selector{Kind: kind, Tenant: f.ref.Tenant})
	if err != nil {
		return nil, fmt.Errorf("list %s of %s: %w", kind, f.ref.Tenant, err)
	}
	for _, o := range list {
		m := o.Metadata()
		f.names[m.Name] = true
		labelled := m.Labels[label] == f.ref.Name
		switch {
		case m.Owner != nil && *m.Owner == f.ref && labelled:
		case m.Owner != nil && *m.Owner == f.ref, // somebody took the label off
			m.Owner == nil && labelled && m.DeletedAt == nil && owner.Metadata().DeletedAt == nil && fits(o):
			n := api.Clone(o)
			nm := n.Metadata()
			nm.Owner = &f.ref
			nm.Labels = with(nm.Labels, label, f.ref.Name)
			rev, err := s.Commit(ctx, store.Update(n))
			if err != nil {
				return nil, fmt.Errorf("adopt %s: %w", api.RefOf(o), err)
			}
			nm.Revision = rev
			o = n
		default:
			continue
		}
		f.mine = append(f.mine, o)
	}
	return f, nil
}

func with(m map[string]string, k, v string) map[string]string {
	out := maps.Clone(m)
	if out == nil {
		out = map[string]string{}
	}
	out[k] = v
	return out
}

// born gives an object made by a workload what the server gives to one made by a user.
func born(o api.Object, owner api.Object, now time.Time) {
	d, _ := api.Lookup(string(o.ObjectKind()))
	ref, m := api.RefOf(owner), o.Metadata()
	// Unique over time: a name is free again only after a commit to its owner's world, and
	// time passes between the two.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d\x00%d", owner.Metadata().UID, api.RefOf(o), owner.Metadata().Revision, now.UnixNano()))
	at := now.UTC().Round(time.Millisecond)
	m.UID, m.Generation, m.CreatedAt, m.Owner = hex.EncodeToString(sum[:16]), 1, &at, &ref
	m.Finalizers = slices.Clone(d.Finalizers)
}

// instanceOf makes an instance of a template. It waits where there is no room: a workload
// is a wish that stays, and what waits is served in turn and says why it waits.
func instanceOf(t *api.Template, spec api.InstanceSpec, tenant, name string) *api.Instance {
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: name, Tenant: tenant,
		Labels: maps.Clone(t.Labels), Annotations: maps.Clone(t.Annotations)}}, Spec: spec}
	delete(in.Annotations, api.AnnotationRestarted)
	in = api.Clone(in) // shares nothing with the template
	in.Spec.Queue = true
	if in.Labels == nil {
		in.Labels = map[string]string{}
	}
	return in
}

// refused reports whether an error says that what was asked for may not be made now, but
// perhaps later; anything else is a fault, or somebody was faster.
func refused(err error) bool {
	switch errs.KindOf(err) {
	case errs.Quota, errs.NoCapacity, errs.Denied, errs.Invalid:
		return true
	case errs.NotFound: // its tenant is gone
		var r *store.Refused
		return !errors.As(err, &r)
	}
	return false
}

// create makes objects while their owner is as it was read: together where that goes,
// otherwise one by one until the first is refused. why is that refusal.
func create(ctx context.Context, s store.Store, owner api.Object, objs []api.Object) (made int, why, err error) {
	expect := store.Expect(api.RefOf(owner), owner.Metadata().Revision)
	commit := func(list []api.Object) error {
		ops := []store.Op{expect}
		for _, o := range list {
			ops = append(ops, store.Create(o))
		}
		_, err := s.Commit(ctx, ops...)
		return err
	}
	for len(objs) > 0 {
		n := min(len(objs), atOnce)
		err := commit(objs[:n])
		if err != nil && refused(err) && n > 1 {
			for _, o := range objs[:n] {
				if err = commit([]api.Object{o}); err != nil {
					break
				}
				made++
			}
		} else if err == nil {
			made += n
		}
		switch {
		case err != nil && refused(err):
			return made, err, nil
		case err != nil:
			return made, nil, fmt.Errorf("make what %s wants: %w", api.RefOf(owner), err)
		}
		objs = objs[n:]
	}
	return made, nil, nil
}

// change writes an object while its owner is as it was read, also when an agent reports
// on it meanwhile. Nothing happens when it is gone, or edit returns false.
func change(ctx context.Context, s store.Store, owner api.Object, o api.Object, edit func(api.Object) bool) error {
	expect := store.Expect(api.RefOf(owner), owner.Metadata().Revision)
	ref, uid := api.RefOf(o), o.Metadata().UID
	for try := 0; ; try++ {
		n := api.Clone(o)
		if n.Metadata().UID != uid || !edit(n) {
			return nil
		}
		_, err := s.Commit(ctx, store.Update(n), expect)
		if err == nil || errors.Is(err, errs.NotFound) {
			return nil
		}
		if !errors.Is(err, errs.Conflict) || try >= writeTries {
			return fmt.Errorf("change %s: %w", ref, err)
		}
		was := o.Metadata().Revision
		if o, err = s.Get(ctx, ref); errors.Is(err, errs.NotFound) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read %s: %w", ref, err)
		}
		if o.Metadata().Revision == was {
			return errs.New(errs.Conflict, "%s was changed meanwhile", expect.Ref)
		}
	}
}

// remove asks for the removal of an object, or removes it where nobody has to clean up.
func remove(ctx context.Context, s store.Store, owner api.Object, o api.Object, now time.Time) error {
	if len(o.Metadata().Finalizers) == 0 {
		_, err := s.Commit(ctx, store.Remove(api.RefOf(o), o.Metadata().Revision))
		if err != nil && !errors.Is(err, errs.NotFound) {
			return fmt.Errorf("remove %s: %w", api.RefOf(o), err)
		}
		return nil
	}
	at := now.UTC().Round(time.Millisecond)
	return change(ctx, s, owner, o, func(n api.Object) bool {
		if n.Metadata().DeletedAt != nil {
			return false
		}
		n.Metadata().DeletedAt = &at
		return true
	})
}

// retire sees an object off whose removal was asked for: what it made goes first, or is
// left to itself where the object says so. left is how much is still there.
func retire(ctx context.Context, s store.Store, owner api.Object, children []api.Object, now time.Time) (left int, err error) {
	orphan := owner.Metadata().Annotations[api.AnnotationCascade] == api.CascadeOrphan
	for _, o := range children {
		if orphan {
			err = change(ctx, s, owner, o, func(n api.Object) bool { n.Metadata().Owner = nil; return true })
		} else {
			left++
			err = remove(ctx, s, owner, o, now)
		}
		if err != nil {
			return left, err
		}
	}
	return left, nil
}

// letGo takes our name off an object that is being removed, with others when all it
// kept is gone.
func letGo(ctx context.Context, s store.Store, o api.Object, with ...store.Op) error {
	ref, rev := api.RefOf(o), o.Metadata().Revision
	rest := slices.DeleteFunc(slices.Clone(o.Metadata().Finalizers), func(f string) bool { return f == api.FinalizerWorkload })
	op := store.Remove(ref, rev)
	if len(rest) > 0 {
		n := api.Clone(o)
		n.Metadata().Finalizers = rest
		op = store.Update(n)
	}
	for len(with) > atOnce {
		if _, err := s.Commit(ctx, append(with[:atOnce:atOnce], store.Expect(ref, rev))...); err != nil {
			return fmt.Errorf("remove what %s kept: %w", ref, err)
		}
		with = with[atOnce:]
	}
	if _, err := s.Commit(ctx, append(with, op)...); err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("remove %s: %w", ref, err)
	}
	return nil
}

// admitted is the condition that says whether what was wanted was let in.
func admitted(why error, now time.Time) api.Condition {
	if why == nil {
		return api.Condition{Type: api.ConditionAdmitted, Status: true, Reason: "Admitted", Since: now}
	}
	msg := why.Error()
	if h := errs.HintOf(why); h != "" {
		msg += "; " + h
	}
	return api.Condition{Type: api.ConditionAdmitted, Reason: reasonOf(why), Message: msg, Since: now}
}

func reasonOf(err error) string {
	switch errs.KindOf(err) {
	case errs.Quota:
		return "Quota"
	case errs.NoCapacity:
		return "NoCapacity"
	case errs.Denied:
		return "Denied"
	case errs.NotFound:
		return "TenantGone"
	}
	return "Invalid"
}

// blocked lists the objects of a kind in a tenant, or nested in it, that were refused
// something: when the tenant changes, they are tried again.
func blocked(ctx context.Context, s store.Store, kind api.Kind, tenant string) (reconcile.Result, error) {
	list, _, err := s.List(ctx, api.Selector{Kind: kind, Tenant: tenant, Nested: true})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list %s of %s: %w", kind, tenant, err)
	}
	var res reconcile.Result
	for _, o := range list {
		var conds []api.Condition
		switch o := o.(type) {
		case *api.Deployment:
			conds = o.Status.Conditions
		case *api.Job:
			conds = o.Status.Conditions
		}
		if c := api.FindCondition(conds, api.ConditionAdmitted); c != nil && !c.Status {
			res.Also = append(res.Also, api.RefOf(o))
		}
	}
	return res, nil
}

// short bounds what is told of an instance.
func short(s string) string {
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}

// trouble says why an instance is not ready; "" when it only takes its time.
func trouble(ctx context.Context, s store.Store, in *api.Instance) string {
	switch in.StateOf() {
	case api.StatePending:
		a, err := store.Get[*api.Assignment](ctx, s, api.Ref{Kind: api.KindAssignment, Tenant: in.Tenant, Name: in.Name})
		if err != nil || a.Spec.Node != "" || a.Spec.Decision == nil || len(a.Spec.Decision.Refusals) == 0 {
			return ""
		}
		return short(fmt.Sprintf("%s waits for room: %s", in.Name, a.Spec.Decision.Refusals[0].Reason))
	case api.StateRunning:
		if in.Spec.Health != nil && in.Status.Healthy != nil && !*in.Status.Healthy {
			return in.Name + " is not healthy"
		}
		return ""
	case api.StateBackoff, api.StateFailed, api.StateUnknown, api.StateStopped:
		if in.Status.Message != "" {
			return short(fmt.Sprintf("%s is %s: %s", in.Name, in.StateOf(), in.Status.Message))
		}
		return fmt.Sprintf("%s is %s", in.Name, in.StateOf())
	}
	return ""
}
