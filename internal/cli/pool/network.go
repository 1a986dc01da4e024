package pool

import (
	"context"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/object"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
)

type networkOptions struct {
	spec   api.NetworkSpec
	closed bool
}

func (o *networkOptions) flags(fs *pflag.FlagSet) {
	fs.StringVar(&o.spec.CIDR, "cidr", "", "IPv4 addresses of its instances, such as 10.1.0.0/16; the first is the gateway (default 10.1.0.0/16, unless --cidr6 is given)")
	fs.StringVar(&o.spec.CIDR6, "cidr6", "", "IPv6 addresses of its instances, such as fd00:1::/64")
	fs.StringVar(&o.spec.Egress, "egress", "", "how instances reach what is outside: nat, direct (by their own addresses; it needs the right network:direct) or none (default nat)")
	fs.BoolVar(&o.closed, "closed", false, "instances reach each other only where a security group allows it")
	fs.IntVar(&o.spec.MTU, "mtu", 0, "largest packet in bytes; 0: as large as the hosts' network lets it be")
	fs.StringVar(&o.spec.Domain, "domain", "", "DNS domain of its instances (default NETWORK.TENANT."+api.NetworkDomain+")")
	fs.Uint32Var(&o.spec.VNI, "vni", 0, "its number between hosts; choosing it needs the right network:vni (default: the next free one)")
}

// Network is the group of verbs about networks of tenants.
func Network() verb.Def {
	create, list := &networkOptions{}, &render.Output{}
	return verb.Def{
		Use: "network", Group: verb.GroupPool, Aliases: []string{"networks"}, Short: "Networks: a tenant's own, over all hosts",
		Example: "  atoll network create main --cidr 10.1.0.0/16\n  atoll run -d --network main --name web busybox httpd -f",
		Sub: append([]verb.Def{
			{Use: "create NAME", Min: 1, Max: 1, Short: "Make a network of the tenant",
				Long:    "Instances with --network NAME reach each other on whichever host they are, and nobody else. Other tenants\nmay have networks with the same addresses. Who may reach whom inside is refined by security groups: atoll explain securitygroup",
				Example: "  atoll network create main\n  atoll network create back --cidr 10.2.0.0/16 --cidr6 fd00:2::/64 --egress none --closed",
				Flags:   create.flags, Run: create.create},
			{Use: "list", Aliases: []string{"ls"}, Short: "List networks", Example: "  atoll network list -o wide", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindNetwork, *list) }},
			object.DeleteOf(api.KindNetwork, "Remove a network; it goes when no instance is on it any more"),
		}, append(peerVerbs(), routeVerbs())...),
	}
}

func (o *networkOptions) create(ctx context.Context, c *verb.Call) error {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return err
	}
	n := &api.Network{Head: api.Head{K: api.KindNetwork, Meta: api.Meta{Name: c.Args[0], Tenant: tenant}}, Spec: o.spec}
	if n.Spec.CIDR == "" && n.Spec.CIDR6 == "" {
		n.Spec.CIDR = "10.1.0.0/16"
	}
	if o.closed {
		n.Spec.Isolation = "closed"
	}
	return createAndSay(ctx, c, n)
}
