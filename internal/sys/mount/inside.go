package mount

import (
	"errors"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Flags for OpenIn beside those of package os.
const (
	Path      = unix.O_PATH
	Directory = unix.O_DIRECTORY
)

// ErrEscape: a name would lead out of its root.
var ErrEscape error = unix.EXDEV

// OpenChild opens a directory's entry by path only, without following it.
func OpenChild(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Reopen opens for use what is open by path only; never a link, device or FIFO.
func Reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Readlink reads a link that is open by path only.
func Readlink(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	return string(buf[:n]), nil
}

// MkdirAllIn makes the directories of a relative path below root that are missing, gives
// them to owner, and opens the last by path only. Links inside the root are followed, but not out of it.
func MkdirAllIn(root *os.File, name string, owner int) (*os.File, error) {
	cur, err := OpenChild(root, ".")
	if err != nil {
		return nil, err
	}
	done := "."
	for _, part := range strings.Split(path.Clean(name), "/") {
		if part == "." || part == "" {
			continue
		}
		done = path.Join(done, part)
		next, err := OpenIn(root, done, Path|Directory, 0)
		if errors.Is(err, os.ErrNotExist) {
			err = unix.Mkdirat(int(cur.Fd()), part, 0o755)
			if err == nil {
				err = unix.Fchownat(int(cur.Fd()), part, owner, owner, unix.AT_SYMLINK_NOFOLLOW)
			}
			if err == nil || errors.Is(err, unix.EEXIST) {
				next, err = OpenIn(root, done, Path|Directory, 0)
			}
		}
		_ = cur.Close()
		if err != nil {
			return nil, err
		}
		cur = next
	}
	return cur, nil
}

// ChmodDir sets the mode of a directory that is open by path only.
func ChmodDir(f *os.File, mode uint32) error {
	d, err := Reopen(f, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fchmod(int(d.Fd()), mode), d.Close())
}

// CreateIn makes a file in a directory in place of what has its name, a link included.
func CreateIn(dir *os.File, name string, mode uint32, owner int) (*os.File, error) {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, &os.PathError{Op: "replace", Path: name, Err: err}
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if err := errors.Join(unix.Fchown(fd, owner, owner), unix.Fchmod(fd, mode)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// SymlinkIn makes a link in a directory in place of what has its name.
func SymlinkIn(dir *os.File, target, name string, owner int) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "replace", Path: name, Err: err}
	}
	if err := unix.Symlinkat(target, int(dir.Fd()), name); err != nil {
		return &os.PathError{Op: "link", Path: name, Err: err}
	}
	return unix.Fchownat(int(dir.Fd()), name, owner, owner, unix.AT_SYMLINK_NOFOLLOW)
}
