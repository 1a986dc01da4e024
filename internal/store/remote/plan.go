package remote

import (
	"context"
	"encoding/json"
	"net/url"

	"atoll/api"
	"atoll/internal/errs"
)

// Power switches a host by its management controller, or looks; it returns what that says in the end.
func (s *Store) Power(ctx context.Context, node string, req api.PowerRequest) (api.PowerAnswer, error) {
	var out api.PowerAnswer
	b, err := json.Marshal(req)
	if err != nil {
		return out, errs.New(errs.Internal, "encode: %w", err)
	}
	err = s.json(ctx, request{method: "POST", path: "/v1/nodes/" + url.PathEscape(node) + "/power", body: b}, &out)
	return out, err
}

// Plan asks what would be; nothing is changed. The tenant is the one of objects that name none.
func (s *Store) Plan(ctx context.Context, tenant string, req api.PlanRequest) (api.PlanAnswer, error) {
	var out api.PlanAnswer
	b, err := json.Marshal(req)
	if err != nil {
		return out, errs.New(errs.Internal, "encode plan: %w", err)
	}
	q := url.Values{}
	if tenant != "" {
		q.Set("tenant", tenant)
	}
	err = s.json(ctx, request{method: "POST", path: "/v1/plan", query: q, body: b, safe: true, slow: true}, &out)
	return out, err
}
