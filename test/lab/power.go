package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"atoll/internal/errs"
	"atoll/internal/sys/cgroup"
)

// Process is one that runs on a host.
type Process struct {
	Pid   int
	Group string // its resource group, below the machine's root
}

// Processes lists what runs in the host's resource groups whose name holds part: an instance's
// UID gives its processes, "" all, also those of daemon and watchdog.
func (h *Host) Processes(part string) ([]Process, error) {
	cg, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	var out []Process
	seen := map[int]bool{}
	for _, root := range []string{h.Group, h.Group + "-daemon", h.Group + "-watchdog"} {
		for _, g := range append(cg.List(root), root) {
			if !strings.Contains(g, part) {
				continue
			}
			pids, err := cg.Pids(g)
			if err != nil {
				continue // it is gone
			}
			for _, pid := range pids {
				if !seen[pid] {
					seen[pid] = true
					out = append(out, Process{Pid: pid, Group: g})
				}
			}
		}
	}
	return out, nil
}

// PowerOff is a host that is lost: its cable is pulled first, so that nothing is said to the others, and
// all its processes end at once.
func (h *Host) PowerOff() error {
	if h.space == nil {
		return nil
	}
	if err := h.Cut(); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		pids, err := h.everything()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		if time.Now().After(deadline) {
			return errs.New(errs.Timeout, "processes on %s do not end: %v", h.Name, pids)
		}
	}
	return h.reaped()
}

// everything lists the host's processes but the one that holds its namespace: those in its groups and
// those in its network.
func (h *Host) everything() ([]int, error) {
	list, err := h.Processes("")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range list {
		pids = append(pids, p.Pid)
	}
	if pid := h.own(); pid != 0 && !slices.Contains(pids, pid) {
		pids = append(pids, pid) // it may be on its way into the namespace
	}
	mine, err := os.Readlink(h.space.Path())
	if err != nil {
		return nil, err
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range all {
		ns, err := os.Readlink(filepath.Join(dir, "ns/net"))
		pid, perr := strconv.Atoi(filepath.Base(dir))
		if err == nil && perr == nil && ns == mine && pid != h.space.Pid() && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// PowerOn boots a host that was switched off: nothing that was in memory is there any more. Its daemon is
// begun, not waited for.
func (h *Host) PowerOn() error {
	if h.space == nil {
		return errs.New(errs.Conflict, "%s is not there", h.Name)
	}
	if h.Pid() != 0 {
		return errs.New(errs.Conflict, "%s is on", h.Name)
	}
	cg, err := cgroup.Detect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, g := range []string{h.Group, h.Group + "-daemon", h.Group + "-watchdog"} {
		if err := cg.Remove(ctx, g); err != nil {
			return fmt.Errorf("boot %s: %w", h.Name, err)
		}
	}
	below := h.State
	if h.lab.Disk > 0 {
		below += "/" // the disk itself stays
	}
	if err := errors.Join(unmountBelow(below), unmountBelow(h.Run), os.RemoveAll(h.Run)); err != nil {
		return fmt.Errorf("boot %s: %w", h.Name, err)
	}
	h.space.Close()
	_ = run(h.lab.hub, "ip link del "+h.wire()) // it goes with the namespace, in time
	if err := h.plug(); err != nil {
		return err
	}
	return h.Begin()
}

// unmountBelow unmounts what is mounted at or below a path, or with "/" at its end only below.
func unmountBelow(path string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var at []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == path || strings.HasPrefix(f[4], strings.TrimSuffix(path, "/")+"/")) {
			at = append(at, f[4])
		}
	}
	slices.Reverse(at)
	for _, p := range at {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}

// FillDisk leaves so many bytes on the host's disk; FreeDisk takes that back. The lab must have been made with Options.Disk.
func (h *Host) FillDisk(left int64) error {
	if h.lab.Disk == 0 {
		return errs.New(errs.Conflict, "the hosts of this lab have no disks of their own").WithHint("Options.Disk, or: lab up --disk 512")
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(h.State, &st); err != nil {
		return err
	}
	f, err := os.OpenFile(h.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	if n := int64(st.Bavail)*st.Bsize - left; n > 0 {
		return syscall.Fallocate(int(f.Fd()), 0, size, n)
	}
	return nil
}

// FreeDisk removes what FillDisk put there.
func (h *Host) FreeDisk() error { return os.RemoveAll(h.ballast()) }

func (h *Host) ballast() string { return filepath.Join(h.State, "ballast") }

// Args are the process's; none when it has ended.
func (p Process) Args() []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// Wipe makes the host one that has never been in a pool, as if its system was installed anew. Its daemon must not run.
func (h *Host) Wipe() error {
	out, err := h.Exec(filepath.Join(h.lab.Bin, "atolld"), append(append([]string{"down"}, h.where()...), "--data")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("wipe %s: %w: %s", h.Name, err, out)
	}
	return os.MkdirAll(h.State, 0o711)
}
