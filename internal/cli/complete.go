package cli

import (
	"context"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/store"
)

// completeTime bounds how long a key press may take.
const completeTime = time.Second

// names lists the names of a kind for completion: nothing when that takes long or is not allowed.
func (c *call) names(ctx context.Context, d *api.Definition) []string {
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	cl, err := c.server()
	if err != nil {
		return nil
	}
	sel := api.Selector{Kind: d.Kind, Limit: 500}
	if d.Tenanted {
		if sel.Tenant, err = c.tenant(ctx); err != nil {
			return nil
		}
	}
	objs, _, err := cl.List(ctx, sel)
	if err != nil {
		return nil
	}
	var out []string
	for _, o := range objs {
		out = append(out, o.Metadata().Name)
	}
	return out
}

func (c *call) namesOf(ctx context.Context, k api.Kind) []string {
	d, _ := api.Lookup(string(k))
	return c.names(ctx, d)
}

// completeObjects completes KIND, KIND/NAME and, after a kind, names.
func completeObjects(ctx context.Context, c *call, typed string) []string {
	if len(c.args) > 0 && !strings.Contains(c.args[0], "/") {
		if d, ok := api.Lookup(c.args[0]); ok {
			return c.names(ctx, d)
		}
		return nil
	}
	kind, _, has := strings.Cut(typed, "/")
	if !has {
		var out []string
		for _, d := range api.Definitions() {
			if len(c.args) == 0 {
				out = append(out, d.Plural)
			}
			out = append(out, d.Singular()+"/")
		}
		return out
	}
	d, ok := api.Lookup(kind)
	if !ok {
		return nil
	}
	var out []string
	for _, n := range c.names(ctx, d) {
		out = append(out, kind+"/"+n)
	}
	return out
}

// completeInstances completes the first so many arguments; -1: all.
func completeInstances(count int) func(context.Context, *call, string) []string {
	return func(ctx context.Context, c *call, _ string) []string {
		if count >= 0 && len(c.args) >= count {
			return nil
		}
		return c.namesOf(ctx, api.KindInstance)
	}
}

func completeTenants(ctx context.Context, c *call, _ string) []string {
	if len(c.args) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	names, err := c.tenants(ctx)
	if err != nil {
		return nil
	}
	return names
}

func completeNodes(ctx context.Context, c *call, _ string) []string {
	return c.namesOf(ctx, api.KindNode)
}

func completeUsers(ctx context.Context, c *call, _ string) []string {
	return c.namesOf(ctx, api.KindUser)
}

func completeUserRole(ctx context.Context, c *call, _ string) []string {
	if len(c.args) == 0 {
		return c.namesOf(ctx, api.KindUser)
	}
	return c.namesOf(ctx, api.KindRole)
}

func completeImages(ctx context.Context, c *call, _ string) []string {
	if len(c.args) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	tenant, err := c.tenant(ctx)
	if err != nil {
		return nil
	}
	cl, err := c.server()
	if err != nil {
		return nil
	}
	list, _, err := store.List[*api.Image](ctx, cl, api.Selector{Kind: api.KindImage, Tenant: tenant, Limit: 500})
	if err != nil {
		return nil
	}
	var out []string
	for _, i := range list {
		out = append(out, i.Spec.Reference)
	}
	return out
}
