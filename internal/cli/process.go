package cli

import (
	"os"

	"atoll/internal/clock"
)

// Process is the IO of the real program.
func Process(version string, signals func(sig ...os.Signal) (<-chan os.Signal, func())) IO {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/" // no HOME: settings are looked for where nobody has any
	}
	return IO{Version: version, Streams: Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Term: Files{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, Getenv: os.Getenv, Signals: signals},
		Clock: clock.Real{}, Home: home, Dial: Connect}
}
