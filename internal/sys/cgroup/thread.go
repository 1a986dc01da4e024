package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// EnterThread moves the calling thread, and with it what it starts from now on, into the
// group of every v1 hierarchy. A thread that moves itself takes none of the locks for which moving a process
// waits: those wait for an RCU grace period, ten milliseconds and more. The thread should end soon.
func (h *Host) EnterThread(path string) error {
	if h.Mode == V2 {
		return nil
	}
	for _, m := range h.mounts {
		if err := write(filepath.Join(m, path, "tasks"), "0"); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// devices that every process may use (crun's and runc's own defaults): making device nodes (which user
// namespaces forbid anyway), null, zero, full, random, urandom, tty, ptmx and pseudo-terminals.
var devices = []string{"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm"}

// RestrictDevices allows a group only the harmless devices (v1; on v2 the OCI runtime
// loads a program for it).
func (h *Host) RestrictDevices(path string) error {
	dir := h.Dir("devices", path)
	if h.Mode == V2 || dir == "" || !strings.HasPrefix(readTrim(dir+"/devices.list"), "a ") {
		return nil
	}
	if err := write(dir+"/devices.deny", "a"); err != nil {
		return fmt.Errorf("forbid devices: %w", err)
	}
	for _, d := range devices {
		// A parent that forbids it decides; that is no error of this group.
		if err := write(dir+"/devices.allow", d); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("allow device %s: %w", d, err)
		}
	}
	return nil
}
