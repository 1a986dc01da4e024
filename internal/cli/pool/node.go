package pool

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/object"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/tell"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// Node is the group of verbs about nodes.
func Node() verb.Def {
	list, desc, yes, off := &render.Output{}, &tell.DescribeOptions{}, false, false
	change := func(use, short, example string, min int, fn func(c *verb.Call, n *api.Node) error) verb.Def {
		return verb.Def{Use: use, Min: min, Max: -1, Short: short, Example: example, Complete: verb.CompleteNodes,
			Run: func(ctx context.Context, c *verb.Call) error { return changeNode(ctx, c, fn) }}
	}
	var own []verb.Def
	for _, d := range append(Maintenance(), shutdown(), startup()) {
		d.Group = "" // groups are those of the root
		d.Example = strings.ReplaceAll(d.Example, "atoll ", "atoll node ")
		own = append(own, d)
	}
	return verb.Def{
		Use: "node", Group: verb.GroupPool, Aliases: []string{"nodes"}, Short: "Nodes: the hosts of the pool",
		Example: "  atoll node list -o wide\n  atoll node cordon isle2\n  atoll node taint isle3 gpu=only:NoSchedule\n  atoll node token",
		Sub: append([]verb.Def{
			{Use: "list", Aliases: []string{"ls"}, Short: "List nodes", Example: "  atoll node list -o wide", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindNode, *list) }},
			{Use: "describe NODE…", Min: 1, Max: -1, Short: "Tell all about nodes", Example: "  atoll node describe isle1", Complete: verb.CompleteNodes,
				Flags: func(fs *pflag.FlagSet) { fs.IntVar(&desc.Events, "events", 10, "how many of the last events") },
				Run: func(ctx context.Context, c *verb.Call) error {
					c.Args = append([]string{"node"}, c.Args...)
					return desc.Run(ctx, c)
				}},
			change("taint NODE KEY[=VALUE]:EFFECT…", "Keep away what does not tolerate it; KEY- takes a taint away",
				"  atoll node taint isle3 gpu=only:NoSchedule\n  atoll node taint isle3 gpu-", 2, taintNode),
			{Use: "power NODE on|off|status", Min: 2, Max: 2, Short: "Switch a host by its management controller (spec.bmc); off cuts the power at once", Complete: verb.CompleteNodes,
				Example: "  atoll node power isle2 status\n  atoll node power isle2 off --yes",
				Flags:   func(fs *pflag.FlagSet) { fs.BoolVarP(&yes, "yes", "y", false, "do not ask") },
				Run:     func(ctx context.Context, c *verb.Call) error { return power(ctx, c, yes) }},
			{Use: "confirm-off NODE", Min: 1, Max: 1, Short: "Say that a lost host is switched off, so that what must not run twice may start elsewhere", Complete: verb.CompleteNodes,
				Example: "  atoll node confirm-off isle2\n  atoll node confirm-off isle2 --yes",
				Flags:   func(fs *pflag.FlagSet) { fs.BoolVarP(&off, "yes", "y", false, "do not ask") },
				Run:     func(ctx context.Context, c *verb.Call) error { return confirmOff(ctx, c, off) }},
			change("label NODE KEY=VALUE…", "Label a node; KEY- takes a label away", "  atoll node label isle1 disk=ssd rack-", 2, labelNode),
			nodeToken(), nodeTokens(), nodeRemove(), nodeRevoke(),
		}, own...),
	}
}

// changeNode changes the node named first; the change may look at the other arguments.
// confirmOff is an operator's word that a lost host is off: the last of the proofs by
// which what must not run twice is started elsewhere. It holds for this loss only.
func confirmOff(ctx context.Context, c *verb.Call, yes bool) error {
	name := strings.TrimPrefix(c.Args[0], "node/")
	obj, err := c.Get(ctx, api.NodeLease(name))
	if err != nil {
		return err
	}
	lease := obj.(*api.Lease)
	switch {
	case lease.Spec.State != api.LeaseExpired:
		return errs.New(errs.Conflict, "%s is not lost: its lease is %s", name, lease.Spec.State).WithHint("atoll get nodes; to take a host out of use: atoll drain %s", name)
	case lease.Spec.Proof != nil:
		c.Say("node/%s unchanged: it is known to run nothing that must not run twice (%s)", name, lease.Spec.Proof.By)
		return nil
	}
	if err := c.Confirm(yes, "if %s is not off, instances that must not run twice may do so, and lose data. Is it switched off?", name); err != nil {
		return err
	}
	c.Args = []string{name}
	return changeNode(ctx, c, func(_ *verb.Call, n *api.Node) error {
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[api.AnnotationOff] = strconv.FormatInt(lease.Spec.Epoch, 10)
		return nil
	})
}

func changeNode(ctx context.Context, c *verb.Call, fn func(c *verb.Call, n *api.Node) error) error {
	obj, err := c.Get(ctx, api.Ref{Kind: api.KindNode, Name: strings.TrimPrefix(c.Args[0], "node/")})
	if err != nil {
		return err
	}
	before := obj.(*api.Node)
	if err := fn(c, api.Clone(before)); err != nil {
		return err // before anything is written
	}
	n, err := verb.Update(ctx, c, before, func(n *api.Node) { _ = fn(c, n) }) // it passed above
	if err != nil {
		return err
	}
	if verb.Same(before, n) {
		c.Say("node/%s unchanged", n.Name)
		return nil
	}
	c.Say("node/%s changed", n.Name)
	return nil
}

func taintNode(c *verb.Call, n *api.Node) error {
	for _, a := range c.Args[1:] {
		if key, ok := strings.CutSuffix(a, "-"); ok {
			key, effect, _ := strings.Cut(key, ":")
			n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t api.Taint) bool {
				return t.Key == key && (effect == "" || strings.EqualFold(t.Effect, effect))
			})
			continue
		}
		t, err := parse.Taint("taint", a)
		if err != nil {
			return err
		}
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(old api.Taint) bool { return old.Key == t.Key && old.Effect == t.Effect })
		n.Spec.Taints = append(n.Spec.Taints, t)
	}
	return nil
}

func labelNode(c *verb.Call, n *api.Node) error {
	for _, a := range c.Args[1:] {
		if key, ok := strings.CutSuffix(a, "-"); ok && !strings.Contains(key, "=") {
			delete(n.Labels, key)
			continue
		}
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return errs.New(errs.Invalid, "%q is not a label", a).WithHint("write KEY=VALUE, or KEY- to take it away")
		}
		n.Labels = verb.With(n.Labels, k, v)
	}
	return nil
}

// power has a server switch a host, which can take a minute.
func power(ctx context.Context, c *verb.Call, yes bool) error {
	name, do := strings.TrimPrefix(c.Args[0], "node/"), c.Args[1]
	if !slices.Contains([]string{"on", "off", "status"}, do) {
		return errs.New(errs.Invalid, "%q is nothing a host can be switched to", do).WithHint("atoll node power %s on, off or status", name)
	}
	if do == "off" {
		if err := c.Confirm(yes, "cut the power of %s? What runs on it ends at once.", name); err != nil {
			return err
		}
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	a, err := cl.Power(ctx, name, api.PowerRequest{State: do})
	if err != nil {
		return err
	}
	c.Say("node/%s is %s, says its management controller", a.Node, a.State)
	return nil
}
