package flow

import (
	"context"
	"fmt"
	"time"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
)

func check() verb.Def {
	o := &pathOptions{}
	return verb.Def{
		Use: "check FROM TO[:PORT]", Min: 1, Max: -1, Raw: true,
		Short: "Try a path from inside an instance, and say where it ends",
		Long: `Check opens sockets in the network of FROM, on its host: echoes of ICMP, by IPv4 and IPv6, up to the
largest packet that passes, and with a port a TCP connection. It says which place is at fault: a
wall, the tunnel between two hosts, an MTU, or that nobody listens. It needs the right to exec.
It ends with 0 when all is well, else with 1.`,
		Example: "  atoll net check web db\n  atoll net check web db:5432\n  atoll net check web 203.0.113.9:443",
		Flags:   o.flags, Complete: completeEnds,
		Run: func(ctx context.Context, c *verb.Call) error {
			q, err := o.question(ctx, c)
			if err != nil {
				return err
			}
			r, err := ask[api.NetCheck](ctx, c, "check", q)
			if err != nil {
				return err
			}
			if o.Format == "json" || o.Format == "yaml" {
				err = render.Value(c.Out, r, o.Format)
			} else {
				printCheck(c, &r)
			}
			if err == nil && !r.OK {
				err = verb.ExitCode(1)
			}
			return err
		},
	}
}

func printCheck(c *verb.Call, r *api.NetCheck) {
	head := "in order"
	if !r.OK {
		head = "at fault: " + r.Fault
	}
	c.Say("%s -> %s: %s", r.Verdict.From, r.Verdict.To, head)
	t := &render.Table{}
	for _, x := range r.Reaches {
		switch {
		case x.Error != "":
			t.Row("  "+x.Address, "not tried", x.Error)
		case x.Skipped != "":
			t.Row("  "+x.Address, "echo", x.Skipped)
		default:
			t.Row("  "+x.Address, "echo", fmt.Sprintf("%d of %d answered", x.Answered, x.Sent))
		}
		if x.Answered > 0 {
			t.Row("", "round trip", (time.Duration(x.RTTUS)*time.Microsecond).String()+" (median)")
			t.Row("", "largest", fmt.Sprintf("%d bytes of %d", x.Largest, x.MTU))
		}
		if x.TCP != "" {
			t.Row("", fmt.Sprintf("tcp %d", r.Verdict.Port), fmt.Sprintf("%s in %s", x.TCP, (time.Duration(x.TCPUS)*time.Microsecond)))
		}
	}
	fmt.Fprint(c.Out, t.Text(false))
	if r.Hint != "" {
		c.Say("what to do: %s", r.Hint)
	}
}
