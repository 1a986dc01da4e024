package store

import (
	"atoll/api"
	"atoll/internal/errs"
)

// CheckOps refuses what no store can do, so that all stores refuse the same: an
// op about nothing, a revision without meaning, one object written twice.
func CheckOps(ops []Op) error {
	written := make(map[api.Ref]bool, len(ops))
	for _, op := range ops {
		if op.Verb == Put && op.Object == nil {
			return errs.New(errs.Invalid, "commit: a put needs an object")
		}
		ref := op.Target()
		switch {
		case ref.Kind == "" || ref.Name == "":
			return errs.New(errs.Invalid, "commit: %q names no object: kind and name are needed", ref)
		case op.Rev < Any:
			return errs.New(errs.Invalid, "commit %s: %d is no revision", ref, op.Rev)
		case op.Verb == Delete && op.Rev == 0:
			return errs.New(errs.Invalid, "commit %s: a delete must name the revision it was based on, or Any", ref)
		case op.Verb == Check:
			continue
		case op.Verb != Put && op.Verb != Delete:
			return errs.New(errs.Invalid, "commit %s: unknown verb %d", ref, op.Verb)
		case written[ref]:
			return errs.New(errs.Invalid, "commit: %s is written twice", ref)
		}
		written[ref] = true
	}
	return nil
}

// Refused is the error of a commit that names which op's object was not as expected.
type Refused struct {
	Ref   api.Ref
	cause *errs.Error
}

func (r *Refused) Error() string { return r.cause.Error() }

// Unwrap gives the error with its kind.
func (r *Refused) Unwrap() error { return r.cause }

// Judge says whether op may go ahead when its target is at revision have (0: not
// there). All stores use it, so that they answer alike. The error is a *Refused.
func Judge(op Op, have int64) error {
	ref := op.Target()
	refuse := func(e *errs.Error) error { return &Refused{Ref: ref, cause: e} }
	switch {
	case op.Rev == Any && (op.Verb != Delete || have != 0), op.Rev == have:
		return nil
	case op.Verb == Check && op.Rev == 0:
		return refuse(errs.New(errs.Conflict, "%s exists now", ref))
	case op.Verb == Check && have == 0:
		return refuse(errs.New(errs.Conflict, "%s is gone", ref))
	case op.Rev == 0:
		return refuse(errs.New(errs.Exists, "%s exists already", ref).WithHint("choose another name, or change the one that is there"))
	case have == 0:
		return refuse(errs.New(errs.NotFound, "%s does not exist", ref))
	}
	return refuse(errs.New(errs.Conflict, "%s was changed meanwhile: it is at revision %d, not %d", ref, have, op.Rev).
		WithHint("read it again and repeat the change"))
}

// Chosen reports whether a watch of sel concerns o; unlike Matches, a selector without kind chooses every kind.
func Chosen(sel api.Selector, o api.Object) bool {
	if o == nil {
		return false
	}
	if sel.Kind == "" {
		sel.Kind = o.ObjectKind()
	}
	return sel.Matches(o)
}

// Seen translates a change for a watch of sel: what was and what is (nil: was not,
// is not there). ok is false when the change does not concern the selection.
func Seen(sel api.Selector, rev int64, was, is api.Object) (ev Event, ok bool) {
	if Chosen(sel, is) {
		return Event{Rev: rev, Object: is}, true
	}
	if Chosen(sel, was) {
		return Event{Rev: rev, Object: was, Deleted: true}, true
	}
	return Event{}, false
}

// MarkMore sets More on all events but the last of each revision.
func MarkMore(evs []Event) {
	for i := range evs {
		evs[i].More = i+1 < len(evs) && evs[i+1].Rev == evs[i].Rev
	}
}
