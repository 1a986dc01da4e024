// Package object holds the verbs that read and write objects of any kind: get, apply,
// edit, delete, wait.
//
// It starts goroutines only for the length of one verb and waits for them. It must
// never treat a kind in a way its definition does not say, except where the kind runs.
package object

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/explain"
	"atoll/internal/store"
)

// GetOptions are the flags of get.
type GetOptions struct {
	render.Output
	verb.Selection
	watch bool
	sort  string
}

// Get shows objects.
func Get() verb.Def {
	o := &GetOptions{}
	return verb.Def{
		Use: "get KIND[,KIND…] [NAME…] | KIND/NAME…", Group: verb.GroupObject, Aliases: []string{"ls"}, Min: 1, Max: -1,
		Short: "Show objects",
		Long: `Get shows objects of a kind, or those named. Without a chosen tenant it shows those
of every tenant you may see. -o wide joins what instances use now.`,
		Example: `  atoll get instances -o wide
  atoll get instance/web -o yaml
  atoll get instances,images -A
  atoll get instances -l app=db --field-selector status.state=running -w`,
		Flags: o.flags, Run: o.run, Complete: verb.CompleteObjects,
	}
}

func (o *GetOptions) flags(fs *pflag.FlagSet) {
	o.Output.Flags(fs)
	o.Selection.Flags(fs)
	fs.BoolVarP(&o.watch, "watch", "w", false, "go on with what changes")
	fs.StringVar(&o.sort, "sort-by", "", "column to sort by, such as age or cpu; a leading - turns it around")
}

func (o *GetOptions) run(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	t, err := c.Targets(ctx, c.Args)
	if err != nil {
		return err
	}
	if len(t.Refs) > 0 && (o.Labels != "" || o.Fields != "") {
		return errs.New(errs.Invalid, "names and selectors exclude each other")
	}
	if o.watch {
		return o.runWatch(ctx, c, t)
	}
	objs, err := o.read(ctx, c, t)
	if err != nil {
		return err
	}
	if len(objs) == 0 && o.Tabular() {
		c.Note("%s", o.nothing(c, t))
		return nil
	}
	if err := o.Print(ctx, c, objs, len(t.Refs) == 1); err != nil {
		return err
	}
	o.twoHosts(ctx, c, t, objs)
	return nil
}

// twoHosts says what a pool of two hosts can bear, below a list of its nodes or members.
// Who may not see both is told nothing.
func (o *GetOptions) twoHosts(ctx context.Context, c *verb.Call, t verb.Targets, objs []api.Object) {
	if !o.Tabular() || len(t.Kinds) != 1 || t.Kinds[0].Kind != api.KindNode && t.Kinds[0].Kind != api.KindMember || len(objs) > 2 {
		return
	}
	cl, err := c.Server()
	if err != nil {
		return
	}
	nodes, _, err := store.List[*api.Node](ctx, cl, api.Selector{Kind: api.KindNode})
	if err != nil || len(nodes) != 2 {
		return
	}
	if members, _, err := store.List[*api.Member](ctx, cl, api.Selector{Kind: api.KindMember}); err == nil {
		if text := explain.TwoHosts(nodes, members); text != "" {
			c.Note("%s", text)
		}
	}
}

func (o *GetOptions) read(ctx context.Context, c *verb.Call, t verb.Targets) ([]api.Object, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	var objs []api.Object
	for _, r := range t.Refs {
		obj, err := c.Get(ctx, r)
		if err != nil {
			return nil, err
		}
		objs = append(objs, obj)
	}
	for _, d := range t.Kinds {
		sel, err := c.Selector(d, o.Selection)
		if err != nil {
			return nil, err
		}
		list, _, err := cl.List(ctx, sel)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", d.Plural, err)
		}
		if d.Kind == api.KindImage && sel.Tenant != "" && sel.Tenant != api.SharedTenant {
			sel.Tenant, sel.Nested = api.SharedTenant, false
			shared, _, err := cl.List(ctx, sel) // what the tenant may run, too
			if err != nil {
				return nil, fmt.Errorf("list shared %s: %w", d.Plural, err)
			}
			list = append(list, shared...)
		}
		if d.Kind == api.KindEvent {
			SortEvents(list)
		}
		objs = append(objs, list...)
	}
	return objs, nil
}

func (o *GetOptions) nothing(c *verb.Call, t verb.Targets) string {
	var names []string
	for _, d := range t.Kinds {
		names = append(names, d.Plural)
	}
	where := ""
	if tenant, err := c.ChosenTenant(); err == nil && tenant != "" && !o.All {
		where = fmt.Sprintf(" in tenant %s (-A shows every tenant's)", tenant)
	}
	return "no " + strings.Join(names, ", no ") + where
}

// Print writes objects in the chosen form; single: one was asked for by name.
func (o *GetOptions) Print(ctx context.Context, c *verb.Call, objs []api.Object, single bool) error {
	if !o.Tabular() {
		if o.sort != "" {
			return errs.New(errs.Invalid, "--sort-by sorts tables only")
		}
		return o.Output.Objects(c.Out, c.Clock.Now(), objs, single)
	}
	for i := 0; i < len(objs); {
		d, _ := api.Lookup(string(objs[i].ObjectKind()))
		j := i
		for j < len(objs) && objs[j].ObjectKind() == d.Kind {
			j++
		}
		if i > 0 {
			c.Say("")
		}
		v := render.NewView(d, o.Wide(), o.All || render.Mixed(objs[i:j]), o.usage(ctx, c, d))
		for _, obj := range objs[i:j] {
			v.Add(obj, c.Clock.Now())
		}
		if err := v.Table.Sort(o.sort); err != nil {
			return err
		}
		o.Output.Table(c.Out, &v.Table)
		i = j
	}
	return nil
}

// usage is what instances use, for wide tables; empty when it cannot be learnt.
func (o *GetOptions) usage(ctx context.Context, c *verb.Call, d *api.Definition) map[api.Ref]api.InstanceUsage {
	if d.Kind != api.KindInstance || !o.Wide() {
		return nil
	}
	out := map[api.Ref]api.InstanceUsage{}
	cl, err := c.Server()
	if err != nil {
		return out
	}
	rep, err := cl.Usage(ctx, "")
	if err != nil {
		c.Note("what is used cannot be told now: %v", err)
	}
	for _, u := range rep.Instances {
		out[u.Ref] = u
	}
	return out
}

func (o *GetOptions) runWatch(ctx context.Context, c *verb.Call, t verb.Targets) error {
	if len(t.Kinds)+len(t.Refs) != 1 {
		return errs.New(errs.Invalid, "--watch takes one kind or one object")
	}
	var sel api.Selector
	var err error
	if len(t.Refs) == 1 {
		sel = verb.Exactly(t.Refs[0])
	} else if sel, err = c.Selector(t.Kinds[0], o.Selection); err != nil {
		return err
	}
	d, _ := api.Lookup(string(sel.Kind))
	cl, err := c.Server()
	if err != nil {
		return err
	}
	for {
		objs, rev, err := cl.List(ctx, sel)
		if err != nil {
			return err
		}
		v := render.NewView(d, o.Wide(), sel.Tenant == "", nil)
		for _, obj := range objs {
			if err := o.Event(c, v, store.Event{Object: obj}); err != nil {
				return err
			}
		}
		if o.Tabular() {
			o.Output.Table(c.Out, &v.Table)
		}
		err = cl.Watch(ctx, sel, rev, func(ev store.Event) error {
			if err := o.Event(c, v, ev); err != nil || !o.Tabular() {
				return err
			}
			_, err := fmt.Fprint(c.Out, v.Text(false))
			return err
		})
		if errs.KindOf(err) != errs.Compacted {
			return err
		}
	}
}

// Event adds a row, or writes the object in another form.
func (o *GetOptions) Event(c *verb.Call, v *render.View, ev store.Event) error {
	switch {
	case o.Format == "name" && ev.Deleted:
		c.Say("%s deleted", api.RefOf(ev.Object))
	case o.Format == "json": // a line for each, for programs that read along
		b, err := api.Encode(ev.Object)
		if err != nil {
			return err
		}
		c.Say("%s", b)
	case !o.Tabular():
		if o.Format == "yaml" {
			c.Say("---")
		}
		return o.Output.Objects(c.Out, c.Clock.Now(), []api.Object{ev.Object}, true)
	default:
		v.Add(ev.Object, c.Clock.Now())
		if last := v.Rows[len(v.Rows)-1]; ev.Deleted {
			for i, h := range v.Head {
				if h == "STATE" || h == "AGE" {
					last[i] = "deleted"
				}
			}
		}
	}
	return nil
}

// SortEvents puts the oldest first.
func SortEvents(objs []api.Object) {
	slices.SortStableFunc(objs, func(a, b api.Object) int {
		return a.(*api.Event).Spec.Last.Compare(b.(*api.Event).Spec.Last)
	})
}

// ListKind is 'get' of one kind.
func ListKind(ctx context.Context, c *verb.Call, k api.Kind, o render.Output) error {
	c.Args = []string{string(k)}
	g := &GetOptions{Output: o}
	return g.run(ctx, c)
}
