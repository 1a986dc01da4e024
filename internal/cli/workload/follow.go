// Package workload holds the verbs about what makes instances: create deployment, job
// and cronjob, scale, and rollout with its own verbs.
//
// It starts no goroutine of its own. It must never decide what a controller decides: it
// writes wishes and tells how far they are.
package workload

import (
	"context"
	"fmt"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// deployment names a deployment: NAME, TENANT/NAME, or with its kind before it.
func deployment(ctx context.Context, c *verb.Call, s string) (*api.Deployment, error) {
	if kind, _, has := strings.Cut(s, "/"); !has || !isKind(kind) {
		s = "deployment/" + s
	}
	ref, err := c.Ref(ctx, s)
	if err != nil {
		return nil, err
	}
	if ref.Kind != api.KindDeployment {
		return nil, errs.New(errs.Invalid, "%s is not a deployment", ref).WithHint("only deployments can be scaled and rolled out")
	}
	o, err := c.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	return o.(*api.Deployment), nil
}

func isKind(s string) bool { _, ok := api.Lookup(s); return ok }

// completeDeployments completes the names of deployments.
func completeDeployments(ctx context.Context, c *verb.Call, typed string) []string {
	var out []string
	kind, _, has := strings.Cut(typed, "/")
	for _, n := range c.NamesOf(ctx, api.KindDeployment) {
		if has {
			n = kind + "/" + n
		}
		out = append(out, n)
	}
	return out
}

// follow shows how far a deployment is until it is as its spec says, at generation or
// later. It ends early where it does not go on by itself.
func follow(ctx context.Context, c *verb.Call, d *api.Deployment, timeout time.Duration) (*api.Deployment, error) {
	steps := c.Steps(render.ShortRef(d))
	defer steps.End()
	generation, ref := d.Generation, api.RefOf(d)
	err := c.Within(ctx, timeout, render.ShortRef(d)+" is rolled out", func(ctx context.Context) error {
		return c.WaitFor(ctx, ref, func(o api.Object, gone bool) (bool, error) {
			if gone || o.Metadata().UID != d.UID {
				return false, errs.New(errs.Conflict, "%s was removed meanwhile", ref)
			}
			now := o.(*api.Deployment)
			if now.Revision < d.Revision || now.Generation < generation || now.Status.Observed < now.Generation {
				return false, nil
			}
			d = now
			st := &d.Status
			if d.RolledOut() {
				steps.Update(st.Desired, st.Desired, sentence(d))
				return true, nil
			}
			steps.Update(min(st.Updated, st.Available), st.Desired, sentence(d))
			return false, standsStill(d)
		})
	})
	return d, err
}

// sentence is how far it is, in one line.
func sentence(d *api.Deployment) string {
	st := &d.Status
	s := fmt.Sprintf("%d of %d updated, %d available", st.Updated, st.Desired, st.Available)
	if old := st.Replicas - st.Updated; old > 0 {
		s += fmt.Sprintf(", %d old", old)
	}
	return s
}

// standsStill is why it does not go on by itself; nil when it does.
func standsStill(d *api.Deployment) error {
	ref := render.ShortRef(d)
	if d.DeletedAt != nil {
		return errs.New(errs.Conflict, "%s is being removed", ref)
	}
	if a := api.FindCondition(d.Status.Conditions, api.ConditionAdmitted); a != nil && !a.Status {
		kind := errs.Quota
		if a.Reason != "Quota" {
			kind = errs.Conflict
		}
		return errs.New(kind, "%s: %s: %s", ref, sentence(d), a.Message).WithHint("it stays wanted, and is tried again: atoll rollout status %s", ref)
	}
	p := api.FindCondition(d.Status.Conditions, api.ConditionProgressing)
	switch {
	case p == nil:
		return nil
	case p.Reason == api.ReasonDeadline:
		return errs.New(errs.Timeout, "%s %s", ref, p.Message)
	case d.Spec.Paused && p.Reason == api.ReasonPaused:
		return errs.New(errs.Conflict, "%s is paused: %s", ref, sentence(d)).WithHint("atoll rollout resume %s", ref)
	}
	return nil
}

// change writes a deployment and, if wanted, follows it.
func change(ctx context.Context, c *verb.Call, d *api.Deployment, w verb.Waiting, edit func(*api.Deployment)) (*api.Deployment, error) {
	n, err := verb.Update(ctx, c, d, edit)
	if err != nil || !w.Wait {
		return n, err
	}
	if n.Revision != d.Revision {
		o, err := c.Get(ctx, api.RefOf(n)) // with its new generation
		if err != nil {
			return n, err
		}
		n = o.(*api.Deployment)
	}
	return follow(ctx, c, n, w.Timeout)
}
