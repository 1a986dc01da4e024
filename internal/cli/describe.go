package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/errs"
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
