package etcdstore

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"atoll/internal/errs"
)

// explain gives an error of etcd its kind. ctx is the caller's own context.
func (s *Store) explain(ctx context.Context, step string, err error) error {
	if err == nil {
		return nil
	}
	if cause := ctx.Err(); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return errs.New(errs.Timeout, "%s: %w", step, cause)
		}
		return cause // the caller gave up: its own doing
	}
	err = rpctypes.Error(err)
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return errs.New(errs.Compacted, "%s: the history is gone: %w", step, err).WithHint("list again and watch from the revision of the answer")
	case errors.Is(err, rpctypes.ErrNoSpace):
		return errs.New(errs.Unavailable, "%s: the database is full: %w", step, err).
			WithHint("delete what is not needed; space comes back within minutes, or start with a larger etcd quota")
	case errors.Is(err, rpctypes.ErrTooManyOps), errors.Is(err, rpctypes.ErrRequestTooLarge):
		return errs.New(errs.Invalid, "%s: too much for one commit: %w", step, err).WithHint("split it into several, or raise the limits of etcd")
	case errors.Is(err, context.DeadlineExceeded):
		return errs.New(errs.Timeout, "%s: no answer from etcd within %s: %w", step, s.cfg.Timeout, err).WithHint("%s", s.hint())
	}
	if s.closed.Load() || s.member != nil && s.member.stopped() {
		return errs.New(errs.Unavailable, "%s: etcd is stopping: %w", step, err).WithHint("%s", s.hint())
	}
	switch codeOf(err) {
	case codes.Unavailable, codes.Canceled, codes.FailedPrecondition:
		return errs.New(errs.Unavailable, "%s: etcd is not available: %w", step, err).WithHint("%s", s.hint())
	case codes.DeadlineExceeded:
		return errs.New(errs.Timeout, "%s: no answer from etcd within %s: %w", step, s.cfg.Timeout, err).WithHint("%s", s.hint())
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument:
		// Not the user's rights but ours: a matter of how atolld was started.
		return errs.New(errs.Unavailable, "%s: etcd refuses atolld: %w", step, err).WithHint("check etcd's user, password and role for the prefix %s", s.cfg.Prefix)
	}
	if errors.Is(err, context.Canceled) { // not the caller's context: the client was closed
		return errs.New(errs.Unavailable, "%s: the store is closed", step)
	}
	return errs.New(errs.Internal, "%s: %w", step, err)
}

func codeOf(err error) codes.Code {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}

func (s *Store) hint() string {
	if s.grouped.Load() {
		return "a majority of the pool's servers must answer: start those that are down (atoll get members); if they are gone for good: atolld recover --help"
	}
	if s.member != nil {
		return "it is starting or stopping, or the disk is too slow: see the log of atolld"
	}
	return "check that etcd runs and can be reached from here"
}
