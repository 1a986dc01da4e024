// Package adopt says what becomes of a pool that comes into another one with its only
// host: what everything is called from then on, what does not come along, and what is in
// the way. It is pure: it reads what it is given and writes nothing.
//
// A tenant of the old pool becomes a tenant inside the one it is adopted into: research
// is acme/research from then on. Nothing else about an object changes that what runs
// depends on: its UID, by which a host knows what runs there, its tenant's range of user
// IDs, to which files belong, its address.
package adopt

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
)

// Old is the pool that comes.
type Old struct {
	Node    string // its host, as it is called there
	As      string // as it is called from then on
	Subnet  string
	Objects []api.Object
	// Unread is what could not be read: kinds and fields that are not known here.
	Unread []errs.Field
}

// View is what there is in the pool it comes into, as far as the plan needs it.
type View struct {
	Tenants map[string]*api.Tenant
	Ledgers map[string]*api.Ledger // of the tenant it comes into and those that one is in
	Classes map[string]*api.PriorityClass
	Fixed   map[string]string // addresses that instances insist on, and which do
	UIDs    map[string]string // the part of an instance's UID by which hosts know it (Known), and whose it is
	Subnet  string
	Grants  []string // dangerous rights that what comes may use
	Taken   string   // why the host cannot have its name; "": it can
}

// Plan is what it comes to.
type Plan struct {
	api.AdoptPlan
	// Objects are to be made, as they are here: in the order of Names.
	Objects []api.Object
}

const (
	// MostObjects is how many can come: they come in one commit, with ledgers and some more.
	MostObjects = 3500
	mostEvents  = 500
)

// Kinds are those that come along with their tenants, in the order they are made in.
func Kinds() []api.Kind {
	return []api.Kind{api.KindTenant, api.KindImage, api.KindNetwork, api.KindSecurityGroup, api.KindInstance, api.KindAssignment, api.KindDeployment, api.KindRevision, api.KindJob, api.KindCronJob, api.KindDisruptionBudget, api.KindEvent}
}

// Known is the part of an instance's UID by which a host knows what runs there.
func Known(uid string) string { return uid[:min(len(uid), 15)] }

// maker is a plan in the making.
type maker struct {
	Plan
	old  Old
	view View
	tops []*api.Tenant          // of the old pool, those in no other one
	own  map[string]*api.Tenant // all of the old pool
	uids map[string]bool
}

// Make makes the plan.
func Make(tenant string, old Old, v View) Plan {
	m := &maker{old: old, view: v, own: map[string]*api.Tenant{}, uids: map[string]bool{}}
	m.Node, m.Tenant, m.Tenants = old.As, tenant, map[string]string{}
	m.Clashes = slices.Clone(old.Unread)
	for _, o := range old.Objects {
		if t, ok := o.(*api.Tenant); ok {
			m.own[t.Name], m.Tenants[t.Name] = t, tenant+"/"+t.Name
			if api.ParentTenant(t.Name) == "" {
				m.tops = append(m.tops, t)
			}
		}
	}
	m.hosts()
	m.into()
	m.tenants()
	m.amounts()
	m.objects()
	m.shared()
	m.leave()
	if n := len(m.Objects); n > MostObjects {
		m.clash("objects", strconv.Itoa(n), fmt.Sprintf("must be at most %d, as they come in one commit: remove what has ended", MostObjects), "atoll delete job/NAME")
	}
	slices.SortFunc(m.Clashes, func(a, b errs.Field) int {
		return cmp.Or(strings.Compare(a.Field, b.Field), strings.Compare(a.Value, b.Value), strings.Compare(a.Rule, b.Rule))
	})
	m.Clashes = slices.Compact(m.Clashes)
	return m.Plan
}

func (m *maker) clash(field, value, rule, example string) {
	m.Clashes = append(m.Clashes, errs.Field{Field: field, Value: value, Rule: rule, Example: example})
}

// hosts: one, of a name that is free, with addresses as they are here.
func (m *maker) hosts() {
	for _, o := range m.old.Objects {
		n := o.Metadata()
		if k := o.ObjectKind(); (k == api.KindNode || k == api.KindNodeIdentity) && n.Name != m.old.Node {
			m.clash("node", n.Name, "must not be in the old pool: it may have one host only, as the others would be left behind. Empty it and take it out there", "atoll drain "+n.Name+", atoll node remove "+n.Name)
		}
	}
	if m.view.Taken != "" {
		m.clash("node", m.old.As, "must be free: "+m.view.Taken, "--node NAME")
	}
	if m.old.Subnet != m.view.Subnet {
		m.clash("subnet", m.old.Subnet, "must be the pool's, "+m.view.Subnet+": what runs keeps its address and its gateway", m.view.Subnet)
	}
}

// into: the tenant must be there, and open.
func (m *maker) into() {
	if m.view.Tenants[m.Tenant] == nil {
		m.clash("tenant", m.Tenant, "must exist in the pool", "atoll tenant create "+m.Tenant)
		return
	}
	for _, path := range api.TenantChain(m.Tenant) {
		switch t := m.view.Tenants[path]; {
		case t == nil:
		case t.DeletedAt != nil:
			m.clash("tenant", path, "must not be under removal: wait until it is gone, and create it again", "atoll tenant create "+path)
		case t.Spec.Suspended:
			m.clash("tenant", path, "must not be suspended: nothing new may be created in it", "atoll tenant set "+path+" --suspended=false")
		}
	}
}

// tenants: their names must be free and not too deep, and their user IDs nobody else's.
func (m *maker) tenants() {
	busy := map[string]bool{}
	for _, o := range m.old.Objects {
		if in, ok := o.(*api.Instance); ok {
			for _, t := range api.TenantChain(in.Tenant) {
				busy[t] = true
			}
		}
	}
	fresh := map[string]bool{}
	for _, n := range m.Tenants {
		fresh[n] = true
	}
	for _, name := range slices.Sorted(maps.Keys(m.own)) {
		t, to := m.own[name], m.Tenants[name]
		at := "tenant " + name
		if !api.ValidTenantPath(to) {
			m.clash(at, to, "must be at most four names deep: adopt into a tenant higher up, or move what is in it there", "--adopt "+strings.Split(m.Tenant, "/")[0])
		}
		if m.view.Tenants[to] != nil {
			m.clash(at, to, "must not exist in the pool: adopt into another tenant, or remove that one if it is empty", "atoll tenant create "+m.Tenant+"2")
		}
		if fresh[name] {
			m.clash(at, name, "must not be what another tenant is called from now on: adopt into another tenant", "atoll tenant create "+m.Tenant+"2")
		}
		if t.DeletedAt != nil {
			m.clash(at, name, "must not be under removal: let the old pool finish it first", "atolld up; atoll get tenants")
		}
		if t.Spec.Suspended && busy[name] {
			m.clash(at, name, "must not be suspended while it has instances: nothing may be created in a suspended tenant. Lift it in the old pool, and suspend it again afterwards", "atoll tenant set "+name+" --suspended=false")
		}
		m.userIDs(at, t)
	}
}

func (m *maker) userIDs(at string, t *api.Tenant) {
	from, n := t.Status.UIDBase, t.Status.UIDCount
	if n == 0 {
		m.clash(at+": user IDs", "", "must have been given by the old pool", "atolld up")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(m.view.Tenants)) {
		s := m.view.Tenants[name].Status
		if s.UIDCount > 0 && uint64(from) < uint64(s.UIDBase)+uint64(s.UIDCount) && uint64(s.UIDBase) < uint64(from)+uint64(n) {
			m.clash(at+": user IDs", fmt.Sprintf("%d-%d", from, uint64(from)+uint64(n)-1),
				fmt.Sprintf("must not overlap those of %s, %d-%d, as files belong to them. Bring it over by hand: atoll backup create, atoll cp, and start it anew", name, s.UIDBase, uint64(s.UIDBase)+uint64(s.UIDCount)-1), "")
		}
	}
}

// amounts: guarantees come out of the tenant's, and what is requested counts there.
func (m *maker) amounts() {
	promised, requested := api.Resources{}, api.Resources{}
	ledgers := map[string]*api.Ledger{}
	for _, o := range m.old.Objects {
		if l, ok := o.(*api.Ledger); ok {
			ledgers[l.Tenant] = l
		}
	}
	for _, t := range m.tops {
		add(promised, t.Spec.Guarantee)
		if l := ledgers[t.Name]; l != nil {
			add(requested, l.Spec.Requested)
		}
	}
	into := m.view.Tenants[m.Tenant]
	if into == nil {
		return
	}
	var given, used api.Resources
	if l := m.view.Ledgers[m.Tenant]; l != nil {
		given = l.Spec.Promised
	}
	for _, r := range api.ResourceNames() {
		if sum := promised[r] + given[r]; promised[r] > 0 && sum > into.Spec.Guarantee[r] {
			m.clash("guarantee."+string(r), api.FormatQuantity(r, promised[r]), fmt.Sprintf("the guarantees of the tenants that come must fit in what %s is guaranteed, %s, of which %s is promised: raise it, or lower theirs in the old pool",
				m.Tenant, api.FormatQuantity(r, into.Spec.Guarantee[r]), api.FormatQuantity(r, given[r])), fmt.Sprintf("atoll tenant set %s --guarantee %s=%s", m.Tenant, r, api.FormatQuantity(r, sum)))
		}
	}
	for _, path := range api.TenantChain(m.Tenant) {
		t := m.view.Tenants[path]
		if t == nil {
			continue
		}
		used = nil
		if l := m.view.Ledgers[path]; l != nil {
			used = l.Spec.Requested
		}
		for _, r := range api.ResourceNames() {
			limit, bounded := t.Spec.Limit[r]
			if sum := requested[r] + used[r]; bounded && requested[r] > 0 && sum > limit {
				m.clash("limit."+string(r), api.FormatQuantity(r, requested[r]), fmt.Sprintf("what comes must fit in the limit of %s, %s, of which %s is used: raise it, or remove something",
					path, api.FormatQuantity(r, limit), api.FormatQuantity(r, used[r])), fmt.Sprintf("atoll tenant set %s --limit %s=%s", path, r, api.FormatQuantity(r, sum)))
			}
		}
	}
}

func add(sum, more api.Resources) {
	for r, v := range more {
		sum[r] += v
	}
}

// objects translates what comes along.
func (m *maker) objects() {
	for _, k := range Kinds() {
		var list []api.Object
		for _, o := range m.old.Objects {
			if o.ObjectKind() == k && !(k == api.KindImage && o.Metadata().Tenant == api.SharedTenant) {
				list = append(list, o)
			}
		}
		slices.SortFunc(list, func(a, b api.Object) int {
			return strings.Compare(api.SortKey(api.RefOf(a)), api.SortKey(api.RefOf(b)))
		})
		if k == api.KindEvent {
			list = m.latest(list)
		}
		for _, o := range list {
			if to := m.translate(o); to != nil {
				m.take(path(o), to)
			}
		}
	}
}

func (m *maker) take(was string, o api.Object) {
	if err := api.Check(o); err != nil {
		m.invalid(was, o, err)
	}
	m.Names = append(m.Names, api.AdoptName{Kind: o.ObjectKind(), Old: was, New: path(o)})
	m.Objects = append(m.Objects, o)
}

func (m *maker) invalid(was string, o api.Object, err error) {
	fields := []errs.Field{{Rule: err.Error()}}
	var e *errs.Error
	if errors.As(err, &e) && len(e.Fields) > 0 {
		fields = e.Fields
	}
	if o.ObjectKind() == api.KindTenant {
		fields = slices.DeleteFunc(fields, func(f errs.Field) bool { return f.Field == "metadata.name" }) // said already
	}
	for _, f := range fields {
		if f.Field == "metadata.tenant" {
			continue // as well
		}
		m.clash(label(o.ObjectKind(), was)+": "+f.Field, f.Value, f.Rule, f.Example)
	}
}

func path(o api.Object) string {
	md := o.Metadata()
	if md.Tenant == "" {
		return md.Name
	}
	return md.Tenant + "/" + md.Name
}

func label(k api.Kind, name string) string { return strings.ToLower(string(k)) + " " + name }

// latest keeps the events that people may still want to read.
func (m *maker) latest(list []api.Object) []api.Object {
	if len(list) <= mostEvents {
		return list
	}
	when := func(o api.Object) int64 {
		if e, ok := o.(*api.Event); ok {
			return e.Spec.Last.UnixNano()
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b api.Object) int { return cmp.Compare(when(b), when(a)) })
	m.left(api.KindEvent, fmt.Sprintf("%d of %d", len(list)-mostEvents, len(list)), "the oldest")
	return list[:mostEvents]
}

func (m *maker) left(k api.Kind, name, why string) {
	m.Left = append(m.Left, api.AdoptLeft{Kind: k, Name: name, Why: why})
}

// translate gives an object as it is from then on; nil with a clash when it cannot be.
func (m *maker) translate(o api.Object) api.Object {
	o = api.Clone(o)
	md, was := o.Metadata(), path(o)
	md.Revision = 0
	if t, ok := o.(*api.Tenant); ok {
		t.Name = m.Tenants[t.Name]
		if t.Spec.Parent != "" {
			t.Spec.Parent = api.ParentTenant(t.Name)
		}
	} else {
		to, ok := m.Tenants[md.Tenant]
		if !ok {
			m.clash(label(o.ObjectKind(), was), md.Tenant, "its tenant must exist in the old pool: start it once, so that it is tidied up", "atolld up")
			return nil
		}
		md.Tenant = to
	}
	m.refs(reflect.ValueOf(o))
	switch o := o.(type) {
	case *api.Instance:
		if o.Status.Node != "" { // no other host is to look at it
			o.Status.Node = m.old.As
		}
		m.fixed(was, o)
		m.identity(was, o)
	case *api.Network:
		o.Status = api.NetworkStatus{} // its number may be another's here
	case *api.Assignment:
		switch o.Spec.Node {
		case "":
		case m.old.Node:
			o.Spec.Node = m.old.As
		default:
			m.clash(label(o.K, was), o.Spec.Node, "must be on the host that joins", m.old.Node)
		}
	case *api.Image:
		if i := slices.Index(o.Status.Nodes, m.old.Node); i >= 0 {
			o.Status.Nodes = []string{m.old.As}
		} else {
			o.Status.Nodes = nil
		}
	}
	return o
}

// identity: a host must not take one instance for another.
func (m *maker) identity(was string, in *api.Instance) {
	at, known := "instance "+was+": metadata.uid", Known(in.UID)
	switch b, err := hex.DecodeString(in.UID); {
	case err != nil || len(b) != 16 || strings.ToLower(in.UID) != in.UID:
		m.clash(at, in.UID[:min(len(in.UID), 40)], "must be as a pool makes it, 32 hexadecimal digits: make the instance anew", "")
	case m.uids[known] || m.view.UIDs[known] != "":
		m.clash(at, in.UID, "must be unlike that of another instance, "+cmp.Or(m.view.UIDs[known], "which comes, too")+": make one of the two anew", "")
	}
	m.uids[known] = true
}

func (m *maker) fixed(was string, in *api.Instance) {
	if in.Spec.OnNetworks() {
		m.clash("instance "+was+": spec.networks", in.Spec.Network(), "must not be a network of the tenant: networks get other numbers, and what is on them cannot go on. Remove the instance and make it anew afterwards", "default")
		return
	}
	for _, n := range in.Spec.Networks {
		if n.Address == "" {
			continue
		}
		if other := m.view.Fixed[n.Address]; other != "" {
			m.clash("instance "+was+": spec.networks.address", n.Address, "must not be that of another instance that insists on it, "+other+": give one of the two another address", "")
		}
	}
}

// refs translates every reference and every node that is named in an object, and looks
// at what the programs in it want to be allowed.
func (m *maker) refs(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			m.refs(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			m.refs(v.Index(i))
		}
	case reflect.Struct:
		switch p := v.Addr().Interface().(type) {
		case *api.Ref:
			if p.Kind == api.KindTenant {
				p.Name = cmp.Or(m.Tenants[p.Name], p.Name)
			}
			if p.Kind == api.KindNode && p.Name == m.old.Node {
				p.Name = m.old.As
			}
			if p.Tenant != "" && p.Tenant != api.SharedTenant && m.Tenants[p.Tenant] == "" {
				m.clash("reference", p.String(), "must be to something in the tenants that come", "")
			}
			p.Tenant = cmp.Or(m.Tenants[p.Tenant], p.Tenant)
			return
		case *api.Placement:
			if p.Node == m.old.Node {
				p.Node = m.old.As
			}
		case *api.SecurityPeer:
			if tenant, name, ok := cutLast(p.Network, "/"); ok {
				p.Network = cmp.Or(m.Tenants[tenant], tenant) + "/" + name
			}
		case *api.Eviction:
			if p.To == m.old.Node {
				p.To = m.old.As
			}
		case *api.InstanceSpec:
			m.allowed(p)
		}
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				m.refs(f)
			}
		}
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// allowed: what is dangerous needs to be allowed by the token, and a class must be there.
func (m *maker) allowed(s *api.InstanceSpec) {
	grants := s.Grants()
	if s.Priority != "" {
		switch c := m.view.Classes[s.Priority]; {
		case c == nil:
			m.clash("priority class", s.Priority, "must exist in the pool", "atoll create priorityclass "+s.Priority)
		case c.Spec.Preempt:
			grants = append(grants, "priority:"+s.Priority)
		}
	}
	for _, g := range grants {
		if !covered(m.view.Grants, g) {
			m.clash("grants", g, "must be allowed by the token, as instances that come use it", "atoll node token --adopt "+m.Tenant+" --grant "+g)
		}
	}
}

// covered reports whether rights as roles grant them have one in them.
func covered(have []string, want string) bool {
	what, arg, _ := strings.Cut(want, ":")
	return slices.ContainsFunc(have, func(h string) bool {
		w, a, _ := strings.Cut(h, ":")
		switch {
		case w != what:
			return false
		case what == "hostpath":
			return a == "/" || arg == strings.TrimSuffix(a, "/") || strings.HasPrefix(arg, strings.TrimSuffix(a, "/")+"/")
		}
		return a == "*" || a == arg
	})
}

// shared: images for everybody are the pool's, so each tenant that uses one gets it as its own.
func (m *maker) shared() {
	uses := map[string]map[string]bool{} // reference -> old tenants
	note := func(tenant string, s *api.InstanceSpec) {
		ref := api.PlainReference(s.Image)
		if uses[ref] == nil {
			uses[ref] = map[string]bool{}
		}
		uses[ref][tenant] = true
	}
	has := map[api.Ref]bool{}
	for _, o := range m.Objects {
		has[api.RefOf(o)] = true
	}
	for _, o := range m.old.Objects {
		switch o := o.(type) {
		case *api.Instance:
			note(o.Tenant, &o.Spec)
		case *api.Deployment:
			note(o.Tenant, &o.Spec.Template.Spec)
		case *api.Job:
			note(o.Tenant, &o.Spec.Template.Spec)
		case *api.CronJob:
			note(o.Tenant, &o.Spec.Job.Spec.Template.Spec)
		}
	}
	for _, o := range m.old.Objects {
		img, ok := o.(*api.Image)
		if !ok || img.Tenant != api.SharedTenant {
			continue
		}
		if img.Spec.Digest == "" {
			m.left(api.KindImage, path(img), "every host brings it along itself")
			continue
		}
		var got []string
		for _, tenant := range slices.Sorted(maps.Keys(uses[api.PlainReference(img.Spec.Reference)])) {
			c, to := api.Clone(img), m.Tenants[tenant]
			c.Tenant, c.Spec.Shared, c.Revision, c.Status.Nodes = to, false, 0, []string{m.old.As}
			sum := sha256.Sum256([]byte(img.UID + "\x00" + to))
			c.UID = hex.EncodeToString(sum[:16])
			if to == "" || has[api.RefOf(c)] {
				continue
			}
			m.take(path(img), c)
			got = append(got, to)
		}
		why := "no tenant that comes uses it: share it in the pool if it is needed"
		if len(got) > 0 {
			why = "images for everybody are the pool's: it is the own image of " + strings.Join(got, ", ") + " from then on"
		}
		m.left(api.KindImage, path(img), why)
	}
}

// leave lists what is the old pool's and not its tenants'.
func (m *maker) leave() {
	builtin := map[string]bool{}
	for _, r := range auth.BuiltinRoles() {
		builtin[r.Name] = true
	}
	for _, o := range m.old.Objects {
		n := o.Metadata().Name
		switch o := o.(type) {
		case *api.User:
			m.left(o.K, n, "who may do what is the pool's to say: atoll user create")
		case *api.Role:
			if !builtin[n] {
				m.left(o.K, n, "what roles allow is the pool's to say")
			}
		case *api.RoleBinding:
			in := "in the whole pool"
			if o.Spec.Tenant != "" {
				in = "in " + cmp.Or(m.Tenants[o.Spec.Tenant], o.Spec.Tenant)
			}
			m.left(o.K, n, "who may do what is the pool's to say; there it was role "+o.Spec.Role+" "+in)
		case *api.Token:
			m.left(o.K, n, "it is good in the old pool only: atoll token create")
		case *api.JoinToken:
			m.left(o.K, n, "it is good in the old pool only: atoll node token")
		case *api.PriorityClass:
			if c := m.view.Classes[n]; c == nil || c.Spec != o.Spec {
				m.left(o.K, n, "ranks are the pool's; what names it gets the pool's value")
			}
		case *api.Node:
			if len(o.Labels) > 0 || !reflect.DeepEqual(o.Spec, api.NodeSpec{}) {
				m.left(o.K, n, "labels, zone, taints and reserve are not taken over: atoll node token --label --zone, or atoll edit node/"+m.old.As)
			}
		case *api.Move, *api.Drain, *api.Upgrade:
			m.left(o.ObjectKind(), path(o), "it ends with the old pool")
		}
	}
	slices.SortStableFunc(m.Left, func(a, b api.AdoptLeft) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
}
