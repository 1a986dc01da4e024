package remote

import (
	"context"
	"encoding/json"
	"net/url"

	"atoll/api"
	"atoll/internal/errs"
)

// JoinInfo asks what a host must know to join.
func (s *Store) JoinInfo(ctx context.Context) (api.JoinInfo, error) {
	var out api.JoinInfo
	err := s.json(ctx, request{method: "GET", path: "/v1/join"}, &out)
	return out, err
}

// RemoveNode takes a host out of the pool: force although instances are assigned to
// it, off when it is known to be switched off.
func (s *Store) RemoveNode(ctx context.Context, name string, force, off bool) error {
	path, q, err := place(api.Ref{Kind: api.KindNode, Name: name})
	if err != nil {
		return err
	}
	if force {
		q.Set("force", "true")
	}
	if off {
		q.Set("off", "true")
	}
	_, err = s.object(ctx, request{method: "DELETE", path: path, query: q}, api.KindNode)
	return err
}

// RevokeNode turns the key of a host away.
func (s *Store) RevokeNode(ctx context.Context, name, why string) error {
	b, err := json.Marshal(api.Revocation{Why: why})
	if err != nil {
		return errs.New(errs.Internal, "encode revocation: %w", err)
	}
	_, err = s.object(ctx, request{method: "POST", path: "/v1/nodes/" + url.PathEscape(name) + "/revoke", body: b}, api.KindNodeIdentity)
	return err
}
