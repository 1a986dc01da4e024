package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/errs"
)

// powerOptions are start, stop and restart: one change of the spec for each instance.
type powerOptions struct {
	waiting
	labels string
	now    bool
	verb   string
	change func(o *powerOptions, in *api.Instance) // on a copy
	done   func(in *api.Instance) (bool, error)
	word   string
}

func (o *powerOptions) flags(fs *pflag.FlagSet) {
	fs.StringVarP(&o.labels, "selector", "l", "", "instances with these labels")
	o.waiting.flags(fs, "it is "+o.word, true)
	if o.verb != "start" {
		fs.BoolVar(&o.now, "now", false, "kill it at once instead of asking it to end")
	}
}

func startVerb() Verb {
	o := &powerOptions{verb: "start", word: "running",
		change: func(_ *powerOptions, in *api.Instance) {
			if !in.Spec.Stopped && ended(in) {
				in.Spec.Restarts++ // it ended by itself and is to run once more
			}
			in.Spec.Stopped = false
		},
		done: func(in *api.Instance) (bool, error) {
			if in.Status.RestartsIn < in.Spec.Restarts {
				return false, nil
			}
			return started(in, false)
		}}
	return Verb{Use: "start INSTANCE…", Group: groupRun, Max: -1, Short: "Start stopped instances",
		Example: "  atoll start web\n  atoll start -l app=web", Flags: o.flags, Run: o.run, Complete: completeInstances(-1)}
}

func stopVerb() Verb {
	o := &powerOptions{verb: "stop", word: "stopped",
		change: func(o *powerOptions, in *api.Instance) {
			in.Spec.Stopped = true
			o.hurry(in)
		},
		done: func(in *api.Instance) (bool, error) {
			s := in.StateOf()
			return s == api.StateStopped || s == api.StateFailed, nil
		}}
	return Verb{Use: "stop INSTANCE…", Group: groupRun, Max: -1, Short: "Stop instances and keep them",
		Long:    "Stop asks the process to end (spec.stopSignal), waits spec.stopTimeout, and then kills it. 'atoll start' starts it again.",
		Example: "  atoll stop web\n  atoll stop --now web", Flags: o.flags, Run: o.run, Complete: completeInstances(-1)}
}

func restartVerb() Verb {
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
			return started(in, false)
		}}
	return Verb{Use: "restart INSTANCE…", Group: groupRun, Max: -1, Short: "Stop instances and start them again",
		Example: "  atoll restart web", Flags: o.flags, Run: o.run, Complete: completeInstances(-1)}
}

func (o *powerOptions) hurry(in *api.Instance) {
	if o.now {
		var zero api.Duration
		in.Spec.StopTimeout = &zero
	}
}

func (o *powerOptions) run(ctx context.Context, c *call) error {
	if len(c.args) == 0 && o.labels == "" {
		return errs.New(errs.Invalid, "%s: no instance named", o.verb).WithHint("atoll %s NAME, or -l app=web", o.verb)
	}
	list, err := c.instances(ctx, c.args, o.labels)
	if err != nil {
		return err
	}
	for _, in := range list {
		if in.DeletedAt != nil {
			return errs.New(errs.Conflict, "%s is being removed", shortRef(in))
		}
	}
	for i, in := range list {
		if list[i], err = update(ctx, c, in, func(in *api.Instance) { o.change(o, in) }); err != nil {
			return err
		}
	}
	for _, in := range list {
		if o.wait {
			if err := o.await(ctx, c, in); err != nil {
				return err
			}
		}
		c.say("%s", in.Name)
	}
	return nil
}

func (o *powerOptions) await(ctx context.Context, c *call, in *api.Instance) error {
	timeout := o.timeout
	if o.verb != "start" && !c.flags.Changed("timeout") {
		timeout = max(timeout, in.Spec.StopGrace()+30*time.Second)
	}
	err := c.within(ctx, timeout, fmt.Sprintf("%s is %s", shortRef(in), o.word), func(ctx context.Context) error {
		return c.waitFor(ctx, api.RefOf(in), func(obj api.Object, gone bool) (bool, error) {
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
	p := &placing{c: c, in: in}
	if a, aerr := p.assignment(ctx); aerr == nil && a.Spec.InstanceUID == in.UID && a.Spec.Node == "" && a.Spec.Decision != nil {
		return noRoom(in, a.Spec.Decision) // it stays, and starts when there is room
	}
	return err
}

func errGoneUnless(in *api.Instance, fine bool) error {
	if fine {
		return nil
	}
	return errs.New(errs.Conflict, "%s was removed meanwhile", shortRef(in))
}
