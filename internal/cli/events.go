package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/store"
)

type eventsOptions struct {
	output
	selection
	watch bool
	about string
}

func eventsVerb() Verb {
	o := &eventsOptions{}
	return Verb{
		Use: "events", Group: groupTell, Aliases: []string{"event"},
		Short:   "Tell what happened",
		Example: "  atoll events\n  atoll events --for instance/web --watch\n  atoll events --field-selector spec.type=warning -A",
		Flags:   o.flags, Run: o.run,
	}
}

func (o *eventsOptions) flags(fs *pflag.FlagSet) {
	o.output.flags(fs)
	o.selection.flags(fs)
	fs.BoolVarP(&o.watch, "watch", "w", false, "go on with what happens")
	fs.StringVar(&o.about, "for", "", "only what happened to KIND/NAME")
}

func (o *eventsOptions) run(ctx context.Context, c *call) error {
	if err := o.check(); err != nil {
		return err
	}
	d, _ := api.Lookup(string(api.KindEvent))
	sel, err := c.selector(d, o.selection)
	if err != nil {
		return err
	}
	if o.about != "" {
		r, err := c.ref(ctx, o.about)
		if err != nil {
			return err
		}
		sel.Tenant = r.Tenant
		if sel.Fields == nil {
			sel.Fields = map[string]string{}
		}
		sel.Fields["spec.about"] = r.String()
	}
	cl, err := c.server()
	if err != nil {
		return err
	}
	objs, rev, err := cl.List(ctx, sel)
	if err != nil {
		return err
	}
	sortEvents(objs)
	g := &getOptions{output: o.output}
	if len(objs) > 0 || !o.table() {
		if err := g.print(ctx, c, objs, false); err != nil {
			return err
		}
	} else if !o.watch {
		c.note("nothing happened lately")
	}
	if !o.watch {
		return nil
	}
	v := newView(d, o.wide(), false, nil)
	for _, obj := range objs {
		v.add(obj, c.Clock.Now())
	}
	v.render(true) // learn the widths; it was printed above
	return cl.Watch(ctx, sel, rev, func(ev store.Event) error {
		if ev.Deleted {
			return nil // old ones are cleared away
		}
		if err := g.event(c, v, ev); err != nil {
			return err
		}
		_, err := fmt.Fprint(c.Out, v.render(false))
		return err
	})
}

// eventsAbout reads what happened to an object, oldest first.
func eventsAbout(ctx context.Context, cl Client, r api.Ref) ([]*api.Event, error) {
	sel := api.Selector{Kind: api.KindEvent, Tenant: r.Tenant, Fields: map[string]string{"spec.about": r.String()}}
	objs, _, err := cl.List(ctx, sel)
	sortEvents(objs)
	var out []*api.Event
	for _, o := range objs {
		out = append(out, o.(*api.Event))
	}
	return out, err
}

func sortEvents(objs []api.Object) {
	slices.SortStableFunc(objs, func(a, b api.Object) int {
		return a.(*api.Event).Spec.Last.Compare(b.(*api.Event).Spec.Last)
	})
}
