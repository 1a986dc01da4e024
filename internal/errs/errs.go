// Package errs gives every error one of a few kinds, decided where the error
// arises and looked at where a decision is made. The one table that maps a kind
// to an HTTP status and to an exit code stands here, so the server and the CLI
// cannot disagree. It does no I/O and never logs.
//
//	return errs.New(errs.NotFound, "image %s", ref).WithHint("pull it: atoll image pull %s", ref)
//	if errors.Is(err, errs.NotFound) { … }
package errs

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is a class of error. It is an error itself so that errors.Is works.
type Kind string

// The kinds. Add one only with a row in table.
const (
	Invalid         Kind = "invalid"         // the input breaks a rule; Fields say which
	Unauthenticated Kind = "unauthenticated" // nobody we know
	Denied          Kind = "denied"          // known, but not allowed
	NotFound        Kind = "not-found"
	Exists          Kind = "exists"      // a create of something that is there
	Conflict        Kind = "conflict"    // the revision moved on, or the state forbids it
	Quota           Kind = "quota"       // a tenant's limit would be exceeded
	NoCapacity      Kind = "no-capacity" // the pool has no room
	Unsupported     Kind = "unsupported" // this node or build cannot do it
	Unavailable     Kind = "unavailable" // try again: a part is down or starting
	Timeout         Kind = "timeout"
	Compacted       Kind = "compacted" // a watch asked for history that is gone: list again
	Internal        Kind = "internal"  // our fault
)

// Error makes a bare Kind usable as an error and as a target of errors.Is.
func (k Kind) Error() string { return string(k) }

type row struct {
	kind  Kind
	http  int
	exit  int
	title string
}

// table is the one place where kinds meet HTTP and the shell.
// Exit codes 1 (internal) and 2 (usage, invalid) are the shell's habit.
var table = []row{
	{Invalid, 422, 2, "the request breaks a rule"},
	{Unauthenticated, 401, 4, "who are you?"},
	{Denied, 403, 4, "not allowed"},
	{NotFound, 404, 3, "not found"},
	{Exists, 409, 6, "exists already"},
	{Conflict, 412, 6, "changed meanwhile"},
	{Quota, 429, 5, "over the tenant's limit"},
	{NoCapacity, 507, 5, "no capacity"},
	{Unsupported, 501, 7, "not supported here"},
	{Unavailable, 503, 8, "not available now"},
	{Timeout, 504, 9, "took too long"},
	{Compacted, 410, 1, "history is gone"},
	{Internal, 500, 1, "internal error"},
}

// HTTPStatus is the status an error is answered with.
func HTTPStatus(err error) int { return rowOf(KindOf(err)).http }

// ExitCode is the code a command ends with; 0 for nil.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	return rowOf(KindOf(err)).exit
}

// Title is the short text of a kind.
func (k Kind) Title() string { return rowOf(k).title }

func rowOf(k Kind) row {
	for _, r := range table {
		if r.kind == k {
			return r
		}
	}
	return table[len(table)-1]
}

// ExitCodes lists "code: title" lines for help texts, in table order.
func ExitCodes() []string {
	var out []string
	for _, r := range table {
		out = append(out, fmt.Sprintf("%d  %s (%s)", r.exit, r.title, r.kind))
	}
	return out
}

// Field tells which part of the input breaks which rule, and shows one that does not.
type Field struct {
	Field   string `json:"field"`             // path: spec.limits.cpu
	Value   string `json:"value,omitempty"`   // what was given; never a secret
	Rule    string `json:"rule"`              // what must hold
	Example string `json:"example,omitempty"` // a value that would pass
}

func (f Field) String() string {
	s := f.Field
	if f.Value != "" {
		s += fmt.Sprintf(" %q", f.Value)
	}
	s += ": " + f.Rule
	if f.Example != "" {
		s += " (example: " + f.Example + ")"
	}
	return s
}

// Error is an error with a kind, and for people a hint about what to do next.
type Error struct {
	Kind   Kind
	Msg    string
	Hint   string
	Fields []Field
	cause  error
}

// New makes an error of a kind. With %w the cause stays reachable; the kind given here wins.
func New(k Kind, format string, args ...any) *Error {
	e := fmt.Errorf(format, args...)
	return &Error{Kind: k, Msg: e.Error(), cause: errors.Unwrap(e)}
}

// InvalidFields makes the error for input that breaks rules; nil if there are none.
func InvalidFields(what string, fields []Field) error {
	if len(fields) == 0 {
		return nil
	}
	parts := make([]string, len(fields))
	for i, f := range fields {
		parts[i] = f.String()
	}
	return &Error{Kind: Invalid, Msg: what + ": " + strings.Join(parts, "; "), Fields: fields}
}

// WithHint adds what the reader can do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) Error() string { return e.Msg }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.cause }

// Is matches the kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// KindOf gives the outermost kind in the chain, Internal when there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	return Internal
}

// HintOf gives the outermost hint in the chain.
func HintOf(err error) string {
	var e *Error
	for errors.As(err, &e) {
		if e.Hint != "" {
			return e.Hint
		}
		err = e.cause
	}
	return ""
}
