package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CopyShifted copies a tree of ours, adding base to every owner below count; others become
// base+65534, nobody. Links, devices (whiteouts), times, modes and extended attributes are kept.
func CopyShifted(ctx context.Context, from, to string, base, count uint32) error {
	links := map[[2]uint64]string{} // device and inode of files with several names
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		id := [2]uint64{st.Dev, st.Ino}
		if first, seen := links[id]; seen && !d.IsDir() {
			return os.Link(first, dst)
		}
		if err := copyNode(p, dst, &st); err != nil {
			return fmt.Errorf("copy %s: %w", rel, err)
		}
		if st.Nlink > 1 && !d.IsDir() {
			links[id] = dst
		}
		return copyMeta(p, dst, &st, func(n uint32) int {
			if n >= count {
				n = 65534
			}
			return int(base + n)
		})
	})
}

func copyNode(p, dst string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := os.Mkdir(dst, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	case unix.S_IFLNK:
		target, err := os.Readlink(p)
		if err != nil {
			return err
		}
		return os.Symlink(target, dst)
	case unix.S_IFREG:
		in, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in) // by reflink or copy_file_range where the file system can
		return errors.Join(err, out.Close())
	}
	return unix.Mknod(dst, st.Mode, int(st.Rdev)) //nolint:gosec // device numbers fit
}

func copyMeta(p, dst string, st *unix.Stat_t, shift func(uint32) int) error {
	if err := unix.Lchown(dst, shift(st.Uid), shift(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(dst, st.Mode&0o7777); err != nil { // after chown, which takes set-ID bits away
			return err
		}
	}
	if err := copyAttrs(p, dst); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyAttrs copies extended attributes; those the target's file system does not know are left out.
func copyAttrs(p, dst string) error {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	val := make([]byte, 64<<10)
	for len(names[:n]) > 0 {
		end := 0
		for end < n && names[end] != 0 {
			end++
		}
		name := string(names[:end])
		names, n = names[min(end+1, len(names)):], max(n-end-1, 0)
		m, err := unix.Lgetxattr(p, name, val)
		if err != nil {
			continue // gone, or not for us
		}
		if err := unix.Lsetxattr(dst, name, val[:m], 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}
