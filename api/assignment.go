package api

import (
	"fmt"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindAssignment ties an instance to a node.
const KindAssignment Kind = "Assignment"

// Assignment says where an instance runs, or why it cannot. It has the
// instance's tenant and name; only the placement controller writes it.
type Assignment struct {
	Head
	Spec AssignmentSpec `json:"spec"`
}

// AssignmentSpec leaves the node no choices.
type AssignmentSpec struct {
	InstanceUID string `json:"instanceUid" doc:"the instance it was made for"`
	Node        string `json:"node,omitempty" doc:"where it runs; empty: nowhere yet"`
	Generation  int64  `json:"generation" doc:"grows with every move; an agent refuses an older one"`
	Address     string `json:"address,omitempty" doc:"address on the node's bridge" example:"10.88.0.2"`
	// Interfaces are as in the instance's Endpoint, without what can change while it runs.
	Interfaces []Interface `json:"interfaces,omitempty" doc:"what it is on networks of its tenant"`
	Devices    []int       `json:"devices,omitempty" doc:"GPUs of the node it may use, by number"`
	CPUs       string      `json:"cpus,omitempty" doc:"cores it alone may use" example:"4-7"`
	Cell       *int        `json:"cell,omitempty" doc:"NUMA cell its memory comes from"`
	Since      *time.Time  `json:"since,omitempty" doc:"waits for a node since then"`
	Evict      *Eviction   `json:"evict,omitempty" doc:"it must leave the node; it is placed anew when it has stopped"`
	Decision   *Decision   `json:"decision,omitempty" doc:"why there, or why nowhere"`
}

// Eviction asks the agent to stop an instance, with its usual grace, so that it can be placed anew.
type Eviction struct {
	At     time.Time `json:"at" doc:"since when"`
	Reason string    `json:"reason" doc:"why" example:"makes room for acme/db of a higher priority"`
	To     string    `json:"to,omitempty" doc:"the node it should go to, if that still fits"`
	Stay   bool      `json:"stay,omitempty" doc:"it keeps its node, stopped, and starts there again when this is taken back"`
	Lost   bool      `json:"lost,omitempty" doc:"its node is lost, and known not to run it where that matters: it is placed anew at once"`
}

// Decision is the scheduler's reasoning, kept so that it can be told later.
type Decision struct {
	At       time.Time     `json:"at" doc:"when it was made"`
	TookUS   int64         `json:"tookUs,omitempty" doc:"microseconds it took"`
	Of       int           `json:"of" doc:"how many nodes were looked at"`
	Chosen   string        `json:"chosen,omitempty" doc:"the node"`
	Nodes    []NodeVerdict `json:"nodes,omitempty" doc:"the best and the refused, node by node; at most 20"`
	Refusals []Refusal     `json:"refusals,omitempty" doc:"reasons and how many nodes gave them"`
	Hints    []string      `json:"hints,omitempty" doc:"what would help"`
}

// NodeVerdict is what was found for one node.
type NodeVerdict struct {
	Node   string             `json:"node" doc:"the node"`
	Score  float64            `json:"score,omitempty" doc:"0 to 1, weighted over the parts"`
	Parts  map[string]float64 `json:"parts,omitempty" doc:"score by policy"`
	Reason string             `json:"reason,omitempty" doc:"why it was refused; empty: it was possible"`
}

// Refusal is a reason and how many nodes gave it.
type Refusal struct {
	Policy string `json:"policy" doc:"policy that refused" example:"resources"`
	Reason string `json:"reason" doc:"in plain words" example:"not enough memory"`
	Nodes  int    `json:"nodes" doc:"how many nodes"`
	Best   string `json:"best,omitempty" doc:"the node that came closest, and how close" example:"isle2: memory 512Mi free of 8Gi"`
}

// Validate has nothing to check: users cannot write assignments.
func (a *Assignment) Validate() []errs.Field { return nil }

func assignmentDefinition() *Definition {
	return &Definition{
		Kind: KindAssignment, Plural: "assignments", Aliases: []string{"as"}, Tenanted: true, ReadOnly: true,
		Doc: "Where an instance runs and why, or why nowhere.",
		New: func() Object { return &Assignment{Head: Head{K: KindAssignment}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "NODE", Value: func(o Object, _ time.Time) string { return dash(o.(*Assignment).Spec.Node) }},
			{Name: "GENERATION", Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*Assignment).Spec.Generation) }},
			{Name: "ADDRESS", Value: func(o Object, _ time.Time) string { return dash(o.(*Assignment).Spec.addresses()) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{"spec.node": func(o Object) string { return o.(*Assignment).Spec.Node }},
	}
}

// FirstAddress is the one by which an instance is known best: on the node's bridge, or its first network.
func (s *AssignmentSpec) FirstAddress() string {
	if s.Address != "" || len(s.Interfaces) == 0 {
		return s.Address
	}
	if all := s.Interfaces[0].Addresses(); len(all) > 0 {
		return all[0]
	}
	return ""
}

func (s *AssignmentSpec) addresses() string {
	all := []string{}
	if s.Address != "" {
		all = append(all, s.Address)
	}
	for i := range s.Interfaces {
		all = append(all, s.Interfaces[i].Addresses()...)
	}
	return strings.Join(all, ",")
}
