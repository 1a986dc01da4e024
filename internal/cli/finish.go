package cli

import (
	"errors"

	"atoll/api"
)

// finish turns the end of a session into the end of the program.
func (c *call) finish(code int, err error, ref api.Ref) error {
	switch {
	case errors.Is(err, errDetached):
		c.note("\r\ndetached; %s runs on (back: atoll attach %s)", ref, ref.Name)
		return nil
	case errors.Is(err, errForced):
		return exitCode(130)
	case err != nil && code >= 125 && code <= 127:
		return &startFailed{err: err, code: code}
	case err != nil:
		return err
	case code != 0:
		return exitCode(code)
	}
	return nil
}
