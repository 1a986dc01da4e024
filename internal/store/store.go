// Package store is the contract of where facts live. Components never call each
// other to make something happen: one commits a fact, the other watches.
//
// The life a caller leads: List to learn the state and its revision; Watch from
// that revision to hear of every change after it; Get what a change names;
// Commit what follows from it, each op naming the revision it was based on. When
// Commit answers errs.Conflict somebody was faster: read again and decide anew.
// When Watch answers errs.Compacted the history is gone: List again.
//
// Objects that come out are shared and must not be changed; api.Clone first.
// Implementations: Mem here, etcdstore, remote; storetest holds them to the rules.
package store

import (
	"context"
	"fmt"

	"atoll/api"
	"atoll/internal/errs"
)

// Store keeps objects. All methods are safe for use by many goroutines.
type Store interface {
	// Get reads one object; errs.NotFound.
	Get(ctx context.Context, ref api.Ref) (api.Object, error)
	// List reads the chosen objects in the order of api.SortKey, and the revision
	// the answer is true at. With sel.Limit the answer may be cut; go on with
	// sel.After = api.SortKey of the last. Reads follow writes: what this Store's
	// own Commit has acknowledged is seen. sel.Kind "" lists every kind at one
	// revision, ordered by kind first; Limit and After do not apply then.
	List(ctx context.Context, sel api.Selector) (objs []api.Object, rev int64, err error)
	// Commit applies all ops or none and gives the revision of the change, which
	// becomes metadata.revision of what was put. The objects passed in are not
	// kept and not changed. Errors: errs.Conflict (a revision moved on),
	// errs.Exists (a create of what is there), errs.NotFound (an update or delete
	// of what is gone), errs.Invalid (ops that make no sense, see CheckOps). A failed
	// Check is errs.Conflict. Ops that write nothing give the present revision.
	Commit(ctx context.Context, ops ...Op) (rev int64, err error)
	// Watch calls fn for every change after rev that concerns the selection, in
	// order, in the caller's goroutine, until ctx ends or fn fails; it returns that
	// error. An object that leaves the selection (its labels change, say) is
	// reported as Deleted. sel.Kind "" watches every kind. errs.Compacted when the
	// history after rev is gone.
	Watch(ctx context.Context, sel api.Selector, rev int64, fn func(Event) error) error
}

// Verb is what an Op does.
type Verb int

// The verbs of an Op.
const (
	Put Verb = iota
	Delete
	Check // write nothing, but fail unless the object is at Rev
)

// Any as a revision means "whatever is there, or nothing".
const Any int64 = -1

// Op is one part of a commit. Rev is the revision the decision was based on:
// 0 means "must not exist", Any skips the check, anything else must match.
type Op struct {
	Verb   Verb
	Object api.Object // for Put
	Ref    api.Ref    // for Delete and Check; follows from Object for Put
	Rev    int64
}

// Target is the object an op is about.
func (o Op) Target() api.Ref {
	if o.Object != nil {
		return api.RefOf(o.Object)
	}
	return o.Ref
}

// Create puts what must not exist yet.
func Create(o api.Object) Op { return Op{Verb: Put, Object: o} }

// Update puts what must still be at the revision it was read at (its metadata.revision).
func Update(o api.Object) Op { return Op{Verb: Put, Object: o, Rev: o.Metadata().Revision} }

// Set puts whatever is there.
func Set(o api.Object) Op { return Op{Verb: Put, Object: o, Rev: Any} }

// Remove deletes an object that must be at rev; Any deletes it at any revision, but it must exist.
func Remove(ref api.Ref, rev int64) Op { return Op{Verb: Delete, Ref: ref, Rev: rev} }

// Expect makes the commit fail unless ref is at rev (0: is not there).
func Expect(ref api.Ref, rev int64) Op { return Op{Verb: Check, Ref: ref, Rev: rev} }

// Event is one change. For a deletion Object is the last state known, at least
// with kind, tenant, name and UID; for an object that left the selection it is the
// last state inside it. More says that further changes of the same commit follow
// at once, for who wants to see a commit whole; a store may leave it out.
type Event struct {
	Rev     int64
	Deleted bool
	More    bool
	Object  api.Object
}

// Get reads an object as its own type.
func Get[T api.Object](ctx context.Context, s Store, ref api.Ref) (T, error) {
	var zero T
	o, err := s.Get(ctx, ref)
	if err != nil {
		return zero, err
	}
	t, ok := o.(T)
	if !ok {
		return zero, errs.New(errs.Internal, "%s is a %T", ref, o)
	}
	return t, nil
}

// All reads every object of a kind, for who reads several one after the other: nothing
// is read when there is an error from before, which is given back.
func All[T api.Object](ctx context.Context, s Store, k api.Kind, before error) ([]T, error) {
	if before != nil {
		return nil, before
	}
	list, _, err := List[T](ctx, s, api.Selector{Kind: k})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", k, err)
	}
	return list, nil
}

// List reads objects as their own type.
func List[T api.Object](ctx context.Context, s Store, sel api.Selector) ([]T, int64, error) {
	objs, rev, err := s.List(ctx, sel)
	if err != nil {
		return nil, 0, err
	}
	out := make([]T, 0, len(objs))
	for _, o := range objs {
		t, ok := o.(T)
		if !ok {
			return nil, 0, errs.New(errs.Internal, "%s is a %T", api.RefOf(o), o)
		}
		out = append(out, t)
	}
	return out, rev, nil
}
