package peer

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"atoll/internal/errs"
)

func TestOf(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := Of(s)
	if err != nil {
		t.Fatal(err)
	}
	if int(got.UID) != os.Getuid() || int(got.GID) != os.Getgid() || int(got.PID) != os.Getpid() {
		t.Fatalf("got %+v", got)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := Of(a); !errors.Is(err, errs.Unsupported) {
		t.Fatalf("a pipe has no credentials: %v", err)
	}
}
