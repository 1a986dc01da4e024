package auth

import (
	"path"
	"slices"
	"sort"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

// AnyKind stands for every kind at once, such as for a backup.
const AnyKind api.Kind = "*"

// Authorize decides one call: verb on kind in tenant ("" for what belongs to the
// pool). A denial is errs.Denied and says what is missing.
func (a *Authority) Authorize(id Identity, verb api.Verb, kind api.Kind, tenant string) error {
	if id.Admin {
		return nil
	}
	if id.Node != "" {
		role, err := a.roleOf(id)
		if err != nil {
			return err
		}
		if roleMay(role, verb, kind) {
			return nil
		}
		return denied(id, verb, kind, tenant, "a host only keeps what is its own: "+roleDoes(role))
	}
	if err := a.Check(id); err != nil {
		return err
	}
	if everybodys(verb, kind, tenant) {
		return nil
	}
	if why := narrowed(id, verb, tenant); why != "" {
		return denied(id, verb, kind, tenant, why)
	}
	if a.policy.Load().decide(question{user: id.User, verb: string(verb), what: string(kind), tenant: tenant}) {
		return nil
	}
	return denied(id, verb, kind, tenant, "")
}

// Allowed is Authorize without the reasons.
func (a *Authority) Allowed(id Identity, verb api.Verb, kind api.Kind, tenant string) bool {
	if id.Admin {
		return true
	}
	if id.Node != "" {
		role, err := a.roleOf(id)
		return err == nil && roleMay(role, verb, kind)
	}
	if a.Check(id) != nil {
		return false
	}
	return everybodys(verb, kind, tenant) || narrowed(id, verb, tenant) == "" &&
		a.policy.Load().decide(question{user: id.User, verb: string(verb), what: string(kind), tenant: tenant})
}

// everybodys: who is known at all may read the images that every tenant may run.
func everybodys(verb api.Verb, kind api.Kind, tenant string) bool {
	return kind == api.KindImage && tenant == api.SharedTenant && (verb == api.VerbGet || verb == api.VerbList || verb == api.VerbWatch)
}

// narrowed says why the caller's token does not reach so far; "" when it does.
func narrowed(id Identity, verb api.Verb, tenant string) string {
	t := id.Token
	if t == nil {
		return ""
	}
	if t.Spec.Tenant != "" && !api.WithinTenant(tenant, t.Spec.Tenant) {
		return "token " + t.Name + " reaches only tenant " + t.Spec.Tenant
	}
	if v := t.Spec.Verbs; len(v) > 0 && verb != "" && !slices.Contains(v, verb) && !slices.Contains(v, api.VerbAny) {
		return "token " + t.Name + " allows only " + verbList(v)
	}
	return ""
}

func verbList(v []api.Verb) string {
	s := make([]string, len(v))
	for i := range v {
		s[i] = string(v[i])
	}
	return strings.Join(s, ", ")
}

// roleMay is what a host may do with objects. What runs nothing asks whether it is
// wanted among the members, and only about itself (see Own); the rest of its part has
// calls of its own.
func roleMay(role api.JoinRole, verb api.Verb, kind api.Kind) bool {
	if role == api.RoleNode {
		return nodeMay(verb, kind)
	}
	return verb == api.VerbGet && kind == api.KindMember
}

// Own refuses what Authorize alone cannot tell apart: a host that runs no instances may
// read nothing but its own membership. Everybody else may pass.
func (a *Authority) Own(id Identity, ref api.Ref) error {
	if id.Node == "" || ref.Name == id.Node {
		return nil
	}
	role, err := a.roleOf(id)
	if err != nil || role == api.RoleNode {
		return err
	}
	return denied(id, api.VerbGet, ref.Kind, ref.Tenant, "as a "+string(role)+" it sees its own membership only")
}

func roleDoes(role api.JoinRole) string {
	if role == api.RoleNode {
		return "its node, instances, images and events"
	}
	return "as a " + string(role) + ", its part in the control plane"
}

// nodeMay is what agents need: to read what runs, and to report.
func nodeMay(verb api.Verb, kind api.Kind) bool {
	read := verb == api.VerbGet || verb == api.VerbList || verb == api.VerbWatch
	switch kind {
	case api.KindNode, api.KindEvent, api.KindImage:
		return read || verb == api.VerbCreate || verb == api.VerbUpdate || verb == api.VerbDelete && kind == api.KindEvent
	case api.KindInstance:
		return read || verb == api.VerbUpdate || verb == api.VerbDelete
	case api.KindTenant, api.KindAssignment, api.KindPriorityClass, api.KindDisruptionBudget, api.KindLedger, api.KindMember, api.KindLease,
		api.KindPool, api.KindUpgrade, api.KindNetwork, api.KindEndpoint, api.KindSecurityGroup, api.KindPeering, api.KindRoute, api.KindAddress, api.KindDropRule, api.KindBGPPeer,
		api.KindEncryption, api.KindHostKey:
		return read
	}
	return false
}

// Where names a place for messages.
func Where(tenant string) string {
	if tenant == "" {
		return "in the pool"
	}
	return "in tenant " + tenant
}

func kindWord(k api.Kind) string {
	if k == AnyKind {
		return "every kind"
	}
	return strings.ToLower(string(k))
}

// denied tells the missing verb, kind and tenant, and who can give the right.
func denied(id Identity, verb api.Verb, kind api.Kind, tenant, why string) error {
	msg := id.String() + " may not " + string(verb) + " " + kindWord(kind) + " " + Where(tenant)
	if why != "" {
		return errs.New(errs.Denied, "%s: %s", msg, why).WithHint("use a token, or an identity, that reaches further")
	}
	if id.Token != nil && id.Node == "" {
		msg += " (nor may the user the token speaks for)"
	}
	e := errs.New(errs.Denied, "%s", msg)
	role, at := "ROLE", ""
	for _, r := range []string{"viewer", "developer", "operator", "admin"} {
		if roleHas(builtin(r), verb, kind) {
			role = r
			break
		}
	}
	if tenant != "" {
		at = " --in " + tenant
	}
	return e.WithHint("an administrator can bind a role with the verb %q on %s: atoll user bind %s %s%s", verb, kindWord(kind), id.User, role, at)
}

func builtin(name string) *api.Role {
	for _, r := range BuiltinRoles() {
		if r.Name == name {
			return r
		}
	}
	return nil
}

func roleHas(r *api.Role, verb api.Verb, kind api.Kind) bool {
	for _, rule := range r.Spec.Rules {
		verbOK := slices.Contains(rule.Verbs, verb) || slices.Contains(rule.Verbs, api.VerbAny)
		kindOK := slices.Contains(rule.Kinds, "*") || slices.Contains(rule.Kinds, strings.ToLower(string(kind)))
		if verbOK && kindOK {
			return true
		}
	}
	return false
}

// Roots lists where a caller may do verb on kind: everywhere, or in these tenants
// and those nested in them. Neither: nowhere.
func (a *Authority) Roots(id Identity, verb api.Verb, kind api.Kind) (everywhere bool, tenants []string) {
	if a.Allowed(id, verb, kind, "") {
		return true, nil
	}
	if id.Trusted() {
		return false, nil
	}
	candidates := slices.Clone(a.policy.Load().of(id.User).tenants)
	if id.Token != nil && id.Token.Spec.Tenant != "" {
		candidates = append(candidates, id.Token.Spec.Tenant)
	}
	sort.Strings(candidates)
	for _, t := range candidates { // sorted: a parent comes before what is nested in it
		if t == "" || !a.Allowed(id, verb, kind, t) {
			continue
		}
		if !slices.ContainsFunc(tenants, func(root string) bool { return api.WithinTenant(t, root) }) {
			tenants = append(tenants, t)
		}
	}
	if len(tenants) > 0 && everybodys(verb, kind, api.SharedTenant) {
		tenants = append(tenants, api.SharedTenant)
	}
	return false, tenants
}

// Grants decides the dangerous parts of a spec (InstanceSpec.Grants) in a tenant.
func (a *Authority) Grants(id Identity, tenant string, grants []string) error {
	if id.Admin || len(grants) == 0 {
		return nil
	}
	if err := a.Check(id); err != nil {
		return err
	}
	var missing []string
	p := a.policy.Load()
	for _, g := range grants {
		what, arg, _ := strings.Cut(g, ":")
		if what == "hostpath" {
			g = what + ":" + cleanPath(arg)
		}
		if id.Node != "" || narrowed(id, "", tenant) != "" || !p.decide(question{user: id.User, verb: actionGrant, what: g, tenant: tenant}) {
			missing = append(missing, g)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return errs.New(errs.Denied, "%s lacks the right %s %s", id, strings.Join(missing, ", "), Where(tenant)).
		WithHint("an administrator adds to a rule of a role bound to you there: grants: [%s] (atoll edit role/NAME)", strings.Join(missing, ", "))
}

func cleanPath(p string) string { return path.Clean("/" + p) }

// Covers reports what of a role a caller lacks in a tenant: nobody can hand out
// more than they have. nil when everything is covered.
func (a *Authority) Covers(id Identity, role *api.Role, tenant string) error {
	if id.Admin {
		return nil
	}
	for _, rule := range role.Spec.Rules {
		for _, v := range expandVerbs(rule.Verbs) {
			for _, k := range expandKinds(rule.Kinds) {
				if err := a.Authorize(id, v, k, tenant); err != nil {
					return errs.New(errs.Denied, "role %s gives more than you have: %w", role.Name, err).
						WithHint("give only what you have, or ask an administrator")
				}
			}
		}
		if err := a.Grants(id, tenant, rule.Grants); err != nil {
			return errs.New(errs.Denied, "role %s gives more than you have: %w", role.Name, err).
				WithHint("give only what you have, or ask an administrator")
		}
	}
	return nil
}

// Role finds a role by name.
func (a *Authority) Role(name string) (*api.Role, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	r, ok := a.roles[name]
	return r, ok
}

// Bindings lists a user's bindings, sorted by name.
func (a *Authority) Bindings(user string) []*api.RoleBinding {
	out := slices.Clone(a.policy.Load().byUser[user])
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func expandVerbs(in []api.Verb) []api.Verb {
	if slices.Contains(in, api.VerbAny) {
		return api.Verbs()
	}
	return in
}

func expandKinds(in []string) []api.Kind {
	var out []api.Kind
	for _, k := range in {
		if k == "*" {
			out = []api.Kind{AnyKind}
			for _, d := range api.Definitions() {
				out = append(out, d.Kind)
			}
			return out
		}
		if d, ok := api.Lookup(k); ok {
			out = append(out, d.Kind)
		}
	}
	return out
}

// ScopeOf is the tenant whose rights decide over an object. A tenant is read with
// rights in itself but changed with rights in its parent, so that nobody raises
// their own share; a binding or token belongs where it holds.
func ScopeOf(verb api.Verb, o api.Object) string {
	switch o := o.(type) {
	case *api.RoleBinding:
		return o.Spec.Tenant
	case *api.Token:
		return o.Spec.Tenant
	}
	return ScopeOfRef(verb, api.RefOf(o))
}

// ScopeOfRef is ScopeOf where the object is not at hand; exact for all kinds but bindings and tokens.
func ScopeOfRef(verb api.Verb, r api.Ref) string {
	if r.Kind != api.KindTenant {
		return r.Tenant
	}
	switch verb {
	case api.VerbCreate, api.VerbUpdate, api.VerbDelete:
		return api.ParentTenant(r.Name)
	}
	return r.Name
}
