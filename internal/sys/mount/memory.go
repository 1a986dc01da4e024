package mount

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// InMemory reports whether a path is on a tmpfs.
func InMemory(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return st.Type == unix.TMPFS_MAGIC, nil
}
