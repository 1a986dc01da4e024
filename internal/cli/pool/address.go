package pool

import (
	"context"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/object"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

type addressOptions struct {
	spec   api.AddressSpec
	detach bool
}

func (o *addressOptions) create(fs *pflag.FlagSet) {
	fs.StringVar(&o.spec.Pool, "pool", "", "address pool it comes from (default: the first that the tenant may use and that has one left)")
	fs.StringVar(&o.spec.Address, "address", "", "which one, such as 203.0.113.10 (default: the next free one)")
	fs.StringVar(&o.spec.Instance, "instance", "", "instance that it leads to")
	o.network(fs)
}

func (o *addressOptions) network(fs *pflag.FlagSet) {
	fs.StringVar(&o.spec.Network, "network", "", "network of the instance on which it arrives (default: its first)")
}

// Address is the group of verbs about floating addresses.
func Address() verb.Def {
	create, attach, list := &addressOptions{}, &addressOptions{}, &render.Output{}
	addresses, _ := api.Lookup(string(api.KindAddress))
	names := func(ctx context.Context, c *verb.Call, _ string) []string {
		if len(c.Args) == 1 {
			return c.NamesOf(ctx, api.KindInstance)
		}
		return c.Names(ctx, addresses)
	}
	return verb.Def{
		Use: "address", Group: verb.GroupPool, Aliases: []string{"addresses"}, Short: "Floating addresses: of the physical network, and go with an instance",
		Example: "  atoll address create public --instance web\n  atoll address attach public web2\n  atoll address list",
		Sub: []verb.Def{
			{Use: "create NAME", Min: 1, Max: 1, Short: "Get an address for the tenant, and bind it to an instance",
				Long:    "What comes to the address reaches the instance, on whichever host it is, as far as its security groups let it; what\nthe instance sends out has it for its source. When the instance moves, or its host is lost, the address goes along.",
				Example: "  atoll address create public\n  atoll address create public --pool dmz --address 203.0.113.10 --instance web",
				Flags:   create.create, Run: create.make},
			{Use: "attach NAME INSTANCE", Min: 2, Max: 2, Short: "Lead an address to an instance, from now on", Example: "  atoll address attach public web2",
				Flags: attach.network, Run: attach.bind, Complete: names},
			{Use: "detach NAME", Min: 1, Max: 1, Short: "Keep an address without leading it anywhere", Example: "  atoll address detach public",
				Run: (&addressOptions{detach: true}).bind, Complete: names},
			{Use: "list", Aliases: []string{"ls"}, Short: "List addresses", Example: "  atoll address list -o wide", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindAddress, *list) }},
			object.DeleteOf(api.KindAddress, "Give addresses back"),
			addressPool(),
		},
	}
}

func addressPool() verb.Def {
	o, list := &api.AddressPoolSpec{}, &render.Output{}
	return verb.Def{Use: "pool", Aliases: []string{"pools"}, Short: "Address pools: where floating addresses come from",
		Example: "  atoll address pool create dmz 203.0.113.8/29",
		Sub: []verb.Def{
			{Use: "create NAME PREFIX…", Min: 2, Max: -1, Short: "Let tenants have addresses of the physical network",
				Long:    "Hosts answer for the addresses by ARP, on the interface whose network they are part of, or else that of the default route. No\nother machine, nor DHCP, may have them. The hosts' own addresses are never given.",
				Example: "  atoll address pool create dmz 203.0.113.8/29\n  atoll address pool create acme 198.51.100.16/28 --exclude 198.51.100.16/32 --tenant acme",
				Flags: func(fs *pflag.FlagSet) {
					fs.StringSliceVar(&o.Exclude, "exclude", nil, "parts that are not to be given")
					fs.StringSliceVar(&o.Tenants, "tenant", nil, "tenants that may use it, with those below them (default: all)")
				},
				Run: func(ctx context.Context, c *verb.Call) error {
					p := &api.AddressPool{Head: api.Head{K: api.KindAddressPool, Meta: api.Meta{Name: c.Args[0]}}, Spec: *o}
					p.Spec.Prefixes = c.Args[1:]
					return createAndSay(ctx, c, p)
				}},
			{Use: "list", Aliases: []string{"ls"}, Short: "List address pools", Example: "  atoll address pool list", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error {
					return object.ListKind(ctx, c, api.KindAddressPool, *list)
				}},
			object.DeleteOf(api.KindAddressPool, "Give out no more addresses of a pool; those that are given stay"),
		}}
}

func (o *addressOptions) make(ctx context.Context, c *verb.Call) error {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return err
	}
	a := &api.Address{Head: api.Head{K: api.KindAddress, Meta: api.Meta{Name: c.Args[0], Tenant: tenant}}, Spec: o.spec}
	if err := createAndSay(ctx, c, a); err != nil {
		return err
	}
	return o.tell(ctx, c, api.RefOf(a), func(a *api.Address) bool { return true })
}

func (o *addressOptions) bind(ctx context.Context, c *verb.Call) error {
	tenant, err := c.Tenant(ctx)
	if err != nil {
		return err
	}
	obj, err := c.Get(ctx, api.Ref{Kind: api.KindAddress, Tenant: tenant, Name: c.Args[0]})
	if err != nil {
		return err
	}
	to := ""
	if !o.detach {
		to = c.Args[1]
		if _, err := c.Get(ctx, api.Ref{Kind: api.KindInstance, Tenant: tenant, Name: to}); err != nil {
			return err
		}
	}
	uid := ""
	n, err := verb.Update(ctx, c, obj.(*api.Address), func(a *api.Address) {
		if uid = ""; a.Spec.Instance != to {
			uid = a.Status.InstanceUID
		}
		a.Spec.Instance, a.Spec.Network = to, o.spec.Network
	})
	if err != nil {
		return err
	}
	return o.tell(ctx, c, api.RefOf(n), func(a *api.Address) bool { return uid == "" || a.Status.InstanceUID != uid })
}

// settled is how long the pool may take to say what became of an address.
const settled = 5 * time.Second

// tell waits until the pool has looked at the address, and says what it is now.
func (o *addressOptions) tell(ctx context.Context, c *verb.Call, ref api.Ref, seen func(*api.Address) bool) error {
	return c.Within(ctx, settled, "the pool to look at it", func(ctx context.Context) error {
		return c.WaitFor(ctx, ref, func(obj api.Object, gone bool) (bool, error) {
			if gone {
				return false, errs.New(errs.NotFound, "%s has been removed meanwhile", ref)
			}
			a := obj.(*api.Address)
			if len(a.Status.Conditions) == 0 || !seen(a) {
				return false, nil
			}
			switch r := a.Ready(); {
			case r.Status:
				c.Say("%s leads to %s on %s", a.Status.Address, a.Spec.Instance, a.Status.Node)
			case a.Status.Address != "":
				c.Say("%s is yours; %s", a.Status.Address, r.Message)
			default:
				c.Note("it waits: %s", r.Message)
			}
			return true, nil
		})
	})
}
