package remote

import (
	"context"
	"encoding/json"
	"net/url"

	"atoll/api"
	"atoll/internal/errs"
)

// TakePart asks for this host's part in keeping the state; for the host itself only.
func (s *Store) TakePart(ctx context.Context, node string, req api.TakePartRequest) (*api.TakePartAnswer, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode request: %w", err)
	}
	var ans api.TakePartAnswer
	if err := s.json(ctx, request{method: "POST", path: "/v1/members/" + url.PathEscape(node) + "/part", body: b}, &ans); err != nil {
		return nil, err
	}
	return &ans, nil
}

// TellVersion tells which versions a host that runs no instances has, and gives what it
// is to do about that: an upgrade with its line only.
func (s *Store) TellVersion(ctx context.Context, node string, st api.NodeIdentityStatus) (*api.Upgrade, error) {
	b, err := json.Marshal(st)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode request: %w", err)
	}
	o, err := s.object(ctx, request{method: "POST", path: "/v1/nodeidentities/" + url.PathEscape(node) + "/version", body: b, safe: true}, api.KindUpgrade)
	if err != nil {
		return nil, err
	}
	return o.(*api.Upgrade), nil
}
