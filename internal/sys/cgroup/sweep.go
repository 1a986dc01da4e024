package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"atoll/internal/clock"
)

// Sweep ends every process in the groups and below them and returns when none is left, or
// with ctx and how many there were last. gone is called for each group, by its index, when it
// is empty. Nothing gets away by forking faster than it is killed: the groups are forbidden
// to fork first. Killed is killed at once; until a process has given back what it had, it is
// still counted. Limits are not put back: Ensure does that when something is to run in the groups again.
// Groups that are not there are empty.
func (h *Host) Sweep(ctx context.Context, paths []string, gone func(i int)) (left int, err error) {
	for _, p := range paths {
		if !Valid(p) {
			return 0, fmt.Errorf("cgroup path %q is not relative and clean", p)
		}
	}
	// All are hit before one is looked at: what many groups need must not add up.
	open := make([]int, len(paths))
	for i, p := range paths {
		h.hold(p)
		open[i] = i
	}
	// Signals go first: what eases the end writes to files that wait for whoever moves processes
	// between groups, anywhere on the host.
	for _, p := range paths {
		_, _ = h.strike(p) // the passes below look at everything again
	}
	for _, p := range paths {
		h.ease(p)
	}
	defer h.easeAbove(paths)()
	for {
		left = 0
		still := open[:0]
		for _, i := range open {
			n, kerr := h.strike(paths[i])
			switch {
			case kerr != nil:
				n, err = max(n, 1), kerr // the others are struck nevertheless
			case n == 0:
				gone(i)
				continue
			}
			left += n
			still = append(still, i)
		}
		if open = still; len(open) == 0 {
			return 0, nil
		}
		// Real processes are waited for, so the clock is the real one, too.
		if cerr := (clock.Real{}).Sleep(ctx, time.Millisecond); cerr != nil {
			return left, fmt.Errorf("%d processes are left: %w", left, errors.Join(cerr, err))
		}
	}
}

// hold keeps a group from growing. Where a file is not there, the passes of strike do alone.
func (h *Host) hold(path string) {
	if d := h.Dir("pids", path); d != "" {
		_ = write(d+"/pids.max", "0") // counts for all below, at once and without their doing
	} else if d := h.Dir("freezer", path); d != "" && h.Mode != V2 {
		_ = write(d+"/freezer.state", "FROZEN")
	}
}

// ease gives the dying what they need to end: the processor, whatever share and ceiling they had.
func (h *Host) ease(path string) {
	if h.Unified != "" { // on a hybrid host, too: what is in the v2 tree dies with one write
		_ = write(filepath.Join(h.Unified, path, "cgroup.kill"), "1")
	}
	d := h.Dir("cpu", path)
	if d == "" {
		return
	}
	_ = write(d+"/cpu.idle", "0")
	if h.Mode == V2 {
		_ = write(d+"/cpu.max", "max")
		_ = write(d+"/cpu.weight", "10000")
	} else {
		_ = write(d+"/cpu.cfs_quota_us", "-1")
		_ = write(d+"/cpu.shares", "262144")
	}
}

// easeAbove gives the groups above those that are dying the same for as long as it takes: what
// they had counts for all below. A sweep that is killed leaves it so until the next Ensure.
func (h *Host) easeAbove(paths []string) (restore func()) {
	most := map[string]string{"cpu.cfs_quota_us": "-1", "cpu.shares": "262144"}
	if h.Mode == V2 {
		most = map[string]string{"cpu.max": "max", "cpu.weight": "10000"}
	}
	was := map[string]string{}
	for _, p := range paths {
		for p = filepath.Dir(p); p != "."; p = filepath.Dir(p) {
			d := h.Dir("cpu", p)
			if _, done := was[d]; done || d == "" {
				break // and all above it
			}
			was[d] = ""
			for f, v := range most {
				if now := readTrim(d + "/" + f); now != "" && now != v {
					was[d+"/"+f] = now
					_ = write(d+"/"+f, v) // then it takes longer
				}
			}
		}
	}
	return func() {
		for f, v := range was {
			if v != "" {
				_ = write(f, v) // the group may have gone
			}
		}
	}
}

// strike kills what is in a group and below it now, and returns how many that were.
func (h *Host) strike(path string) (int, error) {
	if h.Mode == V2 {
		return h.strikeV2(path)
	}
	seen, err := h.strikeIn(h.first(), path)
	if seen == 0 && err == nil {
		// Empty there; whoever is only in another hierarchy is looked for, too.
		for _, m := range h.mounts {
			n, merr := h.strikeIn(m, path)
			seen, err = seen+n, errors.Join(err, merr)
		}
		if h.Mode == Hybrid {
			n, merr := h.strikeIn(h.Unified, path)
			seen, err = seen+n, errors.Join(err, merr)
		}
	}
	if d := h.Dir("freezer", path); d != "" {
		_ = write(d+"/freezer.state", "THAWED") // the frozen die only then; also those whom another froze
	}
	return seen, err
}

func (h *Host) strikeV2(path string) (int, error) {
	seen, err := h.strikeIn(h.Unified, path)
	if seen > 0 {
		_ = write(filepath.Join(h.Unified, path, "cgroup.kill"), "1") // before Linux 5.14 there is none
	}
	return seen, err
}

// first is the hierarchy that is looked at first: one that every process of a group is in.
func (h *Host) first() string {
	for _, c := range []string{"pids", "freezer", "memory"} {
		if d := h.dirs[c]; d != "" {
			return d
		}
	}
	return h.mounts[0]
}

// strikeIn kills what one hierarchy knows of a group and the groups below it.
func (h *Host) strikeIn(root, path string) (int, error) {
	dir := filepath.Join(root, path)
	pids, err := pidsIn(dir)
	if err != nil {
		return 0, err
	}
	seen := len(pids)
	for len(pids) > 0 {
		n := min(len(pids), atOnce)
		if err := killListed(dir, pids[:n]); err != nil {
			return seen, err
		}
		pids = pids[n:]
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return seen, fmt.Errorf("look into %s: %w", dir, err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		n, err := h.strikeIn(root, filepath.Join(path, e.Name()))
		seen += n
		if err != nil {
			return seen, err
		}
	}
	return seen, nil
}

// atOnce is how many processes are held by a file descriptor at a time.
const atOnce = 128

// killListed kills those of the processes that the directory still lists after a handle on
// each was taken: a number that went to another process meanwhile is not on the list, or its
// process is in the group, too. Asking for the group of each instead would wait, every time,
// for whoever moves processes between groups.
func killListed(dir string, pids []int) error {
	var held [atOnce]int
	for i, p := range pids {
		fd, err := unix.PidfdOpen(p, 0)
		if err != nil {
			fd = -1 // it has ended
		}
		held[i] = fd
	}
	now, err := pidsIn(dir)
	slices.Sort(now)
	for i, p := range pids {
		if held[i] < 0 {
			continue
		}
		if _, listed := slices.BinarySearch(now, p); listed && unix.PidfdSendSignal(held[i], unix.SIGKILL, nil, 0) == nil {
			hurry(p) // the next pass sees who is left
		}
		_ = unix.Close(held[i])
	}
	return err
}

// hurry puts a process that was killed before all ordinary ones: it runs nothing of its own any
// more, but what it had begun with the kernel comes to an end only when it gets the processor, and its group
// may have little of that. Real time counts across groups, whatever their shares and ceilings.
func hurry(pid int) {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return // it has ended
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.SchedSetAttr(tid, &attr, 0) // not allowed everywhere
		}
	}
}

// pidsIn lists the processes in one directory; none when it is not there. A threaded
// group's are listed where its processes are, above it.
func pidsIn(dir string) ([]int, error) {
	b, err := os.ReadFile(dir + "/cgroup.procs")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of %s: %w", dir, err)
	}
	var out []int
	n := 0
	for _, c := range b {
		if c >= '0' && c <= '9' {
			n = n*10 + int(c-'0')
			continue
		}
		if n > 0 {
			out = append(out, n)
		}
		n = 0
	}
	return out, nil
}
