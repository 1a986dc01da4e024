package api

import (
	"fmt"
	"time"

	"atoll/internal/errs"
)

// KindMove is a proposal to move an instance.
const KindMove Kind = "Move"

// Move is what rebalancing proposes, and what became of it. It has the instance's
// tenant and name; only the rebalance controller writes it.
type Move struct {
	Head
	Spec MoveSpec `json:"spec"`
}

// MoveState is where a proposal is in its life.
type MoveState string

// proposed -> approved -> done | dropped; a proposal may also be dropped at once.
const (
	MoveProposed MoveState = "proposed"
	MoveApproved MoveState = "approved" // is being made, or waits for its turn
	MoveDone     MoveState = "done"
	MoveDropped  MoveState = "dropped"
)

// MoveSpec says what, why, and at what price. Gain and cost share one unit, so they can be compared.
type MoveSpec struct {
	Instance    string     `json:"instance" doc:"the instance of this tenant"`
	InstanceUID string     `json:"instanceUid" doc:"the instance it was made for"`
	From        string     `json:"from" doc:"node it is on"`
	To          string     `json:"to" doc:"node it should be on"`
	Goal        string     `json:"goal" doc:"what for" enum:"repair|pressure|power|defragment"`
	Group       int64      `json:"group,omitempty" doc:"proposals of the same group make sense only together"`
	Step        int64      `json:"step,omitempty" doc:"its turn among the proposals of its time"`
	Gain        float64    `json:"gain" doc:"what it is worth, in watt-hours or priced like them"`
	Cost        float64    `json:"cost" doc:"what it takes, in the same unit"`
	Reason      string     `json:"reason" doc:"why, in words" example:"empties isle3, which can then be switched off"`
	State       MoveState  `json:"state" doc:"where it is in its life" enum:"proposed|approved|done|dropped"`
	Note        string     `json:"note,omitempty" doc:"why it was dropped"`
	BegunAt     *time.Time `json:"begunAt,omitempty" doc:"when the instance was asked to leave"`
	EndedAt     *time.Time `json:"endedAt,omitempty" doc:"when it was done or dropped"`
}

// Open reports whether it may still happen.
func (m *Move) Open() bool { return m.Spec.State == MoveProposed || m.Spec.State == MoveApproved }

// Validate has nothing to check: users cannot write moves.
func (m *Move) Validate() []errs.Field { return nil }

func moveDefinition() *Definition {
	amount := func(v float64) string { return fmt.Sprintf("%.1f", v) }
	spec := func(o Object) *MoveSpec { return &o.(*Move).Spec }
	return &Definition{
		Kind: KindMove, Plural: "moves", Aliases: []string{"mv"}, Tenanted: true, ReadOnly: true,
		Doc: "A proposal of rebalancing: which instance should move where, why, and what it costs.",
		New: func() Object { return &Move{Head: Head{K: KindMove}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "STATE", Value: func(o Object, _ time.Time) string { return string(spec(o).State) }},
			{Name: "FROM", Value: func(o Object, _ time.Time) string { return spec(o).From }},
			{Name: "TO", Value: func(o Object, _ time.Time) string { return spec(o).To }},
			{Name: "GOAL", Value: func(o Object, _ time.Time) string { return spec(o).Goal }},
			{Name: "GAIN", Value: func(o Object, _ time.Time) string { return amount(spec(o).Gain) }},
			{Name: "COST", Value: func(o Object, _ time.Time) string { return amount(spec(o).Cost) }},
			{Name: "REASON", Value: func(o Object, _ time.Time) string { return dash(spec(o).Reason) }},
			{Name: "NOTE", Wide: true, Value: func(o Object, _ time.Time) string { return dash(spec(o).Note) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{
			"spec.state": func(o Object) string { return string(spec(o).State) },
			"spec.from":  func(o Object) string { return spec(o).From },
			"spec.to":    func(o Object) string { return spec(o).To },
		},
	}
}
