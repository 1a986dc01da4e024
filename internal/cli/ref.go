package cli

import (
	"context"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// ref names one object: KIND/NAME, KIND/TENANT/NAME.
func (c *call) ref(ctx context.Context, s string) (api.Ref, error) {
	d, tenant, name, ok := splitRef(s)
	if !ok {
		kind, _, has := strings.Cut(s, "/")
		if has {
			return api.Ref{}, unknownKind(kind)
		}
		return api.Ref{}, errs.New(errs.Invalid, "%q does not name an object", s).WithHint("write KIND/NAME, such as instance/%s", s)
	}
	return c.refOf(ctx, d, tenant, name)
}

// instance names an instance: NAME, TENANT/NAME, instance/NAME or instance/TENANT/NAME.
func (c *call) instance(ctx context.Context, s string) (api.Ref, error) {
	d, _ := api.Lookup(string(api.KindInstance))
	if k, t, n, ok := splitRef(s); ok && k == d {
		return c.refOf(ctx, d, t, n)
	}
	tenant, name := "", s
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		tenant, name = s[:i], s[i+1:]
	}
	return c.refOf(ctx, d, tenant, name)
}

// refOf fills in the tenant.
func (c *call) refOf(ctx context.Context, d *api.Definition, tenant, name string) (api.Ref, error) {
	r := api.Ref{Kind: d.Kind, Tenant: tenant, Name: name}
	valid := api.ValidName(name) || d.Kind == api.KindTenant && api.ValidTenantPath(name)
	if !valid || tenant != "" && !api.ValidTenantPath(tenant) {
		return r, errs.New(errs.Invalid, "%q is not the name of %s", strings.TrimPrefix(tenant+"/"+name, "/"), article(d.Singular())).
			WithHint("names are made of a-z, 0-9 and -, such as web-1")
	}
	var err error
	if d.Tenanted && tenant == "" {
		r.Tenant, err = c.tenant(ctx)
	}
	return r, err
}

// targets reads "KIND/NAME…", "KIND NAME…" or "KIND[,KIND]" of a command line.
type targets struct {
	refs  []api.Ref
	kinds []*api.Definition
}

func (c *call) targets(ctx context.Context, args []string) (targets, error) {
	var t targets
	if len(args) == 0 {
		return t, errs.New(errs.Invalid, "nothing named").WithHint("write KIND or KIND/NAME; known kinds: %s", strings.Join(api.KindNames(), ", "))
	}
	if strings.Contains(args[0], "/") {
		for _, a := range args {
			r, err := c.ref(ctx, a)
			if err != nil {
				return t, err
			}
			t.refs = append(t.refs, r)
		}
		return t, nil
	}
	for _, k := range strings.Split(args[0], ",") {
		d, ok := api.Lookup(k)
		if !ok {
			return t, unknownKind(k)
		}
		t.kinds = append(t.kinds, d)
	}
	if len(args) == 1 {
		return t, nil
	}
	if len(t.kinds) > 1 {
		return t, errs.New(errs.Invalid, "names need one kind").WithHint("write KIND/NAME for each")
	}
	for _, name := range args[1:] {
		d, tenant := t.kinds[0], ""
		if i := strings.LastIndexByte(name, '/'); i >= 0 && d.Tenanted {
			tenant, name = name[:i], name[i+1:]
		}
		r, err := c.refOf(ctx, d, tenant, name)
		if err != nil {
			return t, err
		}
		t.refs = append(t.refs, r)
	}
	t.kinds = nil
	return t, nil
}

// selection is which objects of a kind are meant.
type selection struct {
	labels, fields string
	all            bool // every tenant
}

// selector makes the selection of a kind; without a tenant in reach a read takes all.
func (c *call) selector(d *api.Definition, s selection) (api.Selector, error) {
	sel := api.Selector{Kind: d.Kind}
	var err error
	if d.Tenanted && !s.all {
		if sel.Tenant, err = c.chosenTenant(); err != nil {
			return sel, err
		}
	}
	if sel.Labels, err = api.ParseLabels(s.labels); err != nil {
		return sel, err
	}
	if s.fields != "" {
		sel.Fields, err = api.ParseFields(d, s.fields)
	}
	return sel, err
}

// get reads an object and, when it is not there, says which was probably meant.
func (c *call) get(ctx context.Context, r api.Ref) (api.Object, error) {
	cl, err := c.server()
	if err != nil {
		return nil, err
	}
	o, err := cl.Get(ctx, r)
	if errs.KindOf(err) == errs.NotFound && errs.HintOf(err) == "" {
		return nil, c.notFound(ctx, cl, r)
	}
	return o, err
}

func (c *call) notFound(ctx context.Context, cl Client, r api.Ref) error {
	e := errs.New(errs.NotFound, "%s is not there", r)
	d, _ := api.Lookup(string(r.Kind))
	objs, _, err := cl.List(ctx, api.Selector{Kind: r.Kind})
	if err != nil {
		return e.WithHint("atoll get %s lists what is", d.Plural)
	}
	var here []string
	for _, o := range objs {
		m := o.Metadata()
		if m.Tenant == r.Tenant {
			here = append(here, m.Name)
		} else if m.Name == r.Name {
			return e.WithHint("tenant %s has one of that name: %s", m.Tenant, api.RefOf(o))
		}
	}
	if near := api.Nearest(r.Name, here); near != "" {
		return e.WithHint("did you mean %s?", near)
	}
	if len(here) == 0 {
		return e.WithHint("there are no %s%s", d.Plural, inTenant(r.Tenant))
	}
	slices.Sort(here)
	return e.WithHint("there are: %s", strings.Join(here[:min(len(here), 8)], ", "))
}

func inTenant(t string) string {
	if t == "" {
		return ""
	}
	return " in tenant " + t
}

// instances reads the named instances, or those a label selector chooses.
func (c *call) instances(ctx context.Context, names []string, labels string) ([]*api.Instance, error) {
	cl, err := c.server()
	if err != nil {
		return nil, err
	}
	if labels != "" {
		if len(names) > 0 {
			return nil, errs.New(errs.Invalid, "names and -l exclude each other")
		}
		d, _ := api.Lookup(string(api.KindInstance))
		sel, err := c.selector(d, selection{labels: labels})
		if err != nil {
			return nil, err
		}
		list, _, err := store.List[*api.Instance](ctx, cl, sel)
		return list, err
	}
	var out []*api.Instance
	for _, n := range names {
		r, err := c.instance(ctx, n)
		if err != nil {
			return nil, err
		}
		o, err := c.get(ctx, r)
		if err != nil {
			return nil, err
		}
		out = append(out, o.(*api.Instance))
	}
	return out, nil
}

// docs reads the objects of files; those without a tenant get the one that is meant.
func (c *call) docs(ctx context.Context, files []string, recursive bool) ([]doc, error) {
	return readDocs(c.In, func() (string, error) { return c.tenant(ctx) }, files, recursive)
}
