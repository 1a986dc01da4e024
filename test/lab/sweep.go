package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"atoll/internal/errs"
	"atoll/test/rig"
)

// own notes whose the lab is: a process and when it began, as numbers are given again.
func (l *Lab) own() error {
	if l.kept {
		return nil
	}
	began, err := since(os.Getpid())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Dir, "owner"), fmt.Appendf(nil, "%d %s\n", os.Getpid(), began), 0o600)
}

// since is when a process began, in the kernel's count.
func since(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The name in parentheses may hold anything; the 20th field after it is the time.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return "", fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return f[19], nil
}

// orphaned reports whether a lab's process has ended. A kept lab has none.
func orphaned(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "owner"))
	f := strings.Fields(string(b))
	if err != nil || len(f) != 2 {
		return false
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil {
		return false
	}
	began, err := since(pid)
	return err != nil || began != f[1]
}

// Sweep takes away the labs whose processes have ended without doing so themselves.
func Sweep(ctx context.Context, bin string) error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return err
	}
	var all []error
	for _, dir := range dirs {
		if !orphaned(dir) {
			continue
		}
		// Of several who see it, one does it.
		lock, err := os.OpenFile(filepath.Join(dir, "sweep"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			continue // somebody else was faster
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			all = append(all, remains(ctx, bin, dir))
		}
		lock.Close()
	}
	return errors.Join(all...)
}

// remains takes away what is left of one lab, whose network may be gone.
func remains(ctx context.Context, bin, dir string) error {
	l, err := open(dir)
	if errors.Is(err, errs.NotFound) { // it was killed before it had made anything
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	l.Bin = bin
	l.hub = rig.FindSpace(prefix + l.Name + "-hub")
	for _, h := range l.Hosts {
		h.space = rig.FindSpace(h.Group)
	}
	return l.Close()
}

// Remove takes a kept lab away, also what is left of one after the machine was started anew. None is no error.
func Remove(name string) error {
	dir := Dir(name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	bin := ""
	if l, err := open(dir); err == nil {
		bin = l.Bin
	} else if !errors.Is(err, errs.NotFound) {
		return err
	}
	return remains(context.Background(), bin, dir)
}
