package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// attachPatience is how long a caller announced by api.AnnotationAttached is waited for.
const attachPatience = 10 * time.Second

// instances is the controller of what runs on this node.
type instances struct{ *Agent }

func (*instances) Name() string { return "instances" }

func (c *instances) Watches() []api.Selector {
	return []api.Selector{
		{Kind: api.KindAssignment, Fields: map[string]string{"spec.node": c.Node}},
		{Kind: api.KindInstance, Fields: map[string]string{"status.node": c.Node}},
	}
}

func (*instances) Owns() []api.Kind { return []api.Kind{api.KindInstance} }

// Key makes an instance and its assignment one name: two calls at once could start it twice.
func (*instances) Key(ref api.Ref) api.Ref {
	ref.Kind = api.KindInstance
	return ref
}

// Reconcile brings one instance in line.
func (c *instances) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	ref.Kind = api.KindInstance
	in, err := read[*api.Instance](ctx, s, ref)
	if err != nil {
		return reconcile.Result{}, err
	}
	as, err := read[*api.Assignment](ctx, s, api.Ref{Kind: api.KindAssignment, Tenant: ref.Tenant, Name: ref.Name})
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := c.strangers(ctx, ref, in); err != nil {
		return reconcile.Result{}, err
	}
	if in == nil {
		return reconcile.Result{}, nil
	}
	sit := situation{now: c.Clock.Now(), node: c.Node, in: in, as: as}
	if l, ok := c.look(runtimeID(in.UID)); ok {
		if l.obs.Phase != "" {
			sit.seen = &l.obs
		}
		sit.unhealthy = l.unhealthy
		sit.attached = c.awaited(in, l)
		sit.repin = c.own(runtimeID(in.UID), in, as)
		sit.fenced = l.fenced
		c.adoptGuard(ctx, runtimeID(in.UID), in, l)
	}
	sit.barred = in.Spec.RunsOnce() && !c.mayRun()
	d := next(sit)
	if l, ok := c.look(runtimeID(in.UID)); ok && d.status.State == api.StateRunning {
		d.status.Healthy = l.healthy
	}
	gone, err := c.act(ctx, s, in, as, &d)
	if err != nil || gone {
		return reconcile.Result{}, err
	}
	if err := c.write(ctx, s, in, d.status); err != nil {
		return reconcile.Result{}, err
	}
	if d.status.State == api.StateRunning && in.Spec.Health != nil {
		c.checks.ensure(ctx, runtimeID(in.UID), in, c)
	}
	return reconcile.Result{Again: d.again}, nil
}

// read is store.Get with nil for what is not there.
func read[T api.Object](ctx context.Context, s store.Store, ref api.Ref) (T, error) {
	o, err := store.Get[T](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		var none T
		return none, nil
	}
	if err != nil {
		return o, fmt.Errorf("read %s: %w", ref, err)
	}
	return o, nil
}

// awaited reports whether an attached caller still needs the instance to be there.
func (c *instances) awaited(in *api.Instance, l life) bool {
	if l.readers > 0 {
		return true
	}
	late := in.CreatedAt != nil && c.Clock.Now().Sub(*in.CreatedAt) > attachPatience
	return in.Annotations[api.AnnotationAttached] != "" && !l.read && !late
}

// strangers removes from the node what bears this name but is another instance.
func (c *instances) strangers(ctx context.Context, ref api.Ref, in *api.Instance) error {
	c.mu.Lock()
	var ids []string
	for id, l := range c.lives {
		if l.ref == ref && l.runtime != nil && (in == nil || id != runtimeID(in.UID)) {
			ids = append(ids, id)
		}
	}
	c.mu.Unlock()
	sort.Strings(ids)
	for _, id := range ids {
		if err := c.teardown(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// act does the steps and notes in the status what came of them. gone: the object was removed.
func (c *instances) act(ctx context.Context, s store.Store, in *api.Instance, as *api.Assignment, d *decision) (gone bool, err error) {
	id := runtimeID(in.UID)
	for _, step := range d.acts {
		switch step {
		case actTeardown:
			err = c.teardown(ctx, id)
		case actForget:
			err = c.forget(ctx, s, in)
			gone = err == nil
		case actStop:
			err = c.halt(ctx, id, in, d)
		case actApply:
			err = c.apply(ctx, in, as, d)
		case actStart:
			c.launch(ctx, s, in, as, d)
		}
		if err != nil {
			return false, fmt.Errorf("%s %s: %w", step, api.RefOf(in), err)
		}
	}
	if len(d.acts) == 1 && d.acts[0] == actTeardown {
		return true, nil // not this node's any more: its status is somebody else's to write
	}
	return gone, nil
}

func (c *instances) teardown(ctx context.Context, id string) error {
	c.checks.forget(id)
	l, known := c.look(id)
	for name, rt := range c.Runtimes {
		if known && l.runtime != nil && l.runtime != rt {
			continue
		}
		if err := rt.Remove(ctx, id); err != nil {
			return fmt.Errorf("remove %s by %s: %w", id, name, err)
		}
	}
	// After the processes: their namespace takes its interface along, which is much
	// faster than taking the interface out of a living one.
	if c.Network != nil {
		if err := c.Network.Detach(ctx, id); err != nil {
			return fmt.Errorf("detach %s: %w", id, err)
		}
	}
	c.unguard(id)
	c.drop(id)
	c.leftStray()
	return nil
}

// forget removes the object; quota is given back in the same commit.
func (c *instances) forget(ctx context.Context, s store.Store, in *api.Instance) error {
	_, err := s.Commit(ctx, store.Remove(api.RefOf(in), in.Revision))
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (c *instances) halt(ctx context.Context, id string, in *api.Instance, d *decision) error {
	l, ok := c.look(id)
	if !ok || l.runtime == nil {
		return nil
	}
	if d.status.State == api.StateStopping {
		// Told before the grace period is over; a failure to tell is no reason not to stop.
		if err := c.write(ctx, c.Store, in, d.status); err == nil {
			if fresh, err := store.Get[*api.Instance](ctx, c.Store, api.RefOf(in)); err == nil && fresh.UID == in.UID {
				*in = *fresh
			}
		}
	}
	if err := l.runtime.Stop(ctx, id, in.Spec.StopSignal, in.Spec.StopGrace()); err != nil {
		return err
	}
	c.checks.forget(id)
	c.set(id, func(l *life) { l.unhealthy, l.healthy = false, nil })
	return nil
}

// apply changes limits and published ports of what runs.
func (c *instances) apply(ctx context.Context, in *api.Instance, as *api.Assignment, d *decision) error {
	l, _ := c.look(runtimeID(in.UID))
	spec, err := c.spec(ctx, in, as)
	if err != nil {
		return err
	}
	obs, err := l.runtime.Ensure(ctx, spec)
	if err != nil {
		return err
	}
	if err := c.connect(ctx, spec, obs); err != nil {
		return err
	}
	d.status.Generation = in.Generation
	pending := fingerprint(&in.Spec) != d.status.Launched
	d.status.Conditions = api.SetCondition(d.status.Conditions, api.Condition{Type: "UpToDate", Status: !pending, Reason: "Spec",
		Message: either(pending, "a change needs a new start: atoll restart instance/"+in.Name, ""), Since: c.Clock.Now().UTC()})
	return nil
}

func either(cond bool, a, b string) string {
	if cond {
		return a
	}
	return b
}

// launch starts it and never fails: what goes wrong is the instance's story, and
// the restart policy decides what follows.
func (c *instances) launch(ctx context.Context, s store.Store, in *api.Instance, as *api.Assignment, d *decision) {
	ref, id := api.RefOf(in), runtimeID(in.UID)
	st := &d.status
	began := c.Clock.Now().UTC()
	obs, digest, err := c.bringUp(ctx, s, in, as, st)
	st.Starts++
	st.RestartsIn, st.Generation, st.NextStart = in.Spec.Restarts, in.Generation, nil
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		st.StartedAt = &began
		end(st, startCode(err), false, c.Clock.Now().UTC())
		st.Reason, st.Message = reasonStartFailed, err.Error()
		c.set(id, func(l *life) { l.ref, l.failure = ref, err; l.ended++ })
		c.Recorder.Record(ref, in.UID, "warning", reasonStartFailed, err.Error())
		after := decision{status: *st}
		afterEnd(situation{now: c.Clock.Now(), in: in, attached: c.attachedNow(in, id)}, &after)
		d.status, d.again = after.status, after.again
		if len(after.acts) > 0 {
			d.again = time.Millisecond // what follows is the next look's work
		}
		return
	}
	started := obs.StartedAt
	if started.IsZero() {
		started = c.Clock.Now().UTC()
	}
	st.State, st.Reason, st.Message, st.Pid, st.StartedAt, st.ImageDigest = api.StateRunning, "", "", obs.Pid, &started, digest
	st.OOMKilled, st.Healthy, st.Launched = false, nil, fingerprint(&in.Spec)
	st.Conditions = nil
	for _, w := range obs.Warnings {
		st.Conditions = append(st.Conditions, api.Condition{Type: "Enforced", Status: false, Reason: "Host", Message: w, Since: started})
	}
	c.Recorder.Record(ref, in.UID, "normal", "Started", "started on "+c.Node)
}

func (c *instances) attachedNow(in *api.Instance, id string) bool {
	l, _ := c.look(id)
	return c.awaited(in, l)
}

// startCode is the shell's habit: 127 not found, 126 cannot be run, 125 otherwise.
func startCode(err error) int {
	switch errs.KindOf(err) {
	case errs.NotFound, errs.Invalid:
		return 127
	case errs.Denied, errs.Unsupported:
		return 126
	}
	return 125
}

// bringUp prepares, connects and starts.
func (c *instances) bringUp(ctx context.Context, s store.Store, in *api.Instance, as *api.Assignment, st *api.InstanceStatus) (driver.Observed, string, error) {
	var none driver.Observed
	id := runtimeID(in.UID)
	rt := c.Runtimes[string(in.Spec.EffectiveIsolation())]
	if rt == nil {
		return none, "", errs.New(errs.Unsupported, "this node has no driver for isolation %s", in.Spec.EffectiveIsolation())
	}
	spec, err := c.spec(ctx, in, as)
	if err != nil {
		return none, "", err
	}
	// Known before it exists, so that a kill in between leaves nothing unlooked for.
	c.set(id, func(l *life) {
		l.runtime, l.ref, l.failure, l.unhealthy, l.healthy = rt, api.RefOf(in), nil, false, nil
	})
	obs, err := rt.Ensure(ctx, spec)
	if err != nil {
		return none, "", err
	}
	if err := c.connect(ctx, spec, obs); err != nil {
		return none, "", errors.Join(err, rt.Stop(ctx, id, "KILL", 0))
	}
	if err := c.guard(ctx, id, in, rt); err != nil {
		return none, "", errors.Join(err, rt.Stop(ctx, id, "KILL", 0))
	}
	obs.Phase = driver.PhaseRunning
	obs.Ref = api.RefOf(in)
	c.set(id, func(l *life) { l.obs = obs; l.launches++ })
	if err := rt.Start(ctx, id); err != nil {
		return none, "", err
	}
	c.leftStray()
	return obs, spec.Image.Digest, nil
}

func (c *instances) connect(ctx context.Context, spec driver.Spec, obs driver.Observed) error {
	if spec.Network.Mode == api.NetworkHost || spec.Network.Mode == api.NetworkNone && obs.NetNS == "" {
		return nil
	}
	if c.Network == nil {
		if spec.Network.Mode == api.NetworkNone {
			return nil
		}
		return errs.New(errs.Unsupported, "this node cannot connect instances to networks").WithHint("run it with --network none, or see: atoll doctor")
	}
	if spec.Network.Mode == api.NetworkNone {
		return nil // the runtime brings lo up; there is nothing to connect
	}
	if spec.Network.Mode == driver.ModeOverlay {
		if c.Ready == nil {
			return errs.New(errs.Unsupported, "this node takes no part in networks of tenants").WithHint("atoll doctor says what is missing")
		}
		if err := c.Ready(ctx, spec.Network.Interfaces); err != nil {
			return fmt.Errorf("connect to network: %w", err)
		}
	}
	if err := c.Network.Attach(ctx, obs.NetNS, spec); err != nil {
		return fmt.Errorf("connect to network: %w", err)
	}
	return nil
}

// write commits the status if it changed.
func (c *instances) write(ctx context.Context, s store.Store, in *api.Instance, st api.InstanceStatus) error {
	if reflect.DeepEqual(in.Status, st) {
		return nil
	}
	next := api.Clone(in)
	next.Status = st
	if _, err := s.Commit(ctx, store.Update(next)); err != nil {
		return fmt.Errorf("write status of %s: %w", api.RefOf(in), err)
	}
	return nil
}

// report is told by the health checks.
func (a *Agent) report(id string, healthy, failed bool) {
	var ref api.Ref
	changed := false
	a.set(id, func(l *life) {
		ref = l.ref
		changed = l.healthy == nil || *l.healthy != healthy || l.unhealthy != failed
		l.healthy, l.unhealthy = &healthy, failed
	})
	if changed && ref.Name != "" {
		a.engine.Enqueue("instances", ref)
	}
}
