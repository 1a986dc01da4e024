package tell

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/object"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/store"
)

type eventsOptions struct {
	render.Output
	verb.Selection
	watch bool
	about string
}

// Events tells what happened.
func Events() verb.Def {
	o := &eventsOptions{}
	return verb.Def{
		Use: "events", Group: verb.GroupTell, Aliases: []string{"event"},
		Short:   "Tell what happened",
		Example: "  atoll events\n  atoll events --for instance/web --watch\n  atoll events --field-selector spec.type=warning -A",
		Flags:   o.flags, Run: o.run,
	}
}

func (o *eventsOptions) flags(fs *pflag.FlagSet) {
	o.Output.Flags(fs)
	o.Selection.Flags(fs)
	fs.BoolVarP(&o.watch, "watch", "w", false, "go on with what happens")
	fs.StringVar(&o.about, "for", "", "only what happened to KIND/NAME")
}

func (o *eventsOptions) run(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	d, _ := api.Lookup(string(api.KindEvent))
	sel, err := c.Selector(d, o.Selection)
	if err != nil {
		return err
	}
	if o.about != "" {
		r, err := c.Ref(ctx, o.about)
		if err != nil {
			return err
		}
		sel.Tenant = r.Tenant
		if sel.Fields == nil {
			sel.Fields = map[string]string{}
		}
		sel.Fields["spec.about"] = r.String()
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	objs, rev, err := cl.List(ctx, sel)
	if err != nil {
		return err
	}
	object.SortEvents(objs)
	g := &object.GetOptions{Output: o.Output}
	if len(objs) > 0 || !o.Tabular() {
		if err := g.Print(ctx, c, objs, false); err != nil {
			return err
		}
	} else if !o.watch {
		c.Note("nothing happened lately")
	}
	if !o.watch {
		return nil
	}
	v := render.NewView(d, o.Wide(), false, nil)
	for _, obj := range objs {
		v.Add(obj, c.Clock.Now())
	}
	v.Text(true) // learn the widths; it was printed above
	return cl.Watch(ctx, sel, rev, func(ev store.Event) error {
		if ev.Deleted {
			return nil // old ones are cleared away
		}
		if err := g.Event(c, v, ev); err != nil {
			return err
		}
		_, err := fmt.Fprint(c.Out, v.Text(false))
		return err
	})
}

// eventsAbout reads what happened to an object, oldest first.
func eventsAbout(ctx context.Context, cl conn.Client, r api.Ref) ([]*api.Event, error) {
	sel := api.Selector{Kind: api.KindEvent, Tenant: r.Tenant, Fields: map[string]string{"spec.about": r.String()}}
	objs, _, err := cl.List(ctx, sel)
	object.SortEvents(objs)
	var out []*api.Event
	for _, o := range objs {
		out = append(out, o.(*api.Event))
	}
	return out, err
}
