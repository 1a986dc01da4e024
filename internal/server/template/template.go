// Package template knows what the kinds that make instances have in common, and what of
// them may change.
//
// It starts no goroutine and does no I/O. It must never decide who may change it.
package template

import (
	"bytes"

	"atoll/api"
	"atoll/internal/errs"
)

// Of is what a workload makes instances of, and its path; nil: o makes none.
func Of(o api.Object) (t *api.Template, at string) {
	switch o := o.(type) {
	case *api.Deployment:
		return &o.Spec.Template, "spec.template.spec"
	case *api.Job:
		return &o.Spec.Template, "spec.template.spec"
	case *api.CronJob:
		return &o.Spec.Job.Spec.Template, "spec.job.spec.template.spec"
	}
	return nil, ""
}

// Lowers reports whether a change only asks for less, or for nothing new at all.
func Lowers(old, n api.Object) bool {
	m := api.Clone(n)
	switch m := m.(type) {
	case *api.Deployment:
		o := old.(*api.Deployment)
		if m.Spec.Wants() > o.Spec.Wants() || o.Spec.Paused && !m.Spec.Paused {
			return false
		}
		m.Spec.Replicas, m.Spec.Paused = o.Spec.Replicas, o.Spec.Paused
	case *api.Job:
		o := old.(*api.Job)
		if m.Spec.AtOnce() > o.Spec.AtOnce() || o.Spec.Suspended && !m.Spec.Suspended {
			return false
		}
		m.Spec.Parallelism, m.Spec.Suspended = o.Spec.Parallelism, o.Spec.Suspended
	case *api.CronJob:
		o := old.(*api.CronJob)
		if o.Spec.Suspended && !m.Spec.Suspended {
			return false
		}
		m.Spec.Suspended = o.Spec.Suspended
	}
	return same(old, m)
}

// Unchangeable refuses to change what others have built on.
func Unchangeable(old, n api.Object) error {
	var f []errs.Field
	keeps := func(field string, same bool, why string) {
		if !same {
			f = append(f, errs.Field{Field: field, Rule: "cannot change: " + why})
		}
	}
	what := "object"
	switch n := n.(type) {
	case *api.Deployment:
		o := old.(*api.Deployment)
		what = "deployment " + n.Name
		keeps("spec.selector", api.SameSelector(&o.Spec, &n.Spec), "its instances are known by it; make another deployment")
		keeps("spec.perNode", o.Spec.PerNode == n.Spec.PerNode, "its instances are bound to their nodes, or not; make another deployment")
	case *api.Job:
		o := old.(*api.Job)
		what = "job " + n.Name
		keeps("spec.template", o.Spec.Template.Hash() == n.Spec.Template.Hash(), "some of it may be done already; make another job")
		keeps("spec.completions", o.Spec.Wants() == n.Spec.Wants(), "some of it may be done already; make another job")
	}
	return errs.InvalidFields(what, f)
}

// same compares as JSON: an empty list and a missing one are the same.
func same(a, b api.Object) bool {
	m := *a.Metadata()
	c := api.Clone(b)
	*c.Metadata() = m
	x, err1 := api.Encode(a)
	y, err2 := api.Encode(c)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}
