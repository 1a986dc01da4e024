package tell

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/cli/flow"
	"atoll/internal/cli/object"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// DescribeOptions are the flags of describe.
type DescribeOptions struct{ Events int }

// Describe tells all about objects.
func Describe() verb.Def {
	o := &DescribeOptions{}
	return verb.Def{
		Use: "describe KIND/NAME… | KIND NAME…", Group: verb.GroupTell, Aliases: []string{"desc"}, Min: 1, Max: -1,
		Short:   "Tell all about objects: what is wanted, what is, why, and what happened",
		Example: "  atoll describe instance/web\n  atoll describe node isle1",
		Flags:   func(fs *pflag.FlagSet) { fs.IntVar(&o.Events, "events", 10, "how many of the last events") },
		Run:     o.Run, Complete: verb.CompleteObjects,
	}
}

// Run describes what the arguments of the call name.
func (o *DescribeOptions) Run(ctx context.Context, c *verb.Call) error {
	t, err := c.Targets(ctx, c.Args)
	if err != nil {
		return err
	}
	if len(t.Refs) == 0 {
		return errs.New(errs.Invalid, "describe: which one?").WithHint("atoll get %s lists them; then atoll describe %s/NAME", c.Args[0], c.Args[0])
	}
	for i, r := range t.Refs {
		if i > 0 {
			c.Say("\n%s\n", strings.Repeat("─", 40))
		}
		if err := o.one(ctx, c, r); err != nil {
			return err
		}
	}
	return nil
}

func (o *DescribeOptions) one(ctx context.Context, c *verb.Call, r api.Ref) error {
	obj, err := c.Get(ctx, r)
	if err != nil {
		return err
	}
	describeHead(c, obj)
	raw, err := render.Map(obj)
	if err != nil {
		return err
	}
	section(c, "Wanted", raw["spec"])
	status, _ := raw["status"].(map[string]any)
	conds := verb.Conditions(obj)
	delete(status, "conditions")
	section(c, "Is", status)
	if len(conds) > 0 {
		c.Say("\nConditions")
		t := &render.Table{}
		for _, cond := range conds {
			t.Row("  "+cond.Type, fmt.Sprint(cond.Status), api.Age(&cond.Since, c.Clock.Now()), render.Dash(cond.Reason), cond.Message)
		}
		fmt.Fprint(c.Out, t.Text(false))
	}
	if in, ok := obj.(*api.Instance); ok {
		c.Say("\nPlacement")
		if err := whyInstance(ctx, c, in, "  "); err != nil {
			c.Say("  cannot be told: %v", err)
		}
	}
	if n, ok := obj.(*api.Node); ok {
		describeLease(ctx, c, n)
	}
	if g, ok := obj.(*api.SecurityGroup); ok {
		flow.DescribeHits(ctx, c, g)
	}
	return o.lastEvents(ctx, c, r)
}

func describeHead(c *verb.Call, obj api.Object) {
	m := obj.Metadata()
	t := &render.Table{}
	line := func(k, v string) {
		if v != "" {
			t.Row(k, v)
		}
	}
	line("Name", m.Name)
	line("Kind", string(obj.ObjectKind()))
	line("Tenant", m.Tenant)
	if in, ok := obj.(*api.Instance); ok {
		line("State", string(in.StateOf()))
		line("Class", string(in.Spec.Class()))
	}
	line("Labels", render.Pairs(m.Labels))
	for _, k := range render.SortedKeys(m.Annotations) {
		if k != object.LastApplied {
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
		line("Removal asked", fmt.Sprintf("%s ago; waits for: %s", api.Age(m.DeletedAt, c.Clock.Now()), render.Dash(strings.Join(m.Finalizers, ", "))))
	}
	line("UID", m.UID)
	line("Revision", fmt.Sprintf("%d (generation %d)", m.Revision, m.Generation))
	fmt.Fprint(c.Out, t.Text(false))
}

func section(c *verb.Call, title string, v any) {
	if m, ok := v.(map[string]any); v == nil || ok && len(m) == 0 {
		return
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		return
	}
	c.Say("\n%s", title)
	for _, l := range strings.Split(strings.TrimRight(string(b), "\n"), "\n") {
		c.Say("  %s", l)
	}
}

func (o *DescribeOptions) lastEvents(ctx context.Context, c *verb.Call, r api.Ref) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	evs, err := eventsAbout(ctx, cl, r)
	if err != nil {
		c.Say("\nEvents\n  cannot be read: %v", err)
		return nil
	}
	if len(evs) == 0 {
		return nil
	}
	c.Say("\nEvents")
	t := &render.Table{}
	for _, e := range evs[max(0, len(evs)-o.Events):] {
		times := ""
		if e.Spec.Count > 1 {
			times = fmt.Sprintf(" (%d times)", e.Spec.Count)
		}
		t.Row("  "+api.Age(&e.Spec.Last, c.Clock.Now()), e.Spec.Type, e.Spec.Reason, e.Spec.Message+times)
	}
	fmt.Fprint(c.Out, t.Text(false))
	return nil
}
