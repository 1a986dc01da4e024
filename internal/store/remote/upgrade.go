package remote

import (
	"context"
	"encoding/json"
	"io"
	"net/url"

	"atoll/api"
	"atoll/internal/errs"
)

// Upgrade asks for a step of an upgrade of the pool.
func (s *Store) Upgrade(ctx context.Context, req api.UpgradeRequest) (*api.Upgrade, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode request: %w", err)
	}
	var up api.Upgrade
	if err := s.json(ctx, request{method: "POST", path: "/v1/upgrade", body: b}, &up); err != nil {
		return nil, err
	}
	return &up, nil
}

// SendVersion gives a server the programs of a version, as a tar; version "" is whatever
// they say they are.
func (s *Store) SendVersion(ctx context.Context, version string, r io.Reader) (api.UpgradeUpload, error) {
	var up api.UpgradeUpload
	if version == "" {
		version = "-"
	}
	in := request{method: "POST", path: "/v1/upgrade/" + url.PathEscape(version) + "/files", stream: r, header: map[string]string{"Content-Type": "application/octet-stream"}}
	err := s.json(ctx, in, &up)
	return up, err
}
