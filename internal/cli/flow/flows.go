package flow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/render"
	"atoll/internal/cli/stream"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

type flowsOptions struct {
	render.Output
	network        string
	follow, denied bool
	log            bool
	limit          int
}

func flows() verb.Def {
	o := &flowsOptions{}
	return verb.Def{
		Use: "flows [INSTANCE]", Max: 1,
		Short: "List the flows that hosts know, and with --follow new and refused ones",
		Long: `Flows lists what the tables of the hosts have, and what was refused lately. With --follow it goes
on with new and refused flows as the hosts see them; each host tells at most some thousand a
second, and how many it did not tell is said. With --log it lists what groups with log: true
have recorded.`,
		Example: "  atoll net flows --tenant acme\n  atoll net flows instance/web --follow\n  atoll net flows --denied\n  atoll net flows --log -o json",
		Flags:   o.flags, Run: o.run, Complete: verb.CompleteInstances(1),
	}
}

func (o *flowsOptions) flags(fs *pflag.FlagSet) {
	o.Output.Flags(fs)
	fs.StringVar(&o.network, "network", "", "only on networks of this name")
	fs.BoolVarP(&o.follow, "follow", "f", false, "go on with new and refused flows until Ctrl-C")
	fs.BoolVarP(&o.follow, "watch", "w", false, "the same as --follow")
	fs.BoolVar(&o.denied, "denied", false, "only what was refused")
	fs.BoolVar(&o.log, "log", false, "what groups with log: true have recorded, instead")
	fs.IntVar(&o.limit, "limit", 0, "at most so many of each host (default 20000)")
}

func (o *flowsOptions) run(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	q := url.Values{}
	if len(c.Args) > 0 {
		ref, err := c.Instance(ctx, c.Args[0])
		if err != nil {
			return err
		}
		q.Set("tenant", ref.Tenant)
		q.Set("instance", ref.Name)
	} else if err := withTenant(ctx, c, q, false); err != nil {
		return err
	}
	for name, on := range map[string]bool{"denied": o.denied, "log": o.log} {
		if on {
			q.Set(name, "true")
		}
	}
	if o.network != "" {
		q.Set("network", o.network)
	}
	if o.limit != 0 {
		q.Set("limit", strconv.Itoa(o.limit))
	}
	f, err := ask[api.NetFlows](ctx, c, "flows", q)
	if err != nil {
		return err
	}
	missing(c, f.Missing)
	t := &render.Table{Head: flowHead}
	if err := o.print(c, &f, t); err != nil || !o.follow {
		return err
	}
	q.Del("log")
	q.Del("limit")
	return o.goOn(ctx, c, q, t)
}

func (o *flowsOptions) print(c *verb.Call, f *api.NetFlows, t *render.Table) error {
	switch {
	case o.Format == "json" && o.follow: // a line each, as what follows
		for i := range f.Flows {
			if err := json.NewEncoder(c.Out).Encode(&f.Flows[i]); err != nil {
				return err
			}
		}
		return nil
	case o.Format == "json" || o.Format == "yaml":
		return render.Value(c.Out, f, o.Format)
	}
	for i := range f.Flows {
		t.Row(flowRow(&f.Flows[i], c.Clock.Now())...)
	}
	o.Table(c.Out, t)
	if f.More {
		c.Note("there are more; --limit, --network or an instance choose")
	}
	return nil
}

// goOn prints what hosts tell, until Ctrl-C.
func (o *flowsOptions) goOn(ctx context.Context, c *verb.Call, q url.Values, t *render.Table) error {
	cl, err := c.Server()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := cl.FollowFlows(ctx, q)
	if err != nil {
		return err
	}
	defer s.Close()
	interrupted, stop := onInterrupt(c, func() { cancel(); s.Close() })
	defer stop()
	err = each(s, func(f api.NetFlow) error {
		switch {
		case f.Seen == api.SeenLost && f.Refused != "":
			c.Note("host %s tells no more: %s", f.Node, f.Refused)
		case f.Seen == api.SeenLost:
			c.Note("host %s has not told of %s so far: there was more than it tells", f.Node, render.Plural(int(f.Packets), "event"))
		case o.Format == "json":
			return json.NewEncoder(c.Out).Encode(&f)
		default:
			row := flowRow(&f, c.Clock.Now())
			row[5] = f.At.Local().Format(time.TimeOnly)
			t.Row(row...)
			o.Table(c.Out, t)
		}
		return nil
	})
	if interrupted() {
		return verb.ExitCode(130)
	}
	return err
}

// each decodes the flows of a stream.
func each(s conn.Stream, fn func(api.NetFlow) error) error {
	for {
		ch, b, err := s.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errs.New(errs.Unavailable, "the connection broke: %w", err).WithHint("try again")
		}
		switch ch {
		case api.ChanStdout:
			var f api.NetFlow
			if err := json.Unmarshal(b, &f); err != nil {
				return errs.New(errs.Internal, "a flow cannot be read: %w", err)
			}
			if err := fn(f); err != nil {
				return err
			}
		case api.ChanExit:
			var x api.StreamExit
			if err := json.Unmarshal(b, &x); err != nil {
				return errs.New(errs.Internal, "exit of the stream: %w", err)
			}
			return stream.ExitError(x)
		}
	}
}

// onInterrupt calls fn at the first Ctrl-C, until stop is called. interrupted says whether there was one.
func onInterrupt(c *verb.Call, fn func()) (interrupted func() bool, stop func()) {
	sig, unset := c.Signals(os.Interrupt)
	quit, ended := make(chan struct{}), make(chan struct{})
	was := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-sig:
			close(was)
			fn()
		case <-quit:
		}
	}()
	return func() bool {
			select {
			case <-was:
				return true
			default:
				return false
			}
		}, func() {
			unset()
			close(quit)
			<-ended
		}
}

type mapOptions struct {
	format, network, by string
}

func netMap() verb.Def {
	o := &mapOptions{}
	return verb.Def{
		Use: "map", Max: 0, Short: "Show who talks to whom",
		Long:    "Map sums the flows of all hosts by who began and whom they asked.",
		Example: "  atoll net map --tenant acme\n  atoll net map --by label=app\n  atoll net map -o dot | dot -Tsvg >map.svg",
		Flags: func(fs *pflag.FlagSet) {
			fs.StringVarP(&o.format, "output", "o", "table", "table, dot, json or yaml")
			fs.StringVar(&o.network, "network", "", "only on networks of this name")
			fs.StringVar(&o.by, "by", "", "sum by instance, group, or a label: label=KEY (default instance)")
		},
		Run: o.run,
	}
}

func (o *mapOptions) run(ctx context.Context, c *verb.Call) error {
	q := url.Values{}
	for name, value := range map[string]string{"network": o.network, "by": o.by} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if o.format != "table" && o.format != "dot" && o.format != "json" && o.format != "yaml" {
		return errs.InvalidFields("map", []errs.Field{{Field: "output", Value: o.format, Rule: "must be table, dot, json or yaml", Example: "dot"}})
	}
	if err := withTenant(ctx, c, q, false); err != nil {
		return err
	}
	m, err := ask[api.NetMap](ctx, c, "map", q)
	if err != nil {
		return err
	}
	missing(c, m.Missing)
	switch o.format {
	case "json", "yaml":
		return render.Value(c.Out, m, o.format)
	case "dot":
		_, err := io.WriteString(c.Out, dot(&m))
		return err
	}
	t := &render.Table{Head: []string{"FROM", "TO", "PORTS", "FLOWS", "PACKETS", "BYTES", "REFUSED"}}
	for _, e := range m.Edges {
		refused := "-"
		if e.Refused > 0 {
			refused = fmt.Sprintf("%d (%s)", e.Refused, e.Why)
		}
		t.Row(e.From, e.To, strings.Join(e.Ports, " "), fmt.Sprint(e.Flows), fmt.Sprint(e.Packets), render.Size(int64(e.Bytes)), refused)
	}
	fmt.Fprint(c.Out, t.Text(true))
	return nil
}

// dot is the map in Graphviz's language; what was refused only is red.
func dot(m *api.NetMap) string {
	var b strings.Builder
	b.WriteString("digraph traffic {\n  rankdir=LR; node [shape=box];\n")
	for _, e := range m.Edges {
		colour := ""
		if e.Refused > 0 && e.Flows == 0 {
			colour = ` color="red" style="dashed"`
		}
		fmt.Fprintf(&b, "  %s -> %s [label=%s%s];\n", quoted(e.From), quoted(e.To), quoted(strings.Join(e.Ports, " ")+"\n"+render.Size(int64(e.Bytes))), colour)
	}
	b.WriteString("}\n")
	return b.String()
}

func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

type hitsOptions struct{ render.Output }

func hits() verb.Def {
	o := &hitsOptions{}
	return verb.Def{
		Use: "hits [GROUP]", Max: 1,
		Short: "Count what rules of security groups allowed, and what dry runs would have refused",
		Long: `Hits counts new flows by rule, on all hosts together, since a rule was last changed. Of groups with
dryRun: true it says how many new flows they would have refused, with examples.`,
		Example: "  atoll net hits\n  atoll net hits db-clients --tenant acme",
		Flags:   o.Output.Flags,
		Complete: func(ctx context.Context, c *verb.Call, _ string) []string {
			return c.NamesOf(ctx, api.KindSecurityGroup)
		},
		Run: func(ctx context.Context, c *verb.Call) error {
			q := url.Values{}
			if err := o.Check(); err != nil {
				return err
			}
			if err := withTenant(ctx, c, q, false); err != nil {
				return err
			}
			if len(c.Args) > 0 {
				name := strings.TrimPrefix(c.Args[0], "securitygroup/")
				if i := strings.LastIndexByte(name, '/'); i > 0 {
					q.Set("tenant", name[:i])
					name = name[i+1:]
				}
				q.Set("group", name)
			}
			h, err := ask[api.NetHits](ctx, c, "hits", q)
			if err != nil {
				return err
			}
			missing(c, h.Missing)
			if o.Format == "json" || o.Format == "yaml" {
				return render.Value(c.Out, h, o.Format)
			}
			printHits(c, &h, !o.NoHeaders)
			return nil
		},
	}
}

// DescribeHits is the part of a group's description about what it has done.
func DescribeHits(ctx context.Context, c *verb.Call, g *api.SecurityGroup) {
	h, err := ask[api.NetHits](ctx, c, "hits", url.Values{"tenant": {g.Tenant}, "group": {g.Name}})
	if err != nil || len(h.Hits) == 0 {
		return // no host has it, or none can tell; the rest of the description stands
	}
	c.Say("\nNew flows")
	for i := range h.Hits {
		h.Hits[i].Group = "  " + h.Hits[i].Group
	}
	printHits(c, &h, false)
	missing(c, h.Missing)
}

func printHits(c *verb.Call, h *api.NetHits, head bool) {
	t := &render.Table{Head: []string{"GROUP", "RULE", "ALLOWED", "WOULD REFUSE", "WHAT"}}
	for _, x := range h.Hits {
		rule, refused, what := x.Rule, "-", x.Text
		if x.DryRun {
			rule, refused = "(dry run)", fmt.Sprint(x.Refused)
			if len(x.Samples) > 0 {
				what = "such as " + strings.Join(x.Samples, "; ")
			}
		}
		if x.Log {
			what += " (logged)"
		}
		t.Row(x.Group, rule, fmt.Sprint(x.Allowed), refused, what)
	}
	fmt.Fprint(c.Out, t.Text(head))
}
