package cli

import (
	"context"
	"errors"
	"syscall"

	"atoll/internal/errs"
)

// report prints an error and gives its exit code.
func (c *call) report(err error) int {
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, syscall.EPIPE):
		return 0 // whoever read our output has seen enough
	case errors.Is(err, context.Canceled):
		return 130
	}
	err = c.explain(err)
	printError(c.Err, err, c.colour(c.Term.ErrIs()))
	var start *startFailed
	if errors.As(err, &start) {
		return start.code
	}
	return errs.ExitCode(err)
}
