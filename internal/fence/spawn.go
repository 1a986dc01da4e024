package fence

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// errRefused is what dialing a socket gives that nobody listens on.
const errRefused = syscall.ECONNREFUSED

// Program is the watchdog's own program, beside the daemon's.
const Program = "atoll-watchdog"

// Spawn returns the Start of a daemon: it runs the watchdog's program, or, where that is
// not installed, the daemon's own as "watchdog", which does the same with more memory. The
// process has a session of its own and ends with nobody; its messages go where the daemon's go.
func Spawn(run, group string) func() error {
	return func() error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		self = strings.TrimSuffix(self, " (deleted)") // replaced by an update: the new one will do
		args := []string{"--run", run, "--group", group}
		program := filepath.Join(filepath.Dir(self), Program)
		if _, err := os.Stat(program); err != nil {
			program, args = self, append([]string{"watchdog"}, args...)
		}
		cmd := exec.Command(program, args...)
		cmd.Dir, cmd.Stderr = "/", os.Stderr
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%s: %w", program, err)
		}
		// Collected when it ends before the daemon does; it ends by itself.
		go func() { _ = cmd.Wait() }()
		return nil
	}
}
