package verb

import (
	"fmt"
)

// ExitCode ends the program with the code of a process inside; it has said all there is to say.
type ExitCode int

// Error is for logs; nobody is shown it.
func (e ExitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// StartFailed is an error before the first instruction, with the code a shell would give.
type StartFailed struct {
	Err  error
	Code int
}

// Error is the cause.
func (f *StartFailed) Error() string { return f.Err.Error() }

// Unwrap is the cause.
func (f *StartFailed) Unwrap() error { return f.Err }
