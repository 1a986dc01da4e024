// Package systest lets tests use the kernel without touching the host.
package systest

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const inside = "ATOLL_TEST_APART"

// Apart reports whether this process is the test's own, with a network and mounts of its own: nothing
// on the host changes and nothing stays behind, even after a crash. Otherwise it has run the test, or the
// benchmark, in such a process, and reported what came of it. Without root the test is skipped. Call it first:
//
//	if !systest.Apart(t) {
//		return
//	}
func Apart(t testing.TB) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=120s"}
	if _, bench := t.(*testing.B); bench {
		args = []string{"-test.run=^$", "-test.bench=^" + t.Name() + "$", "-test.benchtime=" + os.Getenv("ATOLL_BENCHTIME")}
		if os.Getenv("ATOLL_BENCHTIME") == "" {
			args[2] = "-test.benchtime=200x"
		}
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EINVAL):
		t.Skipf("no namespaces: %v", err)
	case err != nil:
		t.Fatalf("in its own namespaces: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()+" "):
		t.Skipf("%s", out)
	}
	t.Logf("%s", out)
	return false
}
