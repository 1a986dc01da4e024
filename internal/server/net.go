package server

import (
	"context"
	"encoding/json"
	"net/http"

	"atoll/api"
	"atoll/internal/server/insight"
	"atoll/internal/tunnel"
)

// netRoutes are questions about traffic on networks of tenants.
func (s *Server) netRoutes() (out []*Route) {
	for _, row := range insight.Rows() {
		rt := &Route{Method: "GET", Path: row.Path, ID: row.ID, Doc: row.Doc, Verb: row.Verb, Def: def(row.Kind), Query: append([]Param{paramTenant}, row.Params...), Answer: typeJSON, Result: row.Result}
		if row.Answer == nil {
			rt.Answer, rt.Socket, rt.Long = "", true, true
		}
		rt.handle = func(c *call) error {
			q := c.r.URL.Query()
			c.ref.Tenant = q.Get("tenant")
			a := &insight.Asker{Store: c.Store, Hub: c.Hub, Clock: c.Clock, Tenant: c.ref.Tenant, May: func(v api.Verb, k api.Kind, t string) bool { return c.Auth.Allowed(c.id, v, k, t) }}
			if row.Answer == nil {
				return c.socket(func(ctx context.Context, _ json.RawMessage) (*tunnel.Stream, error) { return a.Follow(ctx, q) })
			}
			v, err := row.Answer(a, c.r.Context(), q)
			if err != nil {
				return err
			}
			return c.json(http.StatusOK, v)
		}
		out = append(out, rt)
	}
	return out
}
