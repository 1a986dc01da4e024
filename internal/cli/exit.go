package cli

import "fmt"

// exitCode ends the program with the code of a process inside; it has said all there is to say.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// startFailed is an error before the first instruction, with the code a shell would give.
type startFailed struct {
	err  error
	code int
}

func (f *startFailed) Error() string { return f.err.Error() }
func (f *startFailed) Unwrap() error { return f.err }
