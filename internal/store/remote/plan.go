package remote

import (
	"context"
	"encoding/json"
	"net/url"

	"atoll/api"
	"atoll/internal/errs"
)

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
