// Package quota is a store.Store decorator that makes admission part of the commit
// that creates an object: the ledgers (api.Ledger) of the tenants on the path and of
// the pool change in the same transaction, so no race can exceed a limit, break a
// guarantee or give two tenants the same host IDs.
//
// Every change of a tenant's account or spec writes its ledger. A plan reads the
// ledger before the tenant and commits against the ledger's revision, so what it
// read of the tenant still holds when it goes through.
//
// Commits that wait for each other are one: who has the turn plans what is waiting, one
// caller after the other on the same books, and commits it as a single transaction
// (see group.go).
//
// It starts no goroutine. It must never write an object of its caller's in another
// form than it was given, but for a tenant's range of host IDs.
package quota

import (
	"context"
	"errors"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

const (
	// attempts bounds retries after others changed a ledger first.
	attempts = 200
	// pause before a retry gives a mirror below the time to catch up.
	pauseMin, pauseMax = 200 * time.Microsecond, 20 * time.Millisecond
	// catchUp bounds the wait for a revision that the caller claims to have seen.
	catchUp = 500 * time.Millisecond
)

// Store admits and keeps the books.
type Store struct {
	store.Store
	// Clock is what pauses are measured with; set before use. Default: the machine's.
	Clock clock.Clock
	// Reserve is what of the pool is given to nobody; set before use.
	Reserve Reserve
	// FirstUID is where a new pool's ranges of host user IDs begin, best as UIDStart draws
	// it; set before use. Default: where the first range can be.
	FirstUID uint32
	// turn is held while plans are made and committed. As every admission writes the
	// pool's ledger, commits of one process would only make each other repeat.
	turn  chan struct{}
	line  line
	nodes capacity // used by who has the turn
}

// New puts admission before s. What is written to s directly is not counted until Recount.
func New(s store.Store) *Store {
	return &Store{Store: s, Clock: clock.Real{}, Reserve: DefaultReserve(), turn: make(chan struct{}, 1)}
}

// Commit adds the ledger ops that the caller's ops need. Errors beside those of the
// store: errs.Quota, errs.NoCapacity, errs.Denied (the tenant is suspended or being
// removed), errs.NotFound (there is no such tenant), errs.Conflict (a tenant that
// still has something inside). Several commits may share a revision.
func (q *Store) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if !concerned(ops) {
		return q.Store.Commit(ctx, ops...)
	}
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	if !comesOrGoes(ops) {
		p, err := newBooks(q).plan(ctx, ops)
		if err != nil {
			return 0, err
		}
		if p.free() { // nothing to count (a status, say), so no turn to wait for
			if rev, err := q.Store.Commit(ctx, p.ops...); !p.ours(err) {
				return rev, err
			}
		}
	}
	return q.join(ctx, ops)
}

// counts reports whether objects of a kind are in the ledgers.
func counts(k api.Kind) bool {
	return k == api.KindInstance || k == api.KindTenant || k == api.KindAddress
}

func concerned(ops []store.Op) bool {
	for _, op := range ops {
		if k := op.Target().Kind; op.Verb != store.Check && counts(k) {
			return true
		}
	}
	return false
}

// comesOrGoes reports whether something is created or removed, which always has to be counted.
func comesOrGoes(ops []store.Op) bool {
	for _, op := range ops {
		if k := op.Target().Kind; counts(k) && (op.Verb == store.Delete || op.Verb == store.Put && op.Rev == 0) {
			return true
		}
	}
	return false
}

// ours reports whether a commit failed for something the plan added, not the caller.
func (p *plan) ours(err error) bool {
	var r *store.Refused
	return errors.As(err, &r) && (r.Ref.Kind == api.KindLedger || p.pinned[r.Ref])
}

// lookup is Get with nil for what is not there.
func lookup[T api.Object](ctx context.Context, s store.Store, ref api.Ref) (obj T, found bool, err error) {
	obj, err = store.Get[T](ctx, s, ref)
	if errors.Is(err, errs.NotFound) {
		return obj, false, nil
	}
	return obj, err == nil, err
}

// before reads what an op is about. When the caller knows a newer revision than
// the store below shows (a mirror behind another process), it is waited for.
func before[T api.Object](ctx context.Context, s store.Store, op store.Op) (obj T, found bool, err error) {
	ref := op.Target()
	obj, found, err = lookup[T](ctx, s, ref)
	if err != nil || op.Rev <= 0 || found && obj.Metadata().Revision >= op.Rev {
		return obj, found, err
	}
	wait, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	list, _, err := store.List[T](wait, s, api.Selector{Kind: ref.Kind, Tenant: ref.Tenant, Name: ref.Name, MinRev: op.Rev})
	switch {
	case err != nil && wait.Err() != nil && ctx.Err() == nil:
		return obj, found, nil // there never was such a revision: a conflict with what is there
	case err != nil:
		return obj, false, err
	case len(list) == 0:
		return obj, false, nil
	}
	return list[0], true, nil
}
