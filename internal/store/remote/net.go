package remote

import (
	"context"
	"net/url"
)

// Net asks about traffic on networks of tenants: why, check, flows, map or hits.
func (s *Store) Net(ctx context.Context, what string, q url.Values, out any) error {
	return s.json(ctx, request{method: "GET", path: "/v1/net/" + url.PathEscape(what), query: q, slow: true}, out)
}

// NetFlows opens a stream of new and refused flows.
func (s *Store) NetFlows(ctx context.Context, q url.Values) (*Conn, error) {
	return s.Stream(ctx, "/v1/net/flows/stream", q, struct{}{})
}
