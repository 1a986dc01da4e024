package workload

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// Rollout is the group of verbs about how a deployment's instances are replaced.
func Rollout() verb.Def {
	return verb.Def{
		Use: "rollout", Group: verb.GroupRun, Short: "See and steer how the instances of a deployment are replaced",
		Example: `  atoll rollout status web
  atoll rollout history web
  atoll rollout undo web
  atoll rollout restart deployment/web`,
		Sub: []verb.Def{status(), history(), undo(), pause(), resume(), restart()},
	}
}

func status() verb.Def {
	var out render.Output
	var w verb.Waiting
	return verb.Def{
		Use: "status DEPLOYMENT…", Min: 1, Max: -1, Short: "Show how far a rollout is, until it is done",
		Long: `Status shows how far a rollout is and ends with 0 when it is done. It ends with 9 when
the rollout has got no further for spec.progressDeadline, and says why.`,
		Example: "  atoll rollout status web\n  atoll rollout status web --wait=false\n  atoll rollout status web --timeout 5m -o json",
		Flags: func(fs *pflag.FlagSet) {
			out.Flags(fs)
			w.Flags(fs, "it is done", true)
			_ = fs.Set("timeout", "0") // the deployment's own deadline ends it
			fs.Lookup("timeout").DefValue, fs.Lookup("timeout").Changed = "0s", false
		},
		Run: func(ctx context.Context, c *verb.Call) error {
			if err := out.Check(); err != nil {
				return err
			}
			for _, arg := range c.Args {
				if err := oneStatus(ctx, c, arg, out, w); err != nil {
					return err
				}
			}
			return nil
		},
		Complete: completeDeployments,
	}
}

func oneStatus(ctx context.Context, c *verb.Call, name string, out render.Output, w verb.Waiting) error {
	d, err := deployment(ctx, c, name)
	if err != nil {
		return err
	}
	if w.Wait {
		d, err = follow(ctx, c, d, w.Timeout)
	}
	if !out.Tabular() {
		if perr := out.Objects(c.Out, c.Clock.Now(), []api.Object{d}, true); perr != nil {
			return perr
		}
		return err
	}
	if err != nil {
		return err
	}
	if d.RolledOut() {
		c.Say("%s is rolled out: revision %d, %d of %d available", render.ShortRef(d), d.Status.Revision, d.Status.Available, d.Status.Desired)
		return nil
	}
	c.Say("%s: %s", render.ShortRef(d), sentence(d))
	if m := d.Status.Message; m != "" {
		c.Say("  %s", m)
	}
	return nil
}

func revisions(ctx context.Context, c *verb.Call, d *api.Deployment) ([]*api.Revision, error) {
	list, err := verb.List[*api.Revision](ctx, c, api.Selector{Kind: api.KindRevision, Tenant: d.Tenant, Fields: map[string]string{"spec.deployment": d.Name}})
	slices.SortFunc(list, func(a, b *api.Revision) int { return int(a.Spec.Number - b.Spec.Number) })
	return list, err
}

func history() verb.Def {
	var out render.Output
	var number int64
	return verb.Def{
		Use: "history DEPLOYMENT", Min: 1, Max: 1, Short: "Show the templates a deployment had",
		Long: `History shows the revisions that are kept (spec.revisionHistory); the present one is
marked. The annotation change-cause of the deployment is kept with each as its reason.`,
		Example: "  atoll rollout history web\n  atoll rollout history web --revision 3",
		Flags: func(fs *pflag.FlagSet) {
			out.Flags(fs)
			fs.Int64Var(&number, "revision", 0, "show the template of this one")
		},
		Run: func(ctx context.Context, c *verb.Call) error {
			if err := out.Check(); err != nil {
				return err
			}
			d, err := deployment(ctx, c, c.Args[0])
			if err != nil {
				return err
			}
			list, err := revisions(ctx, c, d)
			if err != nil {
				return err
			}
			if c.Flags.Changed("revision") {
				r, err := numbered(d, list, number)
				if err != nil {
					return err
				}
				list = []*api.Revision{r}
				if out.Tabular() {
					return render.Value(c.Out, r.Spec.Template, "yaml")
				}
			}
			return showHistory(c, d, list, out, c.Flags.Changed("revision"))
		},
		Complete: completeOne,
	}
}

func showHistory(c *verb.Call, d *api.Deployment, list []*api.Revision, out render.Output, single bool) error {
	if !out.Tabular() {
		var objs []api.Object
		for _, r := range list {
			objs = append(objs, r)
		}
		return out.Objects(c.Out, c.Clock.Now(), objs, single)
	}
	t := &render.Table{Head: []string{"REVISION", "IMAGE", "CHANGE", "AGE"}}
	for _, r := range list {
		number := strconv.FormatInt(r.Spec.Number, 10)
		if r.Spec.Hash == d.Status.Hash {
			number += " *"
		}
		t.Row(number, r.Spec.Template.Spec.Image, render.Dash(r.Spec.Change), api.Age(r.CreatedAt, c.Clock.Now()))
	}
	out.Table(c.Out, t)
	return nil
}

func numbered(d *api.Deployment, list []*api.Revision, n int64) (*api.Revision, error) {
	for _, r := range list {
		if r.Spec.Number == n {
			return r, nil
		}
	}
	return nil, errs.New(errs.NotFound, "%s has no revision %d", render.ShortRef(d), n).WithHint("atoll rollout history %s lists those that are kept", d.Name)
}

func undo() verb.Def {
	var w verb.Waiting
	var to int64
	return verb.Def{
		Use: "undo DEPLOYMENT", Min: 1, Max: 1, Short: "Go back to an earlier template",
		Long:    "Undo puts the template of the revision before the present one in place, or of the one named. It is a change like any other, and becomes the newest revision.",
		Example: "  atoll rollout undo web\n  atoll rollout undo web --to-revision 3",
		Flags: func(fs *pflag.FlagSet) {
			fs.Int64Var(&to, "to-revision", 0, "go back to this one (default: the one before)")
			w.Flags(fs, "it is rolled out", true)
		},
		Run: func(ctx context.Context, c *verb.Call) error {
			d, err := deployment(ctx, c, c.Args[0])
			if err != nil {
				return err
			}
			list, err := revisions(ctx, c, d)
			if err != nil {
				return err
			}
			hash := d.Spec.Template.Hash()
			var r *api.Revision
			if c.Flags.Changed("to-revision") {
				if r, err = numbered(d, list, to); err != nil {
					return err
				}
			} else {
				for _, x := range list {
					if x.Spec.Hash != hash {
						r = x
					}
				}
			}
			if r == nil {
				return errs.New(errs.NotFound, "%s has no earlier revision to go back to", render.ShortRef(d))
			}
			if r.Spec.Hash == hash {
				c.Say("%s unchanged: it is at revision %d", render.ShortRef(d), r.Spec.Number)
				return nil
			}
			c.Say("%s goes back to revision %d (%s)", render.ShortRef(d), r.Spec.Number, r.Spec.Template.Spec.Image)
			_, err = change(ctx, c, d, w, func(d *api.Deployment) { d.Spec.Template = api.Clone(r).Spec.Template })
			return err
		},
		Complete: completeOne,
	}
}

func completeOne(ctx context.Context, c *verb.Call, typed string) []string {
	if len(c.Args) > 0 {
		return nil
	}
	return completeDeployments(ctx, c, typed)
}

// each is a verb that changes deployments.
func each(use, short, example, done string, wait bool, edit func(c *verb.Call, d *api.Deployment)) verb.Def {
	var w verb.Waiting
	return verb.Def{
		Use: use + " DEPLOYMENT…", Min: 1, Max: -1, Short: short, Example: example,
		Flags: func(fs *pflag.FlagSet) {
			if wait {
				w.Flags(fs, "it is rolled out", true)
			}
		},
		Run: func(ctx context.Context, c *verb.Call) error {
			for _, arg := range c.Args {
				d, err := deployment(ctx, c, arg)
				if err != nil {
					return err
				}
				if _, err := change(ctx, c, d, w, func(d *api.Deployment) { edit(c, d) }); err != nil {
					return err
				}
				c.Say("%s %s", render.ShortRef(d), done)
			}
			return nil
		},
		Complete: completeDeployments,
	}
}

func pause() verb.Def {
	return each("pause", "Let changes of the template wait", "  atoll rollout pause web", "paused", false,
		func(_ *verb.Call, d *api.Deployment) { d.Spec.Paused = true })
}

func resume() verb.Def {
	return each("resume", "Go on with a paused rollout", "  atoll rollout resume web", "resumed", true,
		func(_ *verb.Call, d *api.Deployment) { d.Spec.Paused = false })
}

func restart() verb.Def {
	return each("restart", "Replace all instances of a deployment by new ones, some at a time", "  atoll rollout restart web", "restarted", true,
		func(c *verb.Call, d *api.Deployment) {
			t := &d.Spec.Template
			t.Annotations = verb.With(t.Annotations, api.AnnotationRestarted, c.Clock.Now().UTC().Format(time.RFC3339Nano))
		})
}
