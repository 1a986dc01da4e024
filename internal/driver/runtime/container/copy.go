package container

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/mount"
)

// A copy never leaves the instance's root: every name is opened from a descriptor of the root
// (of the directory unpacked into) by the kernel's own rule that nothing leads out, also
// when a hostile process inside swaps directories for links meanwhile.

const (
	maxEntries = 1 << 20  // files of one copy
	maxCopy    = 64 << 30 // bytes of one copy into an instance
)

// CopyOut writes a file or directory as a tar; its owners are those inside.
func (r *Runtime) CopyOut(ctx context.Context, id, name string, w io.Writer) error {
	root, rec, err := r.openRoot(ctx, id)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := mount.OpenIn(root, name, mount.Path, 0)
	if err != nil {
		return copyError(id, name, err)
	}
	defer f.Close()
	c := &copier{ctx: ctx, ids: rec.IDs, tw: tar.NewWriter(w)}
	base := path.Base(path.Clean("/" + name))
	if base == "/" {
		base = "."
	}
	if err := c.add(f, base, 0); err != nil {
		return copyError(id, name, err)
	}
	if err := c.tw.Close(); err != nil {
		return copyError(id, name, err)
	}
	return nil
}

func copyError(id, name string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errs.New(errs.NotFound, "copy %s of %s: no such file or directory", name, id)
	case errors.Is(err, mount.ErrEscape):
		return errs.New(errs.Denied, "copy %s of %s: leads out of the instance", name, id)
	}
	return fmt.Errorf("copy %s of %s: %w", name, id, err)
}

// openRoot opens the root of a running instance.
func (r *Runtime) openRoot(ctx context.Context, id string) (*os.File, *record, error) {
	e, err := r.setup()
	if err != nil {
		return nil, nil, err
	}
	unlock, err := r.keys.lock(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	o, rec, found := r.look(e, id)
	if !found {
		return nil, nil, notHere(id)
	}
	if o.Phase != driver.PhaseRunning {
		return nil, nil, errs.New(errs.Conflict, "instance %s is not running", id).WithHint("start it: files are copied through the running instance")
	}
	r.awaitProgram(ctx, e, o.Pid)
	root, err := mount.OpenDir(fmt.Sprintf("/proc/%d/root", o.Pid))
	return root, rec, err
}

type copier struct {
	ctx     context.Context
	ids     driver.IDRange
	tw      *tar.Writer
	entries int
}

// add writes f, which is open by path only, and all below it.
func (c *copier) add(f *os.File, name string, depth int) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if c.entries++; c.entries > maxEntries || depth > 200 {
		return errs.New(errs.Invalid, "more than %d files or 200 levels", maxEntries)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	switch {
	case st.Mode().IsRegular(), st.IsDir(), st.Mode()&os.ModeSymlink != 0:
	default:
		return nil // devices, sockets and FIFOs mean nothing elsewhere
	}
	target := ""
	if st.Mode()&os.ModeSymlink != 0 {
		if target, err = mount.Readlink(f); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	h.Uid, h.Gid = c.inside(h.Uid), c.inside(h.Gid)
	if st.IsDir() {
		h.Name += "/"
	}
	if err := c.tw.WriteHeader(h); err != nil {
		return err
	}
	switch {
	case st.Mode().IsRegular():
		return c.content(f, h.Size)
	case st.IsDir():
		return c.children(f, name, depth)
	}
	return nil
}

// inside translates an ID of the host.
func (c *copier) inside(id int) int {
	if n := int64(id) - int64(c.ids.Base); n >= 0 && n < int64(c.ids.Count) {
		return int(n)
	}
	return 65534
}

// content copies exactly size bytes: a file that grows is cut, one that shrinks is filled up.
func (c *copier) content(f *os.File, size int64) error {
	in, err := mount.Reopen(f, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := io.Copy(c.tw, io.LimitReader(in, size))
	if err == nil && n < size {
		_, err = io.CopyN(c.tw, zeros{}, size-n)
	}
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func (c *copier) children(f *os.File, name string, depth int) error {
	d, err := mount.Reopen(f, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(256)
		for _, n := range names {
			child, cerr := mount.OpenChild(f, n)
			if errors.Is(cerr, os.ErrNotExist) {
				continue
			}
			if cerr != nil {
				return cerr
			}
			cerr = c.add(child, path.Join(name, n), depth+1)
			_ = child.Close()
			if cerr != nil {
				return cerr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// CopyIn unpacks a tar into a directory; everything belongs to root inside.
func (r *Runtime) CopyIn(ctx context.Context, id, name string, rd io.Reader) error {
	root, rec, err := r.openRoot(ctx, id)
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := mount.OpenIn(root, name, mount.Path|mount.Directory, 0)
	if err != nil {
		return copyError(id, name, err)
	}
	defer dir.Close()
	tr := tar.NewReader(io.LimitReader(rd, maxCopy))
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && n >= maxEntries {
			err = errs.New(errs.Invalid, "more than %d files", maxEntries)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = unpack(dir, h, tr, int(rec.IDs.Base))
		}
		if err != nil {
			return copyError(id, name, err)
		}
	}
}

// unpack makes one entry below dir.
func unpack(dir *os.File, h *tar.Header, r io.Reader, owner int) error {
	name := strings.TrimPrefix(filepath.Clean("/"+h.Name), "/")
	if name == "" {
		return nil
	}
	parent, err := mount.MkdirAllIn(dir, path.Dir(name), owner)
	if err != nil {
		return err
	}
	defer parent.Close()
	mode := uint32(h.Mode & 0o777) // no set-ID bits from outside
	switch h.Typeflag {
	case tar.TypeDir:
		d, err := mount.MkdirAllIn(parent, path.Base(name), owner)
		if err != nil {
			return err
		}
		return errors.Join(mount.ChmodDir(d, mode|0o700), d.Close())
	case tar.TypeReg:
		f, err := mount.CreateIn(parent, path.Base(name), mode, owner)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return mount.SymlinkIn(parent, h.Linkname, path.Base(name), owner)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return errs.New(errs.Invalid, "%s: only files, directories and symbolic links can be copied", h.Name)
}
