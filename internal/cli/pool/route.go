package pool

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/object"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/store"
)

type routeOptions struct {
	via  string
	hole bool
	name string
}

func routeVerbs() verb.Def {
	o, list := &routeOptions{}, &render.Output{}
	return verb.Def{Use: "route", Aliases: []string{"routes"}, Short: "Routes: ways out of a network by one of its instances",
		Example: "  atoll network route add main 192.168.0.0/16 --via vpn",
		Sub: []verb.Def{
			{Use: "add NETWORK DESTINATION", Min: 2, Max: 2, Short: "Send what is for some addresses to an instance, or nowhere",
				Long:    "The instance may then send and receive for these addresses, and its kernel forwards. Rules of security groups know them\nas outside: cidr. It is followed when it moves to another host.",
				Example: "  atoll network route add main 192.168.0.0/16 --via vpn\n  atoll network route add main 198.51.100.0/24 --blackhole", Complete: completeNetwork,
				Flags: func(fs *pflag.FlagSet) {
					fs.StringVar(&o.via, "via", "", "next hop: an instance on the network, or an address of it")
					fs.BoolVar(&o.hole, "blackhole", false, "nothing is sent there")
					fs.StringVar(&o.name, "name", "", "name of the route (default: of its network and destination)")
				}, Run: o.add},
			{Use: "list", Aliases: []string{"ls"}, Short: "List routes", Example: "  atoll network route list -o wide", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindRoute, *list) }},
			{Use: "delete NETWORK DESTINATION", Aliases: []string{"rm", "remove"}, Min: 2, Max: 2, Short: "Take a route away",
				Example: "  atoll network route delete main 192.168.0.0/16", Run: deleteRoute, Complete: completeNetwork},
		}}
}

func (o *routeOptions) add(ctx context.Context, c *verb.Call) error {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return err
	}
	r := &api.Route{Head: api.Head{K: api.KindRoute, Meta: api.Meta{Name: o.name, Tenant: tenant}}, Spec: api.RouteSpec{Network: c.Args[0], Destination: c.Args[1], Via: o.via, Blackhole: o.hole}}
	if r.Name == "" {
		r.Name = routeName(c.Args[0], r.Spec.Prefix())
	}
	if err := createAndSay(ctx, c, r); err != nil {
		return err
	}
	if r.Spec.Blackhole || r.Spec.Hop().IsValid() {
		return nil
	}
	in, err := c.Get(ctx, api.Ref{Kind: api.KindEndpoint, Tenant: tenant, Name: o.via})
	if e, ok := in.(*api.Endpoint); errs.KindOf(err) == errs.NotFound || ok && err == nil && !on(e, c.Args[0]) {
		fmt.Fprintf(c.Err, "nothing is sent there before there is an instance %s on network %s\n", o.via, c.Args[0])
	}
	return nil
}

func on(e *api.Endpoint, network string) bool {
	for _, i := range e.Spec.Interfaces {
		if i.Network == network {
			return true
		}
	}
	return false
}

// routeName is a name that says network and destination.
func routeName(network string, to netip.Prefix) string {
	if !to.IsValid() {
		return "route" // what is wrong is said when it is checked
	}
	s := network + "--" + strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(strings.ReplaceAll(to.String(), "::", "-0-"))
	return strings.Trim(s, "-")
}

func deleteRoute(ctx context.Context, c *verb.Call) error {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return err
	}
	want := (&api.RouteSpec{Destination: c.Args[1]}).Prefix()
	if !want.IsValid() {
		return errs.InvalidFields("route", []errs.Field{{Field: "DESTINATION", Value: c.Args[1], Rule: "must be an address, / and a length", Example: "192.168.0.0/16"}})
	}
	all, err := verb.List[*api.Route](ctx, c, api.Selector{Kind: api.KindRoute, Tenant: tenant})
	if err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	found := false
	for _, r := range all {
		if r.Spec.Network != c.Args[0] || r.Spec.Prefix() != want {
			continue
		}
		if err := cl.Delete(ctx, api.RefOf(r), store.Any); err != nil && errs.KindOf(err) != errs.NotFound {
			return err
		}
		found = true
		c.Say("%s deleted", render.ShortRef(r))
	}
	if !found {
		return errs.New(errs.NotFound, "network %s of tenant %s has no route to %s", c.Args[0], tenant, want).WithHint("atoll network route list --tenant %s lists those there are", tenant)
	}
	return nil
}
