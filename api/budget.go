package api

import (
	"strconv"
	"time"

	"atoll/internal/errs"
)

// KindDisruptionBudget bounds how many instances may be down on purpose.
const KindDisruptionBudget Kind = "DisruptionBudget"

// DisruptionBudget protects instances of a tenant from being moved or preempted
// all at once. It does not protect from faults.
type DisruptionBudget struct {
	Head
	Spec DisruptionBudgetSpec `json:"spec"`
}

// DisruptionBudgetSpec has exactly one of MinAvailable and MaxUnavailable.
type DisruptionBudgetSpec struct {
	Labels         map[string]string `json:"labels" doc:"the instances of the tenant with all these labels" example:"{app: db}"`
	MinAvailable   int               `json:"minAvailable,omitempty" doc:"so many stay" example:"2"`
	MaxUnavailable *int              `json:"maxUnavailable,omitempty" doc:"at most so many are away; 0: none is ever moved" example:"1"`
}

// MaxBudgets bounds the budgets of a tenant: whoever makes room looks at all of them.
const MaxBudgets = 100

// Allows is how many of have instances may be taken away now, when want there should be.
func (s *DisruptionBudgetSpec) Allows(have, want int) int {
	if s.MaxUnavailable != nil {
		return max(have-(want-*s.MaxUnavailable), 0)
	}
	return max(have-s.MinAvailable, 0)
}

// Validate checks that it says one thing.
func (b *DisruptionBudget) Validate() []errs.Field {
	var f []errs.Field
	if len(b.Spec.Labels) == 0 {
		f = append(f, errs.Field{Field: "spec.labels", Rule: "must name at least one label", Example: "{app: db}"})
	}
	f = append(f, labelFields("spec.labels", b.Spec.Labels)...)
	if b.Spec.MinAvailable < 0 || (b.Spec.MinAvailable > 0) == (b.Spec.MaxUnavailable != nil) {
		f = append(f, errs.Field{Field: "spec.minAvailable", Value: strconv.Itoa(b.Spec.MinAvailable), Rule: "give either minAvailable, 1 or more, or maxUnavailable", Example: "2"})
	}
	if m := b.Spec.MaxUnavailable; m != nil && *m < 0 {
		f = append(f, errs.Field{Field: "spec.maxUnavailable", Value: strconv.Itoa(*m), Rule: "must not be negative", Example: "1"})
	}
	return f
}

func budgetDefinition() *Definition {
	return &Definition{
		Kind: KindDisruptionBudget, Plural: "disruptionbudgets", Aliases: []string{"db", "budget", "budgets", "pdb"}, Tenanted: true,
		Doc: "How many instances of a tenant may be down on purpose.",
		New: func() Object { return &DisruptionBudget{Head: Head{K: KindDisruptionBudget}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "LABELS", Value: func(o Object, _ time.Time) string { return FormatLabels(o.(*DisruptionBudget).Spec.Labels) }},
			{Name: "MIN AVAILABLE", Value: func(o Object, _ time.Time) string {
				if n := o.(*DisruptionBudget).Spec.MinAvailable; n > 0 {
					return strconv.Itoa(n)
				}
				return "-"
			}},
			{Name: "MAX UNAVAILABLE", Value: func(o Object, _ time.Time) string {
				if n := o.(*DisruptionBudget).Spec.MaxUnavailable; n != nil {
					return strconv.Itoa(*n)
				}
				return "-"
			}},
			{Name: "AGE", Value: ageColumn},
		},
	}
}
