// Package layer turns the tar of an image layer, compressed or not, into a directory an
// overlay can be mounted from.
//
// It starts no goroutine of its own. The tar is hostile: nothing is ever written outside of
// the directory, and time, memory, bytes and entries are bounded.
package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	stdfs "io/fs"
	"os"
	"path"
	"strings"
	"time"

	"atoll/internal/errs"
	"atoll/internal/image/disk"
	"atoll/internal/image/flight"
	"atoll/internal/image/oci"
	"atoll/internal/sys/fs"
)

// Marks of the OCI layer format, and what overlayfs has for them.
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh."
	opaqueMark     = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	paxXattr       = "SCHILY.xattr."
)

const (
	maxID       = 65535 // the size of a tenant's range of user IDs
	maxPath     = 4096
	maxDepth    = 256
	maxXattrs   = 64
	maxXattr    = 64 << 10
	RoomEvery   = 64 << 20 // bytes between two looks at the free space
	copyBuffer  = 128 << 10
	sparseBlock = 4096
)

// Applier writes one layer's tar below a directory, in the form overlayfs reads:
// whiteouts become 0:0 devices, opaque directories get an attribute.
//
// The tar is hostile. Every path is resolved by the kernel inside root, so links in
// the layer can point wherever they like and nothing is ever written outside.
// Attributes of overlayfs itself are never taken from a tar, nor are devices other
// than the harmless ones every system has: in a layer they could only be a way
// around what the host allows.
type Applier struct {
	Ctx   context.Context
	Root  *fs.Dir
	Lower []*fs.Dir // layers below, highest first: owners and modes of implied directories
	Lim   oci.Limits
	Room  func() error

	Entries   int
	Bytes     int64
	unchecked int64
	parent    *fs.Dir // last directory worked in
	parentAt  string
	dirs      []dirTime
	buf       []byte
	Opaque    bool // the layer hides everything below it
	Skipped   int  // devices left out
}

type dirTime struct {
	path string
	at   time.Time
}

// Apply reads the whole stream, also what follows the archive's end: it is hashed.
func (a *Applier) Apply(r io.Reader) error {
	defer a.leave()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return BadTar(err)
		}
		if err := a.entry(h, tr); err != nil {
			return fmt.Errorf("entry %q: %w", oci.Clip(h.Name), disk.NoSpace(err))
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return BadTar(err)
	}
	// Last, because every file made in a directory changes the directory's time.
	for i := len(a.dirs) - 1; i >= 0; i-- {
		if err := a.dirTime(a.dirs[i]); err != nil {
			return fmt.Errorf("entry %q: %w", oci.Clip(a.dirs[i].path), err)
		}
	}
	return nil
}

// BadTar gives an error of reading the kind Invalid, unless it has one or was called off.
func BadTar(err error) error {
	var e *errs.Error
	if errors.As(err, &e) || flight.Canceled(err) || fs.IsNoSpace(err) {
		return err
	}
	return errs.New(errs.Invalid, "not a readable archive: %w", err)
}

func (a *Applier) entry(h *tar.Header, r io.Reader) error {
	if a.Entries++; a.Entries > a.Lim.Entries {
		return errs.New(errs.Invalid, "more than %d entries", a.Lim.Entries)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := EntryPath(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return a.rootDir(h)
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if base == whiteoutPrefix+"." || base == whiteoutPrefix+".." || base == whiteoutPrefix {
		return errs.New(errs.Invalid, "a whiteout of no name")
	}
	if err := a.enter(dir); err != nil {
		return err
	}
	switch {
	case base == opaqueMark:
		return a.setOpaque(dir)
	case strings.HasPrefix(base, metaPrefix):
		return nil // marks of aufs, nothing to overlayfs
	case strings.HasPrefix(base, whiteoutPrefix):
		return a.whiteout(strings.TrimPrefix(base, whiteoutPrefix))
	}
	return a.create(h, name, base, r)
}

// EntryPath gives the path of an entry relative to the root; "" is the root.
func EntryPath(name string) (string, error) {
	if len(name) > maxPath || strings.ContainsRune(name, 0) {
		return "", errs.New(errs.Invalid, "the path has more than %d bytes or holds a zero byte", maxPath)
	}
	parts := strings.Split(strings.TrimRight(name, "/"), "/")
	for i, p := range parts {
		if p == ".." {
			return "", errs.New(errs.Invalid, "the path leaves the layer")
		}
		if i < len(parts)-1 && strings.HasPrefix(p, whiteoutPrefix) {
			return "", errs.New(errs.Invalid, "the path goes through a whiteout")
		}
		if len(p) > 255 {
			return "", errs.New(errs.Invalid, "a name has more than 255 bytes")
		}
	}
	if len(parts) > maxDepth {
		return "", errs.New(errs.Invalid, "the path is more than %d directories deep", maxDepth)
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func (a *Applier) rootDir(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return errs.New(errs.Invalid, "the root of a layer must be a directory")
	}
	if err := a.enter(""); err != nil {
		return err
	}
	a.dirs = append(a.dirs, dirTime{"", h.ModTime})
	return a.metadata(h, ".")
}

// enter makes dir the current directory; what of it does not exist is made.
func (a *Applier) enter(dir string) error {
	if a.parent != nil && a.parentAt == dir {
		return nil
	}
	d, err := a.Root.In(dir)
	if (errors.Is(err, stdfs.ErrNotExist) || fs.IsNotDir(err)) && dir != "" {
		if err = a.imply(dir); err == nil {
			d, err = a.Root.In(dir)
		}
	}
	if err != nil {
		var e *errs.Error
		if errors.As(err, &e) || fs.IsNoSpace(err) {
			return err
		}
		return errs.New(errs.Invalid, "its directory cannot be entered: %w", err)
	}
	a.leave()
	a.parent, a.parentAt = d, dir
	return nil
}

func (a *Applier) leave() {
	if a.parent != nil {
		a.parent.Close()
	}
	a.parent, a.parentAt = nil, ""
}

// imply makes a directory that the tar has no entry for. It must look as in the
// layers below, because overlayfs shows the uppermost one's owner and mode.
func (a *Applier) imply(dir string) error {
	up, base := path.Split(dir)
	up = strings.TrimSuffix(up, "/")
	if err := a.enter(up); err != nil {
		return err
	}
	if a.Entries++; a.Entries > a.Lim.Entries {
		return errs.New(errs.Invalid, "more than %d entries", a.Lim.Entries)
	}
	st, err := a.parent.Lstat(base)
	switch {
	case errors.Is(err, stdfs.ErrNotExist):
		err = a.parent.Mkdir(base, 0o755)
	case err == nil && st.IsWhiteout():
		if err = a.parent.Remove(base); err == nil {
			if err = a.parent.Mkdir(base, 0o755); err == nil {
				err = a.parent.SetXattr(base, opaqueXattr, []byte("y"))
			}
		}
	case err == nil:
		return errs.New(errs.Invalid, "%q is not a directory", oci.Clip(dir)) // a dangling link
	}
	if err != nil {
		return err
	}
	return a.copyLower(dir, up, base)
}

func (a *Applier) copyLower(dir, up, base string) error {
	at := time.Unix(0, 0)
	for _, l := range a.Lower {
		d, err := l.In(up)
		if err != nil {
			continue
		}
		st, err := d.Lstat(base)
		d.Close()
		if err != nil || !st.IsDir() {
			continue
		}
		if err := a.parent.Chown(base, int(st.UID), int(st.GID)); err != nil {
			return err
		}
		if err := a.parent.Chmod(base, st.Mode); err != nil {
			return err
		}
		at = st.ModTime
		break
	}
	a.dirs = append(a.dirs, dirTime{dir, at})
	return nil
}

func (a *Applier) setOpaque(dir string) error {
	if dir == "" {
		a.Opaque = true // overlayfs does not look for the attribute there
		return nil
	}
	return a.parent.SetXattr(".", opaqueXattr, []byte("y"))
}

// whiteout hides a name of the layers below. What this layer itself has under that
// name stays: the format says whiteouts are about lower layers only.
func (a *Applier) whiteout(name string) error {
	st, err := a.parent.Lstat(name)
	switch {
	case errors.Is(err, stdfs.ErrNotExist):
		return a.parent.Whiteout(name)
	case err != nil:
		return err
	case st.IsDir():
		return a.parent.SetXattr(name, opaqueXattr, []byte("y"))
	}
	return nil
}

func (a *Applier) create(h *tar.Header, name, base string, r io.Reader) error {
	wasWhiteout, merge, err := a.clear(h, base)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if !merge {
			if err := a.parent.Mkdir(base, 0o755); err != nil {
				return err
			}
		}
		a.dirs = append(a.dirs, dirTime{name, h.ModTime})
		if wasWhiteout {
			if err := a.parent.SetXattr(base, opaqueXattr, []byte("y")); err != nil {
				return err
			}
		}
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if err := a.file(h, base, r); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) >= maxPath {
			return errs.New(errs.Invalid, "a link of %d bytes", len(h.Linkname))
		}
		if err := a.parent.Symlink(h.Linkname, base); err != nil {
			return err
		}
	case tar.TypeLink:
		return a.link(h, base)
	case tar.TypeFifo:
		if err := a.parent.Mkfifo(base, 0o600); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock:
		if !harmless(h) {
			a.Skipped++
			return nil
		}
		if err := a.parent.MkChar(base, 0o600, uint32(h.Devmajor), uint32(h.Devminor)); err != nil {
			return err
		}
	default:
		return errs.New(errs.Invalid, "entries of type %q are not known", string(rune(h.Typeflag)))
	}
	return a.metadata(h, base)
}

// clear makes way for an entry: a later one replaces an earlier one, but a directory stays.
func (a *Applier) clear(h *tar.Header, base string) (wasWhiteout, merge bool, err error) {
	st, err := a.parent.Lstat(base)
	if errors.Is(err, stdfs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	if st.IsDir() && h.Typeflag == tar.TypeDir {
		return false, true, nil
	}
	if st.IsDir() {
		return false, false, a.parent.RemoveAll(base)
	}
	return st.IsWhiteout(), false, a.parent.Remove(base)
}

// harmless are the character devices that give nobody anything.
func harmless(h *tar.Header) bool {
	if h.Typeflag != tar.TypeChar {
		return false
	}
	switch [2]int64{h.Devmajor, h.Devminor} {
	case [2]int64{1, 3}, [2]int64{1, 5}, [2]int64{1, 7}, [2]int64{1, 8}, [2]int64{1, 9}, [2]int64{5, 0}, [2]int64{5, 1}, [2]int64{5, 2}:
		return true
	}
	return false
}

func (a *Applier) file(h *tar.Header, base string, r io.Reader) error {
	if a.Bytes += h.Size; a.Bytes > a.Lim.Unpacked || h.Size < 0 {
		return errs.New(errs.Invalid, "the layer's files are larger than the limit of %d bytes", a.Lim.Unpacked)
	}
	f, err := a.parent.Create(base, 0o600)
	if err != nil {
		return err
	}
	err = a.fill(f, h.Size, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// fill copies size bytes; long runs of zeros become holes.
func (a *Applier) fill(f *os.File, size int64, r io.Reader) error {
	if a.buf == nil {
		a.buf = make([]byte, copyBuffer)
	}
	hole := false
	for left := size; left > 0; {
		if err := flight.CalledOff(a.Ctx); err != nil {
			return err
		}
		p := a.buf[:min(left, copyBuffer)]
		if _, err := io.ReadFull(r, p); err != nil {
			return BadTar(err)
		}
		left -= int64(len(p))
		var err error
		if hole = len(p) == copyBuffer && zeros(p); hole {
			_, err = f.Seek(int64(len(p)), io.SeekCurrent)
		} else {
			_, err = f.Write(p)
			err = errors.Join(err, a.checkRoom(int64(len(p))))
		}
		if err != nil {
			return err
		}
	}
	if hole {
		return f.Truncate(size)
	}
	return nil
}

func (a *Applier) checkRoom(n int64) error {
	if a.unchecked += n; a.unchecked < RoomEvery || a.Room == nil {
		return nil
	}
	a.unchecked = 0
	return a.Room()
}

// link makes a further name of a file that the layer has already.
func (a *Applier) link(h *tar.Header, base string) error {
	target, err := EntryPath(h.Linkname)
	if err != nil {
		return err
	}
	dir, name := path.Split(target)
	d, err := a.Root.In(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return errs.New(errs.Invalid, "hard link to %q, which the layer does not have", oci.Clip(h.Linkname))
	}
	defer d.Close()
	if name == "" {
		return errs.New(errs.Invalid, "hard link to the root")
	}
	st, err := d.Lstat(name)
	if err != nil || st.IsDir() || st.IsWhiteout() {
		return errs.New(errs.Invalid, "hard link to %q, which is no file of the layer", oci.Clip(h.Linkname))
	}
	return a.parent.Link(d, name, base)
}

// metadata sets owner, mode, attributes and time; in this order, because a change
// of owner drops set-user-ID bits and capabilities.
func (a *Applier) metadata(h *tar.Header, base string) error {
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return errs.New(errs.Unsupported, "owner %d:%d is outside of 0..%d, the IDs a tenant has", h.Uid, h.Gid, maxID).
			WithHint("build the image with smaller user and group IDs")
	}
	if err := a.parent.Chown(base, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := a.parent.Chmod(base, uint32(h.Mode)); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeGNUSparse {
		if err := a.xattrs(h, base); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		return nil // at the end
	}
	return a.parent.Chtimes(base, boundTime(h.ModTime))
}

func (a *Applier) xattrs(h *tar.Header, base string) error {
	n := 0
	for k, v := range h.PAXRecords {
		attr, ok := strings.CutPrefix(k, paxXattr)
		if !ok || !wantedXattr(attr) {
			continue
		}
		if n++; n > maxXattrs || len(v) > maxXattr || len(attr) > 255 {
			return errs.New(errs.Invalid, "more than %d extended attributes, or one of more than %d bytes", maxXattrs, maxXattr)
		}
		if err := a.parent.SetXattr(base, attr, []byte(v)); err != nil {
			return err
		}
	}
	return nil
}

// wantedXattr lets file capabilities and users' own attributes through. trusted.* and
// user.overlay.* would let a layer talk to overlayfs, and labels of the host's
// security module are the host's to give.
func wantedXattr(attr string) bool {
	return attr == "security.capability" || strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.overlay.")
}

func (a *Applier) dirTime(t dirTime) error {
	up, base := path.Split(t.path)
	if base == "" {
		base = "."
	}
	d, err := a.Root.In(strings.TrimSuffix(up, "/"))
	if err != nil {
		return nil // replaced by a later entry
	}
	defer d.Close()
	if st, err := d.Lstat(base); err != nil || !st.IsDir() {
		return nil
	}
	return d.Chtimes(base, boundTime(t.at))
}

// boundTime keeps a time inside what file systems can hold.
func boundTime(t time.Time) time.Time {
	if t.Unix() < 0 {
		return time.Unix(0, 0)
	}
	if t.Unix() > 1<<33 {
		return time.Unix(1<<33, 0)
	}
	return t
}

// zeros tells whether a block holds nothing.
func zeros(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }
