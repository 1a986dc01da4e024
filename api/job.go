package api

import (
	"fmt"
	"strconv"
	"time"

	"atoll/internal/errs"
)

// KindJob runs instances that end.
const KindJob Kind = "Job"

// Job runs a number of instances to their end, each for one index, and tries again what
// fails. Spec is the user's, Status is written by control/workload.
type Job struct {
	Head
	Spec   JobSpec   `json:"spec"`
	Status JobStatus `json:"status,omitzero"`
}

// JobSpec is what should be done, and how often.
type JobSpec struct {
	Completions  int       `json:"completions,omitempty" doc:"how many indexes, from 0, must end with exit code 0" default:"1" example:"20"`
	Parallelism  int       `json:"parallelism,omitempty" doc:"how many run at once" default:"1" example:"4"`
	BackoffLimit *int      `json:"backoffLimit,omitempty" doc:"the job fails when more instances than this have failed" default:"6"`
	Deadline     *Duration `json:"activeDeadline,omitempty" doc:"the job fails when it is not done so long after its start" example:"1h"`
	TTL          *Duration `json:"ttlAfterFinished,omitempty" doc:"it is removed, with its instances, so long after its end; default: never" example:"24h"`
	Suspended    bool      `json:"suspended,omitempty" doc:"no instance is started; what runs goes on"`
	Template     Template  `json:"template" doc:"what every instance is made of; cannot change. ATOLL_JOB_INDEX is its index"`
}

// JobStatus is how far it is.
type JobStatus struct {
	Observed   int64       `json:"observedGeneration,omitempty" doc:"the spec's generation this is about"`
	Active     int         `json:"active" doc:"instances that are not at their end"`
	Succeeded  int         `json:"succeeded" doc:"indexes that ended well"`
	Failed     int         `json:"failed" doc:"instances that failed"`
	Done       string      `json:"done,omitempty" doc:"the indexes that ended well" example:"0-3,7"`
	StartedAt  *time.Time  `json:"startedAt,omitempty" doc:"when the first instance was made"`
	FinishedAt *time.Time  `json:"finishedAt,omitempty" doc:"when it was complete, or failed"`
	Message    string      `json:"message,omitempty" doc:"a sentence, for people"`
	Conditions []Condition `json:"conditions,omitempty" doc:"Complete, Failed, Admitted"`
}

// Reasons why a job failed.
const (
	ReasonBackoffLimit = "BackoffLimitExceeded"
	ReasonJobDeadline  = "DeadlineExceeded"
)

const (
	maxCompletions      = 10_000
	maxParallelism      = 1000
	maxBackoffLimit     = 1000
	defaultBackoffLimit = 6
	// maxJobName leaves room for "-INDEX-rTRY".
	maxJobName     = 50
	maxJobDuration = 366 * 24 * time.Hour
)

// Wants is completions with its default.
func (s *JobSpec) Wants() int { return max(s.Completions, 1) }

// AtOnce is parallelism with its default.
func (s *JobSpec) AtOnce() int { return max(s.Parallelism, 1) }

// Retries is backoffLimit with its default.
func (s *JobSpec) Retries() int {
	if s.BackoffLimit == nil {
		return defaultBackoffLimit
	}
	return *s.BackoffLimit
}

// InstanceSpec is the template's spec as the instances get it: what ended stays ended,
// unless the template says otherwise.
func (s *JobSpec) InstanceSpec() InstanceSpec {
	spec := s.Template.Spec
	if spec.Restart == "" {
		spec.Restart = "never"
	}
	return spec
}

// Validate checks everything that can be judged from the job alone.
func (j *Job) Validate() []errs.Field {
	return append(workloadName(j.Name, maxJobName), j.Spec.validate("spec")...)
}

func (s *JobSpec) validate(at string) []errs.Field {
	var f []errs.Field
	for _, n := range []struct {
		field   string
		v, most int
		example string
	}{
		{".completions", s.Completions, maxCompletions, "20"},
		{".parallelism", s.Parallelism, maxParallelism, "4"},
		{".backoffLimit", s.Retries(), maxBackoffLimit, "6"},
	} {
		if n.v < 0 || n.v > n.most {
			f = append(f, errs.Field{Field: at + n.field, Value: strconv.Itoa(n.v), Rule: fmt.Sprintf("must be 0 to %d", n.most), Example: n.example})
		}
	}
	for _, t := range []struct {
		field string
		d     *Duration
		least time.Duration
	}{{".activeDeadline", s.Deadline, time.Second}, {".ttlAfterFinished", s.TTL, 0}} {
		if t.d != nil && (t.d.D() < t.least || t.d.D() > maxJobDuration) {
			f = append(f, errs.Field{Field: at + t.field, Value: t.d.D().String(), Rule: fmt.Sprintf("must be %s to %s", t.least, maxJobDuration), Example: "1h"})
		}
	}
	f = append(f, s.Template.validate(at+".template")...)
	if s.Template.Spec.Restart == "always" {
		f = append(f, errs.Field{Field: at + ".template.spec.restart", Value: "always", Rule: "must be never or on-failure: a job ends", Example: "never"})
	}
	return append(f, s.Template.shared(at+".template", s.AtOnce() == 1, "parallelism 1")...)
}

// Finished says how the job ended; "" while it has not.
func (j *Job) Finished() string {
	for _, t := range []string{ConditionComplete, ConditionFailed} {
		if c := FindCondition(j.Status.Conditions, t); c != nil && c.Status {
			return t
		}
	}
	return ""
}

func (j *Job) state() string {
	adm := FindCondition(j.Status.Conditions, ConditionAdmitted)
	switch end := j.Finished(); {
	case j.DeletedAt != nil:
		return "removing"
	case end == ConditionComplete:
		return "complete"
	case end == ConditionFailed:
		return "failed"
	case j.Spec.Suspended:
		return "suspended"
	case adm != nil && !adm.Status:
		return "refused"
	case j.Status.StartedAt == nil:
		return "pending"
	}
	return "running"
}

// lasted is how long it took, or takes.
func (j *Job) lasted(now time.Time) string {
	if j.Status.StartedAt == nil {
		return "-"
	}
	if end := j.Status.FinishedAt; end != nil {
		now = *end
	}
	return Age(j.Status.StartedAt, now)
}

func jobDefinition() *Definition {
	return &Definition{
		Kind: KindJob, Plural: "jobs", Tenanted: true,
		Doc:        "Work that ends: instances that run to their end and are tried again when they fail.",
		Finalizers: []string{FinalizerWorkload},
		New:        func() Object { return &Job{Head: Head{K: KindJob}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "STATE", Value: func(o Object, _ time.Time) string { return o.(*Job).state() }},
			{Name: "DONE", Value: func(o Object, _ time.Time) string {
				j := o.(*Job)
				return fmt.Sprintf("%d/%d", j.Status.Succeeded, j.Spec.Wants())
			}},
			{Name: "ACTIVE", Value: func(o Object, _ time.Time) string { return strconv.Itoa(o.(*Job).Status.Active) }},
			{Name: "FAILED", Value: func(o Object, _ time.Time) string { return strconv.Itoa(o.(*Job).Status.Failed) }},
			{Name: "TOOK", Value: func(o Object, now time.Time) string { return o.(*Job).lasted(now) }},
			{Name: "IMAGE", Wide: true, Value: func(o Object, _ time.Time) string { return o.(*Job).Spec.Template.Spec.Image }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{
			"status.state": func(o Object) string { return o.(*Job).state() },
		},
	}
}
