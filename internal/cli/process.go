package cli

import (
	"os"

	"atoll/internal/cli/conn"
	"atoll/internal/cli/term"
	"atoll/internal/cli/verb"
	"atoll/internal/clock"
)

// Process is the IO of the real program.
func Process(version string, signals func(sig ...os.Signal) (<-chan os.Signal, func())) verb.IO {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/" // no HOME: settings are looked for where nobody has any
	}
	return verb.IO{Version: version, Streams: term.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Term: term.Files{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, Getenv: os.Getenv, Signals: signals},
		Clock: clock.Real{}, Home: home, Dial: conn.Dial}
}
