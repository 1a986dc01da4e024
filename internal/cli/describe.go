package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

type describeOptions struct{ events int }

func describeVerb() Verb {
	o := &describeOptions{}
	return Verb{
		Use: "describe KIND/NAME… | KIND NAME…", Group: groupTell, Aliases: []string{"desc"}, Min: 1, Max: -1,
		Short:   "Tell all about objects: what is wanted, what is, why, and what happened",
		Example: "  atoll describe instance/web\n  atoll describe node isle1",
		Flags:   func(fs *pflag.FlagSet) { fs.IntVar(&o.events, "events", 10, "how many of the last events") },
		Run:     o.run, Complete: completeObjects,
	}
}

func (o *describeOptions) run(ctx context.Context, c *call) error {
	t, err := c.targets(ctx, c.args)
	if err != nil {
		return err
	}
	if len(t.refs) == 0 {
		return errs.New(errs.Invalid, "describe: which one?").WithHint("atoll get %s lists them; then atoll describe %s/NAME", c.args[0], c.args[0])
	}
	for i, r := range t.refs {
		if i > 0 {
			c.say("\n%s\n", strings.Repeat("─", 40))
		}
		if err := o.one(ctx, c, r); err != nil {
			return err
		}
	}
	return nil
}

func (o *describeOptions) one(ctx context.Context, c *call, r api.Ref) error {
	obj, err := c.get(ctx, r)
	if err != nil {
		return err
	}
	c.describeHead(obj)
	raw, err := asMap(obj)
	if err != nil {
		return err
	}
	c.section("Wanted", raw["spec"])
	status, _ := raw["status"].(map[string]any)
	conds := conditionsOf(obj)
	delete(status, "conditions")
	c.section("Is", status)
	if len(conds) > 0 {
		c.say("\nConditions")
		t := &table{}
		for _, cond := range conds {
			t.row("  "+cond.Type, fmt.Sprint(cond.Status), api.Age(&cond.Since, c.Clock.Now()), dash(cond.Reason), cond.Message)
		}
		fmt.Fprint(c.Out, t.render(false))
	}
	if in, ok := obj.(*api.Instance); ok {
		c.say("\nPlacement")
		if err := c.whyInstance(ctx, in, "  "); err != nil {
			c.say("  cannot be told: %v", err)
		}
	}
	return o.lastEvents(ctx, c, r)
}

func (c *call) describeHead(obj api.Object) {
	m := obj.Metadata()
	t := &table{}
	line := func(k, v string) {
		if v != "" {
			t.row(k, v)
		}
	}
	line("Name", m.Name)
	line("Kind", string(obj.ObjectKind()))
	line("Tenant", m.Tenant)
	if in, ok := obj.(*api.Instance); ok {
		line("State", string(in.StateOf()))
		line("Class", string(in.Spec.Class()))
	}
	line("Labels", pairs(m.Labels))
	for _, k := range sortedKeys(m.Annotations) {
		if k != lastApplied {
			line("Annotation", k+"="+m.Annotations[k])
		}
	}
	if m.Owner != nil {
		line("Made for", m.Owner.String())
	}
	if m.CreatedAt != nil {
		line("Created", fmt.Sprintf("%s (%s ago)", m.CreatedAt.Local().Format(time.DateTime), api.Age(m.CreatedAt, c.Clock.Now())))
	}
	if m.DeletedAt != nil {
		line("Removal asked", fmt.Sprintf("%s ago; waits for: %s", api.Age(m.DeletedAt, c.Clock.Now()), dash(strings.Join(m.Finalizers, ", "))))
	}
	line("UID", m.UID)
	line("Revision", fmt.Sprintf("%d (generation %d)", m.Revision, m.Generation))
	fmt.Fprint(c.Out, t.render(false))
}

func pairs(m map[string]string) string {
	var out []string
	for _, k := range sortedKeys(m) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// asMap is an object as the JSON it is written as.
func asMap(o api.Object) (map[string]any, error) {
	b, err := api.Encode(o)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, json.Unmarshal(b, &m)
}

func conditionsOf(o api.Object) []api.Condition {
	switch o := o.(type) {
	case *api.Instance:
		return o.Status.Conditions
	case *api.Node:
		return o.Status.Conditions
	case *api.Tenant:
		return o.Status.Conditions
	}
	return nil
}

func (c *call) section(title string, v any) {
	if m, ok := v.(map[string]any); v == nil || ok && len(m) == 0 {
		return
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		return
	}
	c.say("\n%s", title)
	for _, l := range strings.Split(strings.TrimRight(string(b), "\n"), "\n") {
		c.say("  %s", l)
	}
}

func (o *describeOptions) lastEvents(ctx context.Context, c *call, r api.Ref) error {
	cl, err := c.server()
	if err != nil {
		return err
	}
	evs, err := eventsAbout(ctx, cl, r)
	if err != nil {
		c.say("\nEvents\n  cannot be read: %v", err)
		return nil
	}
	if len(evs) == 0 {
		return nil
	}
	c.say("\nEvents")
	t := &table{}
	for _, e := range evs[max(0, len(evs)-o.events):] {
		times := ""
		if e.Spec.Count > 1 {
			times = fmt.Sprintf(" (%d times)", e.Spec.Count)
		}
		t.row("  "+api.Age(&e.Spec.Last, c.Clock.Now()), e.Spec.Type, e.Spec.Reason, e.Spec.Message+times)
	}
	fmt.Fprint(c.Out, t.render(false))
	return nil
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
		v.add(obj, c)
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
