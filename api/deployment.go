package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindDeployment keeps a number of equal instances running.
const KindDeployment Kind = "Deployment"

// Deployment keeps equal instances running and replaces them, some at a time, when
// their template changes. Spec is the user's, Status is written by control/workload,
// which also makes and removes the instances, revisions and the budget it owns.
type Deployment struct {
	Head
	Spec   DeploymentSpec   `json:"spec"`
	Status DeploymentStatus `json:"status,omitzero"`
}

// DeploymentSpec is what should run, how often, and how it is replaced.
type DeploymentSpec struct {
	Replicas  *int     `json:"replicas,omitempty" doc:"how many instances" default:"1" example:"6"`
	PerNode   bool     `json:"perNode,omitempty" doc:"one instance on every node that admits it, by the template's placement; replicas is not looked at"`
	Selector  Selects  `json:"selector,omitzero" doc:"labels its instances are known by; cannot change"`
	Template  Template `json:"template" doc:"what every instance is made of; a change replaces them all"`
	Strategy  Strategy `json:"strategy,omitzero" doc:"how instances are replaced"`
	MinReady  Duration `json:"minReady,omitempty" doc:"a new instance counts when it was ready for so long" default:"0s" example:"10s"`
	Deadline  Duration `json:"progressDeadline,omitempty" doc:"a rollout that gets no further for so long is reported, and stopped" default:"10m"`
	Paused    bool     `json:"paused,omitempty" doc:"a change of the template waits; the number of instances is kept"`
	Revisions *int     `json:"revisionHistory,omitempty" doc:"old revisions that are kept to go back to" default:"10"`
	// RollbackTo is resolved when it is written: the server puts that revision's template
	// in place and checks its rights, so it is never stored.
	RollbackTo int64       `json:"rollbackTo,omitempty" doc:"go back to the template of this revision; write only" example:"3"`
	Budget     *HoldBudget `json:"budget,omitempty" doc:"how many may be down on purpose" default:"maxUnavailable: a quarter, at least 1, for more than one replica; none with perNode"`
}

// Selects names instances by their labels.
type Selects struct {
	Labels map[string]string `json:"labels,omitempty" doc:"must be among the template's labels; default: the template's" example:"{app: web}"`
}

// Template is what instances are made of.
type Template struct {
	Labels      map[string]string `json:"labels,omitempty" doc:"labels of the instances" example:"{app: web}"`
	Annotations map[string]string `json:"annotations,omitempty" doc:"annotations of the instances"`
	Spec        InstanceSpec      `json:"spec" doc:"what runs"`
}

// Strategy is how instances are replaced.
type Strategy struct {
	Type           string `json:"type,omitempty" doc:"rolling: some at a time; recreate: all old ones go first" enum:"rolling|recreate" default:"rolling"`
	MaxSurge       Share  `json:"maxSurge,omitempty" doc:"rolling: so many more than replicas, a number or a percentage, rounded up" default:"25%" example:"1"`
	MaxUnavailable Share  `json:"maxUnavailable,omitempty" doc:"rolling: so many fewer than replicas, a number or a percentage, rounded down" default:"25%" example:"25%"`
}

// HoldBudget is the DisruptionBudget a deployment keeps for its instances.
type HoldBudget struct {
	None           bool `json:"none,omitempty" doc:"no budget: all may be down at once"`
	MinAvailable   int  `json:"minAvailable,omitempty" doc:"so many stay" example:"2"`
	MaxUnavailable *int `json:"maxUnavailable,omitempty" doc:"at most so many are away" example:"1"`
}

// DeploymentStatus is how far it is.
type DeploymentStatus struct {
	Observed    int64       `json:"observedGeneration,omitempty" doc:"the spec's generation this is about"`
	Desired     int         `json:"desired" doc:"how many there should be"`
	Replicas    int         `json:"replicas" doc:"how many there are, of every revision"`
	Ready       int         `json:"ready" doc:"run, and are healthy where there is a check"`
	Updated     int         `json:"updated" doc:"are of the present revision"`
	Available   int         `json:"available" doc:"are ready for minReady"`
	Unavailable int         `json:"unavailable" doc:"how many are missing"`
	Revision    int64       `json:"revision,omitempty" doc:"number of the present revision"`
	Hash        string      `json:"hash,omitempty" doc:"fingerprint of the present template"`
	Complete    string      `json:"complete,omitempty" doc:"fingerprint of the template that was last rolled out to the end"`
	Progress    int         `json:"progress,omitempty" doc:"how far the rollout got, for the deadline"`
	ProgressAt  *time.Time  `json:"progressAt,omitempty" doc:"when it last got further"`
	Message     string      `json:"message,omitempty" doc:"a sentence, for people"`
	Conditions  []Condition `json:"conditions,omitempty" doc:"Available, Progressing, Admitted"`
}

// Conditions of deployments and jobs that more than one component acts on.
const (
	ConditionAvailable   = "Available"
	ConditionProgressing = "Progressing"
	ConditionAdmitted    = "Admitted" // false: instances were refused, such as by a quota
	ConditionComplete    = "Complete"
	ConditionFailed      = "Failed"

	ReasonRolledOut = "RolledOut"
	ReasonDeadline  = "ProgressDeadlineExceeded"
	ReasonPaused    = "Paused"
)

// Labels and annotations of what workloads make.
const (
	LabelDeployment = "atoll/deployment"
	LabelHash       = "atoll/template-hash"
	LabelJob        = "atoll/job"
	LabelCronJob    = "atoll/cronjob"
	// AnnotationJobIndex and EnvJobIndex tell an instance of a job which part it does.
	AnnotationJobIndex = "atoll/job-index"
	EnvJobIndex        = "ATOLL_JOB_INDEX"
	// AnnotationJobResult is put on an instance of a job when its end was counted.
	AnnotationJobResult = "atoll/job-result"
	// AnnotationRestarted in a template makes it another one, so that all instances are replaced.
	AnnotationRestarted = "atoll/restarted-at"
	// AnnotationCascade on a deployment, job or cron job with the value CascadeOrphan
	// leaves what it made when it is removed.
	AnnotationCascade = "atoll/cascade"
	CascadeOrphan     = "orphan"

	reservedPrefix = "atoll/"
)

const (
	maxReplicas = 5000
	// maxWorkloadName leaves room for what is added for the names of instances.
	maxWorkloadName = 48
	maxRevisions    = 100
	maxMinReady     = time.Hour
	maxDeadline     = 24 * time.Hour
	// DefaultProgressDeadline is how long a rollout may stand still.
	DefaultProgressDeadline = 10 * time.Minute
	defaultRevisions        = 10
	// DefaultShare is maxSurge and maxUnavailable when nothing is said.
	DefaultShare Share = "25%"
)

// Share is a number, or a percentage of a number. In JSON and YAML both 3 and 25% are fine.
type Share string

// UnmarshalJSON reads 3, "3" or "25%".
func (s *Share) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		if n, nerr := strconv.Atoi(string(data)); nerr == nil {
			*s = Share(strconv.Itoa(n))
			return nil
		}
		return fmt.Errorf("must be a number or a percentage (example: 25%%)")
	}
	*s = Share(text)
	return nil
}

// MarshalJSON writes numbers as numbers.
func (s Share) MarshalJSON() ([]byte, error) {
	if n, err := strconv.Atoi(string(s)); err == nil {
		return []byte(strconv.Itoa(n)), nil
	}
	return json.Marshal(string(s))
}

// parse gives the number and whether it is percent.
func (s Share) parse() (n int, percent, ok bool) {
	text, percent := strings.CutSuffix(string(s), "%")
	n, err := strconv.Atoi(text)
	ok = err == nil && n >= 0 && strconv.Itoa(n) == text && (percent && n <= 100 || !percent && n <= maxReplicas)
	return n, percent, ok
}

// Of is the share of a number, a percentage rounded up or down.
func (s Share) Of(total int, up bool) int {
	n, percent, ok := s.parse()
	switch {
	case !ok:
		return 0
	case !percent:
		return n
	case up:
		return (n*total + 99) / 100
	}
	return n * total / 100
}

func (s Share) validate(field string) []errs.Field {
	if s == "" {
		return nil
	}
	if _, _, ok := s.parse(); !ok {
		return []errs.Field{{Field: field, Value: clip(string(s)), Rule: fmt.Sprintf("must be a number from 0 to %d or a percentage from 0%% to 100%%", maxReplicas), Example: "25%"}}
	}
	return nil
}

// Wants is replicas with its default.
func (s *DeploymentSpec) Wants() int {
	if s.Replicas == nil {
		return 1
	}
	return *s.Replicas
}

// Bounds are maxSurge and maxUnavailable as numbers, for so many instances. At least one of
// them is not 0, or nothing could ever be replaced.
func (s *DeploymentSpec) Bounds(wants int) (surge, unavailable int) {
	up, down := s.Strategy.MaxSurge, s.Strategy.MaxUnavailable
	if up == "" {
		up = DefaultShare
	}
	if down == "" {
		down = DefaultShare
	}
	surge, unavailable = up.Of(wants, true), min(down.Of(wants, false), wants)
	if s.PerNode {
		surge = 0
	}
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// ProgressDeadline is how long the rollout may stand still.
func (s *DeploymentSpec) ProgressDeadline() time.Duration {
	if s.Deadline == 0 {
		return DefaultProgressDeadline
	}
	return s.Deadline.D()
}

// History is how many old revisions are kept.
func (s *DeploymentSpec) History() int {
	if s.Revisions == nil {
		return defaultRevisions
	}
	return *s.Revisions
}

// Hash is the fingerprint of a template: instances with the same one are of one revision.
func (t *Template) Hash() string {
	b, err := json.Marshal(t)
	if err != nil {
		return "" // a template that came out of JSON goes back into it
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:5])
}

// Validate checks everything that can be judged from the deployment alone.
func (d *Deployment) Validate() []errs.Field {
	s := &d.Spec
	f := workloadName(d.Name, maxWorkloadName)
	if n := s.Wants(); n < 0 || n > maxReplicas {
		f = append(f, errs.Field{Field: "spec.replicas", Value: strconv.Itoa(n), Rule: fmt.Sprintf("must be 0 to %d", maxReplicas), Example: "3"})
	}
	f = append(f, s.validateTemplate()...)
	f = append(f, s.validateStrategy()...)
	for _, t := range []struct {
		field string
		d     Duration
		most  time.Duration
	}{{"spec.minReady", s.MinReady, maxMinReady}, {"spec.progressDeadline", s.Deadline, maxDeadline}} {
		if t.d < 0 || t.d.D() > t.most {
			f = append(f, errs.Field{Field: t.field, Value: t.d.D().String(), Rule: "must be 0s to " + t.most.String(), Example: "30s"})
		}
	}
	if s.MinReady.D() >= s.ProgressDeadline() {
		f = append(f, errs.Field{Field: "spec.progressDeadline", Value: s.ProgressDeadline().String(), Rule: "must be longer than spec.minReady, " + s.MinReady.D().String(), Example: "10m"})
	}
	if n := s.History(); n < 0 || n > maxRevisions {
		f = append(f, errs.Field{Field: "spec.revisionHistory", Value: strconv.Itoa(n), Rule: fmt.Sprintf("must be 0 to %d", maxRevisions), Example: "10"})
	}
	if s.RollbackTo < 0 {
		f = append(f, errs.Field{Field: "spec.rollbackTo", Value: strconv.FormatInt(s.RollbackTo, 10), Rule: "must be the number of a revision (atoll rollout history)", Example: "3"})
	}
	return append(f, s.Budget.validate(s.Wants(), s.PerNode)...)
}

func workloadName(name string, most int) []errs.Field {
	if len(name) <= most {
		return nil
	}
	return []errs.Field{{Field: "metadata.name", Value: clip(name), Rule: fmt.Sprintf("must be at most %d characters: its instances' names are made of it", most), Example: "web"}}
}

func (s *DeploymentSpec) validateTemplate() []errs.Field {
	f := s.Template.validate("spec.template")
	if r := s.Template.Spec.RestartPolicy(); r != "always" {
		f = append(f, errs.Field{Field: "spec.template.spec.restart", Value: clip(r), Rule: "must be always: a deployment keeps its instances running; what ends is a job", Example: "always"})
	}
	if p := s.Template.Spec.Placement; p != nil && p.Gang != nil {
		f = append(f, errs.Field{Field: "spec.template.spec.placement.gang", Value: clip(p.Gang.Name), Rule: "cannot be used in a deployment: its instances are replaced one by one"})
	}
	alone := s.Strategy.Type == "recreate" && s.Wants() <= 1 && !s.PerNode
	f = append(f, s.Template.shared("spec.template", alone, "strategy recreate and one replica")...)
	f = append(f, labelFields("spec.selector.labels", s.Selector.Labels)...)
	for k, v := range s.Selector.Labels {
		if have, ok := s.Template.Labels[k]; !ok || have != v {
			f = append(f, errs.Field{Field: "spec.selector.labels." + clip(k), Value: clip(v), Rule: "must be among spec.template.labels", Example: FormatLabels(s.Template.Labels)})
		}
	}
	return f
}

func (s *DeploymentSpec) validateStrategy() []errs.Field {
	f := optional("spec.strategy.type", s.Strategy.Type, "rolling", "recreate")
	f = append(f, s.Strategy.MaxSurge.validate("spec.strategy.maxSurge")...)
	f = append(f, s.Strategy.MaxUnavailable.validate("spec.strategy.maxUnavailable")...)
	if s.Strategy.Type == "recreate" && (s.Strategy.MaxSurge != "" || s.Strategy.MaxUnavailable != "") {
		f = append(f, errs.Field{Field: "spec.strategy", Value: "recreate", Rule: "takes no maxSurge and no maxUnavailable: all old instances go first", Example: "{type: recreate}"})
	}
	if n, _, ok := s.Strategy.MaxUnavailable.parse(); ok && n == 0 && !s.PerNode {
		if m, _, ok := s.Strategy.MaxSurge.parse(); ok && m == 0 {
			f = append(f, errs.Field{Field: "spec.strategy.maxUnavailable", Value: string(s.Strategy.MaxUnavailable), Rule: "must not be 0 when maxSurge is: nothing could be replaced", Example: "1"})
		}
	}
	if s.PerNode && s.Strategy.MaxSurge != "" {
		f = append(f, errs.Field{Field: "spec.strategy.maxSurge", Value: clip(string(s.Strategy.MaxSurge)), Rule: "cannot go with perNode: there is one on a node, never two", Example: ""})
	}
	return f
}

func (b *HoldBudget) validate(wants int, perNode bool) []errs.Field {
	if b == nil {
		return nil
	}
	ways := 0
	for _, has := range []bool{b.None, b.MinAvailable != 0, b.MaxUnavailable != nil} {
		if has {
			ways++
		}
	}
	if ways != 1 {
		return []errs.Field{{Field: "spec.budget", Rule: "must have exactly one of none, minAvailable and maxUnavailable", Example: "{maxUnavailable: 1}"}}
	}
	if b.MinAvailable < 0 || !perNode && b.MinAvailable > wants {
		return []errs.Field{{Field: "spec.budget.minAvailable", Value: strconv.Itoa(b.MinAvailable), Rule: fmt.Sprintf("must be 1 to spec.replicas, %d", wants), Example: "1"}}
	}
	if m := b.MaxUnavailable; m != nil && *m < 0 {
		return []errs.Field{{Field: "spec.budget.maxUnavailable", Value: strconv.Itoa(*m), Rule: "must not be negative", Example: "1"}}
	}
	return nil
}

// validate checks a template as an instance is checked, and what is not a template's to say.
func (t *Template) validate(at string) []errs.Field {
	in := Instance{Spec: t.Spec}
	f := in.Validate()
	for i := range f {
		f[i].Field = at + "." + f[i].Field
	}
	f = append(f, labelFields(at+".labels", t.Labels)...)
	if len(t.Labels) > maxLabels-2 { // two are added
		f = append(f, errs.Field{Field: at + ".labels", Value: strconv.Itoa(len(t.Labels)), Rule: fmt.Sprintf("must be at most %d labels", maxLabels-2)})
	}
	for k := range t.Labels {
		if strings.HasPrefix(k, reservedPrefix) {
			f = append(f, errs.Field{Field: at + ".labels", Value: clip(k), Rule: "must not begin with " + reservedPrefix + ", which is for Atoll's own labels", Example: "app"})
		}
	}
	size := 0
	for k, v := range t.Annotations {
		size += len(k) + len(v)
		if strings.HasPrefix(k, reservedPrefix) && k != AnnotationRestarted {
			f = append(f, errs.Field{Field: at + ".annotations", Value: clip(k), Rule: "must not begin with " + reservedPrefix + ", which is for Atoll's own notes", Example: "team"})
		}
	}
	if size > maxMapBytes {
		f = append(f, errs.Field{Field: at + ".annotations", Rule: fmt.Sprintf("must be at most %d bytes together", maxMapBytes)})
	}
	for field, set := range map[string]bool{"stopped": t.Spec.Stopped, "autoRemove": t.Spec.AutoRm, "restartRequests": t.Spec.Restarts != 0} {
		if set {
			f = append(f, errs.Field{Field: at + ".spec." + field, Value: "true", Rule: "cannot be in a template: it is about one instance"})
		}
	}
	for i, e := range t.Spec.Env {
		if e.Name == EnvJobIndex {
			f = append(f, errs.Field{Field: fmt.Sprintf("%s.spec.env[%d].name", at, i), Value: e.Name, Rule: "is set by Atoll, to the index of the instance", Example: "LANG"})
		}
	}
	return f
}

// shared refuses what only one instance can have, unless there is never more than one.
func (t *Template) shared(at string, alone bool, needs string) []errs.Field {
	var f []errs.Field
	for i, n := range t.Spec.Networks {
		for field, a := range map[string]string{"address": n.Address, "address6": n.Address6} {
			if a != "" && !alone {
				f = append(f, errs.Field{Field: fmt.Sprintf("%s.spec.networks[%d].%s", at, i, field), Value: clip(a), Rule: "only one instance can have an address: needs " + needs})
			}
		}
	}
	return f
}

// RolledOut reports whether all instances are of the present template and available.
func (d *Deployment) RolledOut() bool {
	st := &d.Status
	return st.Observed >= d.Generation && st.Hash != "" && st.Complete == st.Hash &&
		st.Updated == st.Desired && st.Replicas == st.Updated && st.Available >= st.Desired
}

// FindCondition finds a condition by its type; nil when nothing is said.
func FindCondition(list []Condition, typ string) *Condition {
	for i := range list {
		if strings.EqualFold(list[i].Type, typ) {
			return &list[i]
		}
	}
	return nil
}

func deploymentDefinition() *Definition {
	dep := func(fn func(*Deployment) string) func(Object, time.Time) string {
		return func(o Object, _ time.Time) string { return fn(o.(*Deployment)) }
	}
	return &Definition{
		Kind: KindDeployment, Plural: "deployments", Aliases: []string{"deploy", "dep"}, Tenanted: true,
		Doc:        "Equal instances that are kept running and replaced some at a time.",
		Finalizers: []string{FinalizerWorkload},
		New:        func() Object { return &Deployment{Head: Head{K: KindDeployment}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "READY", Value: dep(func(d *Deployment) string { return fmt.Sprintf("%d/%d", d.Status.Ready, d.wanted()) })},
			{Name: "UPDATED", Value: dep(func(d *Deployment) string { return strconv.Itoa(d.Status.Updated) })},
			{Name: "AVAILABLE", Value: dep(func(d *Deployment) string { return strconv.Itoa(d.Status.Available) })},
			{Name: "STATE", Value: dep((*Deployment).state)},
			{Name: "IMAGE", Wide: true, Value: dep(func(d *Deployment) string { return d.Spec.Template.Spec.Image })},
			{Name: "REVISION", Wide: true, Value: dep(func(d *Deployment) string { return strconv.FormatInt(d.Status.Revision, 10) })},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{
			"spec.template.spec.image": func(o Object) string { return o.(*Deployment).Spec.Template.Spec.Image },
		},
	}
}

// FinalizerWorkload keeps a deployment, job or cron job until what it made is gone.
const FinalizerWorkload = "workload"

// wanted is how many there should be, as far as that is known.
func (d *Deployment) wanted() int {
	if d.Spec.PerNode || d.Status.Observed >= d.Generation {
		return d.Status.Desired
	}
	return d.Spec.Wants()
}

// state is one word for tables.
func (d *Deployment) state() string {
	p := FindCondition(d.Status.Conditions, ConditionProgressing)
	switch adm := FindCondition(d.Status.Conditions, ConditionAdmitted); {
	case d.DeletedAt != nil:
		return "removing"
	case d.Status.Observed < d.Generation:
		return "pending"
	case adm != nil && !adm.Status:
		return "refused"
	case p != nil && p.Reason == ReasonDeadline:
		return "stuck"
	case d.Spec.Paused:
		return "paused"
	case d.RolledOut():
		return "ready"
	case d.Status.Complete == d.Status.Hash && d.Status.Replicas == d.Status.Updated:
		return "degraded"
	}
	return "rolling"
}

// KindRevision is a template a deployment had.
const KindRevision Kind = "Revision"

// Revision is a template that a deployment had, kept to go back to. Only
// control/workload writes it; its name is the deployment's with the template's hash.
type Revision struct {
	Head
	Spec RevisionSpec `json:"spec"`
}

// RevisionSpec is the template and its place in the order.
type RevisionSpec struct {
	Deployment string   `json:"deployment" doc:"the deployment it belongs to"`
	Number     int64    `json:"number" doc:"grows with every change; going back to a template gives it a new number"`
	Hash       string   `json:"hash" doc:"fingerprint of the template"`
	Template   Template `json:"template" doc:"what the instances were made of"`
	Change     string   `json:"change,omitempty" doc:"the deployment's annotation change-cause at that time"`
}

// Validate has nothing to check: users cannot write revisions.
func (r *Revision) Validate() []errs.Field { return nil }

// AnnotationChange on a deployment says why its template was changed; the revision keeps it.
const AnnotationChange = "change-cause"

func revisionDefinition() *Definition {
	rev := func(fn func(*Revision) string) func(Object, time.Time) string {
		return func(o Object, _ time.Time) string { return fn(o.(*Revision)) }
	}
	return &Definition{
		Kind: KindRevision, Plural: "revisions", Tenanted: true, ReadOnly: true,
		Doc: "A template that a deployment had, kept to go back to.",
		New: func() Object { return &Revision{Head: Head{K: KindRevision}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "DEPLOYMENT", Value: rev(func(r *Revision) string { return r.Spec.Deployment })},
			{Name: "NUMBER", Value: rev(func(r *Revision) string { return strconv.FormatInt(r.Spec.Number, 10) })},
			{Name: "IMAGE", Value: rev(func(r *Revision) string { return r.Spec.Template.Spec.Image })},
			{Name: "CHANGE", Value: rev(func(r *Revision) string { return dash(r.Spec.Change) })},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{"spec.deployment": func(o Object) string { return o.(*Revision).Spec.Deployment }},
	}
}

// SameSelector reports whether two deployments select by the same labels.
func SameSelector(a, b *DeploymentSpec) bool { return maps.Equal(a.Selector.Labels, b.Selector.Labels) }
