package render

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"atoll/internal/errs"
)

// Error is an error with lines of its own below the message.
type Error struct {
	Err     error
	Details []string
	End     string // the last line
}

// Error is the message without the lines.
func (t *Error) Error() string { return t.Err.Error() }

// Unwrap is the error that has lines here.
func (t *Error) Unwrap() error { return t.Err }

// PrintError writes an error, what it is about and what would help.
func PrintError(w io.Writer, err error, colour bool) {
	label := "error:"
	if colour {
		label = "\x1b[31merror:\x1b[0m"
	}
	msg, fields := err.Error(), fieldsOf(err)
	if len(fields) > 0 {
		parts := make([]string, len(fields))
		for i, f := range fields {
			parts[i] = f.String()
		}
		msg = strings.TrimSuffix(strings.Replace(msg, strings.Join(parts, "; "), "", 1), ": ")
	}
	if len(fields) == 1 && !strings.Contains(fields[0].String(), "\n") {
		msg, fields = msg+": "+fields[0].String(), nil
	}
	fmt.Fprintf(w, "%s %s\n", label, msg)
	for _, f := range fields {
		fmt.Fprintf(w, "  %s\n", f)
	}
	var t *Error
	if errors.As(err, &t) {
		for _, d := range t.Details {
			fmt.Fprintf(w, "  %s\n", d)
		}
	}
	if h := errs.HintOf(err); h != "" {
		fmt.Fprintf(w, "  what would help: %s\n", h)
	}
	if t != nil && t.End != "" {
		fmt.Fprintln(w, t.End)
	}
}

func fieldsOf(err error) []errs.Field {
	var e *errs.Error
	for errors.As(err, &e) {
		if len(e.Fields) > 0 {
			return e.Fields
		}
		err = e.Unwrap()
	}
	return nil
}
