package cli

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// report prints an error and gives its exit code.
func report(c *verb.Call, err error) int {
	var code verb.ExitCode
	var file *fs.PathError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &file) && errors.Is(file, syscall.EPIPE):
		return 0 // whoever read our output has seen enough; of a server's connection it would say nothing
	case errors.Is(err, context.Canceled):
		return 130
	}
	err = c.Explain(err)
	render.PrintError(c.Err, err, c.Colour(c.Term.ErrIs()))
	var start *verb.StartFailed
	if errors.As(err, &start) {
		return start.Code
	}
	return errs.ExitCode(err)
}
