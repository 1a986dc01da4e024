package cli

import (
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// A pipe that broke is the end of who reads our output, or of the server: only the first
// is no failure.
func TestReportOfABrokenPipe(t *testing.T) {
	r := newRig(t)
	c := &verb.Call{IO: r.io()}
	if code := report(c, &fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}); code != 0 || r.err.String() != "" {
		t.Errorf("our output: code %d %s", code, r.err.String())
	}
	err := errs.New(errs.Unavailable, "no server answers at /run/atoll.sock: %w", &net.OpError{Op: "write", Net: "unix", Err: os.NewSyscallError("write", syscall.EPIPE)})
	if code := report(c, err); code != errs.ExitCode(err) || !strings.Contains(r.err.String(), "no server answers") {
		t.Errorf("the server's connection: code %d, want %d: %q", code, errs.ExitCode(err), r.err.String())
	}
}
