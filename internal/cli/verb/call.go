package verb

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// Config is the settings file, read at the first use.
func (c *Call) Config() (*conn.File, error) {
	if c.file != nil {
		return c.file, nil
	}
	f, err := conn.Load(c.Home)
	if err == nil {
		c.file = f
	}
	return f, err
}

// settings are those of this call.
func (c *Call) settings() (conn.Settings, error) {
	f, err := c.Config()
	if err != nil {
		return conn.Settings{}, err
	}
	s, err := c.Global.Settings(f, c.Getenv)
	if err != nil {
		return conn.Settings{}, err
	}
	s.UserAgent = c.Agent()
	s.Memory = conn.MemoryPath(c.Home)
	if c.Global.Verbose {
		s.Trace = func(line string) { c.Note("%s", line) }
	}
	return s, nil
}

// Agent is how a server sees this program.
func (c *Call) Agent() string { return "atoll/" + cmp.Or(c.Version, "dev") }

// Server gives the connection, made at the first use.
func (c *Call) Server() (conn.Client, error) {
	if c.client != nil {
		return c.client, nil
	}
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	if c.client, err = c.Dial(s); err != nil {
		c.client = nil
		return nil, err
	}
	return c.client, nil
}

// ChosenTenant is the tenant named by flag, environment or file; "" if none is.
func (c *Call) ChosenTenant() (string, error) {
	f, err := c.Config()
	if err != nil {
		return "", err
	}
	t := strings.Trim(cmp.Or(c.Global.Tenant, c.Getenv("ATOLL_TENANT"), f.Tenant), "/")
	if t != "" && !api.ValidTenantPath(t) {
		return "", errs.InvalidFields("tenant", []errs.Field{{Field: "--tenant", Value: t, Rule: "must be names joined by /", Example: "acme/research"}})
	}
	return t, nil
}

// Tenant is the tenant that is meant: the chosen one, or the only one there is.
func (c *Call) Tenant(ctx context.Context) (string, error) {
	t, err := c.ChosenTenant()
	if err != nil || t != "" {
		return t, err
	}
	names, err := c.tenants(ctx)
	if err != nil {
		return "", err
	}
	switch len(names) {
	case 1:
		return names[0], nil
	case 0:
		return "", errs.New(errs.Invalid, "there is no tenant yet").WithHint("atoll tenant create NAME")
	}
	return "", errs.New(errs.Invalid, "which tenant? there are %s", strings.Join(names[:min(len(names), 8)], ", ")).
		WithHint("choose one: atoll use %s (or --tenant %s for this call)", names[0], names[0])
}

// tenants lists the tenants the caller may see.
func (c *Call) tenants(ctx context.Context) ([]string, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	list, _, err := store.List[*api.Tenant](ctx, cl, api.Selector{Kind: api.KindTenant})
	if err != nil {
		if errs.KindOf(err) != errs.Denied {
			return nil, err
		}
		id, err := cl.WhoAmI(ctx) // somebody of one tenant may not list them all
		return id.Tenants, err
	}
	var names []string
	for _, t := range list {
		if t.DeletedAt == nil {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Close gives the connection back, if one was made.
func (c *Call) Close() {
	if c.client != nil {
		_ = c.client.Close() // the work is done; a failed goodbye changes nothing
	}
}
