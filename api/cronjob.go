package api

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // time zones mean the same everywhere, also on hosts that have none installed

	"github.com/robfig/cron/v3"

	"atoll/internal/errs"
)

// KindCronJob makes jobs by the clock.
const KindCronJob Kind = "CronJob"

// CronJob makes a job whenever its schedule says so. Spec is the user's, Status is
// written by control/workload, which also makes and removes the jobs.
type CronJob struct {
	Head
	Spec   CronJobSpec   `json:"spec"`
	Status CronJobStatus `json:"status,omitzero"`
}

// CronJobSpec is when, and what.
type CronJobSpec struct {
	Schedule    string      `json:"schedule" doc:"minute hour day month weekday, or @hourly, @daily, @weekly, @monthly, @yearly" example:"30 2 * * *"`
	Timezone    string      `json:"timezone,omitempty" doc:"time zone of the schedule, by its name in the tz database" default:"UTC" example:"Europe/Berlin"`
	Concurrency string      `json:"concurrency,omitempty" doc:"when the one before is not done: allow: run both; forbid: leave this one out; replace: end the one before" enum:"allow|forbid|replace" default:"allow"`
	Suspended   bool        `json:"suspended,omitempty" doc:"no job is made; what runs goes on"`
	Starting    *Duration   `json:"startingDeadline,omitempty" doc:"a run that was missed, such as in an outage, is made up for only so long after its time; default: always, but the latest only" example:"1h"`
	Succeeded   *int        `json:"successfulHistory,omitempty" doc:"complete jobs that are kept" default:"3"`
	Failed      *int        `json:"failedHistory,omitempty" doc:"failed jobs that are kept" default:"1"`
	Job         JobTemplate `json:"job" doc:"what the jobs are made of"`
}

// JobTemplate is what jobs are made of.
type JobTemplate struct {
	Labels      map[string]string `json:"labels,omitempty" doc:"labels of the jobs"`
	Annotations map[string]string `json:"annotations,omitempty" doc:"annotations of the jobs"`
	Spec        JobSpec           `json:"spec" doc:"what is to be done"`
}

// CronJobStatus is what was made.
type CronJobStatus struct {
	Observed      int64      `json:"observedGeneration,omitempty" doc:"the spec's generation this is about"`
	Active        []string   `json:"active,omitempty" doc:"jobs that are not done"`
	LastSchedule  *time.Time `json:"lastSchedule,omitempty" doc:"the latest time of the schedule that was seen to"`
	LastSucceeded *time.Time `json:"lastSucceeded,omitempty" doc:"when a job was last complete"`
	NextSchedule  *time.Time `json:"nextSchedule,omitempty" doc:"when the next is due"`
	InForce       string     `json:"inForce,omitempty" doc:"the schedule and time zone that are in force; empty while suspended"`
	InForceSince  *time.Time `json:"inForceSince,omitempty" doc:"nothing is made up for from before"`
	Missed        int64      `json:"missed,omitempty" doc:"runs that were left out: too late, or forbidden by the one before"`
	Message       string     `json:"message,omitempty" doc:"a sentence, for people"`
}

const (
	maxHistory      = 100
	defaultComplete = 3
	defaultFailed   = 1
	// maxCronName leaves room for the time in the names of jobs, and theirs in those of instances.
	maxCronName = 39
)

// ParseSchedule reads a schedule in its time zone.
func ParseSchedule(schedule, timezone string) (cron.Schedule, error) {
	if strings.Contains(schedule, "TZ=") {
		return nil, fmt.Errorf("must not name a time zone; spec.timezone does")
	}
	if strings.HasPrefix(strings.TrimSpace(schedule), "@every") {
		return nil, fmt.Errorf("must be times of the clock, not pauses")
	}
	s, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(schedule)
	if err != nil {
		return nil, fmt.Errorf("must be five fields, minute hour day month weekday, or such as @daily: %w", err)
	}
	loc, err := time.LoadLocation(timezone)
	if err != nil || timezone == "Local" {
		return nil, fmt.Errorf("time zone %q is not known", clip(timezone))
	}
	if spec, ok := s.(*cron.SpecSchedule); ok {
		spec.Location = loc
	}
	return s, nil
}

// Keeps is how many complete and failed jobs are kept.
func (s *CronJobSpec) Keeps() (succeeded, failed int) {
	succeeded, failed = defaultComplete, defaultFailed
	if s.Succeeded != nil {
		succeeded = *s.Succeeded
	}
	if s.Failed != nil {
		failed = *s.Failed
	}
	return succeeded, failed
}

// Validate checks everything that can be judged from the cron job alone.
func (c *CronJob) Validate() []errs.Field {
	s := &c.Spec
	f := workloadName(c.Name, maxCronName)
	if _, err := time.LoadLocation(s.Timezone); err != nil || s.Timezone == "Local" {
		f = append(f, errs.Field{Field: "spec.timezone", Value: clip(s.Timezone), Rule: "must be a time zone of the tz database", Example: "Europe/Berlin"})
	} else if len(s.Schedule) > 200 {
		f = append(f, errs.Field{Field: "spec.schedule", Value: clip(s.Schedule), Rule: "must be at most 200 characters", Example: "30 2 * * *"})
	} else if sched, err := ParseSchedule(s.Schedule, s.Timezone); err != nil {
		f = append(f, errs.Field{Field: "spec.schedule", Value: clip(s.Schedule), Rule: err.Error(), Example: "30 2 * * *"})
	} else if sched.Next(time.Unix(0, 0)).IsZero() {
		f = append(f, errs.Field{Field: "spec.schedule", Value: clip(s.Schedule), Rule: "never comes", Example: "30 2 * * *"})
	}
	f = append(f, optional("spec.concurrency", s.Concurrency, "allow", "forbid", "replace")...)
	if d := s.Starting; d != nil && (d.D() < time.Second || d.D() > maxJobDuration) {
		f = append(f, errs.Field{Field: "spec.startingDeadline", Value: d.D().String(), Rule: fmt.Sprintf("must be 1s to %s", maxJobDuration), Example: "1h"})
	}
	succeeded, failed := s.Keeps()
	for field, n := range map[string]int{"spec.successfulHistory": succeeded, "spec.failedHistory": failed} {
		if n < 0 || n > maxHistory {
			f = append(f, errs.Field{Field: field, Value: strconv.Itoa(n), Rule: fmt.Sprintf("must be 0 to %d", maxHistory), Example: "3"})
		}
	}
	f = append(f, labelFields("spec.job.labels", s.Job.Labels)...)
	size := 0
	for k, v := range s.Job.Annotations {
		size += len(k) + len(v)
	}
	if size > maxMapBytes {
		f = append(f, errs.Field{Field: "spec.job.annotations", Rule: fmt.Sprintf("must be at most %d bytes together", maxMapBytes)})
	}
	return append(f, s.Job.Spec.validate("spec.job.spec")...)
}

func cronJobDefinition() *Definition {
	cj := func(fn func(c *CronJob, now time.Time) string) func(Object, time.Time) string {
		return func(o Object, now time.Time) string { return fn(o.(*CronJob), now) }
	}
	return &Definition{
		Kind: KindCronJob, Plural: "cronjobs", Aliases: []string{"cron", "cj"}, Tenanted: true,
		Doc:        "Jobs that are made by the clock.",
		Finalizers: []string{FinalizerWorkload},
		New:        func() Object { return &CronJob{Head: Head{K: KindCronJob}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "SCHEDULE", Value: cj(func(c *CronJob, _ time.Time) string { return c.Spec.Schedule })},
			{Name: "STATE", Value: cj(func(c *CronJob, _ time.Time) string {
				switch {
				case c.DeletedAt != nil:
					return "removing"
				case c.Spec.Suspended:
					return "suspended"
				}
				return "on"
			})},
			{Name: "ACTIVE", Value: cj(func(c *CronJob, _ time.Time) string { return strconv.Itoa(len(c.Status.Active)) })},
			{Name: "LAST", Value: cj(func(c *CronJob, now time.Time) string { return Age(c.Status.LastSchedule, now) })},
			{Name: "NEXT", Wide: true, Value: cj(func(c *CronJob, _ time.Time) string {
				if c.Status.NextSchedule == nil {
					return "-"
				}
				return c.Status.NextSchedule.UTC().Format(time.RFC3339)
			})},
			{Name: "TIMEZONE", Wide: true, Value: cj(func(c *CronJob, _ time.Time) string {
				if c.Spec.Timezone == "" {
					return "UTC"
				}
				return c.Spec.Timezone
			})},
			{Name: "AGE", Value: ageColumn},
		},
	}
}
