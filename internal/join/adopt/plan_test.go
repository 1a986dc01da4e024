package adopt_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/join/adopt"
)

func meta(k api.Kind, tenant, name string) api.Head {
	return api.Head{K: k, Meta: api.Meta{Tenant: tenant, Name: name, UID: fmt.Sprintf("%032x", len(tenant)*1000+len(name)), Revision: 7, Generation: 1}}
}

func tenant(name string, uid uint32) *api.Tenant {
	t := &api.Tenant{Head: meta(api.KindTenant, "", name)}
	t.Status.UIDBase, t.Status.UIDCount = uid, 65536
	return t
}

func instance(tenant, name string) *api.Instance {
	in := &api.Instance{Head: meta(api.KindInstance, tenant, name), Spec: api.InstanceSpec{Image: "busybox"}}
	sum := sha256.Sum256([]byte(tenant + "/" + name))
	in.UID = hex.EncodeToString(sum[:16])
	in.Status.Node = "old"
	return in
}

func assignment(in *api.Instance) *api.Assignment {
	return &api.Assignment{Head: meta(api.KindAssignment, in.Tenant, in.Name), Spec: api.AssignmentSpec{InstanceUID: in.UID, Node: "old", Generation: 3, Address: "10.88.0.2"}}
}

const base = 1 << 21

// before is a pool of two tenants; the second is nested in the first.
func before() adopt.Old {
	web := instance("shop", "web")
	web.Owner = &api.Ref{Kind: api.KindDeployment, Tenant: "shop", Name: "web"}
	web.Spec.Placement = &api.Placement{Node: "old"}
	ev := &api.Event{Head: meta(api.KindEvent, "shop", "web-1"), Spec: api.EventSpec{About: api.RefOf(web), Type: "normal", Reason: "Started", Last: time.Unix(5, 0)}}
	return adopt.Old{Node: "old", As: "new", Subnet: "10.88.0.0/16", Objects: []api.Object{
		&api.Node{Head: meta(api.KindNode, "", "old")}, tenant("shop", base), tenant("shop/lab", base+65536),
		web, assignment(web), instance("shop/lab", "try"), ev,
	}}
}

func view() adopt.View {
	return adopt.View{Tenants: map[string]*api.Tenant{"acme": tenant("acme", 1<<20)}, Ledgers: map[string]*api.Ledger{}, Classes: map[string]*api.PriorityClass{}, Fixed: map[string]string{}, Subnet: "10.88.0.0/16"}
}

func find[T api.Object](t *testing.T, p adopt.Plan, name string) T {
	t.Helper()
	for _, o := range p.Objects {
		if x, ok := o.(T); ok && (o.Metadata().Tenant+"/"+o.Metadata().Name == name || o.Metadata().Name == name) {
			return x
		}
	}
	t.Fatalf("%s is not in the plan: %+v", name, p.Names)
	panic("unreachable")
}

func TestNames(t *testing.T) {
	old := before()
	p := adopt.Make("acme", old, view())
	if len(p.Clashes) > 0 {
		t.Fatal(p.Clashes)
	}
	if ten := find[*api.Tenant](t, p, "acme/shop/lab"); ten.Status.UIDBase != base+65536 || ten.Revision != 0 {
		t.Errorf("%+v", ten)
	}
	web := find[*api.Instance](t, p, "acme/shop/web")
	if was := old.Objects[3].(*api.Instance); web.UID != was.UID || was.Tenant != "shop" || was.Owner.Tenant != "shop" {
		t.Errorf("another instance, or the old one was changed: %+v %+v", web, was)
	}
	if web.Status.Node != "new" || web.Spec.Placement.Node != "new" || *web.Owner != (api.Ref{Kind: api.KindDeployment, Tenant: "acme/shop", Name: "web"}) {
		t.Errorf("%+v", web)
	}
	if as := find[*api.Assignment](t, p, "acme/shop/web"); as.Spec.Node != "new" || as.Spec.Address != "10.88.0.2" || as.Spec.Generation != 3 {
		t.Errorf("%+v", as)
	}
	if ev := find[*api.Event](t, p, "acme/shop/web-1"); ev.Spec.About.Tenant != "acme/shop" {
		t.Errorf("%+v", ev)
	}
	if k := p.Objects[0].ObjectKind(); k != api.KindTenant || p.Objects[0].Metadata().Name != "acme/shop" {
		t.Error("tenants must come first, parents before those in them")
	}
}

// Everything that is in the way is told at once.
func TestClashes(t *testing.T) {
	set := func(fn func(o *adopt.Old, v *adopt.View)) func(*adopt.Old, *adopt.View) { return fn }
	at := func(o *adopt.Old, i int) api.Object { return o.Objects[i] }
	for name, c := range map[string]struct {
		change func(o *adopt.Old, v *adopt.View)
		want   []string // in the fields' text
	}{
		"no tenant":        {set(func(_ *adopt.Old, v *adopt.View) { delete(v.Tenants, "acme") }), []string{"atoll tenant create acme"}},
		"suspended":        {set(func(_ *adopt.Old, v *adopt.View) { v.Tenants["acme"].Spec.Suspended = true }), []string{"suspended=false"}},
		"taken":            {set(func(_ *adopt.Old, v *adopt.View) { v.Tenants["acme/shop"] = tenant("acme/shop", 1<<24) }), []string{`tenant shop "acme/shop"`}},
		"user IDs overlap": {set(func(_ *adopt.Old, v *adopt.View) { v.Tenants["x"] = tenant("x", base+1) }), []string{"tenant shop: user IDs", "tenant shop/lab: user IDs"}},
		"no user IDs":      {set(func(o *adopt.Old, _ *adopt.View) { at(o, 1).(*api.Tenant).Status = api.TenantStatus{} }), []string{"tenant shop: user IDs"}},
		"under removal": {set(func(o *adopt.Old, _ *adopt.View) { now := time.Now(); at(o, 1).Metadata().DeletedAt = &now }),
			[]string{"must not be under removal"}},
		"old suspended":  {set(func(o *adopt.Old, _ *adopt.View) { at(o, 1).(*api.Tenant).Spec.Suspended = true }), []string{"atoll tenant set shop"}},
		"another subnet": {set(func(_ *adopt.Old, v *adopt.View) { v.Subnet = "10.90.0.0/16" }), []string{"subnet", "10.90.0.0/16"}},
		"name of host":   {set(func(_ *adopt.Old, v *adopt.View) { v.Taken = "there is one" }), []string{"there is one"}},
		"several hosts": {set(func(o *adopt.Old, _ *adopt.View) {
			o.Objects = append(o.Objects, &api.Node{Head: meta(api.KindNode, "", "second")})
		}), []string{"atoll node remove second"}},
		"several servers": {set(func(o *adopt.Old, _ *adopt.View) {
			o.Objects = append(o.Objects, &api.NodeIdentity{Head: meta(api.KindNodeIdentity, "", "wit")})
		}), []string{"atoll node remove wit"}},
		"elsewhere": {set(func(o *adopt.Old, _ *adopt.View) { at(o, 4).(*api.Assignment).Spec.Node = "second" }), []string{"must be on the host that joins"}},
		"guarantee": {set(func(o *adopt.Old, v *adopt.View) {
			at(o, 1).(*api.Tenant).Spec.Guarantee = api.Resources{api.CPU: 2000, api.Memory: 1 << 30}
			v.Tenants["acme"].Spec.Guarantee = api.Resources{api.CPU: 2500}
			v.Ledgers["acme"] = &api.Ledger{Spec: api.LedgerSpec{Promised: api.Resources{api.CPU: 1000}}}
		}), []string{"--guarantee cpu=3", "--guarantee memory=1Gi"}},
		"limit": {set(func(o *adopt.Old, v *adopt.View) {
			o.Objects = append(o.Objects, &api.Ledger{Head: meta(api.KindLedger, "shop", "quota"), Spec: api.LedgerSpec{Requested: api.Resources{api.Instances: 2, api.Memory: 100}}})
			v.Tenants["acme"].Spec.Limit = api.Resources{api.Instances: 3, api.Memory: 150}
			v.Ledgers["acme"] = &api.Ledger{Spec: api.LedgerSpec{Requested: api.Resources{api.Instances: 2, api.Memory: 60}}}
		}), []string{"limit.instances", "limit.memory"}},
		"fixed address": {set(func(o *adopt.Old, v *adopt.View) {
			at(o, 3).(*api.Instance).Spec.Networks = []api.Attach{{Name: "default", Address: "10.88.0.9"}}
			v.Fixed["10.88.0.9"] = "east/db"
		}), []string{"east/db"}},
		"network of the tenant": {set(func(o *adopt.Old, _ *adopt.View) {
			at(o, 3).(*api.Instance).Spec.Networks = []api.Attach{{Name: "main"}}
		}), []string{"spec.networks", "must not be a network of the tenant"}},
		"class": {set(func(o *adopt.Old, _ *adopt.View) { at(o, 3).(*api.Instance).Spec.Priority = "gold" }), []string{"priority class", "gold"}},
		"rights": {set(func(o *adopt.Old, v *adopt.View) {
			s := &at(o, 3).(*api.Instance).Spec
			s.Priority = "gold"
			v.Classes["gold"] = &api.PriorityClass{Spec: api.PriorityClassSpec{Value: 5, Preempt: true}}
			s.Volumes = []api.Mount{{Path: "/a", HostPath: "/etc"}, {Path: "/b", HostPath: "/srv/data"}}
			v.Grants = []string{"hostpath:/srv"}
		}), []string{"priority:gold", "hostpath:/etc"}},
		"rights of a template": {set(func(o *adopt.Old, _ *adopt.View) {
			d := &api.Deployment{Head: meta(api.KindDeployment, "shop", "net")}
			d.Spec.Template.Spec = api.InstanceSpec{Image: "busybox", Networks: []api.Attach{{Name: api.NetworkHost}}}
			o.Objects = append(o.Objects, d)
		}), []string{"--grant network:host"}},
		"known as another": {set(func(o *adopt.Old, v *adopt.View) {
			v.UIDs = map[string]string{adopt.Known(at(o, 3).Metadata().UID): "east/db"}
		}), []string{"east/db"}},
		"two are one":   {set(func(o *adopt.Old, _ *adopt.View) { at(o, 5).Metadata().UID = at(o, 3).Metadata().UID }), []string{"which comes, too"}},
		"made up":       {set(func(o *adopt.Old, _ *adopt.View) { at(o, 5).Metadata().UID = "../x" }), []string{"32 hexadecimal"}},
		"foreign owner": {set(func(o *adopt.Old, _ *adopt.View) { at(o, 3).Metadata().Owner.Tenant = "victim" }), []string{"deployment/victim/web"}},
		"unknown kind":  {set(func(o *adopt.Old, _ *adopt.View) { o.Unread = []errs.Field{{Field: "gizmo shop/x", Rule: "unknown"}} }), []string{"gizmo shop/x"}},
		"no tenant of its own": {set(func(o *adopt.Old, _ *adopt.View) { o.Objects = append(o.Objects, instance("lost", "x")) }),
			[]string{"instance lost/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			o, v := before(), view()
			c.change(&o, &v)
			got := fmt.Sprint(adopt.Make("acme", o, v).Clashes)
			for _, w := range c.want {
				if !strings.Contains(got, w) {
					t.Errorf("%s does not tell %q", got, w)
				}
			}
			if name == "rights" && strings.Contains(got, "hostpath:/srv") {
				t.Errorf("what is allowed is no clash: %s", got)
			}
		})
	}
}

func TestDepthAndOwnNames(t *testing.T) {
	o, v := before(), view()
	v.Tenants["a/b/c"] = tenant("a/b/c", 1<<22)
	v.Tenants["a/b"], v.Tenants["a"] = tenant("a/b", 1<<23), tenant("a", 1<<24)
	if got := fmt.Sprint(adopt.Make("a/b/c", o, v).Clashes); !strings.Contains(got, "four names deep") || !strings.Contains(got, "shop/lab") {
		t.Error(got)
	}
	// shop/shop/… and shop/… at once could not be told apart by who is in the middle of renaming.
	v.Tenants["shop"] = tenant("shop", 1<<25)
	o.Objects = append(o.Objects, tenant("shop/shop", base+3*65536))
	if got := fmt.Sprint(adopt.Make("shop", o, v).Clashes); !strings.Contains(got, "another tenant is called") {
		t.Error(got)
	}
}

func TestWhatStays(t *testing.T) {
	o := before()
	shared := &api.Image{Head: meta(api.KindImage, api.SharedTenant, "tool-1"), Spec: api.ImageSpec{Reference: "tool:1", Digest: "sha256:" + strings.Repeat("a", 64), Shared: true}}
	shared.Name = api.ImageName("tool:1")
	idle := api.Clone(shared)
	idle.Spec.Reference = "idle:1"
	idle.Name = api.ImageName("idle:1")
	user := &api.User{Head: meta(api.KindUser, "", "ann")}
	bound := &api.RoleBinding{Head: meta(api.KindRoleBinding, "", "ann-dev"), Spec: api.RoleBindingSpec{Role: "developer", Tenant: "shop"}}
	o.Objects = append(o.Objects, shared, idle, user, bound)
	o.Objects[3].(*api.Instance).Spec.Image = "tool:1"
	p := adopt.Make("acme", o, view())
	if len(p.Clashes) > 0 {
		t.Fatal(p.Clashes)
	}
	img := find[*api.Image](t, p, "acme/shop/"+shared.Name)
	if img.Spec.Shared || img.Spec.Digest != shared.Spec.Digest || img.UID == shared.UID {
		t.Errorf("%+v", img)
	}
	text := fmt.Sprint(p.Left)
	for _, w := range []string{"own image of acme/shop", "no tenant that comes uses it", "ann", "role developer in acme/shop"} {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing: %s", w, text)
		}
	}
}

// Nothing of a tenant is lost or made twice, nothing is called as something else, and
// nothing but names changes.
func TestNothingIsLost(t *testing.T) {
	names := []string{"a", "b", "c"}
	rapid.Check(t, func(r *rapid.T) {
		o := adopt.Old{Node: "old", As: "old", Subnet: "10.88.0.0/16"}
		uid, seen := uint32(base), map[string]bool{}
		for range rapid.IntRange(1, 8).Draw(r, "tenants") {
			path := rapid.SampledFrom(names).Draw(r, "name")
			if up := rapid.SampledFrom(append([]string{""}, names...)).Draw(r, "parent"); up != "" && seen[up] {
				path = up + "/" + path
			}
			if !seen[path] {
				seen[path] = true
				o.Objects = append(o.Objects, tenant(path, uid))
				uid += 65536
			}
		}
		var paths []string
		for p := range seen {
			paths = append(paths, p)
		}
		slices.Sort(paths)
		for i := range rapid.IntRange(0, 12).Draw(r, "objects") {
			in := instance(rapid.SampledFrom(paths).Draw(r, "of"), fmt.Sprint("i", i))
			o.Objects = append(o.Objects, in)
			if rapid.Bool().Draw(r, "placed") {
				o.Objects = append(o.Objects, assignment(in))
			}
		}
		p := adopt.Make("acme", o, view())
		if len(p.Clashes) > 0 {
			r.Fatal(p.Clashes)
		}
		old, now := map[string]bool{}, map[string]bool{}
		for i, n := range p.Names {
			if a, b := string(n.Kind)+n.Old, string(n.Kind)+n.New; old[a] || now[b] {
				r.Fatalf("%+v comes twice", n)
			} else {
				old[a], now[b] = true, true
			}
			if m := p.Objects[i].Metadata(); n.New != strings.TrimPrefix(m.Tenant+"/"+m.Name, "/") || n.New != "acme/"+n.Old || m.Revision != 0 {
				r.Fatalf("%+v %+v", n, m)
			}
		}
		for _, x := range o.Objects {
			m := x.Metadata()
			if !old[string(x.ObjectKind())+strings.TrimPrefix(m.Tenant+"/"+m.Name, "/")] {
				r.Fatalf("%s is lost", api.RefOf(x))
			}
		}
		if len(p.Names) != len(o.Objects) {
			r.Fatalf("%d came of %d", len(p.Names), len(o.Objects))
		}
	})
}
