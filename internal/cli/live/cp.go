package live

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/stream"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

// Cp copies files into and out of an instance.
func Cp() verb.Def {
	return verb.Def{
		Use: "cp SOURCE DESTINATION", Group: verb.GroupRun, Min: 2, Max: 2,
		Short: "Copy files into and out of an instance",
		Long: `Cp copies a file or a directory with all in it. One side is INSTANCE:/path, the other
a path here, or - for a tar on standard input or output. As with cp, a destination
that is a directory gets the source put into it; otherwise the destination is the
new name.`,
		Example: "  atoll cp app.conf web:/etc/app.conf\n  atoll cp web:/var/log ./logs\n  tar c src | atoll cp - web:/src\n  atoll cp web:/etc - | tar t",
		Run:     runCp, Complete: verb.CompleteInstances(-1),
	}
}

// inside splits INSTANCE:/path; a path here has no colon before its first slash.
func inside(s string) (instance, p string, ok bool) {
	i := strings.IndexByte(s, ':')
	if i <= 0 || s[0] == '.' || s[0] == '/' {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

func runCp(ctx context.Context, c *verb.Call) error {
	fromName, from, out := inside(c.Args[0])
	toName, to, in := inside(c.Args[1])
	switch {
	case out && in:
		return errs.New(errs.Unsupported, "cp between instances goes through here").WithHint("atoll cp %s - | atoll cp - %s", c.Args[0], c.Args[1])
	case !out && !in:
		return errs.New(errs.Invalid, "cp: one side must be INSTANCE:/path").WithHint("atoll cp web:/etc/hosts .")
	}
	p, name := from, fromName
	if in {
		p, name = to, toName
	}
	if !path.IsAbs(p) {
		return errs.New(errs.Invalid, "cp: %q must be an absolute path inside the instance", p).WithHint("such as %s:/%s", name, p)
	}
	ref, err := c.Instance(ctx, name)
	if err != nil {
		return err
	}
	if out {
		return copyOut(ctx, c, ref, from, c.Args[1])
	}
	return copyIn(ctx, c, ref, c.Args[0], to)
}

func copyStream(ctx context.Context, c *verb.Call, ref api.Ref, req api.CopyRequest) (conn.Stream, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	s, err := cl.Stream(ctx, conn.StreamRequest{Verb: tunnel.VerbCopy, Instance: ref, Params: req})
	if errs.KindOf(err) == errs.NotFound {
		return nil, c.NotFound(ctx, cl, ref)
	}
	return s, err
}

// tarOf reads the tar a copy stream sends; the error of the stream comes at its end.
type tarOf struct {
	s    conn.Stream
	rest []byte
	done error
}

func (t *tarOf) Read(p []byte) (int, error) {
	for len(t.rest) == 0 {
		if t.done != nil {
			return 0, t.done
		}
		ch, b, err := t.s.Read()
		switch {
		case err != nil:
			t.done = errs.New(errs.Unavailable, "the copy broke off: %w", err)
		case ch == api.ChanStdout:
			t.rest = b
		case ch == api.ChanExit:
			var e api.StreamExit
			if t.done = json.Unmarshal(b, &e); t.done == nil {
				t.done = stream.ExitError(e)
			}
			if t.done == nil {
				t.done = io.EOF
			}
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

func copyOut(ctx context.Context, c *verb.Call, ref api.Ref, from, to string) error {
	s, err := copyStream(ctx, c, ref, api.CopyRequest{Path: path.Clean(from)})
	if err != nil {
		return err
	}
	defer s.Close()
	r := &tarOf{s: s}
	if to == "-" {
		if c.Term.OutIs() {
			return errs.New(errs.Invalid, "a tar is not for a terminal").WithHint("atoll cp %s:%s - | tar t", ref.Name, from)
		}
		_, err := io.Copy(c.Out, r)
		return err
	}
	dir, name := filepath.Split(filepath.Clean(to))
	if st, err := os.Stat(to); err == nil && st.IsDir() {
		dir, name = to, path.Base(path.Clean(from))
		if name == "/" || name == "." {
			name = "root"
		}
	} else if strings.HasSuffix(to, "/") {
		return errs.New(errs.NotFound, "the directory %s is not there", to).WithHint("mkdir -p %s", to)
	}
	root, err := os.OpenRoot(cmp.Or(dir, "."))
	if err != nil {
		return errs.New(errs.NotFound, "%w", err)
	}
	defer root.Close()
	return unpack(tar.NewReader(r), root, name)
}

const maxEntries = 10_000_000

// unpack writes a tar below root, its first entry under the given name. The tar
// comes from an instance and is hostile: os.Root keeps every name and every
// symbolic link inside; devices, and owners and special bits, are left out.
func unpack(tr *tar.Reader, root *os.Root, name string) error {
	top := ""
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			if n == 0 {
				return errs.New(errs.Internal, "the instance sent an empty tar")
			}
			return nil
		}
		if err != nil {
			return err
		}
		if n >= maxEntries {
			return errs.New(errs.Invalid, "more than %d files", maxEntries)
		}
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") { // a few bytes could claim to be a file that fills the disk
				return errs.New(errs.Invalid, "the tar holds the sparse file %q", h.Name).WithHint("atoll cp INSTANCE:/path - | tar x keeps such files as they are")
			}
		}
		clean := path.Clean("/" + h.Name)[1:]
		if n == 0 {
			top = clean
		}
		rest, inTop := strings.CutPrefix(clean, top)
		if !inTop || top != "" && rest != "" && rest[0] != '/' {
			return errs.New(errs.Invalid, "the tar holds %q outside of %q", h.Name, top)
		}
		target := path.Join(name, rest)
		if err := unpackEntry(tr, h, root, target, func(link string) (string, bool) {
			link = path.Clean("/" + link)[1:]
			rest, ok := strings.CutPrefix(link, top)
			return path.Join(name, rest), ok
		}); err != nil {
			return errs.New(errs.Invalid, "write %s: %w", target, err)
		}
	}
}

func unpackEntry(r io.Reader, h *tar.Header, root *os.Root, target string, within func(string) (string, bool)) error {
	mode := fs.FileMode(h.Mode) & 0o777
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(target, mode|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg:
		_ = root.Remove(target) // a file or link in its place; a directory stays and fails below
		f, err := root.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = root.Chtimes(target, h.ModTime, h.ModTime)
		}
		return err
	case tar.TypeSymlink:
		_ = root.Remove(target)
		return root.Symlink(h.Linkname, target)
	case tar.TypeLink:
		old, ok := within(h.Linkname)
		if !ok {
			return fmt.Errorf("hard link to %q leads out", h.Linkname)
		}
		_ = root.Remove(target)
		return root.Link(old, target)
	}
	return nil // devices, sockets and pipes mean nothing here
}

func copyIn(ctx context.Context, c *verb.Call, ref api.Ref, from, to string) error {
	dir, name := path.Clean(to), ""
	if from != "-" {
		if _, err := os.Lstat(from); err != nil {
			return errs.New(errs.NotFound, "%w", err)
		}
		isDir, err := remoteDir(ctx, c, ref, dir)
		if err != nil {
			return err
		}
		abs, err := filepath.Abs(from)
		if err != nil {
			return err
		}
		name = filepath.Base(abs)
		if !isDir {
			if strings.HasSuffix(to, "/") {
				return errs.New(errs.NotFound, "the directory %s is not there in %s", to, ref.Name).WithHint("atoll exec %s -- mkdir -p %s", ref.Name, to)
			}
			dir, name = path.Split(dir)
		}
	}
	s, err := copyStream(ctx, c, ref, api.CopyRequest{Path: cmp.Or(path.Clean(dir), "/"), In: true})
	if err != nil {
		return err
	}
	if from == "-" {
		return stream.Transfer(s, c.In, nil, c.Progress(true))
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := pack(pw, from, name)
		_ = pw.CloseWithError(err) // the reader gets it, and always succeeds in getting it
		done <- err
	}()
	err = stream.Transfer(s, pr, nil, c.Progress(true))
	_ = pr.CloseWithError(io.ErrClosedPipe) // ends pack when the other side has ended
	if perr := <-done; perr != nil && !errors.Is(perr, io.ErrClosedPipe) {
		return errs.New(errs.Invalid, "read %s: %w", from, perr)
	}
	return err
}

// remoteDir finds out whether a path inside is a directory, by the first entry of its tar.
func remoteDir(ctx context.Context, c *verb.Call, ref api.Ref, p string) (bool, error) {
	if p == "/" {
		return true, nil
	}
	s, err := copyStream(ctx, c, ref, api.CopyRequest{Path: p})
	if err != nil {
		return false, err
	}
	defer s.Close()
	h, err := tar.NewReader(&tarOf{s: s}).Next()
	switch {
	case errs.KindOf(err) == errs.NotFound || errors.Is(err, io.EOF):
		return false, nil
	case err != nil:
		return false, err
	}
	return h.Typeflag == tar.TypeDir, nil
}

// pack writes a file or directory as a tar, under another name. Links stay links.
func pack(w io.Writer, from, name string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		return packEntry(tw, p, path.Join(name, filepath.ToSlash(rel)), d)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func packEntry(tw *tar.Writer, p, name string, d fs.DirEntry) error {
	st, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	case !st.Mode().IsRegular() && !st.IsDir():
		return nil
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name = name
	if st.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", "" // root inside; the host's accounts mean nothing there
	if err := tw.WriteHeader(h); err != nil || !st.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(tw, f, st.Size()) // a file that shrinks meanwhile is an error; one that grows is cut
	return err
}
