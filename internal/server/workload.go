package server

import (
	"errors"
	"strconv"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/server/template"
	"atoll/internal/store"
)

// grantWorkload checks for a workload what is checked for an instance: its instances are
// made with the control plane's own rights, so whoever writes it must have them.
func (c *call) grantWorkload(o api.Object) error {
	m := o.Metadata()
	if d, ok := o.(*api.Deployment); ok && d.Spec.RollbackTo != 0 {
		return errs.InvalidFields("deployment "+m.Name, []errs.Field{{Field: "spec.rollbackTo", Value: strconv.FormatInt(d.Spec.RollbackTo, 10), Rule: "must be left out: a new deployment has no revision to go back to"}})
	}
	if _, err := c.Store.Get(c.r.Context(), api.Ref{Kind: api.KindTenant, Name: m.Tenant}); err != nil {
		return err
	}
	if err := c.mayRankWorkload(o); err != nil {
		return err
	}
	t, _ := template.Of(o)
	return c.Auth.Grants(c.id, m.Tenant, t.Spec.Grants())
}

// mayRankWorkload is mayRank for a template. Its instances wait for room in any case.
func (c *call) mayRankWorkload(o api.Object) error {
	t, at := template.Of(o)
	d, _ := api.Lookup(string(o.ObjectKind()))
	_, err := c.rank(o.Metadata().Tenant, d.Singular()+" "+o.Metadata().Name, at, t.Spec.Priority)
	return err
}

// updateWorkload is grantWorkload for a changed spec.
func (c *call) updateWorkload(old, n api.Object) error {
	if err := template.Unchangeable(old, n); err != nil {
		return err
	}
	if !template.Lowers(old, n) {
		if err := c.mayRankWorkload(n); err != nil { // whoever makes more of it makes others go for it
			return err
		}
	}
	was, _ := template.Of(old)
	is, _ := template.Of(n)
	if api.SameUse(&was.Spec, &is.Spec) {
		return nil
	}
	return c.Auth.Grants(c.id, n.Metadata().Tenant, is.Spec.Grants())
}

// rollBack puts the template of the revision that is asked for in place, so that it is
// checked and authorized like any other, and takes the wish away.
func (c *call) rollBack(o api.Object) error {
	d, ok := o.(*api.Deployment)
	if !ok || d.Spec.RollbackTo == 0 {
		return nil
	}
	want := d.Spec.RollbackTo
	list, _, err := store.List[*api.Revision](c.r.Context(), c.Store, api.Selector{Kind: api.KindRevision, Tenant: d.Tenant, Fields: map[string]string{"spec.deployment": d.Name}})
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.Spec.Number == want {
			d.Spec.Template, d.Spec.RollbackTo = api.Clone(r).Spec.Template, 0
			return nil
		}
	}
	return errs.InvalidFields("deployment "+d.Name, []errs.Field{{Field: "spec.rollbackTo", Value: strconv.FormatInt(want, 10), Rule: "must be the number of a revision that is kept (atoll rollout history deployment/" + d.Name + ")"}})
}

// rank reads a priority class, which must exist. One that takes the place of others needs
// a right; preempts reports it. at is the path of the spec that names it.
func (c *call) rank(tenant, what, at, priority string) (preempts bool, err error) {
	if priority == "" {
		return false, nil
	}
	class, err := store.Get[*api.PriorityClass](c.r.Context(), c.Store, api.Ref{Kind: api.KindPriorityClass, Name: priority})
	if errors.Is(err, errs.NotFound) {
		return false, errs.InvalidFields(what, []errs.Field{{Field: at + ".priorityClass", Value: clip(priority), Rule: "must be a PriorityClass of the pool (atoll get priorityclasses)", Example: "normal"}})
	}
	if err != nil || !class.Spec.Preempt {
		return false, err
	}
	return true, c.Auth.Grants(c.id, tenant, []string{"priority:" + class.Name})
}
