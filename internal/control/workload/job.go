package workload

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// Jobs runs instances to their end.
type Jobs struct {
	clock  clock.Clock
	owners *owners
}

// NewJobs makes the controller.
func NewJobs(c clock.Clock) *Jobs { return &Jobs{clock: c, owners: newOwners()} }

// Name is "job".
func (*Jobs) Name() string { return "job" }

// Workers is how many jobs are looked at at once.
func (*Jobs) Workers() int { return 4 }

// Watches jobs, their instances, and tenants, whose limits decide whether more may be made.
func (*Jobs) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindTenant}, {Kind: api.KindInstance, Labels: []api.LabelTerm{{Key: api.LabelJob}}}, {Kind: api.KindJob}}
}

// Owns jobs, for their status and their end, and their instances.
func (*Jobs) Owns() []api.Kind { return []api.Kind{api.KindJob, api.KindInstance} }

// Reconcile looks at one job, or finds those that a change concerns.
func (c *Jobs) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	switch ref.Kind {
	case api.KindInstance:
		return c.owners.wake(ctx, s, ref, api.KindJob, api.LabelJob)
	case api.KindTenant:
		return blocked(ctx, s, api.KindJob, ref.Name)
	}
	j, err := store.Get[*api.Job](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	v := &jobVisit{Store: s, j: j, now: c.clock.Now()}
	v.family, err = familyOf(ctx, s, j, api.KindInstance, api.LabelJob, func(api.Object) bool { return false })
	if err != nil {
		return reconcile.Result{}, err
	}
	if j.DeletedAt != nil {
		left, err := retire(ctx, s, j, v.family.mine, v.now)
		if err != nil || left > 0 {
			return reconcile.Result{}, err
		}
		return reconcile.Result{}, letGo(ctx, s, j)
	}
	return v.step(ctx)
}

// jobVisit is one look at a job.
type jobVisit struct {
	store.Store
	j      *api.Job
	now    time.Time
	family *family
	byName map[string]*api.Instance
}

func (v *jobVisit) step(ctx context.Context) (reconcile.Result, error) {
	p := nextErrand(v.errand())
	if p.expire {
		at := v.now.UTC().Round(time.Millisecond)
		n := api.Clone(v.j)
		n.DeletedAt = &at
		_, err := v.Commit(ctx, store.Update(n))
		return reconcile.Result{}, err
	}
	var why error
	if len(p.create) > 0 {
		var err error
		if why, err = v.start(ctx, p.create); err != nil {
			return reconcile.Result{}, err
		}
	}
	for _, name := range p.stop {
		if err := v.stop(ctx, v.byName[name]); err != nil {
			return reconcile.Result{}, err
		}
	}
	if err := v.report(ctx, p, why); err != nil {
		return reconcile.Result{}, err
	}
	if why != nil {
		p.again = soonest(p.again, retryRefused)
	}
	return reconcile.Result{Again: p.again}, nil
}

// errand is what the store says, as the plan sees it.
func (v *jobVisit) errand() errand {
	e := errand{now: v.now, spec: &v.j.Spec, last: v.j.Status, finished: v.j.Finished()}
	v.byName = map[string]*api.Instance{}
	for _, o := range v.family.mine {
		in := o.(*api.Instance)
		v.byName[in.Name] = in
		t := try{name: in.Name, counted: in.Annotations[api.AnnotationJobResult] != "", stopped: in.Spec.Stopped || in.DeletedAt != nil}
		index, err := strconv.Atoi(in.Annotations[api.AnnotationJobIndex])
		if err != nil {
			continue // somebody took the note off: nobody knows what it does
		}
		t.index = index
		if _, r, again := strings.Cut(strings.TrimPrefix(in.Name, v.j.Name+"-"), "-r"); again {
			t.number, _ = strconv.Atoi(r) // its name was made by tryName
		}
		switch st := &in.Status; {
		case in.Annotations[api.AnnotationJobResult] == string(api.StateFailed):
			t.state = tryFailed
		case t.counted:
			t.state = trySucceeded
		case in.Spec.Stopped: // by hand: not an end of its own
		case st.State == api.StateFailed:
			t.state = tryFailed
		case st.State == api.StateStopped && st.Reason != api.ReasonEvicted && st.Starts > 0:
			t.state = trySucceeded
		default:
			t.starts = max(st.Starts-1, 0)
		}
		if at := in.Status.FinishedAt; at != nil && t.state != tryActive {
			t.ended = *at
		} else if t.state == tryFailed && in.CreatedAt != nil {
			t.ended = *in.CreatedAt // it never ran
		}
		e.tries = append(e.tries, t)
	}
	return e
}

// start makes instances for indexes.
func (v *jobVisit) start(ctx context.Context, tries []try) (why, err error) {
	var objs []api.Object
	for _, t := range tries {
		name := tryName(v.j.Name, t.index, t.number)
		if v.family.names[name] {
			return errs.New(errs.Invalid, "instance %s is there already, and is not this job's", name).WithHint("remove it, or make the job under another name"), nil
		}
		in := instanceOf(&v.j.Spec.Template, v.j.Spec.InstanceSpec(), v.j.Tenant, name)
		index := strconv.Itoa(t.index)
		in.Labels[api.LabelJob] = v.j.Name
		in.Annotations = with(in.Annotations, api.AnnotationJobIndex, index)
		in.Spec.Env = append(in.Spec.Env, api.EnvVar{Name: api.EnvJobIndex, Value: index})
		born(in, v.j, v.now)
		objs = append(objs, in)
	}
	_, why, err = create(ctx, v, v.j, objs)
	return why, err
}

// stop ends an instance and keeps it, so that its log can be read.
func (v *jobVisit) stop(ctx context.Context, in *api.Instance) error {
	return change(ctx, v, v.j, in, func(o api.Object) bool {
		n := o.(*api.Instance)
		if n.Spec.Stopped || n.DeletedAt != nil {
			return false
		}
		n.Spec.Stopped = true
		n.Generation++
		return true
	})
}

// report writes the status, in one commit with the marks on the instances it counts. What
// has ended gives its share of the tenant's limit back: it is stopped for good.
func (v *jobVisit) report(ctx context.Context, p errandPlan, why error) error {
	st := p.status
	st.Observed = v.j.Generation
	at := v.now.UTC().Round(time.Millisecond)
	if st.StartedAt == nil && (len(p.create) > 0 && why == nil || st.Active > 0) {
		st.StartedAt = &at
	}
	v.describe(&st, p)
	if p.end != "" {
		st.FinishedAt = &at
		st.Conditions = api.SetCondition(st.Conditions, api.Condition{Type: p.end, Status: true, Reason: p.reason, Message: st.Message, Since: at})
	}
	if v.j.Finished() == "" && p.end == "" {
		c := admitted(why, at)
		if st.Conditions = api.SetCondition(st.Conditions, c); why != nil {
			st.Message = c.Message
		}
	}
	var ops []store.Op
	for _, name := range p.count {
		n := api.Clone(v.byName[name])
		result := string(api.StateStopped)
		if n.Status.State == api.StateFailed {
			result = string(api.StateFailed)
		}
		n.Annotations = with(n.Annotations, api.AnnotationJobResult, result)
		n.Spec.Stopped = true
		n.Generation++
		ops = append(ops, store.Update(n))
	}
	if len(ops) == 0 && reflect.DeepEqual(st, v.j.Status) {
		return nil
	}
	n := api.Clone(v.j)
	n.Status = st
	if _, err := v.Commit(ctx, append(ops, store.Update(n))...); err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("report on %s: %w", api.RefOf(v.j), err)
	}
	return nil
}

// describe says in words how far it is.
func (v *jobVisit) describe(st *api.JobStatus, p errandPlan) {
	wants := v.j.Spec.Wants()
	switch {
	case v.j.Finished() != "":
	case p.end == api.ConditionComplete:
		st.Message = fmt.Sprintf("all %d done", wants)
	case p.reason == api.ReasonBackoffLimit:
		st.Message = fmt.Sprintf("%d of %d done; gave up after %d failures, of which backoffLimit %d allows; atoll logs NAME shows why, of instances with -l %s=%s",
			st.Succeeded, wants, st.Failed, v.j.Spec.Retries(), api.LabelJob, v.j.Name)
	case p.reason == api.ReasonJobDeadline:
		st.Message = fmt.Sprintf("%d of %d done; not all within activeDeadline, %s", st.Succeeded, wants, v.j.Spec.Deadline.D())
	case v.j.Spec.Suspended:
		st.Message = fmt.Sprintf("%d of %d done; suspended", st.Succeeded, wants)
	default:
		st.Message = fmt.Sprintf("%d of %d done, %d failed so far", st.Succeeded, wants, st.Failed)
	}
}
