package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

type getOptions struct {
	output
	selection
	watch bool
	sort  string
}

func getVerb() Verb {
	o := &getOptions{}
	return Verb{
		Use: "get KIND[,KIND…] [NAME…] | KIND/NAME…", Group: groupObject, Aliases: []string{"ls"}, Min: 1, Max: -1,
		Short: "Show objects",
		Long: `Get shows objects of a kind, or those named. Without a chosen tenant it shows those
of every tenant you may see. -o wide joins what instances use now.`,
		Example: `  atoll get instances -o wide
  atoll get instance/web -o yaml
  atoll get instances,images -A
  atoll get instances -l app=db --field-selector status.state=running -w`,
		Flags: o.flags, Run: o.run, Complete: completeObjects,
	}
}

func (s *selection) flags(fs *pflag.FlagSet) {
	fs.StringVarP(&s.labels, "selector", "l", "", "only with these labels: key=value,key!=value,key,!key")
	fs.StringVar(&s.fields, "field-selector", "", "only with these fields: status.state=running")
	fs.BoolVarP(&s.all, "all-tenants", "A", false, "of every tenant")
}

func (o *getOptions) flags(fs *pflag.FlagSet) {
	o.output.flags(fs)
	o.selection.flags(fs)
	fs.BoolVarP(&o.watch, "watch", "w", false, "go on with what changes")
	fs.StringVar(&o.sort, "sort-by", "", "column to sort by, such as age or cpu; a leading - turns it around")
}

func (o *getOptions) run(ctx context.Context, c *call) error {
	if err := o.check(); err != nil {
		return err
	}
	t, err := c.targets(ctx, c.args)
	if err != nil {
		return err
	}
	if len(t.refs) > 0 && (o.labels != "" || o.fields != "") {
		return errs.New(errs.Invalid, "names and selectors exclude each other")
	}
	if o.watch {
		return o.runWatch(ctx, c, t)
	}
	objs, err := o.read(ctx, c, t)
	if err != nil {
		return err
	}
	if len(objs) == 0 && o.table() {
		c.note("%s", o.nothing(c, t))
		return nil
	}
	return o.print(ctx, c, objs, len(t.refs) == 1)
}

func (o *getOptions) read(ctx context.Context, c *call, t targets) ([]api.Object, error) {
	cl, err := c.server()
	if err != nil {
		return nil, err
	}
	var objs []api.Object
	for _, r := range t.refs {
		obj, err := c.get(ctx, r)
		if err != nil {
			return nil, err
		}
		objs = append(objs, obj)
	}
	for _, d := range t.kinds {
		sel, err := c.selector(d, o.selection)
		if err != nil {
			return nil, err
		}
		list, _, err := cl.List(ctx, sel)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", d.Plural, err)
		}
		if d.Kind == api.KindEvent {
			sortEvents(list)
		}
		objs = append(objs, list...)
	}
	return objs, nil
}

func (o *getOptions) nothing(c *call, t targets) string {
	var names []string
	for _, d := range t.kinds {
		names = append(names, d.Plural)
	}
	where := ""
	if tenant, err := c.chosenTenant(); err == nil && tenant != "" && !o.all {
		where = fmt.Sprintf(" in tenant %s (-A shows every tenant's)", tenant)
	}
	return "no " + strings.Join(names, ", no ") + where
}

func (o *getOptions) print(ctx context.Context, c *call, objs []api.Object, single bool) error {
	if !o.table() {
		if o.sort != "" {
			return errs.New(errs.Invalid, "--sort-by sorts tables only")
		}
		return o.output.printObjects(c.Out, c.Clock.Now(), objs, single)
	}
	for i := 0; i < len(objs); {
		d, _ := api.Lookup(string(objs[i].ObjectKind()))
		j := i
		for j < len(objs) && objs[j].ObjectKind() == d.Kind {
			j++
		}
		if i > 0 {
			c.say("")
		}
		v := newView(d, o.wide(), o.all || mixed(objs[i:j]), o.usage(ctx, c, d))
		for _, obj := range objs[i:j] {
			v.add(obj, c.Clock.Now())
		}
		if err := v.table.sort(o.sort); err != nil {
			return err
		}
		o.output.printTable(c.Out, &v.table)
		i = j
	}
	return nil
}

// usage is what instances use, for wide tables; empty when it cannot be learnt.
func (o *getOptions) usage(ctx context.Context, c *call, d *api.Definition) map[api.Ref]api.InstanceUsage {
	if d.Kind != api.KindInstance || !o.wide() {
		return nil
	}
	out := map[api.Ref]api.InstanceUsage{}
	cl, err := c.server()
	if err != nil {
		return out
	}
	rep, err := cl.Usage(ctx, "")
	if err != nil {
		c.note("what is used cannot be told now: %v", err)
	}
	for _, u := range rep.Instances {
		out[u.Ref] = u
	}
	return out
}

func (o *getOptions) runWatch(ctx context.Context, c *call, t targets) error {
	if len(t.kinds)+len(t.refs) != 1 {
		return errs.New(errs.Invalid, "--watch takes one kind or one object")
	}
	var sel api.Selector
	var err error
	if len(t.refs) == 1 {
		sel = exactly(t.refs[0])
	} else if sel, err = c.selector(t.kinds[0], o.selection); err != nil {
		return err
	}
	d, _ := api.Lookup(string(sel.Kind))
	cl, err := c.server()
	if err != nil {
		return err
	}
	for {
		objs, rev, err := cl.List(ctx, sel)
		if err != nil {
			return err
		}
		v := newView(d, o.wide(), sel.Tenant == "", nil)
		for _, obj := range objs {
			if err := o.event(c, v, store.Event{Object: obj}); err != nil {
				return err
			}
		}
		if o.table() {
			o.output.printTable(c.Out, &v.table)
		}
		err = cl.Watch(ctx, sel, rev, func(ev store.Event) error {
			if err := o.event(c, v, ev); err != nil || !o.table() {
				return err
			}
			_, err := fmt.Fprint(c.Out, v.render(false))
			return err
		})
		if errs.KindOf(err) != errs.Compacted {
			return err
		}
	}
}

// event adds a row, or writes the object in another form.
func (o *getOptions) event(c *call, v *view, ev store.Event) error {
	switch {
	case o.format == "name" && ev.Deleted:
		c.say("%s deleted", api.RefOf(ev.Object))
	case o.format == "json": // a line for each, for programs that read along
		b, err := api.Encode(ev.Object)
		if err != nil {
			return err
		}
		c.say("%s", b)
	case !o.table():
		if o.format == "yaml" {
			c.say("---")
		}
		return o.output.printObjects(c.Out, c.Clock.Now(), []api.Object{ev.Object}, true)
	default:
		v.add(ev.Object, c.Clock.Now())
		if last := v.rows[len(v.rows)-1]; ev.Deleted {
			for i, h := range v.head {
				if h == "STATE" || h == "AGE" {
					last[i] = "deleted"
				}
			}
		}
	}
	return nil
}
