// Package archive reads what images are carried in: OCI layouts and what docker save writes.
//
// It starts no goroutine. An archive is hostile: its members are bounded in number and size,
// and go to files whose names are ours.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"atoll/internal/errs"
	"atoll/internal/image/disk"
	"atoll/internal/image/layer"
	"atoll/internal/image/oci"
)

// Open reads a tar and puts its members aside in dir.
func Open(dir string, r io.Reader, limit int64, room func(int64) error) (*Spool, error) {
	sp := &Spool{dir: dir, limit: limit, room: room, members: map[string]Member{}, links: map[string]string{}}
	return sp, sp.read(r)
}

const maxMembers = 20_000

// Spool is an archive put aside. An image archive names its parts in any order, and
// what they are for may come last. So its members are put aside as files first,
// bounded in number and size, and hashed on the way.
type Spool struct {
	dir     string
	limit   int64             // bytes of all members
	room    func(int64) error // refuses what would fill the disk
	members map[string]Member
	links   map[string]string // older docker writes the same layer as a link
}

// Member is a file of an archive.
type Member struct {
	File   string
	Digest string
	Size   int64
}

func (sp *Spool) read(r io.Reader) error {
	tr := tar.NewReader(r)
	var total int64
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return layer.BadTar(err)
		}
		if n >= maxMembers {
			return errs.New(errs.Invalid, "the archive has more than %d members", maxMembers)
		}
		name, err := layer.EntryPath(h.Name)
		if err != nil {
			return fmt.Errorf("member %q: %w", oci.Clip(h.Name), err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if total += h.Size; total > sp.limit {
				return errs.New(errs.Invalid, "the archive is larger than the limit of %d bytes", sp.limit)
			}
			if err := sp.room(h.Size); err != nil {
				return err
			}
			if err := sp.put(name, tr); err != nil {
				return err
			}
		case tar.TypeSymlink:
			sp.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			sp.links[name] = path.Clean(h.Linkname)
		}
	}
}

func (sp *Spool) put(name string, r io.Reader) error {
	w, err := disk.New(sp.dir)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	if cerr := w.File.Close(); err == nil {
		err = disk.NoSpace(cerr)
	}
	if err != nil {
		return layer.BadTar(err)
	}
	sp.members[name] = Member{w.File.Name(), w.Digest(), w.N}
	return nil
}

// Find looks a member up, through at most one link.
func (sp *Spool) Find(name string) (Member, bool) {
	name = path.Clean(name)
	if to, ok := sp.links[name]; ok {
		name = to
	}
	m, ok := sp.members[name]
	return m, ok
}

// Small reads a member that must not be large.
func (sp *Spool) Small(name string, limit int64) ([]byte, error) {
	m, ok := sp.Find(name)
	if !ok {
		return nil, errs.New(errs.Invalid, "the archive lacks %q", oci.Clip(name))
	}
	if m.Size > limit {
		return nil, errs.New(errs.Invalid, "%q in the archive has %d bytes, more than %d", oci.Clip(name), m.Size, limit)
	}
	return os.ReadFile(m.File)
}

// Blob finds the bytes of a descriptor in a layout and checks them.
func (sp *Spool) Blob(d oci.Descriptor) (Member, bool, error) {
	m, ok := sp.Find("blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:"))
	if ok && (m.Digest != d.Digest || m.Size != d.Size) {
		return Member{}, false, errs.New(errs.Invalid, "blob %s in the archive is refused: its %d bytes are %s", d.Digest, m.Size, m.Digest).
			WithHint("the archive is damaged; make it again")
	}
	return m, ok, nil
}
