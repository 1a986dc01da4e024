package store

import (
	"context"

	"atoll/api"
)

// Peer is one of the servers that keep the store together.
type Peer struct {
	ID      uint64
	Name    string // "" until it has started once
	URL     string // where the others reach it
	Learner bool   // gets everything, has no vote
	Leader  bool
}

// Cluster is what a Store can do that is kept by several servers.
type Cluster interface {
	Peers(ctx context.Context) ([]Peer, error)
	// AddLearner makes room for a server at url. Asked again it gives the same peer.
	AddLearner(ctx context.Context, url string) (Peer, error)
	// Promote gives a learner a vote; errs.Conflict while it has not caught up.
	Promote(ctx context.Context, id uint64) error
	// RemovePeer takes a server out. Nil when it is out already.
	RemovePeer(ctx context.Context, id uint64) error
}

// Fenced is s for somebody who may write only as long as a lease is at a revision: every
// commit expects it (ADR 0009), and fails with errs.Conflict once it has moved on.
func Fenced(s Store, lease api.Ref, rev func() int64) Store { return fenced{s, lease, rev} }

type fenced struct {
	Store
	lease api.Ref
	rev   func() int64
}

// Commit adds the fence to what writes anything.
func (f fenced) Commit(ctx context.Context, ops ...Op) (int64, error) {
	writes := false
	for _, op := range ops {
		if op.Verb == Check {
			continue
		}
		if op.Target() == f.lease {
			return f.Store.Commit(ctx, ops...) // the change of the lease itself
		}
		writes = true
	}
	if writes {
		ops = append(ops[:len(ops):len(ops)], Expect(f.lease, f.rev()))
	}
	return f.Store.Commit(ctx, ops...)
}
