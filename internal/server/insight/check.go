package insight

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Check tries the path from inside the instance at which it begins.
func (a *Asker) Check(ctx context.Context, q url.Values) (api.NetCheck, error) {
	var out api.NetCheck
	p, err := a.path(ctx, q)
	if err != nil {
		return out, err
	}
	if p.from.ep == nil || p.proto == 17 {
		return out, errs.InvalidFields("check", []errs.Field{{Field: "from", Value: clip(p.query.from), Rule: "must be an instance on a tenant's network, and the protocol tcp or icmp", Example: "web"}})
	}
	if !a.May(api.VerbExec, api.KindInstance, p.from.Tenant) {
		return out, errs.New(errs.Denied, "a check sends packets from inside %s, which needs exec on instances of tenant %s", p.from.NetEnd, p.from.Tenant).WithHint("atoll net why %s %s asks the tables only", clip(p.query.from), clip(p.query.to))
	}
	if p.decided {
		out.Verdict, out.Fault, out.Hint = p.v, p.v.Reason, p.v.Hint
		return out, nil
	}
	if p.from.ep.Spec.Node == "" {
		return out, errs.New(errs.Conflict, "%s is on no host now", p.from.NetEnd).WithHint("atoll why instance/%s", p.from.Instance)
	}
	if p.to.Place == api.PlaceOutside && p.to.Address == "" {
		return out, errs.InvalidFields("check", []errs.Field{{Field: "to", Value: clip(p.query.to), Rule: "must be an instance, an address or a name: a packet needs one to go to", Example: "203.0.113.9"}})
	}
	for _, e := range []*end{p.from, p.to} {
		if why, err := a.asleep(ctx, e); err != nil {
			return out, err
		} else if why != "" {
			out.Fault, out.Hint = why, fmt.Sprintf("atoll describe instance/%[1]s --tenant %[2]s; atoll logs %[1]s --tenant %[2]s", e.Instance, e.Tenant)
			return out, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	for _, six := range []bool{false, true} {
		if err := a.try(ctx, p, six, &out); err != nil {
			return out, err
		}
	}
	out.OK = out.Fault == ""
	return out, nil
}

// asleep says that an instance does not run, which no packet needs to find out.
func (a *Asker) asleep(ctx context.Context, e *end) (string, error) {
	if e.ep == nil {
		return "", nil
	}
	in, err := store.Get[*api.Instance](ctx, a.Store, api.Ref{Kind: api.KindInstance, Tenant: e.Tenant, Name: e.Instance})
	if errors.Is(err, errs.NotFound) {
		return "", nil // being removed: whoever is asked next says so
	}
	if err != nil || in.Status.State == api.StateRunning {
		return "", err
	}
	why := ""
	if in.Status.Message != "" {
		why = ": " + in.Status.Message
	}
	return fmt.Sprintf("%s is not running (%s)%s", e.NetEnd, in.Status.State, why), nil
}

// try tries one address family, if both ends have it.
func (a *Asker) try(ctx context.Context, p *path, six bool, out *api.NetCheck) error {
	fa, ta, ok := family(p.from, p.to, six)
	if !ok {
		return nil
	}
	echo := &path{query: p.query, from: p.from, to: p.to}
	echo.query.proto, echo.query.port = 1, 0
	if err := a.judge(ctx, echo, six); err != nil {
		return err
	}
	if err := a.judge(ctx, p, six); err != nil {
		return err
	}
	if len(out.Reaches) == 0 {
		out.Verdict = p.v
	}
	if !p.v.Allowed {
		out.Verdict = p.v
		out.Fault, out.Hint = fault(p), p.v.Hint
		return nil
	}
	r := api.NetReach{Address: ta.String()}
	err := a.ask(ctx, p.from.ep.Spec.Node, api.Ref{Kind: api.KindInstance, Tenant: p.from.Tenant, Name: p.from.Instance},
		api.NetAsk{What: api.NetPath, Remote: ta.String(), Port: p.port, Echo: echo.v.Allowed}, &r)
	if err != nil {
		r.Error = err.Error()
		blame(out, fmt.Sprintf("%s: it could not be tried: %s", p.from.ep.Spec.Node, err), errs.HintOf(err))
	} else {
		if !echo.v.Allowed {
			r.Skipped = "no echo was sent: " + echo.v.Reason
		}
		a.diagnose(ctx, p, fa, &r, out)
	}
	out.Reaches = append(out.Reaches, r)
	return nil
}

// fault names the wall that refuses.
func fault(p *path) string {
	for _, h := range p.v.Hops {
		if !h.Allowed {
			whose := "the source's wall"
			if h.Direction == "ingress" {
				whose = "the destination's wall"
			}
			return fmt.Sprintf("%s (%s on %s): %s", whose, h.Instance, h.Node, p.v.Reason)
		}
	}
	return p.v.Reason
}

// blame keeps the first fault that is found.
func blame(out *api.NetCheck, fault, hint string) {
	if out.Fault == "" {
		out.Fault, out.Hint = fault, hint
	}
}

// diagnose says where a path ends that the walls allow.
func (a *Asker) diagnose(ctx context.Context, p *path, from netip.Addr, r *api.NetReach, out *api.NetCheck) {
	here, there := p.from.ep.Spec.Node, ""
	if p.to.ep != nil {
		there = p.to.ep.Spec.Node
	}
	tunnelled := there != "" && there != here
	silent := r.Sent > 0 && r.Answered == 0 || r.Sent == 0 && (r.TCP == "timeout" || r.TCP == "unreachable")
	switch {
	case silent && r.TCP != "connected" && r.TCP != "refused":
		a.silence(ctx, p, from, tunnelled, out)
	case r.Answered > 0 && r.Largest < r.MTU && tunnelled:
		blame(out, fmt.Sprintf("the way between %s and %s: packets of more than %d bytes do not pass, and the network's are up to %d: the MTU of an uplink between the two is too small", here, there, r.Largest, r.MTU),
			fmt.Sprintf("raise the MTU between the hosts, or make the network's smaller: spec.mtu: %d of network %s/%s", r.Largest, p.from.Tenant, p.from.Network))
	case r.Answered > 0 && r.Largest < r.MTU && p.to.ep != nil:
		blame(out, fmt.Sprintf("%s: packets of more than %d bytes do not come back, and the network's are up to %d", here, r.Largest, r.MTU), "")
	}
	switch r.TCP {
	case "refused":
		blame(out, fmt.Sprintf("nobody listens: %s refuses port %d", p.to.NetEnd, p.port), fmt.Sprintf("atoll logs %s; does it listen on all addresses, not on 127.0.0.1 only?", p.query.to))
	case "timeout", "unreachable":
		if r.Answered > 0 {
			blame(out, fmt.Sprintf("%s answers echoes, but not on port %d: its own packet filter, or its backlog is full", p.to.NetEnd, p.port), "")
		}
	}
}

// silence says how far packets came to which nothing was answered, by the tables at the other end.
func (a *Asker) silence(ctx context.Context, p *path, from netip.Addr, tunnelled bool, out *api.NetCheck) {
	here := p.from.ep.Spec.Node
	if p.to.ep == nil {
		blame(out, fmt.Sprintf("nothing comes back from %s: beyond the wall of %s on %s", p.to.NetEnd, p.from.NetEnd, here), "is there a way out of the network? atoll describe network/"+p.from.Network)
		return
	}
	there := p.to.ep.Spec.Node
	var f api.NetFlows
	err := a.ask(ctx, there, api.Ref{}, api.NetAsk{What: api.NetTables, Tenant: p.to.Tenant, Instance: p.to.Instance}, &f)
	if err != nil {
		blame(out, fmt.Sprintf("nothing comes back, and host %s does not answer", there), "atoll describe node/"+there)
		return
	}
	for _, x := range f.Flows {
		if x.Seen == "ingress" && x.Refused == "" && x.From.Address == from.String() && x.IdleMS < 10_000 {
			blame(out, fmt.Sprintf("the destination: packets pass the wall of %s on %s, and it does not answer", p.to.NetEnd, there), fmt.Sprintf("its own packet filter, or it hangs: atoll exec %s -- ip addr", p.query.to))
			return
		}
	}
	if !tunnelled {
		blame(out, fmt.Sprintf("on %s: packets leave the wall of %s and do not arrive at that of %s", here, p.from.NetEnd, p.to.NetEnd), "the host's log says what fails: network")
		return
	}
	blame(out, fmt.Sprintf("the tunnel between %s and %s: packets leave the one and do not arrive at the other", here, there),
		"does a firewall between the hosts let their UDP through? The port is tunnelPort of capability overlay: atoll get nodes -o yaml")
}
