package live

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// powerOptions are start, stop and restart: one change of the spec for each instance.
type powerOptions struct {
	verb.Waiting
	labels string
	now    bool
	verb   string
	change func(o *powerOptions, in *api.Instance) // on a copy
	done   func(in *api.Instance) (bool, error)
	word   string
}

func (o *powerOptions) flags(fs *pflag.FlagSet) {
	fs.StringVarP(&o.labels, "selector", "l", "", "instances with these labels")
	o.Waiting.Flags(fs, "it is "+o.word, true)
	if o.verb != "start" {
		fs.BoolVar(&o.now, "now", false, "kill it at once instead of asking it to end")
	}
}

// Start starts stopped instances.
func Start() verb.Def {
	o := &powerOptions{verb: "start", word: "running",
		change: func(_ *powerOptions, in *api.Instance) {
			if !in.Spec.Stopped && verb.Ended(in) {
				in.Spec.Restarts++ // it ended by itself and is to run once more
			}
			in.Spec.Stopped = false
		},
		done: func(in *api.Instance) (bool, error) {
			if in.Status.RestartsIn < in.Spec.Restarts {
				return false, nil
			}
			return verb.Started(in, false)
		}}
	return verb.Def{Use: "start INSTANCE…", Group: verb.GroupRun, Max: -1, Short: "Start stopped instances",
		Example: "  atoll start web\n  atoll start -l app=web", Flags: o.flags, Run: o.run, Complete: verb.CompleteInstances(-1)}
}

// Stop stops instances.
func Stop() verb.Def {
	o := &powerOptions{verb: "stop", word: "stopped",
		change: func(o *powerOptions, in *api.Instance) {
			in.Spec.Stopped = true
			o.hurry(in)
		},
		done: func(in *api.Instance) (bool, error) {
			s := in.StateOf()
			return s == api.StateStopped || s == api.StateFailed, nil
		}}
	return verb.Def{Use: "stop INSTANCE…", Group: verb.GroupRun, Max: -1, Short: "Stop instances and keep them",
		Long:    "Stop asks the process to end (spec.stopSignal), waits spec.stopTimeout, and then kills it. 'atoll start' starts it again.",
		Example: "  atoll stop web\n  atoll stop --now web", Flags: o.flags, Run: o.run, Complete: verb.CompleteInstances(-1)}
}

// Restart stops instances and starts them.
func Restart() verb.Def {
	o := &powerOptions{verb: "restart", word: "running again",
		change: func(o *powerOptions, in *api.Instance) {
			in.Spec.Restarts++
			in.Spec.Stopped = false
			o.hurry(in)
		},
		done: func(in *api.Instance) (bool, error) {
			if in.Status.RestartsIn < in.Spec.Restarts {
				return false, nil
			}
			return verb.Started(in, false)
		}}
	return verb.Def{Use: "restart INSTANCE…", Group: verb.GroupRun, Max: -1, Short: "Stop instances and start them again",
		Example: "  atoll restart web", Flags: o.flags, Run: o.run, Complete: verb.CompleteInstances(-1)}
}

func (o *powerOptions) hurry(in *api.Instance) {
	if o.now {
		var zero api.Duration
		in.Spec.StopTimeout = &zero
	}
}

func (o *powerOptions) run(ctx context.Context, c *verb.Call) error {
	if len(c.Args) == 0 && o.labels == "" {
		return errs.New(errs.Invalid, "%s: no instance named", o.verb).WithHint("atoll %s NAME, or -l app=web", o.verb)
	}
	list, err := c.Instances(ctx, c.Args, o.labels)
	if err != nil {
		return err
	}
	for _, in := range list {
		if in.DeletedAt != nil {
			return errs.New(errs.Conflict, "%s is being removed", render.ShortRef(in))
		}
	}
	for i, in := range list {
		if list[i], err = verb.Update(ctx, c, in, func(in *api.Instance) { o.change(o, in) }); err != nil {
			return err
		}
	}
	for _, in := range list {
		if o.Wait {
			if err := o.await(ctx, c, in); err != nil {
				return err
			}
		}
		c.Say("%s", in.Name)
	}
	return nil
}

func (o *powerOptions) await(ctx context.Context, c *verb.Call, in *api.Instance) error {
	timeout := o.Timeout
	if o.verb != "start" && !c.Flags.Changed("timeout") {
		timeout = max(timeout, in.Spec.StopGrace()+30*time.Second)
	}
	err := c.Within(ctx, timeout, fmt.Sprintf("%s is %s", render.ShortRef(in), o.word), func(ctx context.Context) error {
		return c.WaitFor(ctx, api.RefOf(in), func(obj api.Object, gone bool) (bool, error) {
			if gone || obj.Metadata().UID != in.UID {
				return o.verb == "stop", errGoneUnless(in, o.verb == "stop")
			}
			now := obj.(*api.Instance)
			if now.Revision < in.Revision {
				return false, nil
			}
			return o.done(now)
		})
	})
	if errs.KindOf(err) != errs.Timeout || o.verb == "stop" {
		return err
	}
	p := &verb.Placing{Call: c, Instance: in}
	if a, aerr := p.Assignment(ctx); aerr == nil && a.Spec.InstanceUID == in.UID && a.Spec.Node == "" && a.Spec.Decision != nil && !verb.OnTheMove(a.Spec.Decision) {
		return verb.NoRoom(in, a.Spec.Decision) // it stays, and starts when there is room
	}
	return err
}

func errGoneUnless(in *api.Instance, fine bool) error {
	if fine {
		return nil
	}
	return errs.New(errs.Conflict, "%s was removed meanwhile", render.ShortRef(in))
}
