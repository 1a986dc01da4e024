package object

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

type waitOptions struct {
	want    string
	timeout time.Duration
	labels  string
}

// Wait waits until objects are as they should be.
func Wait() verb.Def {
	o := &waitOptions{}
	return verb.Def{
		Use: "wait KIND/NAME… --for WHAT", Group: verb.GroupObject, Max: -1,
		Short: "Wait until objects are as they should be",
		Long: `What to wait for: running, stopped, healthy (instances), ready (nodes; deployments:
rolled out), available (deployments), complete, failed (jobs), deleted, or
condition=TYPE for a condition of that type to hold. A job that ended the other way
is an error at once.`,
		Example: `  atoll wait instance/web --for healthy --timeout 30s
  atoll wait deployment/web --for available
  atoll wait job/sum --for complete --timeout 1h
  atoll wait instances -l app=web --for deleted`,
		Flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&o.want, "for", "running", "running, stopped, healthy, ready, available, complete, failed, deleted or condition=TYPE")
			fs.StringVarP(&o.labels, "selector", "l", "", "those with these labels")
			fs.DurationVar(&o.timeout, "timeout", verb.DefaultTimeout, "how long to wait at most")
		},
		Run: o.run, Complete: verb.CompleteObjects,
	}
}

func (o *waitOptions) run(ctx context.Context, c *verb.Call) error {
	ok, err := o.condition()
	if err != nil {
		return err
	}
	t, err := c.Targets(ctx, c.Args)
	if err != nil {
		return err
	}
	refs := t.Refs
	for _, d := range t.Kinds {
		sel, err := c.Selector(d, verb.Selection{Labels: o.labels})
		if err != nil {
			return err
		}
		cl, err := c.Server()
		if err != nil {
			return err
		}
		list, _, err := cl.List(ctx, sel)
		if err != nil {
			return err
		}
		for _, obj := range list {
			refs = append(refs, api.RefOf(obj))
		}
	}
	for _, r := range refs {
		err := c.Within(ctx, o.timeout, fmt.Sprintf("%s is %s", r, o.want), func(ctx context.Context) error {
			return c.WaitFor(ctx, r, func(obj api.Object, gone bool) (bool, error) {
				if gone && o.want != "deleted" {
					return false, notFoundNow(c, r)
				}
				return ok(obj, gone)
			})
		})
		if err != nil {
			return err
		}
		c.Say("%s is %s", r, o.want)
	}
	return nil
}

func notFoundNow(c *verb.Call, r api.Ref) error { return errs.New(errs.NotFound, "%s is not there", r) }

func (o *waitOptions) condition() (func(api.Object, bool) (bool, error), error) {
	instance := func(fn func(*api.Instance) (bool, error)) func(api.Object, bool) (bool, error) {
		return func(obj api.Object, _ bool) (bool, error) {
			in, ok := obj.(*api.Instance)
			if !ok {
				return false, errs.New(errs.Invalid, "only instances can be %s", o.want)
			}
			return fn(in)
		}
	}
	if typ, ok := strings.CutPrefix(o.want, "condition="); ok {
		return func(obj api.Object, _ bool) (bool, error) {
			for _, cond := range verb.Conditions(obj) {
				if strings.EqualFold(cond.Type, typ) {
					return cond.Status && verb.Current(obj), nil
				}
			}
			return false, nil
		}, nil
	}
	switch o.want {
	case "deleted":
		return func(_ api.Object, gone bool) (bool, error) { return gone, nil }, nil
	case "running":
		return instance(func(in *api.Instance) (bool, error) { return in.StateOf() == api.StateRunning, nil }), nil
	case "stopped":
		return instance(func(in *api.Instance) (bool, error) { return verb.Ended(in), nil }), nil
	case "healthy":
		return instance(func(in *api.Instance) (bool, error) {
			if in.Spec.Health == nil {
				return false, errs.New(errs.Invalid, "%s has no health check", render.ShortRef(in)).WithHint("give it one: spec.health, or wait for running")
			}
			return in.Status.Healthy != nil && *in.Status.Healthy && in.StateOf() == api.StateRunning, nil
		}), nil
	case "ready":
		return func(obj api.Object, _ bool) (bool, error) {
			switch o := obj.(type) {
			case *api.Node:
				return o.Ready(), nil
			case *api.Deployment:
				return o.RolledOut(), nil
			}
			return false, errs.New(errs.Invalid, "only nodes and deployments can be ready")
		}, nil
	case "available":
		return func(obj api.Object, _ bool) (bool, error) {
			d, ok := obj.(*api.Deployment)
			if !ok {
				return false, errs.New(errs.Invalid, "only deployments can be available")
			}
			c := api.FindCondition(d.Status.Conditions, api.ConditionAvailable)
			return c != nil && c.Status && verb.Current(d), nil
		}, nil
	case "complete", "failed":
		return o.jobEnded, nil
	}
	return nil, parse.BadFlag("for", o.want, "must be running, stopped, healthy, ready, available, complete, failed, deleted or condition=TYPE", "running")
}

// jobEnded waits for one end of a job; the other is an error.
func (o *waitOptions) jobEnded(obj api.Object, _ bool) (bool, error) {
	j, ok := obj.(*api.Job)
	if !ok {
		return false, errs.New(errs.Invalid, "only jobs can be %s", o.want)
	}
	end := j.Finished()
	if end != "" && !strings.EqualFold(end, o.want) {
		return false, errs.New(errs.Conflict, "%s is %s: %s", render.ShortRef(j), strings.ToLower(end), j.Status.Message)
	}
	return end != "", nil
}
