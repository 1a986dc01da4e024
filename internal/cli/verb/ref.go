package verb

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Ref names one object: KIND/NAME, KIND/TENANT/NAME.
func (c *Call) Ref(ctx context.Context, s string) (api.Ref, error) {
	d, tenant, name, ok := parse.Ref(s)
	if !ok {
		kind, _, has := strings.Cut(s, "/")
		if has {
			return api.Ref{}, parse.UnknownKind(kind)
		}
		return api.Ref{}, errs.New(errs.Invalid, "%q does not name an object", s).WithHint("write KIND/NAME, such as instance/%s", s)
	}
	return c.refOf(ctx, d, tenant, name)
}

// Instance names an instance: NAME, TENANT/NAME, instance/NAME or instance/TENANT/NAME.
func (c *Call) Instance(ctx context.Context, s string) (api.Ref, error) {
	d, _ := api.Lookup(string(api.KindInstance))
	if k, t, n, ok := parse.Ref(s); ok && k == d {
		return c.refOf(ctx, d, t, n)
	}
	tenant, name := "", s
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		tenant, name = s[:i], s[i+1:]
	}
	return c.refOf(ctx, d, tenant, name)
}

// refOf fills in the tenant.
func (c *Call) refOf(ctx context.Context, d *api.Definition, tenant, name string) (api.Ref, error) {
	r := api.Ref{Kind: d.Kind, Tenant: tenant, Name: name}
	valid := api.ValidName(name) || d.Kind == api.KindTenant && api.ValidTenantPath(name)
	if !valid || tenant != "" && !api.ValidTenantPath(tenant) {
		return r, errs.New(errs.Invalid, "%q is not the name of %s", strings.TrimPrefix(tenant+"/"+name, "/"), render.Article(d.Singular())).
			WithHint("names are made of a-z, 0-9 and -, such as web-1")
	}
	var err error
	if d.Tenanted && tenant == "" {
		r.Tenant, err = c.Tenant(ctx)
	}
	return r, err
}

// Targets reads "KIND/NAME…", "KIND NAME…" or "KIND[,KIND]" of a command line.
type Targets struct {
	Refs  []api.Ref
	Kinds []*api.Definition
}

// Targets takes arguments apart.
func (c *Call) Targets(ctx context.Context, args []string) (Targets, error) {
	var t Targets
	if len(args) == 0 {
		return t, errs.New(errs.Invalid, "nothing named").WithHint("write KIND or KIND/NAME; known kinds: %s", strings.Join(api.KindNames(), ", "))
	}
	if strings.Contains(args[0], "/") {
		for _, a := range args {
			r, err := c.Ref(ctx, a)
			if err != nil {
				return t, err
			}
			t.Refs = append(t.Refs, r)
		}
		return t, nil
	}
	for _, k := range strings.Split(args[0], ",") {
		d, ok := api.Lookup(k)
		if !ok {
			return t, parse.UnknownKind(k)
		}
		t.Kinds = append(t.Kinds, d)
	}
	if len(args) == 1 {
		return t, nil
	}
	if len(t.Kinds) > 1 {
		return t, errs.New(errs.Invalid, "names need one kind").WithHint("write KIND/NAME for each")
	}
	for _, name := range args[1:] {
		d, tenant := t.Kinds[0], ""
		if i := strings.LastIndexByte(name, '/'); i >= 0 && d.Tenanted {
			tenant, name = name[:i], name[i+1:]
		}
		r, err := c.refOf(ctx, d, tenant, name)
		if err != nil {
			return t, err
		}
		t.Refs = append(t.Refs, r)
	}
	t.Kinds = nil
	return t, nil
}

// Selection is which objects of a kind are meant.
type Selection struct {
	Labels, Fields string
	All            bool // every tenant
}

// Selector makes the selection of a kind; without a tenant in reach a read takes all.
func (c *Call) Selector(d *api.Definition, s Selection) (api.Selector, error) {
	sel := api.Selector{Kind: d.Kind}
	var err error
	if d.Tenanted && !s.All {
		if sel.Tenant, err = c.ChosenTenant(); err != nil {
			return sel, err
		}
	}
	if sel.Labels, err = api.ParseLabels(s.Labels); err != nil {
		return sel, err
	}
	if s.Fields != "" {
		sel.Fields, err = api.ParseFields(d, s.Fields)
	}
	return sel, err
}

// Get reads an object and, when it is not there, says which was probably meant.
func (c *Call) Get(ctx context.Context, r api.Ref) (api.Object, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	o, err := cl.Get(ctx, r)
	if errs.KindOf(err) == errs.NotFound && errs.HintOf(err) == "" {
		return nil, c.NotFound(ctx, cl, r)
	}
	return o, err
}

// NotFound says which object was probably meant.
func (c *Call) NotFound(ctx context.Context, cl conn.Client, r api.Ref) error {
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

// Instances reads the named instances, or those a label selector chooses.
func (c *Call) Instances(ctx context.Context, names []string, labels string) ([]*api.Instance, error) {
	if labels != "" {
		if len(names) > 0 {
			return nil, errs.New(errs.Invalid, "names and -l exclude each other")
		}
		d, _ := api.Lookup(string(api.KindInstance))
		sel, err := c.Selector(d, Selection{Labels: labels})
		if err != nil {
			return nil, err
		}
		return List[*api.Instance](ctx, c, sel)
	}
	var out []*api.Instance
	for _, n := range names {
		r, err := c.Instance(ctx, n)
		if err != nil {
			return nil, err
		}
		o, err := c.Get(ctx, r)
		if err != nil {
			return nil, err
		}
		out = append(out, o.(*api.Instance))
	}
	return out, nil
}

// List reads the objects of a kind that are selected.
func List[T api.Object](ctx context.Context, c *Call, sel api.Selector) ([]T, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	list, _, err := store.List[T](ctx, cl, sel)
	return list, err
}

// Images lists what the chosen tenant may run: its own images first, then those that
// every tenant shares.
func (c *Call) Images(ctx context.Context) ([]*api.Image, error) {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return nil, err
	}
	own, err := List[*api.Image](ctx, c, api.Selector{Kind: api.KindImage, Tenant: tenant})
	if err != nil {
		return nil, err
	}
	shared, err := List[*api.Image](ctx, c, api.Selector{Kind: api.KindImage, Tenant: api.SharedTenant})
	return append(own, shared...), err
}

// Docs reads the objects of files; those without a tenant get the one that is meant.
func (c *Call) Docs(ctx context.Context, files []string, recursive bool) ([]parse.Doc, error) {
	return parse.Docs(c.In, func() (string, error) { return c.Tenant(ctx) }, files, recursive)
}

// Flags adds those that select.
func (s *Selection) Flags(fs *pflag.FlagSet) {
	fs.StringVarP(&s.Labels, "selector", "l", "", "only with these labels: key=value,key!=value,key,!key")
	fs.StringVar(&s.Fields, "field-selector", "", "only with these fields: status.state=running")
	fs.BoolVarP(&s.All, "all-tenants", "A", false, "of every tenant")
}
