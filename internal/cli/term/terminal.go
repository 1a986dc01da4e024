package term

import (
	"os"

	"golang.org/x/term"

	"atoll/api"
)

// Terminal tells what the standard files are.
type Terminal interface {
	InIs() bool
	OutIs() bool
	ErrIs() bool
	// Raw hands every key to us; restore gives the terminal back.
	Raw() (restore func(), err error)
	Size() api.TermSize
	// Password reads a line that is not shown.
	Password() (string, error)
}

// Files are the process's own standard files.
type Files struct{ In, Out, Err *os.File }

// InIs reports whether standard input is a terminal.
func (f Files) InIs() bool { return term.IsTerminal(int(f.In.Fd())) }

// OutIs reports whether standard output is a terminal.
func (f Files) OutIs() bool { return term.IsTerminal(int(f.Out.Fd())) }

// ErrIs reports whether standard error is a terminal.
func (f Files) ErrIs() bool { return term.IsTerminal(int(f.Err.Fd())) }

// Raw hands every key to us.
func (f Files) Raw() (func(), error) {
	fd := int(f.In.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(fd, old) }, nil // the terminal may be gone, and then nobody minds
}

// Size is the size of the terminal; zero when there is none.
func (f Files) Size() api.TermSize {
	for _, file := range []*os.File{f.Out, f.In, f.Err} {
		if w, h, err := term.GetSize(int(file.Fd())); err == nil && w > 0 && h > 0 && w < 1<<16 && h < 1<<16 {
			return api.TermSize{Cols: uint16(w), Rows: uint16(h)}
		}
	}
	return api.TermSize{}
}

// Password reads a line that is not shown.
func (f Files) Password() (string, error) {
	b, err := term.ReadPassword(int(f.In.Fd()))
	return string(b), err
}
