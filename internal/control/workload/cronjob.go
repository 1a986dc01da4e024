package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/reconcile"
	"atoll/internal/store"
)

// CronJobs makes jobs by the clock.
type CronJobs struct {
	clock  clock.Clock
	owners *owners
}

// NewCronJobs makes the controller.
func NewCronJobs(c clock.Clock) *CronJobs { return &CronJobs{clock: c, owners: newOwners()} }

// Name is "cronjob".
func (*CronJobs) Name() string { return "cronjob" }

// Watches cron jobs and the jobs they made.
func (*CronJobs) Watches() []api.Selector {
	return []api.Selector{{Kind: api.KindJob, Labels: []api.LabelTerm{{Key: api.LabelCronJob}}}, {Kind: api.KindCronJob}}
}

// Owns cron jobs, for their status and their end, and their jobs.
func (*CronJobs) Owns() []api.Kind { return []api.Kind{api.KindCronJob, api.KindJob} }

// Reconcile looks at one cron job, or finds the one a job belongs to.
func (c *CronJobs) Reconcile(ctx context.Context, s store.Store, ref api.Ref) (reconcile.Result, error) {
	if ref.Kind == api.KindJob {
		return c.owners.wake(ctx, s, ref, api.KindCronJob, api.LabelCronJob)
	}
	cj, err := store.Get[*api.CronJob](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read %s: %w", ref, err)
	}
	f, err := familyOf(ctx, s, cj, api.KindJob, api.LabelCronJob, func(api.Object) bool { return true })
	if err != nil {
		return reconcile.Result{}, err
	}
	now := c.clock.Now()
	if cj.DeletedAt != nil {
		left, err := retire(ctx, s, cj, f.mine, now)
		if err != nil || left > 0 {
			return reconcile.Result{}, err
		}
		return reconcile.Result{}, letGo(ctx, s, cj)
	}
	v := &cronVisit{Store: s, c: cj, now: now, family: f}
	return v.step(ctx)
}

// cronVisit is one look at a cron job.
type cronVisit struct {
	store.Store
	c      *api.CronJob
	now    time.Time
	family *family
	active []*api.Job
	over   map[string][]*api.Job // by how they ended
}

func (v *cronVisit) step(ctx context.Context) (reconcile.Result, error) {
	v.over = map[string][]*api.Job{}
	for _, o := range v.family.mine {
		j := o.(*api.Job)
		if end := j.Finished(); end != "" {
			v.over[end] = append(v.over[end], j)
		} else if j.DeletedAt == nil {
			v.active = append(v.active, j)
		}
	}
	sched, err := api.ParseSchedule(v.c.Spec.Schedule, v.c.Spec.Timezone)
	if err != nil {
		return reconcile.Result{}, nil //nolint:nilerr // the server refuses such a schedule: another try helps nobody
	}
	st := api.Clone(v.c).Status
	st.Observed, st.NextSchedule, st.Message = v.c.Generation, nil, ""
	v.force(&st)
	var made *api.Job
	var again time.Duration
	if v.c.Spec.Suspended {
		st.Message = "suspended"
	} else {
		d := nextRun(timetable{now: v.now, since: v.since(&st), schedule: sched, starting: v.starting()})
		if made, err = v.run(ctx, &st, d); err != nil {
			return reconcile.Result{}, err
		}
		if !d.next.IsZero() {
			at := d.next.UTC()
			st.NextSchedule, again = &at, d.next.Sub(v.now)
		}
	}
	for _, j := range v.over[api.ConditionComplete] {
		if at := j.Status.FinishedAt; at != nil && (st.LastSucceeded == nil || at.After(*st.LastSucceeded)) {
			st.LastSucceeded = at
		}
	}
	st.Active = v.names(made)
	if err := v.commit(ctx, st, made); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{Again: again}, v.forget(ctx)
}

// force notes since when the schedule is as it is: what another one would have run, or
// this one while it was suspended, is not made up for.
func (v *cronVisit) force(st *api.CronJobStatus) {
	now := v.c.Spec.Schedule + " " + v.c.Spec.Timezone
	if v.c.Spec.Suspended {
		now = ""
	}
	if st.InForceSince != nil && st.InForce == now {
		return
	}
	at := v.now.UTC()
	if st.InForceSince == nil && v.c.CreatedAt != nil {
		at = v.c.CreatedAt.UTC() // also when we were away then
	}
	st.InForce, st.InForceSince = now, &at
}

func (v *cronVisit) since(st *api.CronJobStatus) time.Time {
	at := *st.InForceSince
	if l := st.LastSchedule; l != nil && l.After(at) {
		at = *l
	}
	return at
}

func (v *cronVisit) starting() time.Duration {
	if v.c.Spec.Starting == nil {
		return 0
	}
	return v.c.Spec.Starting.D()
}

// run makes the job that is due, if one is and may be made.
func (v *cronVisit) run(ctx context.Context, st *api.CronJobStatus, d due) (*api.Job, error) {
	if d.at.IsZero() {
		return nil, nil
	}
	at := d.at.UTC()
	st.LastSchedule = &at
	st.Missed += d.passed
	switch {
	case d.late:
		st.Missed++
		st.Message = fmt.Sprintf("the run of %s was left out: it is later than startingDeadline, %s, allows", at.Format(time.RFC3339), v.starting())
		return nil, nil
	case v.c.Spec.Concurrency == "forbid" && len(v.active) > 0:
		st.Missed++
		st.Message = fmt.Sprintf("the run of %s was left out: %s is not done", at.Format(time.RFC3339), v.active[0].Name)
		return nil, nil
	case v.c.Spec.Concurrency == "replace":
		for _, j := range v.active {
			if err := remove(ctx, v, v.c, j, v.now); err != nil {
				return nil, err
			}
		}
		v.active = nil
	}
	t := &v.c.Spec.Job
	j := &api.Job{Head: api.Head{K: api.KindJob, Meta: api.Meta{Name: v.c.Name + "-" + strconv.FormatInt(at.Unix()/60, 10), Tenant: v.c.Tenant,
		Labels: with(t.Labels, api.LabelCronJob, v.c.Name), Annotations: maps.Clone(t.Annotations)}}, Spec: api.Clone(v.c).Spec.Job.Spec}
	if v.family.names[j.Name] {
		return nil, nil // made by hand for that very minute
	}
	born(j, v.c, v.now)
	return j, nil
}

func (v *cronVisit) names(made *api.Job) []string {
	var out []string
	for _, j := range v.active {
		out = append(out, j.Name)
	}
	if made != nil {
		out = append(out, made.Name)
	}
	slices.Sort(out)
	return out
}

// commit writes the job and that it was made at once, so that it is made once.
func (v *cronVisit) commit(ctx context.Context, st api.CronJobStatus, made *api.Job) error {
	if st.Message == "" && made == nil && v.c.Status.InForce != "" {
		st.Message = v.c.Status.Message // of the last run, until there is another
	}
	if made == nil && reflect.DeepEqual(st, v.c.Status) {
		return nil
	}
	n := api.Clone(v.c)
	n.Status = st
	ops := []store.Op{store.Update(n)}
	if made != nil {
		ops = append(ops, store.Create(made))
	}
	rev, err := v.Commit(ctx, ops...)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("run %s: %w", api.RefOf(v.c), err)
	}
	n.Revision = rev
	v.c = n
	return nil
}

// forget removes the oldest of the jobs that are over, beyond those that are kept.
func (v *cronVisit) forget(ctx context.Context) error {
	succeeded, failed := v.c.Spec.Keeps()
	for end, keep := range map[string]int{api.ConditionComplete: succeeded, api.ConditionFailed: failed} {
		list := v.over[end]
		slices.SortFunc(list, func(a, b *api.Job) int {
			if a.CreatedAt == nil || b.CreatedAt == nil {
				return 0
			}
			return a.CreatedAt.Compare(*b.CreatedAt)
		})
		for _, j := range list[:max(len(list)-keep, 0)] {
			if err := remove(ctx, v, v.c, j, v.now); err != nil {
				return err
			}
		}
	}
	return nil
}
