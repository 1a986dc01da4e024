package auth

import (
	"iter"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"

	"atoll/api"
)

// How roles become Cedar:
//
//	principal  User::"chen", a member of Binding::"…" for every binding that names it
//	action     Action::"get", … and Action::"grant" for the dangerous parts of a spec
//	resource   Tenant::"acme/research" in Tenant::"acme" in Pool::"pool"; the path is the hierarchy
//	context    kind, or what the grant is for
//
// Each rule of a role becomes one permit per binding of that role. There is no
// forbid: what no rule permits is denied.

const (
	typeUser    cedar.EntityType = "User"
	typeBinding cedar.EntityType = "Binding"
	typeTenant  cedar.EntityType = "Tenant"
	typePool    cedar.EntityType = "Pool"
	typeAction  cedar.EntityType = "Action"

	actionGrant = "grant"
)

func pool() cedar.EntityUID { return cedar.NewEntityUID(typePool, "pool") }

// tenantUID is the resource of everything in a tenant; "" is the pool itself.
func tenantUID(path string) cedar.EntityUID {
	if path == "" {
		return pool()
	}
	return cedar.NewEntityUID(typeTenant, cedar.String(path))
}

// policySet is one picture of roles and bindings. It never changes; what users
// need of it is compiled when they first ask, and decisions are remembered.
type policySet struct {
	roles    map[string]*api.Role
	byUser   map[string][]*api.RoleBinding
	compiled sync.Map // user -> *compiled
	cached   atomic.Int64
	cache    sync.Map // question -> bool
}

type compiled struct {
	policies map[string]cedar.PolicyMap // by the tenant they hold in
	entities world
	tenants  []string // where bindings of the user hold, sorted
}

// slice is the policies that can matter to a question about one tenant: those that
// hold in it or around it. A policy elsewhere cannot permit anything there.
type slice struct {
	c      *compiled
	tenant string
}

// All visits the policies.
func (s slice) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, t := range append(api.TenantChain(s.tenant), "") {
			for id, p := range s.c.policies[t] {
				if !yield(id, p) {
					return
				}
			}
		}
	}
}

type question struct {
	user, verb, what, tenant string
}

// maxCached bounds the memory of remembered decisions in one picture (about 200 bytes each).
const maxCached = 1 << 16

// rebuild makes a new picture; a.mu is held.
func (a *Authority) rebuild() {
	p := &policySet{roles: make(map[string]*api.Role, len(a.roles)), byUser: map[string][]*api.RoleBinding{}}
	for n, r := range a.roles {
		p.roles[n] = r
	}
	for _, b := range a.bindings {
		for _, u := range b.Spec.Users {
			p.byUser[u] = append(p.byUser[u], b)
		}
	}
	a.policy.Store(p)
}

// world answers Cedar's questions about entities. Tenants need no list: their paths say who is in whom.
type world struct {
	user cedar.Entity
}

// Get finds an entity.
func (w world) Get(uid cedar.EntityUID) (cedar.Entity, bool) {
	switch uid.Type {
	case typeUser:
		return w.user, uid == w.user.UID
	case typeTenant:
		return cedar.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(tenantUID(api.ParentTenant(string(uid.ID))))}, true
	}
	return cedar.Entity{UID: uid}, true
}

func (p *policySet) of(user string) *compiled {
	if c, ok := p.compiled.Load(user); ok {
		return c.(*compiled)
	}
	c := &compiled{policies: map[string]cedar.PolicyMap{}}
	uid := cedar.NewEntityUID(typeUser, cedar.String(user))
	var groups []cedar.EntityUID
	for _, b := range p.byUser[user] {
		role, ok := p.roles[b.Spec.Role]
		if !ok || b.DeletedAt != nil || role.DeletedAt != nil {
			continue
		}
		group := cedar.NewEntityUID(typeBinding, cedar.String(b.Name))
		groups = append(groups, group)
		here, ok := c.policies[b.Spec.Tenant]
		if !ok {
			here = cedar.PolicyMap{}
			c.policies[b.Spec.Tenant] = here
			c.tenants = append(c.tenants, b.Spec.Tenant)
		}
		for i, rule := range role.Spec.Rules {
			id := b.Name + "/" + strconv.Itoa(i)
			here[cedar.PolicyID(id)] = permitRule(group, b.Spec.Tenant, rule)
			for j, g := range rule.Grants {
				here[cedar.PolicyID(id+"/"+strconv.Itoa(j))] = permitGrant(group, b.Spec.Tenant, g)
			}
		}
	}
	sort.Strings(c.tenants)
	c.entities.user = cedar.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(groups...)}
	got, _ := p.compiled.LoadOrStore(user, c)
	return got.(*compiled)
}

func permitRule(group cedar.EntityUID, tenant string, r api.RoleRule) *cedar.Policy {
	p := ast.Permit().PrincipalIn(group).ResourceIn(tenantUID(tenant))
	var actions []cedar.EntityUID
	anyVerb := false
	for _, v := range r.Verbs {
		anyVerb = anyVerb || v == api.VerbAny
		actions = append(actions, cedar.NewEntityUID(typeAction, cedar.String(v)))
	}
	if anyVerb {
		p = p.When(ast.Context().Has("kind"))
	} else {
		p = p.ActionInSet(actions...)
	}
	var kinds []ast.Node
	for _, k := range r.Kinds {
		if k == "*" {
			return cedar.NewPolicyFromAST(p)
		}
		if d, ok := api.Lookup(k); ok {
			kinds = append(kinds, ast.String(string(d.Kind)))
		}
	}
	return cedar.NewPolicyFromAST(p.When(ast.Set(kinds...).Contains(ast.Context().Access("kind"))))
}

func permitGrant(group cedar.EntityUID, tenant, grant string) *cedar.Policy {
	what, arg, _ := strings.Cut(grant, ":")
	value := ast.Context().Access("value")
	cond := ast.Context().Access("grant").Equal(ast.String(what))
	switch {
	case what == "hostpath":
		prefix := strings.TrimSuffix(cleanPath(arg), "/")
		under := value.Like(types.NewPattern(types.String(prefix+"/"), types.Wildcard{}))
		cond = cond.And(value.Equal(ast.String(prefix)).Or(under))
	case arg != "*":
		cond = cond.And(value.Equal(ast.String(arg)))
	}
	p := ast.Permit().PrincipalIn(group).ActionEq(cedar.NewEntityUID(typeAction, actionGrant)).
		ResourceIn(tenantUID(tenant)).When(cond)
	return cedar.NewPolicyFromAST(p)
}

// decide asks Cedar, or remembers. what is a kind, or with the verb "grant" a grant.
func (p *policySet) decide(q question) bool {
	if v, ok := p.cache.Load(q); ok {
		return v.(bool)
	}
	yes := p.ask(q)
	if p.cached.Add(1) > maxCached { // somebody asks about very many names: begin anew
		p.cache.Clear()
		p.cached.Store(1)
	}
	p.cache.Store(q, yes)
	return yes
}

func (p *policySet) ask(q question) bool {
	c := p.of(q.user)
	ctx := cedar.RecordMap{"kind": cedar.String(q.what)}
	if q.verb == actionGrant {
		what, value, _ := strings.Cut(q.what, ":")
		ctx = cedar.RecordMap{"grant": cedar.String(what), "value": cedar.String(value)}
	}
	d, _ := cedar.Authorize(slice{c, q.tenant}, c.entities, cedar.Request{
		Principal: c.entities.user.UID,
		Action:    cedar.NewEntityUID(typeAction, cedar.String(q.verb)),
		Resource:  tenantUID(q.tenant),
		Context:   cedar.NewRecord(ctx),
	})
	return d == cedar.Allow
}
