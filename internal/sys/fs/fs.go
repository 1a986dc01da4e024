//go:build linux

// Package fs is the part of the door to the kernel that handles files: working
// below a directory without ever leaving it, overlay whiteouts, extended
// attributes, file locks and free space. It starts no goroutines. It must never
// follow a link out of the directory it was given; everything below a Dir is
// resolved by the kernel (openat2, RESOLVE_IN_ROOT) and not by comparing strings.
package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is an open directory. Names given to its methods are single names, never
// paths; only In walks.
type Dir struct{ fd int }

// Stat is what Lstat tells.
type Stat struct {
	Mode     uint32 // as in stat(2): type and permission bits
	UID, GID uint32
	Size     int64
	Blocks   int64 // of 512 bytes
	Rdev     uint64
	Nlink    uint64
	ModTime  time.Time
}

// OpenDir opens a trusted path; it becomes the root for In.
func OpenDir(path string) (*Dir, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Dir{fd}, nil
}

// In opens the directory path below d. Symbolic links on the way, also absolute
// ones and "..", are resolved as if d were "/".
func (d *Dir) In(path string) (*Dir, error) {
	if path == "" || path == "." {
		path = "/"
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	for {
		fd, err := unix.Openat2(d.fd, path, how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
		}
		return &Dir{fd}, nil
	}
}

// Close releases the directory.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// Lstat looks at name itself, not through a link; "." is the directory.
func (d *Dir) Lstat(name string) (Stat, error) {
	var st unix.Stat_t
	if err := check(name); err != nil {
		return Stat{}, err
	}
	if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Stat{}, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return Stat{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, Blocks: st.Blocks, Rdev: st.Rdev, Nlink: uint64(st.Nlink), ModTime: time.Unix(st.Mtim.Unix())}, nil
}

// IsDir tells whether it is a directory.
func (s Stat) IsDir() bool { return s.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsRegular tells whether it is a plain file.
func (s Stat) IsRegular() bool { return s.Mode&unix.S_IFMT == unix.S_IFREG }

// IsSymlink tells whether it is a symbolic link.
func (s Stat) IsSymlink() bool { return s.Mode&unix.S_IFMT == unix.S_IFLNK }

// IsWhiteout tells whether it is overlayfs's mark for "not here any more".
func (s Stat) IsWhiteout() bool { return s.Mode&unix.S_IFMT == unix.S_IFCHR && s.Rdev == 0 }

// Mkdir makes a directory.
func (d *Dir) Mkdir(name string, perm uint32) error {
	return d.do("mkdir", name, func() error { return unix.Mkdirat(d.fd, name, perm) })
}

// Create makes a new plain file for writing; it never opens one that is there.
func (d *Dir) Create(name string, perm uint32) (*os.File, error) {
	var fd int
	err := d.do("create", name, func() (err error) {
		fd, err = unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Open opens a plain file for reading; not through a link, and never waiting for a FIFO.
func (d *Dir) Open(name string) (*os.File, error) {
	var fd int
	err := d.do("open", name, func() (err error) {
		fd, err = unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Symlink makes a symbolic link; the target is only text.
func (d *Dir) Symlink(target, name string) error {
	return d.do("symlink", name, func() error { return unix.Symlinkat(target, d.fd, name) })
}

// Readlink gives a link's text.
func (d *Dir) Readlink(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	var n int
	err := d.do("readlink", name, func() (err error) { n, err = unix.Readlinkat(d.fd, name, buf); return err })
	return string(buf[:max(n, 0)]), err
}

// Link makes name a further name of from's oldname; a link is linked itself, not what it points to.
func (d *Dir) Link(from *Dir, oldname, name string) error {
	if err := check(oldname); err != nil {
		return err
	}
	return d.do("link", name, func() error { return unix.Linkat(from.fd, oldname, d.fd, name, 0) })
}

// Mkfifo makes a named pipe.
func (d *Dir) Mkfifo(name string, perm uint32) error {
	return d.do("mkfifo", name, func() error { return unix.Mknodat(d.fd, name, unix.S_IFIFO|perm, 0) })
}

// MkChar makes a character device node.
func (d *Dir) MkChar(name string, perm, major, minor uint32) error {
	return d.do("mknod", name, func() error {
		return unix.Mknodat(d.fd, name, unix.S_IFCHR|perm, int(unix.Mkdev(major, minor)))
	})
}

// Whiteout makes overlayfs hide name of the layers below.
func (d *Dir) Whiteout(name string) error { return d.MkChar(name, 0, 0, 0) }

// Chown sets the owner of name itself.
func (d *Dir) Chown(name string, uid, gid int) error {
	return d.do("chown", name, func() error { return unix.Fchownat(d.fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) })
}

// Chmod sets the permission bits, with set-id and sticky, of name, which must not be a link.
func (d *Dir) Chmod(name string, perm uint32) error {
	return d.do("chmod", name, func() error { return unix.Fchmodat(d.fd, name, perm&0o7777, 0) })
}

// Chtimes sets the time of last change of name itself.
func (d *Dir) Chtimes(name string, mtime time.Time) error {
	ts := unix.NsecToTimespec(mtime.UnixNano())
	return d.do("utimes", name, func() error {
		return unix.UtimesNanoAt(d.fd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// Remove removes a name that is not a directory.
func (d *Dir) Remove(name string) error {
	return d.do("unlink", name, func() error { return unix.Unlinkat(d.fd, name, 0) })
}

// RemoveAll removes name and everything below it.
func (d *Dir) RemoveAll(name string) error {
	if err := check(name); err != nil || name == "." {
		return errors.Join(err, unix.EINVAL)
	}
	return os.RemoveAll(d.proc(name))
}

// SetXattr sets an extended attribute of name itself.
func (d *Dir) SetXattr(name, attr string, value []byte) error {
	return d.do("setxattr "+attr, name, func() error { return unix.Lsetxattr(d.proc(name), attr, value, 0) })
}

// Xattr reads an extended attribute of name itself; nil when it has none.
func (d *Dir) Xattr(name, attr string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Lgetxattr(d.proc(name), attr, buf)
		switch {
		case errors.Is(err, unix.ERANGE) && len(buf) < 1<<17:
			buf = make([]byte, len(buf)*8)
		case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != nil:
			return nil, &os.PathError{Op: "getxattr " + attr, Path: name, Err: err}
		default:
			return buf[:n], nil
		}
	}
}

// Xattrs lists the names of the extended attributes of name itself.
func (d *Dir) Xattrs(name string) ([]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(d.proc(name), buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
}

// proc names an entry by way of the open directory, for calls that take no directory.
func (d *Dir) proc(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, name) }

func (d *Dir) do(op, name string, fn func() error) error {
	if err := check(name); err != nil {
		return err
	}
	for {
		err := fn()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: op, Path: name, Err: err}
		}
		return nil
	}
}

// check refuses what is not a single name.
func check(name string) error {
	if name == "" || name == ".." || strings.ContainsAny(name, "/\x00") {
		return &os.PathError{Op: "name", Path: name, Err: unix.EINVAL}
	}
	return nil
}

// SyncFS writes everything of the file system that holds path to its disk.
func SyncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: path, Err: err}
	}
	return nil
}

// TryLock takes the exclusive lock of an open file; false when somebody has it.
// It goes with the file's last descriptor, so also with a killed process.
func TryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// Free tells how many bytes this process may still write at path.
func Free(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Allocated tells how many bytes of disk a file takes, and how many names share them.
func Allocated(fi os.FileInfo) (bytes int64, links uint64, inode uint64) {
	st, ok := fi.Sys().(*unixStat)
	if !ok {
		return fi.Size(), 1, 0
	}
	return st.Blocks * 512, uint64(st.Nlink), st.Ino
}

// IsNoSpace tells whether an error means that the disk, or a quota on it, is full.
func IsNoSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// IsNotDir tells whether a path could not be walked because something on it is no directory.
func IsNotDir(err error) bool { return errors.Is(err, unix.ENOTDIR) }
