package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"atoll/internal/errs"
)

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

// told is an error with lines of its own below the message.
type told struct {
	err     error
	details []string
	end     string // the last line
}

func (t *told) Error() string { return t.err.Error() }
func (t *told) Unwrap() error { return t.err }

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
	c.printError(err)
	var start *startFailed
	if errors.As(err, &start) {
		return start.code
	}
	return errs.ExitCode(err)
}

func (c *call) printError(err error) {
	label := "error:"
	if c.colour(c.Term.ErrIs()) {
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
	fmt.Fprintf(c.Err, "%s %s\n", label, msg)
	for _, f := range fields {
		fmt.Fprintf(c.Err, "  %s\n", f)
	}
	var t *told
	if errors.As(err, &t) {
		for _, d := range t.details {
			fmt.Fprintf(c.Err, "  %s\n", d)
		}
	}
	if h := errs.HintOf(err); h != "" {
		fmt.Fprintf(c.Err, "  what would help: %s\n", h)
	}
	if t != nil && t.end != "" {
		fmt.Fprintln(c.Err, t.end)
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

// explain adds what to do when the daemon cannot be reached at all.
func (c *call) explain(err error) error {
	s, serr := c.settings()
	if serr != nil || errs.KindOf(err) != errs.Unavailable {
		return err
	}
	var cause syscall.Errno
	if !errors.As(err, &cause) {
		return err
	}
	where, local := s.Socket, s.Server == ""
	if !local {
		where = s.Server
	}
	switch {
	case errors.Is(err, syscall.EACCES) && local:
		return errs.New(errs.Denied, "no permission to use %s", where).
			WithHint("sudo atoll …, or join the group that owns the socket (ls -l %s); then an administrator gives you a role: atoll user bind $USER ROLE --in TENANT", where)
	case errors.Is(err, syscall.ENOENT) && local, errors.Is(err, syscall.ECONNREFUSED) && local:
		return errs.New(errs.Unavailable, "no Atoll daemon answers on %s", where).
			WithHint("start it: make up, or atolld up; look into /var/log/atoll/atolld.log when it should be running; atoll doctor checks this host")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return errs.New(errs.Unavailable, "no Atoll server answers on %s", where).
			WithHint("check the URL (--server, ATOLL_SERVER, atoll login) and that the server runs")
	}
	return err
}

// colour says whether an output that is (or is not) a terminal gets colours.
func (c *call) colour(terminal bool) bool {
	return terminal && c.Getenv("NO_COLOR") == "" && c.Getenv("TERM") != "dumb"
}

// note tells something beside the result.
func (c *call) note(format string, args ...any) { fmt.Fprintf(c.Err, format+"\n", args...) }

// say writes a line of the result.
func (c *call) say(format string, args ...any) { fmt.Fprintf(c.Out, format+"\n", args...) }

// confirm asks on a terminal and takes anything else for a yes already given by the script.
func (c *call) confirm(yes bool, format string, args ...any) error {
	if yes || !c.Term.InIs() || !c.Term.ErrIs() {
		return nil
	}
	fmt.Fprintf(c.Err, format+" [y/N] ", args...)
	switch answer, _ := readLine(c.In); strings.ToLower(answer) {
	case "y", "yes":
		return nil
	}
	return errs.New(errs.Invalid, "not done").WithHint("answer y, or give --yes")
}

// readLine reads byte by byte, so that what follows stays for the next reader.
func readLine(r io.Reader) (string, error) {
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

// readBounded reads a file of at most so many bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path, limit)
}

func readAll(r io.Reader, what string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, errs.New(errs.Invalid, "%s is larger than %d bytes", what, limit)
	}
	return b, nil
}
