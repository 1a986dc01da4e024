package pool

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/plan"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// drainTimeout is how long drain and restore watch: what runs to its end is waited for an hour.
const drainTimeout = 90 * time.Minute

// Maintenance lists the verbs about the maintenance of nodes; they stand by themselves
// and below atoll node.
func Maintenance() []verb.Def {
	return []verb.Def{cordon(), uncordon(), drain("drain"), drain("evacuate"), restore()}
}

func cordon() verb.Def {
	return verb.Def{Use: "cordon NODE…", Group: verb.GroupPool, Min: 1, Max: -1, Short: "Place nothing new on nodes; what runs stays", Complete: verb.CompleteNodes,
		Example: "  atoll cordon isle2",
		Run: func(ctx context.Context, c *verb.Call) error {
			return eachNode(ctx, c, func(n *api.Node) { n.Spec.Cordoned = true })
		}}
}

func uncordon() verb.Def {
	return verb.Def{Use: "uncordon NODE…", Group: verb.GroupPool, Min: 1, Max: -1, Short: "Place on nodes again", Complete: verb.CompleteNodes,
		Example: "  atoll uncordon isle2",
		Run: func(ctx context.Context, c *verb.Call) error {
			nodes, err := namedNodes(ctx, c)
			if err != nil {
				return err
			}
			for _, n := range nodes {
				if n.Spec.Maintenance != nil {
					c.Note("node/%s is in maintenance, so nothing is placed there until: atoll restore %s", n.Name, n.Name)
				}
			}
			return eachNode(ctx, c, func(n *api.Node) { n.Spec.Cordoned = false })
		}}
}

// eachNode changes the named nodes, one after the other.
func eachNode(ctx context.Context, c *verb.Call, fn func(n *api.Node)) error {
	for _, name := range c.Args {
		c.Args = []string{name}
		if err := changeNode(ctx, c, func(_ *verb.Call, n *api.Node) error { fn(n); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// namedNodes reads the nodes that are named; each once, all of them must be there.
func namedNodes(ctx context.Context, c *verb.Call) ([]*api.Node, error) {
	var out []*api.Node
	seen := map[string]bool{}
	for _, a := range c.Args {
		name := strings.TrimPrefix(a, "node/")
		if seen[name] {
			continue
		}
		seen[name] = true
		o, err := c.Get(ctx, api.Ref{Kind: api.KindNode, Name: name})
		if err != nil {
			return nil, err
		}
		out = append(out, o.(*api.Node))
	}
	return out, nil
}

// drainOptions are those of drain and evacuate.
type drainOptions struct {
	render.Output
	mode                     string
	leave, yes, noWait, only bool
	why                      string
	patience, timeout        time.Duration
}

const drainLong = `Nothing new is placed on the nodes, and what runs there is stopped and started on
other nodes, a few at a time, the most important first, and only where there is
room. What cannot move (its volume is there, or it names the node) is stopped at
the end and starts again when the node is restored; with --leave it runs on.

The plan is shown first. Ctrl-C ends the watching, not the work: 'atoll get drains'
shows how far it is, and 'atoll restore NODE' takes it back.`

func drain(mode string) verb.Def {
	o := &drainOptions{mode: mode}
	d := verb.Def{Use: mode + " NODE…", Group: verb.GroupPool, Min: 1, Max: -1, Complete: verb.CompleteNodes, Run: o.run}
	if mode == "drain" {
		d.Short = "Empty nodes within disruption budgets, for maintenance"
		d.Long = "Drain empties nodes without breaking a disruption budget; what a budget holds, what\nruns to its end and what has no room elsewhere is waited for.\n\n" + drainLong
		d.Example = "  atoll drain isle2\n  atoll drain isle2 --leave --why 'new memory'\n  atoll drain isle2 isle3 --yes --timeout 10m\n  atoll drain isle2 --dry-run"
	} else {
		d.Short = "Empty nodes as fast as can be, passing disruption budgets over"
		d.Long = "Evacuate empties nodes that may not be there for long: budgets are passed over,\nnothing is waited for, and what has no room elsewhere is stopped in good order.\n\n" + drainLong
		d.Example = "  atoll evacuate isle2 --yes --why 'disk dies'"
	}
	d.Flags = func(fs *pflag.FlagSet) {
		fs.BoolVar(&o.leave, "leave", false, "what cannot move stays and runs on")
		fs.StringVar(&o.why, "why", "", "why, for people")
		fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
		fs.BoolVar(&o.only, "dry-run", false, "show the plan and do nothing")
		fs.BoolVar(&o.noWait, "no-wait", false, "do not watch until it is done")
		fs.DurationVar(&o.timeout, "timeout", drainTimeout, "how long to watch at most; the work goes on")
		if mode == "drain" {
			fs.DurationVar(&o.patience, "patience", api.DefaultPatience, "how long what runs to its end is waited for")
		}
		o.Output.Flags(fs)
	}
	return d
}

// outcome is what drain writes as JSON.
type outcome struct {
	Plan   *api.PlanAnswer `json:"plan,omitempty"`
	Drains []*api.Drain    `json:"drains,omitempty"`
}

func (o *drainOptions) run(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	nodes, err := namedNodes(ctx, c)
	if err != nil {
		return err
	}
	var out outcome
	if out.Plan, err = o.plan(ctx, c, nodes); err != nil {
		return err
	}
	if o.only {
		return o.dryRun(c, out)
	}
	if err := o.confirm(c, nodes); err != nil {
		return err
	}
	for i, n := range nodes {
		if nodes[i], err = o.begin(ctx, c, n); err != nil {
			return err
		}
	}
	if !o.noWait {
		w := &watch{Call: c, nodes: nodes, quiet: !o.Tabular()}
		out.Drains, err = w.until(ctx, o.timeout)
	} else if o.Tabular() {
		c.Say("begun; atoll get drains shows how far it is, atoll restore takes it back")
	}
	switch o.Format {
	case "json", "yaml":
		if e := render.Value(c.Out, out, o.Format); err == nil {
			err = e
		}
	case "name":
		for _, n := range nodes {
			c.Say("drain/%s", n.Name)
		}
	}
	return err
}

// plan asks what would become of what runs there, and shows it.
func (o *drainOptions) plan(ctx context.Context, c *verb.Call, nodes []*api.Node) (*api.PlanAnswer, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	q := &api.PlanHosts{Leave: o.leave, Evacuate: o.mode == "evacuate"}
	for _, n := range nodes {
		q.Nodes = append(q.Nodes, n.Name)
	}
	a, err := cl.Plan(ctx, "", api.PlanRequest{Drain: q})
	if errs.KindOf(err) == errs.Unsupported && !o.only {
		c.Note("there is no plan to show: %v", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if o.Tabular() {
		if _, err := fmt.Fprint(c.Out, "PLAN  "+plan.Text(&a, o.Wide())); err != nil {
			return nil, err
		}
	}
	return &a, nil
}

func (o *drainOptions) dryRun(c *verb.Call, out outcome) error {
	var err error
	switch o.Format {
	case "json", "yaml":
		err = render.Value(c.Out, out, o.Format)
	case "name":
		for _, p := range out.Plan.Places {
			c.Say("%s", p.Instance)
		}
	}
	if err == nil && !out.Plan.Holds {
		err = verb.ExitCode(errs.ExitCode(errs.NoCapacity))
	}
	return err
}

// confirm asks, unless all that is wanted is wanted already.
func (o *drainOptions) confirm(c *verb.Call, nodes []*api.Node) error {
	fresh := false
	for _, n := range nodes {
		m := n.Spec.Maintenance
		fresh = fresh || m == nil || m.Mode != o.mode || m.Leave != o.leave
	}
	if !fresh || o.yes {
		return nil
	}
	if !c.Term.InIs() || !c.Term.ErrIs() {
		return errs.New(errs.Invalid, "%s stops what runs on nodes, and there is no terminal to ask on", o.mode).WithHint("give --yes, or look first with --dry-run")
	}
	return c.Confirm(false, "Go on?")
}

// begin writes the wish and gives the node as it is then: the server says since when.
func (o *drainOptions) begin(ctx context.Context, c *verb.Call, n *api.Node) (*api.Node, error) {
	ref := api.RefOf(n)
	_, err := verb.Update(ctx, c, n, func(n *api.Node) {
		m := api.Maintenance{}
		if n.Spec.Maintenance != nil {
			m.Since, m.Why = n.Spec.Maintenance.Since, n.Spec.Maintenance.Why
		}
		m.Mode, m.Leave = o.mode, o.leave
		if o.why != "" {
			m.Why = o.why
		}
		if o.mode == "drain" && o.patience != api.DefaultPatience {
			d := api.Duration(o.patience)
			m.Patience = &d
		}
		n.Spec.Maintenance = &m
		n.Annotations = without(n.Annotations, api.AnnotationLeftAway, api.AnnotationShutdown)
	})
	if err != nil {
		return nil, err
	}
	got, err := c.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	return got.(*api.Node), nil
}

// without is a copy of a map that lacks some entries.
func without(m map[string]string, keys ...string) map[string]string {
	out := maps.Clone(m)
	for _, k := range keys {
		delete(out, k)
	}
	return out
}

// restoreOptions are those of restore.
type restoreOptions struct {
	render.Output
	leave, noWait bool
	timeout       time.Duration
}

func restore() verb.Def {
	o := &restoreOptions{}
	return verb.Def{Use: "restore NODE…", Group: verb.GroupPool, Min: 1, Max: -1, Complete: verb.CompleteNodes,
		Short: "Use nodes again after drain, evacuate or cordon",
		Long: `Restore ends the maintenance of nodes: new instances may be placed there again, and
what was stopped there starts. What had left comes back, within disruption budgets,
where it fits and nothing becomes worse by it; with --leave it stays where it is.`,
		Example: "  atoll restore isle2\n  atoll restore isle2 --leave",
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&o.leave, "leave", false, "what left stays where it is now")
			fs.BoolVar(&o.noWait, "no-wait", false, "do not watch until all is back")
			fs.DurationVar(&o.timeout, "timeout", drainTimeout, "how long to watch at most; the work goes on")
			o.Output.Flags(fs)
		},
		Run: o.run}
}

func (o *restoreOptions) run(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	nodes, err := namedNodes(ctx, c)
	if err != nil {
		return err
	}
	var emptied []*api.Node
	for _, n := range nodes {
		if n.Spec.Closed() == "" {
			if o.Tabular() {
				c.Say("node/%s unchanged", n.Name)
			}
			continue
		}
		if _, err := verb.Update(ctx, c, n, func(n *api.Node) { reopen(n, o.leave) }); err != nil {
			return err
		}
		if begun(ctx, c, n) {
			emptied = append(emptied, n)
		}
		if o.Tabular() {
			c.Say("node/%s is in use again", n.Name)
		}
	}
	var drains []*api.Drain
	if len(emptied) > 0 && !o.noWait {
		w := &watch{Call: c, nodes: emptied, back: true, quiet: !o.Tabular()}
		drains, err = w.until(ctx, o.timeout)
	}
	switch o.Format {
	case "json", "yaml":
		if e := render.Value(c.Out, outcome{Drains: drains}, o.Format); err == nil {
			err = e
		}
	case "name":
		for _, n := range nodes {
			c.Say("node/%s", n.Name)
		}
	}
	return err
}

// begun reports whether anything was done for a maintenance, so that there is something to take back.
func begun(ctx context.Context, c *verb.Call, n *api.Node) bool {
	m := n.Spec.Maintenance
	if m == nil {
		return false
	}
	cl, err := c.Server()
	if err != nil {
		return false
	}
	d, err := store.Get[*api.Drain](ctx, cl, api.Ref{Kind: api.KindDrain, Name: n.Name})
	return err == nil && d.Spec.State != api.DrainRestored && d.Spec.Since.Equal(m.Since)
}

// reopen takes maintenance and cordon off a node.
func reopen(n *api.Node, leave bool) {
	n.Annotations = without(n.Annotations, api.AnnotationLeftAway, api.AnnotationShutdown)
	if m := n.Spec.Maintenance; m != nil && leave {
		n.Annotations = verb.With(n.Annotations, api.AnnotationLeftAway, api.LeftAway(m.Since))
	}
	n.Spec.Maintenance, n.Spec.Cordoned = nil, false
}
