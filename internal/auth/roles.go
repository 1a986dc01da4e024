package auth

import (
	"atoll/api"
)

// LabelBuiltin marks the roles that come with Atoll.
const LabelBuiltin = "atoll/builtin"

// BuiltinRoles are made at the first start of a pool; they are ordinary roles and
// may be edited, which ends their being brought up to date by later releases.
// admin: everything, also host paths, so bind it with care.
// operator: everything but identity and backup; who may join is identity, too.
// developer: a tenant's instances, what makes them, and images. viewer: reads, also logs.
func BuiltinRoles() []*api.Role {
	read := []api.Verb{api.VerbGet, api.VerbList, api.VerbWatch}
	var operated []string
	for _, d := range api.Definitions() {
		switch d.Kind {
		case api.KindUser, api.KindRole, api.KindRoleBinding, api.KindToken, api.KindJoinToken, api.KindNodeIdentity:
		default:
			operated = append(operated, d.Singular())
		}
	}
	return []*api.Role{
		role("admin", "everything", api.RoleRule{Verbs: []api.Verb{api.VerbAny}, Kinds: []string{"*"},
			Grants: []string{"capability:*", "hostpath:/", "network:host", "network:vni", "network:direct", api.GrantBGP, "priority:*"}}),
		role("operator", "everything but identity and backup", api.RoleRule{
			Verbs: append(read[:3:3], api.VerbCreate, api.VerbUpdate, api.VerbDelete, api.VerbExec, api.VerbLogs, api.VerbCapture), Kinds: operated, Grants: []string{api.GrantBGP, "priority:*"}},
			api.RoleRule{Verbs: read, Kinds: []string{"nodeidentity"}}),
		role("developer", "runs instances in a tenant",
			api.RoleRule{Verbs: []api.Verb{api.VerbAny}, Kinds: []string{"instance", "deployment", "job", "cronjob", "image", "event", "disruptionbudget", "network", "securitygroup", "peering", "route", "address"}},
			api.RoleRule{Verbs: read, Kinds: []string{"assignment", "endpoint", "addresspool", "ledger", "tenant", "move", "revision"}}),
		role("viewer", "reads, also logs",
			api.RoleRule{Verbs: append(read[:3:3], api.VerbLogs), Kinds: operated},
			api.RoleRule{Verbs: read, Kinds: []string{"nodeidentity"}}),
	}
}

func role(name, what string, rules ...api.RoleRule) *api.Role {
	return &api.Role{
		Head: api.Head{K: api.KindRole, Meta: api.Meta{Name: name, Labels: map[string]string{LabelBuiltin: "true"}, Annotations: map[string]string{"description": what}}},
		Spec: api.RoleSpec{Rules: rules},
	}
}
