package mount

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// HideUnified replaces /sys/fs/cgroup in the calling thread's namespace by one that holds the
// same v1 hierarchies and no v2 tree. OCI runtimes refuse hybrid hosts, and crun, when the v2 tree is only
// unmounted, writes its files into the directory below. scratch is an empty directory.
func HideUnified(unified, scratch string) error {
	root := filepath.Dir(unified)
	if err := Tmpfs(scratch, 1<<20, 0o755); err != nil {
		return err
	}
	es, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range es {
		from, to := filepath.Join(root, e.Name()), filepath.Join(scratch, e.Name())
		switch {
		case from == unified:
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(from)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, to); err != nil {
				return err
			}
		case e.IsDir():
			if err := os.Mkdir(to, 0o755); err != nil {
				return err
			}
			if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind %s: %w", from, err)
			}
		}
	}
	if err := Detach(root); err != nil {
		return err
	}
	if err := unix.Mount(scratch, root, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to %s: %w", scratch, root, err)
	}
	return nil
}
