package verb

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// errSeen ends a watch that has seen what it waited for.
var errSeen = errors.New("seen")

// Follow shows fn every object of the selections as it is now and after each change, one
// at a time, until fn says it has seen enough or fails.
func (c *Call) Follow(ctx context.Context, fn func(ev store.Event) (done bool, err error), sels ...api.Selector) error {
	return c.follow(ctx, fn, sels...)
}

// follow shows fn every object of the selections as it is now and after each
// change, one at a time, until fn says it has seen enough or fails.
func (c *Call) follow(ctx context.Context, fn func(ev store.Event) (done bool, err error), sels ...api.Selector) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // fn sees one event at a time
	see := func(ev store.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if err := context.Cause(ctx); err != nil {
			return err
		}
		done, err := fn(ev)
		if err == nil && done {
			err = errSeen
		}
		return err
	}
	var wg sync.WaitGroup
	for _, sel := range sels {
		wg.Go(func() { cancel(followOne(ctx, cl, sel, see)) })
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, errSeen) {
		return err
	}
	return nil
}

func followOne(ctx context.Context, s store.Store, sel api.Selector, see func(store.Event) error) error {
	for {
		objs, rev, err := s.List(ctx, sel)
		if err != nil {
			return err
		}
		for _, o := range objs {
			if err := see(store.Event{Rev: rev, Object: o}); err != nil {
				return err
			}
		}
		if sel.Name != "" && len(objs) == 0 {
			gone, err := api.New(sel.Kind)
			if err != nil {
				return err
			}
			gone.Metadata().Name, gone.Metadata().Tenant = sel.Name, sel.Tenant
			if err := see(store.Event{Rev: rev, Deleted: true, Object: gone}); err != nil {
				return err
			}
		}
		if err := s.Watch(ctx, sel, rev, see); errs.KindOf(err) != errs.Compacted || errors.Is(err, errSeen) {
			return err
		}
	}
}

// Exactly selects one object.
func Exactly(r api.Ref) api.Selector {
	return api.Selector{Kind: r.Kind, Tenant: r.Tenant, Name: r.Name}
}

const DefaultTimeout = 2 * time.Minute

// Waiting is the flags of every verb that can wait.
type Waiting struct {
	Wait    bool
	Timeout time.Duration
}

// Flags adds them; what says what is waited for, preset whether that is so without --wait.
func (w *Waiting) Flags(fs *pflag.FlagSet, what string, preset bool) {
	fs.BoolVar(&w.Wait, "wait", preset, "wait until "+what)
	fs.DurationVar(&w.Timeout, "timeout", DefaultTimeout, "how long to wait at most")
}

// Within runs fn under the timeout and says what was not reached when it ends.
func (c *Call) Within(ctx context.Context, d time.Duration, what string, fn func(ctx context.Context) error) error {
	if d <= 0 {
		return fn(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := make(chan bool, 1)
	done := make(chan struct{})
	t := c.Clock.NewTimer(d)
	go func() {
		select {
		case <-t.C:
			late <- true
			cancel()
		case <-done:
			late <- false
		}
	}()
	err := fn(ctx)
	t.Stop()
	close(done)
	if <-late && err != nil {
		return errs.New(errs.Timeout, "%s: not reached within %s", what, d).WithHint("it goes on; look again, or wait longer with --timeout")
	}
	return err
}

// WaitFor waits until an object is as it should be. gone: it is no longer there.
func (c *Call) WaitFor(ctx context.Context, r api.Ref, ok func(o api.Object, gone bool) (bool, error)) error {
	return c.follow(ctx, func(ev store.Event) (bool, error) { return ok(ev.Object, ev.Deleted) }, Exactly(r))
}

// WaitGone waits until the object with this UID is no longer there.
func (c *Call) WaitGone(ctx context.Context, r api.Ref, uid string) error {
	return c.WaitFor(ctx, r, func(o api.Object, gone bool) (bool, error) {
		return gone || uid != "" && o.Metadata().UID != "" && o.Metadata().UID != uid, nil
	})
}

// Started judges an instance that is meant to run.
func Started(in *api.Instance, gone bool) (bool, error) {
	ref := api.RefOf(in)
	switch {
	case gone:
		return false, errs.New(errs.Conflict, "%s was removed meanwhile", ref)
	case in.Status.Generation < in.Generation && in.Status.State != "":
		return false, nil // what is told is not about this spec yet
	}
	switch in.StateOf() {
	case api.StateRunning:
		return true, nil
	case api.StateStopped:
		return in.Status.Starts > 0 && !in.Spec.Stopped, nil
	case api.StateFailed, api.StateBackoff:
		if in.Status.StartedAt == nil {
			return false, couldNotStart(in)
		}
		return true, nil
	}
	return false, nil
}

func couldNotStart(in *api.Instance) error {
	msg := cmp.Or(in.Status.Message, in.Status.Reason, "no reason was given")
	return errs.New(errs.Conflict, "%s could not start: %s", api.RefOf(in), msg).
		WithHint("atoll events --for %s; atoll logs %s", render.ShortRef(in), in.Name)
}

// Ended reports whether an instance ran and runs no longer.
func Ended(in *api.Instance) bool {
	return in.Status.State == api.StateStopped || in.Status.State == api.StateFailed
}

// Conditions are those of an object of any kind.
func Conditions(o api.Object) []api.Condition {
	switch o := o.(type) {
	case *api.Instance:
		return o.Status.Conditions
	case *api.Node:
		return o.Status.Conditions
	case *api.Tenant:
		return o.Status.Conditions
	case *api.Deployment:
		return o.Status.Conditions
	case *api.Job:
		return o.Status.Conditions
	}
	return nil
}

// Current reports whether the status of a workload is about its present spec; of other
// kinds that is not said.
func Current(o api.Object) bool {
	switch o := o.(type) {
	case *api.Deployment:
		return o.Status.Observed >= o.Generation
	case *api.Job:
		return o.Status.Observed >= o.Generation
	}
	return true
}
