// Package drop holds the verbs about the drop list: prefixes whose packets no host lets in.
package drop

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

type addOptions struct {
	name, reason string
	ttl          time.Duration
	force        bool
}

func (o *addOptions) flags(fs *pflag.FlagSet) {
	fs.StringVar(&o.name, "name", "", "name of the rule (default: follows from the prefix)")
	fs.StringVar(&o.reason, "reason", "", "why, for people")
	fs.DurationVar(&o.ttl, "ttl", 0, "how long, such as 1h (default: until it is removed)")
	fs.BoolVar(&o.force, "force", false, "also when it has an address of a host or of a gateway: such hosts may be lost")
}

// Drop is the group of verbs about the drop list; it is to be put below the group about the pool's network.
func Drop() verb.Def {
	add, list := &addOptions{}, &render.Output{}
	return verb.Def{
		Use: "drop", Group: verb.GroupPool, Short: "The drop list: whose packets no host lets in",
		Example: "  atoll net drop add 203.0.113.0/24 --ttl 1h --reason 'scans port 22'\n  atoll net drop list",
		Sub: []verb.Def{
			{Use: "add PREFIX", Min: 1, Max: 1, Short: "Have every host drop what comes from a prefix",
				Long: "What comes from there is dropped at the uplink of every host, before anything else sees it. A prefix with an\n" +
					"address of a host, or of a host's gateway, is refused, unless --force is given.",
				Example: "  atoll net drop add 203.0.113.0/24\n  atoll net drop add 2001:db8:bad::/48 --ttl 1h --reason 'flood of 12:40'",
				Flags:   add.flags, Run: add.run},
			{Use: "list", Aliases: []string{"ls"}, Short: "List what is dropped, and how much of it by each host", Example: "  atoll net drop list -o wide",
				Flags: list.Flags, Run: func(ctx context.Context, c *verb.Call) error { return show(ctx, c, *list) }},
			{Use: "remove PREFIX|NAME…", Aliases: []string{"rm", "delete"}, Min: 1, Max: -1, Short: "Let it pass again", Example: "  atoll net drop remove 203.0.113.0/24", Run: remove,
				Complete: func(ctx context.Context, c *verb.Call, _ string) []string {
					d, _ := api.Lookup(string(api.KindDropRule))
					return c.Names(ctx, d)
				}},
		},
	}
}

func (o *addOptions) run(ctx context.Context, c *verb.Call) error {
	r := &api.DropRule{Head: api.Head{K: api.KindDropRule, Meta: api.Meta{Name: o.name}}, Spec: api.DropRuleSpec{Prefix: c.Args[0], Reason: o.reason, Force: o.force}}
	if o.ttl < 0 || o.ttl != 0 && o.ttl < time.Second {
		return parse.BadFlag("ttl", o.ttl.String(), "must be at least 1s", "1h")
	}
	if o.ttl > 0 {
		end := c.Clock.Now().Add(o.ttl).UTC().Truncate(time.Second)
		r.Spec.ExpiresAt = &end
	}
	p, ok := r.Spec.Parse()
	if r.Name == "" {
		if r.Name = "drop"; ok { // a prefix that is none is refused below
			r.Name = api.DropRuleName(p)
		}
	}
	if err := api.Check(r); err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	nodes, _, err := store.List[*api.Node](ctx, cl, api.Selector{Kind: api.KindNode})
	if err != nil {
		return err
	}
	if who := hit(p, nodes); who != "" && !o.force {
		return errs.InvalidFields("drop rule "+r.Name, []errs.Field{{Field: "spec.prefix", Value: p.String(), Rule: "must not have an address of the pool: " + who, Example: "a smaller prefix, or --force"}})
	}
	if _, err := cl.Create(ctx, r); err != nil {
		return err
	}
	c.Say("%s created", render.ShortRef(r))
	return nil
}

// hit names a host that a prefix has an address of; "": none.
func hit(p netip.Prefix, nodes []*api.Node) string {
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			if x, err := netip.ParseAddr(a); err == nil && p.Contains(x.Unmap().WithZone("")) {
				return a + " is of host " + n.Name
			}
		}
	}
	return ""
}

// row is a rule with what hosts do of it.
type row struct {
	Rule    *api.DropRule  `json:"rule"`
	Packets uint64         `json:"packets"` // on all hosts
	Hosts   []api.HostDrop `json:"hosts"`
}

func show(ctx context.Context, c *verb.Call, o render.Output) error {
	if err := o.Check(); err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	rules, _, err := store.List[*api.DropRule](ctx, cl, api.Selector{Kind: api.KindDropRule})
	if err != nil {
		return err
	}
	use, err := cl.Usage(ctx, "")
	if err != nil {
		return err
	}
	rows := rowsOf(rules, use.Nodes)
	switch o.Format {
	case "json", "yaml":
		return render.Value(c.Out, rows, o.Format)
	case "name":
		for _, r := range rows {
			c.Say("%s", render.ShortRef(r.Rule))
		}
		return nil
	}
	fmt.Fprint(c.Out, table(rows, c.Clock.Now(), o.Wide()).Text(!o.NoHeaders))
	return nil
}

func rowsOf(rules []*api.DropRule, nodes []api.NodeUsage) []row {
	var out []row
	for _, r := range rules {
		x := row{Rule: r, Hosts: []api.HostDrop{}}
		for _, n := range nodes {
			for _, d := range n.Drops {
				if d.Rule == r.Name {
					x.Packets += d.Packets
					x.Hosts = append(x.Hosts, api.HostDrop{Node: n.Node, Packets: d.Packets, Refused: d.Refused})
				}
			}
		}
		slices.SortFunc(x.Hosts, func(a, b api.HostDrop) int { return strings.Compare(a.Node, b.Node) })
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b row) int { return strings.Compare(a.Rule.Name, b.Rule.Name) })
	return out
}

func table(rows []row, now time.Time, wide bool) *render.Table {
	t := &render.Table{Head: []string{"NAME", "PREFIX", "DROPPED", "HOSTS", "EXPIRES", "REASON"}}
	if wide {
		t.Head = append(t.Head, "BY HOST")
	}
	for _, r := range rows {
		keep, by := 0, []string{}
		for _, h := range r.Hosts {
			if h.Refused != "" {
				by = append(by, h.Node+": left out, "+h.Refused)
				continue
			}
			keep++
			by = append(by, fmt.Sprintf("%s: %d", h.Node, h.Packets))
		}
		hosts := fmt.Sprint(keep)
		if keep < len(r.Hosts) {
			hosts = fmt.Sprintf("%d of %d", keep, len(r.Hosts)) // -o wide says why
		}
		cells := []string{r.Rule.Name, r.Rule.Spec.Prefix, fmt.Sprint(r.Packets), hosts, ends(&r.Rule.Spec, now), r.Rule.Spec.Reason}
		if wide {
			cells = append(cells, strings.Join(by, "; "))
		}
		t.Row(cells...)
	}
	return t
}

func ends(s *api.DropRuleSpec, now time.Time) string {
	switch {
	case s.ExpiresAt == nil:
		return "never"
	case s.Ended(now):
		return "over"
	}
	return "in " + s.ExpiresAt.Sub(now).Round(time.Second).String()
}

// remove takes names of rules, and prefixes.
func remove(ctx context.Context, c *verb.Call) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	rules, _, err := store.List[*api.DropRule](ctx, cl, api.Selector{Kind: api.KindDropRule})
	if err != nil {
		return err
	}
	var all error
	for _, arg := range c.Args {
		found := names(rules, arg)
		if len(found) == 0 {
			all = errors.Join(all, errs.New(errs.NotFound, "nothing is dropped by the name or prefix %s", arg).WithHint("atoll net drop list shows what is"))
		}
		for _, n := range found {
			if err := cl.Delete(ctx, api.Ref{Kind: api.KindDropRule, Name: n}, store.Any); err != nil {
				all = errors.Join(all, err)
				continue
			}
			c.Say("%s removed", n)
		}
	}
	return all
}

func names(rules []*api.DropRule, arg string) []string {
	var out []string
	want, isPrefix := (&api.DropRuleSpec{Prefix: arg}).Parse()
	for _, r := range rules {
		if p, ok := r.Spec.Parse(); r.Name == arg || isPrefix && ok && p == want {
			out = append(out, r.Name)
		}
	}
	return out
}
