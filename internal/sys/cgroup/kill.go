package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"atoll/internal/clock"
)

// Pids lists the processes directly in the group, of whatever hierarchy knows any.
func (h *Host) Pids(path string) ([]int, error) {
	var out []int
	for _, d := range h.all(path) {
		b, err := os.ReadFile(d + "/cgroup.procs")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list processes of %s: %w", d, err)
		}
		for _, l := range strings.Fields(string(b)) {
			if p, err := strconv.Atoi(l); err == nil && p > 0 && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// Kill ends every process in the group and below it. It returns before they are gone.
func (h *Host) Kill(path string) error {
	if h.Mode == V2 {
		err := write(filepath.Join(h.Unified, path, "cgroup.kill"), "1")
		if err == nil || errors.Is(err, os.ErrNotExist) && !exists(filepath.Join(h.Unified, path)) {
			return nil
		}
	}
	groups := append(h.List(path), path)
	for _, g := range groups {
		pids, err := h.Pids(g)
		if err != nil {
			return err
		}
		for _, p := range pids {
			h.killOne(g, p)
		}
	}
	return nil
}

// killOne kills by pidfd, after looking again that the process is in the group.
func (h *Host) killOne(path string, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if h.Contains(path, pid) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// List names the groups below path in any hierarchy, deepest first.
func (h *Host) List(path string) []string {
	var out []string
	for _, root := range h.all(path) {
		_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() || p == root {
				return nil //nolint:nilerr // a group that went away meanwhile is not listed
			}
			rel, err := filepath.Rel(root, p)
			if g := filepath.Join(path, rel); err == nil && !slices.Contains(out, g) {
				out = append(out, g)
			}
			return nil
		})
	}
	slices.SortFunc(out, func(a, b string) int {
		if n := strings.Count(b, "/") - strings.Count(a, "/"); n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	return out
}

// Remove removes the group in every hierarchy, killing what is in it. Dying
// processes keep a group busy for a moment: it tries again until ctx ends.
func (h *Host) Remove(ctx context.Context, path string) error {
	if !Valid(path) {
		return fmt.Errorf("cgroup path %q is not relative and clean", path)
	}
	pause := 200 * time.Microsecond
	for {
		err := h.rmdir(path)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
			for _, g := range h.List(path) {
				if kerr := h.Kill(g); kerr != nil {
					return kerr
				}
				_ = h.rmdir(g)
			}
			if kerr := h.Kill(path); kerr != nil {
				return kerr
			}
		} else {
			return err
		}
		// Real processes are waited for, so the clock is the real one, too.
		if cerr := (clock.Real{}).Sleep(ctx, pause); cerr != nil {
			return fmt.Errorf("remove cgroup %s: %w", path, errors.Join(cerr, err))
		}
		pause = min(pause*2, 50*time.Millisecond)
	}
}

// RemoveEmpty removes a group that nothing is in; an error when something is.
func (h *Host) RemoveEmpty(path string) error {
	if !Valid(path) {
		return fmt.Errorf("cgroup path %q is not relative and clean", path)
	}
	return h.rmdir(path)
}

func (h *Host) rmdir(path string) error {
	var first error
	for _, d := range h.all(path) {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) && first == nil {
			first = fmt.Errorf("remove %s: %w", d, err)
		}
	}
	return first
}
