// Package pool holds the verbs of those who run a pool, a group for each subject:
// tenant, node, image, user, role, token.
//
// It starts no goroutine. It must never print a secret but the one a new token is.
package pool

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/object"
	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

type tenantOptions struct {
	guarantee, limit []string
	weight           int64
	suspend, resume  bool
}

func (o *tenantOptions) flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&o.guarantee, "guarantee", nil, "always there when asked for: cpu=1,memory=2Gi")
	fs.StringArrayVar(&o.limit, "limit", nil, "ceiling on what is used, and on counts: cpu=4,memory=8Gi,instances=50")
	fs.Int64Var(&o.weight, "weight", 0, "share of what is idle, against its neighbours (default 100)")
}

// Tenant is the group of verbs about tenants.
func Tenant() verb.Def {
	create, set, list := &tenantOptions{}, &tenantOptions{}, &render.Output{}
	return verb.Def{
		Use: "tenant", Group: verb.GroupPool, Aliases: []string{"tenants"}, Short: "Tenants: who shares the pool, and how",
		Example: "  atoll tenant create acme --guarantee cpu=1,memory=2Gi --limit cpu=4\n  atoll tenant tree",
		Sub: []verb.Def{
			{Use: "create NAME[/NAME…]", Min: 1, Max: 1, Short: "Make a tenant; NAME/NESTED lives from NAME's share",
				Example: "  atoll tenant create acme --guarantee cpu=1,memory=2Gi --limit cpu=4,memory=8Gi,instances=50 --weight 100\n  atoll tenant create acme/research --guarantee cpu=500m,memory=1Gi",
				Flags:   create.flags, Run: create.create},
			{Use: "list", Aliases: []string{"ls"}, Short: "List tenants", Example: "  atoll tenant list -o wide", Flags: list.Flags,
				Run: func(ctx context.Context, c *verb.Call) error { return object.ListKind(ctx, c, api.KindTenant, *list) }},
			{Use: "set NAME", Min: 1, Max: 1, Short: "Change what a tenant is promised and allowed",
				Long:    "Set changes the amounts that are named and leaves the others. An amount of - takes it away: --limit memory=-.",
				Example: "  atoll tenant set acme --limit cpu=8 --weight 200\n  atoll tenant set acme --suspend",
				Flags: func(fs *pflag.FlagSet) {
					set.flags(fs)
					fs.BoolVar(&set.suspend, "suspend", false, "nothing new may be created or started in it")
					fs.BoolVar(&set.resume, "resume", false, "take a suspension back")
				}, Run: set.set, Complete: verb.CompleteTenants},
			object.DeleteOf(api.KindTenant, "Remove a tenant; it must hold nothing any more"),
			{Use: "tree", Short: "Show who is nested in whom", Example: "  atoll tenant tree", Run: tenantTree},
		},
	}
}

func (o *tenantOptions) create(ctx context.Context, c *verb.Call) error {
	t := &api.Tenant{Head: api.Head{K: api.KindTenant}}
	t.Name = strings.Trim(c.Args[0], "/")
	t.Spec.Weight = o.weight
	var err error
	if t.Spec.Guarantee, err = parse.Amounts("guarantee", nil, o.guarantee); err != nil {
		return err
	}
	if t.Spec.Limit, err = parse.Amounts("limit", nil, o.limit); err != nil {
		return err
	}
	return createAndSay(ctx, c, t)
}

func createAndSay(ctx context.Context, c *verb.Call, o api.Object) error {
	if err := api.Check(o); err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	if _, err := cl.Create(ctx, o); err != nil {
		return err
	}
	c.Say("%s created", render.ShortRef(o))
	return nil
}

func (o *tenantOptions) set(ctx context.Context, c *verb.Call) error {
	if o.suspend && o.resume {
		return errs.New(errs.Invalid, "--suspend and --resume exclude each other")
	}
	obj, err := c.Get(ctx, api.Ref{Kind: api.KindTenant, Name: strings.Trim(c.Args[0], "/")})
	if err != nil {
		return err
	}
	var bad error
	n, err := verb.Update(ctx, c, obj.(*api.Tenant), func(t *api.Tenant) {
		var err1, err2 error
		t.Spec.Guarantee, err1 = parse.Amounts("guarantee", t.Spec.Guarantee, o.guarantee)
		t.Spec.Limit, err2 = parse.Amounts("limit", t.Spec.Limit, o.limit)
		if bad = err1; bad == nil {
			bad = err2
		}
		if c.Flags.Changed("weight") {
			t.Spec.Weight = o.weight
		}
		t.Spec.Suspended = (t.Spec.Suspended || o.suspend) && !o.resume
		if bad != nil {
			t.Spec = obj.(*api.Tenant).Spec // change nothing
		}
	})
	if bad != nil {
		return bad
	}
	if err != nil {
		return err
	}
	c.Say("%s: guarantee %s, limit %s, weight %d%s", n.Name, render.Dash(n.Spec.Guarantee.String()), render.Dash(n.Spec.Limit.String()),
		n.Spec.EffectiveWeight(), map[bool]string{true: ", suspended"}[n.Spec.Suspended])
	return nil
}

func tenantTree(ctx context.Context, c *verb.Call) error {
	list, err := verb.List[*api.Tenant](ctx, c, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b *api.Tenant) int { // a parent before its own, neighbours by name
		return slices.Compare(strings.Split(a.Name, "/"), strings.Split(b.Name, "/"))
	})
	t := &render.Table{Head: []string{"TENANT", "GUARANTEE", "LIMIT", "WEIGHT"}}
	for i, n := range list {
		depth := strings.Count(n.Name, "/")
		name := n.Name[strings.LastIndexByte(n.Name, '/')+1:]
		if depth > 0 {
			lastOne := true
			for _, later := range list[i+1:] {
				if api.ParentTenant(later.Name) == api.ParentTenant(n.Name) {
					lastOne = false
				}
			}
			branch := "├─ "
			if lastOne {
				branch = "└─ "
			}
			name = strings.Repeat("   ", depth-1) + branch + name
		}
		t.Row(name, render.Brief(n.Spec.Guarantee), render.Brief(n.Spec.Limit), fmt.Sprint(n.Spec.EffectiveWeight()))
	}
	fmt.Fprint(c.Out, t.Text(true))
	return nil
}
