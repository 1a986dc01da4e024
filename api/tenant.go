package api

import (
	"fmt"
	"time"

	"atoll/internal/errs"
)

// KindTenant is a group with a guaranteed share of the pool.
const KindTenant Kind = "Tenant"

// Tenant owns instances and everything else in the pool. Its name is its path;
// acme/research is nested in acme and lives from acme's share.
type Tenant struct {
	Head
	Spec   TenantSpec   `json:"spec"`
	Status TenantStatus `json:"status,omitzero"`
}

// TenantSpec is what a tenant is promised and allowed.
type TenantSpec struct {
	Parent    string    `json:"parent,omitempty" doc:"tenant it is nested in; follows from the name and may be left out" example:"acme"`
	Guarantee Resources `json:"guarantee,omitempty" doc:"always there when asked for; the guarantees of nested tenants come out of their parent's" example:"{cpu: 1, memory: 2Gi}"`
	Limit     Resources `json:"limit,omitempty" doc:"ceiling on what is actually used, and on counted things such as instances" example:"{cpu: 4, memory: 8Gi, instances: 50}"`
	Weight    int64     `json:"weight,omitempty" doc:"share of what is idle, against tenants of the same parent; 1 to 10000" default:"100"`
	Suspended bool      `json:"suspended,omitempty" doc:"nothing new may be created or started"`
}

// TenantStatus is what the nodes saw last; the live numbers are in 'atoll top tenants'.
type TenantStatus struct {
	Conditions []Condition `json:"conditions,omitempty" doc:"what is true of the tenant now"`
	UIDBase    uint32      `json:"uidBase,omitempty" doc:"first host user ID of the tenant's own range; disjoint from every other tenant's"`
	UIDCount   uint32      `json:"uidCount,omitempty" doc:"size of that range"`
}

// DefaultWeight is a tenant's weight when none is given.
const DefaultWeight = 100

// EffectiveWeight is the weight with its default.
func (s TenantSpec) EffectiveWeight() int64 {
	if s.Weight == 0 {
		return DefaultWeight
	}
	return s.Weight
}

// Validate checks amounts and weight.
func (t *Tenant) Validate() []errs.Field {
	var f []errs.Field
	if t.Name == SharedTenant {
		f = append(f, errs.Field{Field: "name", Value: t.Name, Rule: "is reserved for the images of every tenant", Example: t.Name + "-services"})
	}
	if p := ParentTenant(t.Name); t.Spec.Parent != "" && t.Spec.Parent != p {
		f = append(f, errs.Field{Field: "spec.parent", Value: clip(t.Spec.Parent), Rule: fmt.Sprintf("must match the name: the parent of %s is %q", clip(t.Name), p), Example: p})
	}
	if t.Spec.Weight < 0 || t.Spec.Weight > 10000 {
		f = append(f, errs.Field{Field: "spec.weight", Value: fmt.Sprint(t.Spec.Weight), Rule: "must be 1 to 10000", Example: "100"})
	}
	for _, r := range t.Spec.Guarantee.Over(t.Spec.Limit) {
		f = append(f, errs.Field{Field: "spec.guarantee." + string(r), Value: FormatQuantity(r, t.Spec.Guarantee[r]),
			Rule: "must not be more than spec.limit." + string(r) + ", " + FormatQuantity(r, t.Spec.Limit[r]), Example: FormatQuantity(r, t.Spec.Limit[r])})
	}
	return f
}

func tenantDefinition() *Definition {
	return &Definition{
		Kind: KindTenant, Plural: "tenants", Aliases: []string{"tn", "project", "projects"},
		Doc: "A group with a guaranteed share of the pool, a ceiling, and a weight for what is idle.",
		New: func() Object { return &Tenant{Head: Head{K: KindTenant}} },
		Columns: []Column{
			{Name: "NAME", Value: func(o Object, _ time.Time) string { return o.Metadata().Name }},
			{Name: "GUARANTEE", Value: func(o Object, _ time.Time) string { return dash(o.(*Tenant).Spec.Guarantee.String()) }},
			{Name: "LIMIT", Value: func(o Object, _ time.Time) string { return dash(o.(*Tenant).Spec.Limit.String()) }},
			{Name: "WEIGHT", Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*Tenant).Spec.EffectiveWeight()) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{"metadata.name": func(o Object) string { return o.Metadata().Name }},
	}
}

func ageColumn(o Object, now time.Time) string { return Age(o.Metadata().CreatedAt, now) }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// KindLedger is the account of what a tenant's objects were admitted for.
const KindLedger Kind = "Ledger"

// LedgerName is the name of every tenant's one ledger.
const LedgerName = "quota"

// Ledger sums what the objects of a tenant, and of the tenants nested in it, ask
// for. It changes in the same commit that creates or removes an object, so no
// race can exceed a limit. The ledger of tenant "" sums the pool.
type Ledger struct {
	Head
	Spec LedgerSpec `json:"spec"`
}

// LedgerSpec is the account.
type LedgerSpec struct {
	Requested Resources `json:"requested,omitempty" doc:"sum of the requests of all admitted instances, and counts"`
	Waiting   Resources `json:"waiting,omitempty" doc:"the part of requested that the pool promised no room for: instances that may wait for it"`
	Promised  Resources `json:"promised,omitempty" doc:"sum of the guarantees of the tenants directly inside"`
	Reserved  Resources `json:"reserved,omitempty" doc:"pool only: sum over the top tenants of what is larger, guarantee or requested (without waiting); the rest is free for all"`
	NextUID   uint32    `json:"nextUid,omitempty" doc:"pool only: where the next tenant's range of host user IDs starts"`
}

// Validate has nothing to check: users cannot write ledgers.
func (l *Ledger) Validate() []errs.Field { return nil }

func ledgerDefinition() *Definition {
	return &Definition{
		Kind: KindLedger, Plural: "ledgers", Tenanted: true, ReadOnly: true,
		Doc: "What a tenant's objects were admitted for; kept by the server.",
		New: func() Object { return &Ledger{Head: Head{K: KindLedger}} },
		Columns: []Column{
			{Name: "TENANT", Value: func(o Object, _ time.Time) string { return dash(o.Metadata().Tenant) }},
			{Name: "REQUESTED", Value: func(o Object, _ time.Time) string { return dash(o.(*Ledger).Spec.Requested.String()) }},
			{Name: "PROMISED", Value: func(o Object, _ time.Time) string { return dash(o.(*Ledger).Spec.Promised.String()) }},
		},
		Fields: map[string]func(Object) string{},
	}
}
