package flow

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
)

func why() verb.Def {
	o := &pathOptions{}
	return verb.Def{
		Use: "why FROM TO[:PORT[/PROTO]]", Min: 1, Max: -1, Raw: true,
		Short: "Say whether one end may begin a flow to another, and why",
		Long: `Why asks the tables in the kernel of the hosts that the two are on, not what is written about
them. FROM and TO are instances (NAME or TENANT/NAME), addresses, host (the host as instances see
it) or outside; TO may be a DNS name. Without a port it is about ICMP echo, with one about TCP.
"FROM -> TO" works in quotes. It ends with 0 when it is allowed, with 1 when it is denied.`,
		Example: "  atoll net why web db:5432\n  atoll net why 'web -> db:53/udp'\n  atoll net why acme/web outside:443\n  atoll net why outside web:80 -o json",
		Flags:   o.flags, Complete: completeEnds,
		Run: func(ctx context.Context, c *verb.Call) error {
			q, err := o.question(ctx, c)
			if err != nil {
				return err
			}
			v, err := ask[api.NetVerdict](ctx, c, "why", q)
			if err != nil {
				return err
			}
			if o.Format == "json" || o.Format == "yaml" {
				err = render.Value(c.Out, v, o.Format)
			} else {
				printVerdict(c, &v)
			}
			if err == nil && !v.Allowed {
				err = verb.ExitCode(1)
			}
			return err
		},
	}
}

func printVerdict(c *verb.Call, v *api.NetVerdict) {
	c.Say("%s", v.Reason)
	t := &render.Table{}
	for _, h := range v.Hops {
		if h.Direction == "" {
			t.Row("  "+h.Node, "", "", "", h.Text)
			continue
		}
		word, port := "deny", "-"
		if h.Allowed {
			word = "allow"
		}
		if !h.Known {
			word += "?"
		}
		if h.Port != 0 {
			port = fmt.Sprintf("port %d", h.Port)
		}
		text := h.Text
		if v.Reason == "allowed by "+h.Rule || v.Reason == "denied: "+h.Text {
			text = "as said above"
		}
		t.Row("  "+render.Dash(h.Node), h.Instance, port, h.Direction+": "+word, text)
	}
	fmt.Fprint(c.Out, t.Text(false))
	for _, h := range v.Hops {
		if h.Dry != "" {
			c.Say("a dry run at the %s of %s: %s", h.Direction, h.Instance, h.Dry)
		}
	}
	for _, n := range v.Notes {
		c.Say("note: %s", n)
	}
	if !v.Complete {
		c.Say("note: not every wall on the way could be asked; what has a ? is judged by what is written")
	}
	if v.Hint != "" {
		c.Say("what would allow it: %s", v.Hint)
	}
	now := c.Clock.Now()
	printFlows(c, "flows now", v.Flows, now)
	printFlows(c, "refused lately", v.Refused, now)
	if v.Allowed {
		return
	}
	for _, h := range v.Hops {
		for _, r := range slices.Sorted(maps.Keys(h.Dropped)) {
			c.Say("dropped by the wall of %s since it started: %s, %s", h.Instance, render.Plural(int(h.Dropped[r]), "packet"), r)
		}
	}
}

func printFlows(c *verb.Call, what string, list []api.NetFlow, now time.Time) {
	if len(list) == 0 {
		return
	}
	c.Say("%s:", what)
	t := &render.Table{}
	for i := range list {
		row := flowRow(&list[i], now)
		t.Row(append([]string{"  " + row[0]}, row[1:]...)...)
	}
	fmt.Fprint(c.Out, t.Text(false))
}

var flowHead = []string{"FROM", "TO", "PORT", "PACKETS", "BYTES", "AGE", "STATE", "VERDICT"}

// flowRow is a flow in columns.
func flowRow(f *api.NetFlow, now time.Time) []string {
	verdict, age := "allowed", time.Duration(f.AgeMS)*time.Millisecond
	if f.Refused != "" {
		verdict = "refused: " + f.Refused
	}
	if f.Dry {
		verdict += " (a dry run would refuse it)"
	}
	if !f.At.IsZero() {
		age = now.Sub(f.At)
	}
	return []string{f.From.String(), f.To.String(), portText(f), fmt.Sprint(f.Packets), render.Size(int64(f.Bytes)), short(age), render.Dash(f.State), verdict}
}

func short(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}
