package workload

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

type scaleOptions struct {
	verb.Waiting
	replicas int
	current  int
}

// Scale changes how many instances deployments have.
func Scale() verb.Def {
	o := &scaleOptions{}
	return verb.Def{
		Use: "scale DEPLOYMENT… --replicas N | DEPLOYMENT=N…", Group: verb.GroupRun, Min: 1, Max: -1,
		Short: "Change how many instances a deployment has",
		Long: `Scale sets the number of instances and waits until they are available. What the
tenant's limit does not allow is told at once; it stays wanted, and comes when there is room.`,
		Example: `  atoll scale web=6 api=3
  atoll scale deployment/web --replicas 6
  atoll scale web --replicas 0 --wait=false
  atoll scale web --replicas 6 --current-replicas 3     only if it has 3`,
		Flags: func(fs *pflag.FlagSet) {
			fs.IntVar(&o.replicas, "replicas", -1, "how many instances")
			fs.IntVar(&o.current, "current-replicas", -1, "only when it is to have so many now")
			o.Waiting.Flags(fs, "they are available", true)
			fs.Lookup("replicas").DefValue, fs.Lookup("current-replicas").DefValue = "0", "0" // -1 marks "not given"
		},
		Run: o.run, Complete: completeDeployments,
	}
}

func (o *scaleOptions) run(ctx context.Context, c *verb.Call) error {
	type wish struct {
		d *api.Deployment
		n int
	}
	var wishes []wish
	for _, arg := range c.Args {
		name, text, has := strings.Cut(arg, "=")
		n := o.replicas
		switch {
		case has && n >= 0:
			return errs.New(errs.Invalid, "scale: %s and --replicas exclude each other", arg)
		case has:
			var err error
			if n, err = strconv.Atoi(text); err != nil || n < 0 {
				return errs.New(errs.Invalid, "scale: %q: must be DEPLOYMENT=N", arg).WithHint("such as atoll scale %s=3", name)
			}
		case n < 0 && !c.Flags.Changed("replicas"):
			return errs.New(errs.Invalid, "scale: how many of %s?", arg).WithHint("atoll scale %s=3, or atoll scale %s --replicas 3", arg, arg)
		case n < 0:
			return parse.BadFlag("replicas", strconv.Itoa(n), "must not be negative", "3")
		}
		d, err := deployment(ctx, c, name)
		if err != nil {
			return err
		}
		switch {
		case d.Spec.PerNode:
			return errs.New(errs.Invalid, "%s has one instance on every node, and cannot be scaled", render.ShortRef(d)).WithHint("its template's placement says on which nodes")
		case o.current >= 0 && d.Spec.Wants() != o.current:
			return errs.New(errs.Conflict, "%s is to have %d instances, not %d", render.ShortRef(d), d.Spec.Wants(), o.current)
		}
		wishes = append(wishes, wish{d, n})
	}
	for _, w := range wishes {
		was := w.d.Spec.Wants()
		if _, err := change(ctx, c, w.d, verb.Waiting{}, func(d *api.Deployment) { d.Spec.Replicas = &w.n }); err != nil {
			return err
		}
		if was == w.n {
			c.Say("%s unchanged: %d", render.ShortRef(w.d), w.n)
			continue
		}
		c.Say("%s scaled from %d to %d", render.ShortRef(w.d), was, w.n)
	}
	if !o.Wait {
		return nil
	}
	for _, w := range wishes {
		d, err := deployment(ctx, c, api.RefOf(w.d).String())
		if err != nil {
			return err
		}
		if d.Spec.Paused && d.Status.Hash != d.Status.Complete {
			continue // it never is rolled out while paused
		}
		if _, err := follow(ctx, c, d, o.Timeout); err != nil {
			return err
		}
	}
	return nil
}
