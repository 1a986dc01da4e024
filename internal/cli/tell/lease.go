package tell

import (
	"context"
	"errors"
	"fmt"
	"time"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// describeLease tells whether a host is heard of, and what is known when it is not.
func describeLease(ctx context.Context, c *verb.Call, n *api.Node) {
	c.Say("\nLease")
	obj, err := c.Get(ctx, api.NodeLease(n.Name))
	lease, ok := obj.(*api.Lease)
	switch {
	case errors.Is(err, errs.NotFound):
		c.Say("  none: the host has never been heard of")
	case err != nil:
		c.Say("  cannot be read: %v", err)
	case ok:
		t := &render.Table{}
		for _, l := range leaseLines(lease, n, c.Clock.Now()) {
			t.Row("  "+l[0], l[1])
		}
		fmt.Fprint(c.Out, t.Text(false))
	}
}

// leaseLines are what there is to say about a lease. Heartbeats are not written: that a
// lease is held says that the last one is younger than the lease lasts.
func leaseLines(l *api.Lease, n *api.Node, now time.Time) (out [][2]string) {
	line := func(what, format string, args ...any) {
		out = append(out, [2]string{what, fmt.Sprintf(format, args...)})
	}
	lasts := l.Spec.Duration.D()
	line("State", "%s for %s (epoch %d)", l.Spec.State, api.Age(&l.Spec.Since, now), l.Spec.Epoch)
	if !l.Held() || n.Away() {
		line("Heard of", "no%s", because(n.Condition(api.ConditionReady)))
	} else {
		line("Heard of", "yes")
	}
	if l.Held() {
		line("Ends", "%s after the last heartbeat", lasts)
	}
	if d := n.Spec.DisconnectAllowed; d != nil && d.D() > 0 {
		text := "may run on alone for " + d.D().String()
		if l.Held() && lasts != d.D() && lasts >= time.Minute {
			text += "; until the host knows, for " + lasts.String()
		} else if l.Held() && lasts < d.D() {
			text += ", from its next heartbeat on"
		}
		line("Edge", "%s", text)
	}
	if !n.Fences() {
		line("Fences itself", "no: the end of its lease proves nothing")
	} else {
		line("Fences itself", "yes: what must not run twice stops before the lease ends")
	}
	switch p := l.Spec.Proof; {
	case p != nil:
		line("Proof", "by %s, %s ago: %s", p.By, api.Age(&p.At, now), render.Dash(p.Message))
	case l.Spec.State == api.LeaseExpired && !l.Stopped(n):
		line("Proof", "none: what must not run twice waits; if the host is off: atoll node confirm-off %s", n.Name)
	}
	if k := len(l.Spec.Losses); k > 0 {
		line("Lost", "%d times, the last %s ago", k, api.Age(&l.Spec.Losses[k-1], now))
	}
	return out
}

func because(c *api.Condition) string {
	if c == nil || c.Status || c.Message == "" {
		return ""
	}
	return ": " + c.Message
}
