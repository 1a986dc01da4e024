package api

import (
	"fmt"
	"strings"
	"time"

	"atoll/internal/errs"
)

// The kinds that say who may do what.
const (
	KindUser        Kind = "User"
	KindRole        Kind = "Role"
	KindRoleBinding Kind = "RoleBinding"
	KindToken       Kind = "Token"
)

// User is somebody who may call the API.
type User struct {
	Head
	Spec UserSpec `json:"spec"`
}

// UserSpec says how a user is known.
type UserSpec struct {
	FullName  string `json:"fullName,omitempty" doc:"for people" example:"Chen Wei"`
	HostUser  string `json:"hostUser,omitempty" doc:"account on this host that is this user over the unix socket; default: the user's own name" example:"chen"`
	Suspended bool   `json:"suspended,omitempty" doc:"may do nothing until this is taken back"`
}

// Validate checks the account name.
func (u *User) Validate() []errs.Field {
	if len(u.Spec.HostUser) > 32 || strings.ContainsAny(u.Spec.HostUser, ":/ \n") {
		return []errs.Field{{Field: "spec.hostUser", Value: clip(u.Spec.HostUser), Rule: "must be the name of an account on the host", Example: "chen"}}
	}
	return nil
}

func userDefinition() *Definition {
	return &Definition{
		Kind: KindUser, Plural: "users",
		Doc: "Somebody who may call the API.",
		New: func() Object { return &User{Head: Head{K: KindUser}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "FULL NAME", Value: func(o Object, _ time.Time) string { return dash(o.(*User).Spec.FullName) }},
			{Name: "HOST USER", Value: func(o Object, _ time.Time) string { return dash(o.(*User).Spec.HostUser) }},
			{Name: "SUSPENDED", Value: func(o Object, _ time.Time) string { return fmt.Sprint(o.(*User).Spec.Suspended) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{},
	}
}

func nameColumn(o Object, _ time.Time) string { return o.Metadata().Name }

// Verb is what a caller does to an object. Exec covers every live stream into an
// instance that can change it (exec, attach, cp in); Logs covers reading its output.
type Verb string

// The verbs that roles grant.
const (
	VerbGet     Verb = "get"
	VerbList    Verb = "list"
	VerbWatch   Verb = "watch"
	VerbCreate  Verb = "create"
	VerbUpdate  Verb = "update"
	VerbDelete  Verb = "delete"
	VerbExec    Verb = "exec"
	VerbLogs    Verb = "logs"
	VerbCapture Verb = "capture" // copy the packets on an instance's wire
	VerbBackup  Verb = "backup"  // read or replace the whole state of the control plane
	VerbAny     Verb = "*"
)

// Verbs lists the verbs in a fixed order.
func Verbs() []Verb {
	return []Verb{VerbGet, VerbList, VerbWatch, VerbCreate, VerbUpdate, VerbDelete, VerbExec, VerbLogs, VerbCapture, VerbBackup, VerbAny}
}

// Role is a named set of rights.
type Role struct {
	Head
	Spec RoleSpec `json:"spec"`
}

// RoleSpec lists what the role allows; everything else is denied.
type RoleSpec struct {
	Rules []RoleRule `json:"rules" doc:"a call is allowed when any rule covers it"`
}

// RoleRule allows verbs on kinds, and privileges beyond them.
type RoleRule struct {
	Verbs []Verb   `json:"verbs" doc:"get, list, watch, create, update, delete, exec, logs, capture, backup or *" example:"[get, list]"`
	Kinds []string `json:"kinds" doc:"kinds by name, or *" example:"[instance, image]"`
	// Grants are rights inside a spec that are dangerous by themselves.
	Grants []string `json:"grants,omitempty" doc:"dangerous parts of a spec it allows: capability:NAME, hostpath:/prefix, network:host, network:vni, network:direct, network:bgp, priority:CLASS (one that preempts)" example:"[capability:NET_ADMIN, hostpath:/srv/data]"`
}

// Validate checks verbs, kinds and grants.
func (r *Role) Validate() []errs.Field {
	var f []errs.Field
	for i, rule := range r.Spec.Rules {
		path := fmt.Sprintf("spec.rules[%d]", i)
		if len(rule.Verbs) == 0 {
			f = append(f, errs.Field{Field: path + ".verbs", Rule: "must name at least one verb", Example: "[get, list]"})
		}
		for _, v := range rule.Verbs {
			f = append(f, oneOf(path+".verbs", string(v), verbNames())...)
		}
		if len(rule.Kinds) == 0 {
			f = append(f, errs.Field{Field: path + ".kinds", Rule: "must name at least one kind, or *", Example: "[instance]"})
		}
		for _, k := range rule.Kinds {
			if _, ok := Lookup(k); !ok && k != "*" {
				f = append(f, errs.Field{Field: path + ".kinds", Value: clip(k), Rule: "must be a kind or *", Example: "instance"})
			}
		}
		f = append(f, grantFields(path+".grants", rule.Grants)...)
	}
	return f
}

// grantFields checks dangerous rights.
func grantFields(field string, grants []string) []errs.Field {
	var f []errs.Field
	for _, g := range grants {
		what, arg, _ := strings.Cut(g, ":")
		ok := what == "capability" && arg != "" || what == "hostpath" && strings.HasPrefix(arg, "/") || what == "priority" && arg != "" || g == "network:host" || g == "network:vni" || g == "network:direct" || g == GrantBGP
		if !ok {
			f = append(f, errs.Field{Field: field, Value: clip(g), Rule: "must be capability:NAME, hostpath:/prefix, network:host, network:vni, network:direct, network:bgp or priority:CLASS", Example: "capability:NET_ADMIN"})
		}
	}
	return f
}

func verbNames() []string {
	var out []string
	for _, v := range Verbs() {
		out = append(out, string(v))
	}
	return out
}

// oneOf checks an enumerated text.
func oneOf(field, v string, allowed []string) []errs.Field {
	for _, a := range allowed {
		if v == a {
			return nil
		}
	}
	return []errs.Field{{Field: field, Value: clip(v), Rule: "must be one of " + strings.Join(allowed, ", "), Example: allowed[0]}}
}

func roleDefinition() *Definition {
	return &Definition{
		Kind: KindRole, Plural: "roles",
		Doc: "A named set of rights: verbs on kinds.",
		New: func() Object { return &Role{Head: Head{K: KindRole}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "RULES", Value: func(o Object, _ time.Time) string { return fmt.Sprint(len(o.(*Role).Spec.Rules)) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{},
	}
}

// RoleBinding gives users a role, in one tenant and those nested in it, or in the whole pool.
type RoleBinding struct {
	Head
	Spec RoleBindingSpec `json:"spec"`
}

// RoleBindingSpec says who gets which role where.
type RoleBindingSpec struct {
	Role   string   `json:"role" doc:"name of the role" example:"developer"`
	Users  []string `json:"users" doc:"names of the users who get it" example:"[chen]"`
	Tenant string   `json:"tenant,omitempty" doc:"where it holds: this tenant and those nested in it; empty: the whole pool" example:"acme"`
}

// Validate checks the names.
func (b *RoleBinding) Validate() []errs.Field {
	var f []errs.Field
	if !ValidName(b.Spec.Role) {
		f = append(f, errs.Field{Field: "spec.role", Value: clip(b.Spec.Role), Rule: "must name a role", Example: "developer"})
	}
	if len(b.Spec.Users) == 0 {
		f = append(f, errs.Field{Field: "spec.users", Rule: "must name at least one user", Example: "[chen]"})
	}
	for _, u := range b.Spec.Users {
		if !ValidName(u) {
			f = append(f, errs.Field{Field: "spec.users", Value: clip(u), Rule: "must be names of users", Example: "chen"})
		}
	}
	if b.Spec.Tenant != "" && !ValidTenantPath(b.Spec.Tenant) {
		f = append(f, errs.Field{Field: "spec.tenant", Value: clip(b.Spec.Tenant), Rule: "must be a tenant, or empty for the whole pool", Example: "acme"})
	}
	return f
}

func roleBindingDefinition() *Definition {
	return &Definition{
		Kind: KindRoleBinding, Plural: "rolebindings", Aliases: []string{"rb", "binding", "bindings"},
		Doc: "Gives users a role in a tenant or in the whole pool.",
		New: func() Object { return &RoleBinding{Head: Head{K: KindRoleBinding}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "ROLE", Value: func(o Object, _ time.Time) string { return o.(*RoleBinding).Spec.Role }},
			{Name: "USERS", Value: func(o Object, _ time.Time) string { return strings.Join(o.(*RoleBinding).Spec.Users, ",") }},
			{Name: "TENANT", Value: func(o Object, _ time.Time) string { return dash(o.(*RoleBinding).Spec.Tenant) }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{},
	}
}

// Token is a bearer credential. Its secret is shown once, when it is created;
// only a hash is kept.
type Token struct {
	Head
	Spec   TokenSpec   `json:"spec"`
	Status TokenStatus `json:"status,omitzero"`
}

// TokenSpec says whom the token speaks for and how far it reaches. It can only
// narrow what its user may do.
type TokenSpec struct {
	User      string     `json:"user" doc:"user it speaks for" example:"ci"`
	Tenant    string     `json:"tenant,omitempty" doc:"reaches only this tenant and those nested in it; empty: wherever the user may" example:"acme"`
	Verbs     []Verb     `json:"verbs,omitempty" doc:"allows only these; empty: whatever the user may" example:"[get, list]"`
	ExpiresAt *time.Time `json:"expiresAt,omitempty" doc:"useless from then on; default: 30 days after creation"`
}

// TokenStatus is kept by the server.
type TokenStatus struct {
	Hash   string `json:"hash,omitempty" doc:"SHA-256 of the secret, in hex"`
	Secret string `json:"secret,omitempty" doc:"in the answer to its creation only"`
}

// Validate checks names and verbs.
func (t *Token) Validate() []errs.Field {
	var f []errs.Field
	if !ValidName(t.Spec.User) {
		f = append(f, errs.Field{Field: "spec.user", Value: clip(t.Spec.User), Rule: "must name a user", Example: "ci"})
	}
	if t.Spec.Tenant != "" && !ValidTenantPath(t.Spec.Tenant) {
		f = append(f, errs.Field{Field: "spec.tenant", Value: clip(t.Spec.Tenant), Rule: "must be a tenant, or empty", Example: "acme"})
	}
	for _, v := range t.Spec.Verbs {
		f = append(f, oneOf("spec.verbs", string(v), verbNames())...)
	}
	return f
}

func tokenDefinition() *Definition {
	return &Definition{
		Kind: KindToken, Plural: "tokens",
		Doc: "A bearer credential for a user; shown once, stored hashed, expiring.",
		New: func() Object { return &Token{Head: Head{K: KindToken}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "USER", Value: func(o Object, _ time.Time) string { return o.(*Token).Spec.User }},
			{Name: "TENANT", Value: func(o Object, _ time.Time) string { return dash(o.(*Token).Spec.Tenant) }},
			{Name: "EXPIRES", Value: func(o Object, now time.Time) string {
				e := o.(*Token).Spec.ExpiresAt
				if e == nil {
					return "-"
				}
				if !e.After(now) {
					return "expired"
				}
				return "in " + Age(&now, *e)
			}},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{
			"spec.user":   func(o Object) string { return o.(*Token).Spec.User },
			"status.hash": func(o Object) string { return o.(*Token).Status.Hash },
		},
	}
}
