package workload

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// Creates are the verbs below 'atoll create'.
func Creates() []verb.Def { return []verb.Def{createDeployment(), createJob(), createCronJob()} }

// making is what all of them have: the flags of an instance, and what is done with the result.
type making struct {
	parse.Instance
	verb.Waiting
	image  string
	dry    bool
	format string
}

// notHere are flags of an instance that are not a template's to say.
var notHere = map[string]string{"rm": "its instances are removed with it", "name": "its name is the first argument", "queue": "its instances wait for room in any case"}

func (m *making) flags(fs *pflag.FlagSet, waitFor string, preset bool) {
	fs.StringVar(&m.image, "image", "", "image to run")
	m.Waiting.Flags(fs, waitFor, preset)
	fs.BoolVar(&m.dry, "dry-run", false, "only write the object, for a file")
	fs.StringVarP(&m.format, "output", "o", "", "name, yaml or json: write the object in that form")
	m.Instance.Flags(fs)
	for name := range notHere {
		fs.Lookup(name).Hidden = true
	}
}

// template makes the template that flags and arguments describe. Without labels it gets
// one with the name, to be selected by.
func (m *making) template(c *verb.Call) (t api.Template, err error) {
	for name, why := range notHere {
		if c.Flags.Changed(name) {
			return t, errs.New(errs.Invalid, "--%s cannot be used here: %s", name, why)
		}
	}
	if m.image == "" {
		return t, parse.BadFlag("image", "", "must be given", "busybox")
	}
	in, err := m.Object(c.Getenv, m.image, c.Args[1:])
	if err != nil {
		return t, err
	}
	t = api.Template{Labels: in.Labels, Annotations: in.Annotations, Spec: in.Spec}
	if len(t.Labels) == 0 {
		t.Labels = map[string]string{"app": c.Args[0]}
	}
	return t, nil
}

// put makes the object and tells of it. The answer is nil when it was only shown.
func (m *making) put(ctx context.Context, c *verb.Call, o api.Object) (api.Object, error) {
	switch m.format {
	case "", "name", "yaml", "json":
	default:
		return nil, parse.BadFlag("output", m.format, "must be name, yaml or json", "yaml")
	}
	var err error
	meta := o.Metadata()
	if meta.Tenant, err = c.Tenant(ctx); err != nil {
		return nil, err
	}
	if err := api.Check(o); err != nil {
		return nil, err // before anything is sent
	}
	if m.dry {
		return nil, render.Value(c.Out, manifest(o), cmp.Or(m.format, "yaml"))
	}
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	made, err := cl.Create(ctx, o)
	if err != nil {
		return nil, err
	}
	switch m.format {
	case "name":
		c.Say("%s", api.RefOf(made))
	case "yaml", "json":
		return made, render.Value(c.Out, made, m.format)
	default:
		c.Say("%s created", render.ShortRef(made))
	}
	return made, nil
}

// manifest is an object as a file has it: without what only the server says.
func manifest(o api.Object) any {
	m, err := render.Map(o)
	if err != nil {
		return o
	}
	delete(m, "status")
	return m
}

type deploymentOptions struct {
	making
	replicas           int
	perNode            bool
	surge, unavailable string
	recreate, noBudget bool
	minReady, progress time.Duration
}

func createDeployment() verb.Def {
	o := &deploymentOptions{}
	return verb.Def{
		Use: "deployment NAME --image IMAGE [flags] [-- COMMAND [ARG…]]", Aliases: []string{"deploy", "dep"}, Min: 1, Max: -1,
		Short: "Keep equal instances running",
		Long: `Create deployment makes a deployment: so many equal instances, kept running, spread
over the hosts, and replaced some at a time when their template changes. The other flags
are those of 'atoll run'; --dry-run writes the object instead, to go on from in a file.`,
		Example: `  atoll create deployment web --image busybox --replicas 6 -- httpd -f -p 80
  atoll create deployment web --image web:2 --replicas 3 --health-http 8080/healthz --max-surge 1 --max-unavailable 0
  atoll create deployment logs --image logs:1 --per-node --tolerate gpu
  atoll create deployment web --image busybox --dry-run > web.yaml`,
		Flags: func(fs *pflag.FlagSet) {
			fs.IntVar(&o.replicas, "replicas", 1, "how many instances")
			fs.BoolVar(&o.perNode, "per-node", false, "one instance on every node that admits it")
			fs.StringVar(&o.surge, "max-surge", "", "so many more while they are replaced: a number or a percentage (default 25%)")
			fs.StringVar(&o.unavailable, "max-unavailable", "", "so many fewer while they are replaced: a number or a percentage (default 25%)")
			fs.BoolVar(&o.recreate, "recreate", false, "all old instances go before the first new one comes")
			fs.BoolVar(&o.noBudget, "no-budget", false, "no disruption budget: all may be down at once")
			fs.DurationVar(&o.minReady, "min-ready", 0, "an instance counts when it was ready for so long")
			fs.DurationVar(&o.progress, "progress-deadline", 0, "a rollout that gets no further for so long is stopped (default 10m)")
			o.flags(fs, "they are available", true)
		},
		Run: o.run,
	}
}

func (o *deploymentOptions) run(ctx context.Context, c *verb.Call) error {
	t, err := o.template(c)
	if err != nil {
		return err
	}
	d := &api.Deployment{Head: api.Head{K: api.KindDeployment, Meta: api.Meta{Name: c.Args[0], Labels: maps.Clone(t.Labels)}}}
	d.Spec = api.DeploymentSpec{PerNode: o.perNode, Template: t, MinReady: api.Duration(o.minReady), Deadline: api.Duration(o.progress),
		Strategy: api.Strategy{MaxSurge: api.Share(o.surge), MaxUnavailable: api.Share(o.unavailable)}}
	switch {
	case o.perNode && c.Flags.Changed("replicas"):
		return errs.New(errs.Invalid, "--replicas and --per-node exclude each other")
	case !o.perNode:
		d.Spec.Replicas = &o.replicas
	}
	if o.recreate {
		d.Spec.Strategy.Type = "recreate"
	}
	if o.noBudget {
		d.Spec.Budget = &api.HoldBudget{None: true}
	}
	made, err := o.put(ctx, c, d)
	if err != nil || made == nil || !o.Wait {
		return err
	}
	_, err = follow(ctx, c, made.(*api.Deployment), o.Timeout)
	return err
}

// jobFlags are the flags of a job, also of those a cron job makes.
type jobFlags struct {
	completions, parallelism, backoff int
	deadline, ttl                     time.Duration
}

func (j *jobFlags) flags(fs *pflag.FlagSet) {
	fs.IntVar(&j.completions, "completions", 1, "how many indexes must end well")
	fs.IntVar(&j.parallelism, "parallelism", 1, "how many run at once")
	fs.IntVar(&j.backoff, "backoff-limit", 6, "how many instances may fail")
	fs.DurationVar(&j.deadline, "deadline", 0, "how long it may take (default: any time)")
	fs.DurationVar(&j.ttl, "ttl", -1, "remove it so long after its end (default: never)")
	fs.Lookup("ttl").DefValue = "0s" // so that help does not show the mark for "not given"
}

func (j *jobFlags) spec(fs *pflag.FlagSet, t api.Template) api.JobSpec {
	s := api.JobSpec{Completions: j.completions, Parallelism: j.parallelism, Template: t}
	if fs.Changed("backoff-limit") {
		s.BackoffLimit = &j.backoff
	}
	if j.deadline != 0 {
		d := api.Duration(j.deadline)
		s.Deadline = &d
	}
	if j.ttl >= 0 {
		d := api.Duration(j.ttl)
		s.TTL = &d
	}
	return s
}

type jobOptions struct {
	making
	jobFlags
	from string
}

func createJob() verb.Def {
	o := &jobOptions{}
	return verb.Def{
		Use: "job NAME (--image IMAGE | --from CRONJOB) [flags] [-- COMMAND [ARG…]]", Min: 1, Max: -1,
		Short: "Run instances to their end",
		Long: `Create job makes a job: instances that run to their end, one for each index from 0 to
completions-1, which it finds in ATOLL_JOB_INDEX. What fails is tried again after a pause
that grows. --from runs a cron job now. With --wait it ends with 6 when the job failed.`,
		Example: `  atoll create job sum --image busybox -- sh -c 'echo $ATOLL_JOB_INDEX'
  atoll create job render --image render:1 --completions 20 --parallelism 4 --wait
  atoll create job tonight-now --from tonight`,
		Flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&o.from, "from", "", "run what this cron job runs")
			o.jobFlags.flags(fs)
			o.making.flags(fs, "it is done", false)
			_ = fs.Set("timeout", "0s")
			fs.Lookup("timeout").DefValue, fs.Lookup("timeout").Changed = "0s", false
		},
		Run: o.run,
	}
}

func (o *jobOptions) run(ctx context.Context, c *verb.Call) error {
	j := &api.Job{Head: api.Head{K: api.KindJob, Meta: api.Meta{Name: c.Args[0]}}}
	if o.from != "" {
		if o.image != "" || len(c.Args) > 1 {
			return errs.New(errs.Invalid, "--from excludes --image and a command: the cron job says what runs")
		}
		ref, err := c.Ref(ctx, "cronjob/"+o.from)
		if err != nil {
			return err
		}
		obj, err := c.Get(ctx, ref)
		if err != nil {
			return err
		}
		t := api.Clone(obj.(*api.CronJob)).Spec.Job
		j.Spec, j.Labels, j.Annotations = t.Spec, t.Labels, t.Annotations
	} else {
		t, err := o.template(c)
		if err != nil {
			return err
		}
		j.Spec, j.Labels = o.spec(c.Flags, t), maps.Clone(t.Labels)
	}
	made, err := o.put(ctx, c, j)
	if err != nil || made == nil || !o.Wait {
		return err
	}
	return followJob(ctx, c, made.(*api.Job), o.Timeout)
}

// followJob shows how far a job is until it is over; its failure is an error.
func followJob(ctx context.Context, c *verb.Call, j *api.Job, timeout time.Duration) error {
	steps := c.Steps(render.ShortRef(j))
	defer steps.End()
	ref := api.RefOf(j)
	return c.Within(ctx, timeout, render.ShortRef(j)+" is done", func(ctx context.Context) error {
		return c.WaitFor(ctx, ref, func(o api.Object, gone bool) (bool, error) {
			if gone || o.Metadata().UID != j.UID {
				return false, errs.New(errs.Conflict, "%s was removed meanwhile", ref)
			}
			now := o.(*api.Job)
			st := &now.Status
			if st.Observed < now.Generation {
				return false, nil
			}
			steps.Update(st.Succeeded, now.Spec.Wants(), fmt.Sprintf("%d of %d done, %d failed", st.Succeeded, now.Spec.Wants(), st.Failed))
			switch now.Finished() {
			case api.ConditionComplete:
				return true, nil
			case api.ConditionFailed:
				return false, errs.New(errs.Conflict, "%s failed: %s", render.ShortRef(now), st.Message)
			}
			return false, nil
		})
	})
}

type cronOptions struct {
	making
	jobFlags
	schedule, timezone, concurrency string
	starting                        time.Duration
}

func createCronJob() verb.Def {
	o := &cronOptions{}
	return verb.Def{
		Use: "cronjob NAME --schedule WHEN --image IMAGE [flags] [-- COMMAND [ARG…]]", Aliases: []string{"cron", "cj"}, Min: 1, Max: -1,
		Short: "Make jobs by the clock",
		Long: `Create cronjob makes a cron job: whenever its schedule says so it makes a job. The
schedule has five fields, minute hour day month weekday, or is such as @daily.`,
		Example: `  atoll create cronjob backup --schedule '30 2 * * *' --timezone Europe/Berlin --image backup:1
  atoll create cronjob report --schedule @weekly --concurrency forbid --image report:3 -- report --mail
  atoll create job backup-now --from backup`,
		Flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&o.schedule, "schedule", "", "when: minute hour day month weekday, or such as @daily")
			fs.StringVar(&o.timezone, "timezone", "", "time zone of the schedule (default UTC)")
			fs.StringVar(&o.concurrency, "concurrency", "", "when the one before is not done: allow, forbid or replace")
			fs.DurationVar(&o.starting, "starting-deadline", 0, "make up for a missed run only so long after its time")
			o.jobFlags.flags(fs)
			o.making.flags(fs, "it is made", false)
			fs.Lookup("wait").Hidden, fs.Lookup("timeout").Hidden = true, true // there is nothing to wait for
		},
		Run: o.run,
	}
}

func (o *cronOptions) run(ctx context.Context, c *verb.Call) error {
	t, err := o.template(c)
	if err != nil {
		return err
	}
	cj := &api.CronJob{Head: api.Head{K: api.KindCronJob, Meta: api.Meta{Name: c.Args[0], Labels: maps.Clone(t.Labels)}}}
	cj.Spec = api.CronJobSpec{Schedule: o.schedule, Timezone: o.timezone, Concurrency: o.concurrency,
		Job: api.JobTemplate{Labels: maps.Clone(t.Labels), Spec: o.spec(c.Flags, t)}}
	if o.starting != 0 {
		d := api.Duration(o.starting)
		cj.Spec.Starting = &d
	}
	_, err = o.put(ctx, c, cj)
	return err
}
