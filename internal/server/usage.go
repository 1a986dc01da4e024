package server

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/server/gather"
)

// usage asks all nodes, adds up, and cuts the sum to what the caller may see.
func (c *call) usage() error {
	tenant := c.r.URL.Query().Get("tenant")
	c.ref.Tenant = tenant
	out, err := c.Usage(c.r.Context())
	if err != nil {
		return err
	}
	if err := gather.Limits(c.r.Context(), c.Store, &out); err != nil {
		return err
	}
	c.cut(&out, tenant)
	return c.json(http.StatusOK, out)
}

// Usage asks all nodes that are connected to this server what they use, and adds up.
func (s *Server) Usage(ctx context.Context) (api.UsageReport, error) {
	return gather.Usage(ctx, s.Hub, s.Clock, s.Log), nil
}

// cut leaves what the caller may see, and of that what is in tenant.
func (c *call) cut(out *api.UsageReport, tenant string) {
	if !c.Auth.Allowed(c.id, api.VerbList, api.KindNode, "") {
		out.Nodes = []api.NodeUsage{}
	}
	may := func(t string) bool {
		return api.WithinTenant(t, tenant) && c.Auth.Allowed(c.id, api.VerbList, api.KindInstance, t)
	}
	out.Tenants = slices.DeleteFunc(out.Tenants, func(t api.TenantUsage) bool { return t.Tenant == "" || !may(t.Tenant) })
	out.Instances = slices.DeleteFunc(out.Instances, func(i api.InstanceUsage) bool {
		return strings.TrimSpace(i.Ref.Tenant) == "" || !may(i.Ref.Tenant)
	})
}
