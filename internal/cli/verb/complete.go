package verb

import (
	"context"
	"strings"
	"time"

	"atoll/api"
)

// completeTime bounds how long a key press may take.
const completeTime = time.Second

// Names lists the names of a kind for completion: nothing when that takes long or is not allowed.
func (c *Call) Names(ctx context.Context, d *api.Definition) []string {
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	cl, err := c.Server()
	if err != nil {
		return nil
	}
	sel := api.Selector{Kind: d.Kind, Limit: 500}
	if d.Tenanted {
		if sel.Tenant, err = c.Tenant(ctx); err != nil {
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

// NamesOf is Names of a kind by its name.
func (c *Call) NamesOf(ctx context.Context, k api.Kind) []string {
	d, _ := api.Lookup(string(k))
	return c.Names(ctx, d)
}

// CompleteObjects completes KIND, KIND/NAME and, after a kind, names.
func CompleteObjects(ctx context.Context, c *Call, typed string) []string {
	if len(c.Args) > 0 && !strings.Contains(c.Args[0], "/") {
		if d, ok := api.Lookup(c.Args[0]); ok {
			return c.Names(ctx, d)
		}
		return nil
	}
	kind, _, has := strings.Cut(typed, "/")
	if !has {
		var out []string
		for _, d := range api.Definitions() {
			if len(c.Args) == 0 {
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
	for _, n := range c.Names(ctx, d) {
		out = append(out, kind+"/"+n)
	}
	return out
}

// CompleteInstances completes the first so many arguments; -1: all.
func CompleteInstances(count int) func(context.Context, *Call, string) []string {
	return func(ctx context.Context, c *Call, _ string) []string {
		if count >= 0 && len(c.Args) >= count {
			return nil
		}
		return c.NamesOf(ctx, api.KindInstance)
	}
}

// CompleteTenants completes one tenant.
func CompleteTenants(ctx context.Context, c *Call, _ string) []string {
	if len(c.Args) > 0 {
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

// CompleteNodes completes nodes.
func CompleteNodes(ctx context.Context, c *Call, _ string) []string {
	return c.NamesOf(ctx, api.KindNode)
}

// CompleteUsers completes users.
func CompleteUsers(ctx context.Context, c *Call, _ string) []string {
	return c.NamesOf(ctx, api.KindUser)
}

// CompleteUserRole completes a user and then a role.
func CompleteUserRole(ctx context.Context, c *Call, _ string) []string {
	if len(c.Args) == 0 {
		return c.NamesOf(ctx, api.KindUser)
	}
	return c.NamesOf(ctx, api.KindRole)
}

// CompleteImages completes the reference of one image.
func CompleteImages(ctx context.Context, c *Call, _ string) []string {
	if len(c.Args) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	list, err := c.Images(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, i := range list {
		out = append(out, i.Spec.Reference)
	}
	return out
}
