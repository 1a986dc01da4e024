// Package term is the user's side of a call: the standard streams, whether they are
// terminals, questions and progress bars.
//
// The bars have a goroutine of their own, which ends with End. It must never draw or
// ask where no terminal is.
package term

import (
	"fmt"
	"io"
	"os"
	"strings"

	"atoll/internal/errs"
)

// Streams are what a call reads, writes and is told. Out that is a terminal, and
// only that, gets colours, bars and questions.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Term     Terminal
	Getenv   func(string) string
	// Signals delivers signals from now until stop is called.
	Signals func(sig ...os.Signal) (ch <-chan os.Signal, stop func())
}

// Colour says whether an output that is (or is not) a terminal gets colours.
func (s Streams) Colour(terminal bool) bool {
	return terminal && s.Getenv("NO_COLOR") == "" && s.Getenv("TERM") != "dumb"
}

// Note tells something beside the result.
func (s Streams) Note(format string, args ...any) { fmt.Fprintf(s.Err, format+"\n", args...) }

// Say writes a line of the result.
func (s Streams) Say(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }

// Confirm asks on a terminal and takes anything else for a yes already given by the script.
func (s Streams) Confirm(yes bool, format string, args ...any) error {
	if yes || !s.Term.InIs() || !s.Term.ErrIs() {
		return nil
	}
	fmt.Fprintf(s.Err, format+" [y/N] ", args...)
	switch answer, _ := ReadLine(s.In); strings.ToLower(answer) {
	case "y", "yes":
		return nil
	}
	return errs.New(errs.Invalid, "not done").WithHint("answer y, or give --yes")
}

// ReadLine reads byte by byte, so that what follows stays for the next reader.
func ReadLine(r io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for len(line) < 4096 {
		n, err := r.Read(b[:])
		if n == 1 && b[0] == '\n' {
			break
		}
		line = append(line, b[:n]...)
		if err != nil {
			return strings.TrimSpace(string(line)), err
		}
	}
	return strings.TrimSpace(string(line)), nil
}
