package image

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"atoll/internal/errs"
)

// An image archive names its parts in any order, and what they are for may come
// last. So its members are put aside as files first, bounded in number and size,
// and hashed on the way.

const maxMembers = 20_000

type spool struct {
	s       *Store
	dir     string
	members map[string]member
	links   map[string]string // older docker writes the same layer as a link
}

type member struct {
	file   string
	digest string
	size   int64
}

func (im *importer) archive(ctx context.Context, format, name string, r io.Reader) (digest, own string, err error) {
	dir, err := os.MkdirTemp(im.s.path("tmp"), "import-")
	if err != nil {
		return "", "", fmt.Errorf("image store: %w", noSpace(err))
	}
	defer os.RemoveAll(dir)
	sp := &spool{s: im.s, dir: dir, members: map[string]member{}, links: map[string]string{}}
	if err := sp.read(ctx, r); err != nil {
		return "", "", err
	}
	_, layout := sp.find("index.json")
	_, docker := sp.find("manifest.json")
	switch {
	case layout && (im.opt.Format != FormatDocker || !docker):
		return im.layout(sp, name)
	case docker:
		return im.docker(sp, name)
	}
	return "", "", errs.New(errs.Invalid, "the archive has neither index.json nor manifest.json: it is no image").
		WithHint("if it is the tar of a root directory, say so: --format rootfs")
}

func (sp *spool) read(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	var total int64
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return badTar(err)
		}
		if n >= maxMembers {
			return errs.New(errs.Invalid, "the archive has more than %d members", maxMembers)
		}
		name, err := entryPath(h.Name)
		if err != nil {
			return fmt.Errorf("member %q: %w", clip(h.Name), err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if total += h.Size; total > sp.s.opt.Limits.Image {
				return errs.New(errs.Invalid, "the archive is larger than the limit of %d bytes", sp.s.opt.Limits.Image)
			}
			if err := sp.s.room(h.Size); err != nil {
				return err
			}
			if err := sp.put(name, n, tr); err != nil {
				return err
			}
		case tar.TypeSymlink:
			sp.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			sp.links[name] = path.Clean(h.Linkname)
		}
	}
}

func (sp *spool) put(name string, n int, r io.Reader) error {
	p := filepath.Join(sp.dir, fmt.Sprint(n))
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("image store: %w", noSpace(err))
	}
	h := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, h), r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return badTar(noSpace(err))
	}
	sp.members[name] = member{p, "sha256:" + hex.EncodeToString(h.Sum(nil)), size}
	return nil
}

// find looks a member up, through at most one link.
func (sp *spool) find(name string) (member, bool) {
	name = path.Clean(name)
	if to, ok := sp.links[name]; ok {
		name = to
	}
	m, ok := sp.members[name]
	return m, ok
}

func (sp *spool) small(name string, limit int64) ([]byte, error) {
	m, ok := sp.find(name)
	if !ok {
		return nil, errs.New(errs.Invalid, "the archive lacks %q", clip(name))
	}
	if m.size > limit {
		return nil, errs.New(errs.Invalid, "%q in the archive has %d bytes, more than %d", clip(name), m.size, limit)
	}
	return os.ReadFile(m.file)
}

// adopt makes a member a blob.
func (im *importer) adopt(m member) error {
	im.lease.add(m.digest)
	if im.s.present(m.digest) {
		return im.s.claim(im.scope, m.digest)
	}
	f, err := os.OpenFile(m.file, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if err := im.s.publish(f, im.s.blobPath(m.digest)); err != nil {
		return err
	}
	return im.s.claim(im.scope, m.digest)
}

// blob finds the bytes of a descriptor in a layout and checks them.
func (sp *spool) blob(d descriptor) (member, bool, error) {
	m, ok := sp.find("blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:"))
	if ok && (m.digest != d.Digest || m.size != d.Size) {
		return member{}, false, errs.New(errs.Invalid, "blob %s in the archive is refused: its %d bytes are %s", d.Digest, m.size, m.digest).
			WithHint("the archive is damaged; make it again")
	}
	return m, ok, nil
}

// layout imports an OCI image layout.
func (im *importer) layout(sp *spool, name string) (digest, own string, err error) {
	raw, err := sp.small("index.json", maxManifest)
	if err != nil {
		return "", "", err
	}
	doc, err := decodeManifest(raw, v1.MediaTypeImageIndex, im.s.opt.Limits)
	if err != nil {
		return "", "", err
	}
	top, err := im.pick(doc, name)
	if err != nil {
		return "", "", err
	}
	for depth, m := 0, top; ; depth++ {
		if depth == 3 {
			return "", "", errs.New(errs.Invalid, "image index: nested more than 3 deep")
		}
		file, ok, err := sp.blob(m.descriptor)
		if err != nil {
			return "", "", err
		}
		if !ok {
			return "", "", errs.New(errs.Invalid, "the archive lacks the manifest %s", m.Digest)
		}
		if raw, err = os.ReadFile(file.file); err != nil {
			return "", "", err
		}
		if doc, err = decodeManifest(raw, m.MediaType, im.s.opt.Limits); err != nil {
			return "", "", err
		}
		if !doc.index {
			break
		}
		if m, err = doc.choose(im.want); err != nil {
			return "", "", err
		}
	}
	for _, d := range unique(append([]descriptor{doc.config}, doc.layers...)) {
		if err := im.layoutBlob(sp, d); err != nil {
			return "", "", err
		}
	}
	im.lease.add(digestOf(raw))
	digest, err = im.s.putBlob(raw)
	return digest, usableName(top.refName), err
}

func (im *importer) layoutBlob(sp *spool, d descriptor) error {
	m, ok, err := sp.blob(d)
	if err != nil {
		return err
	}
	im.lease.add(d.Digest)
	if ok {
		return im.adopt(m)
	}
	// What the scope has already need not be in the archive; what others have must be.
	if im.s.claimed(im.scope, d.Digest) {
		return nil
	}
	return errs.New(errs.Invalid, "the archive lacks the blob %s", d.Digest)
}

// pick chooses one of the images of a layout's index: by name, else the only one, else by platform.
func (im *importer) pick(doc document, name string) (platformed, error) {
	var names []string
	for _, m := range doc.manifests {
		if m.refName != "" && sameName(m.refName, name) {
			return m, nil
		}
		names = append(names, first(m.refName, m.Digest))
	}
	if len(doc.manifests) == 1 {
		return doc.manifests[0], nil
	}
	if m, err := doc.choose(im.want); err == nil {
		same := 0
		for _, o := range doc.manifests {
			if rank(o.platform, im.want) == rank(m.platform, im.want) {
				same++
			}
		}
		if same == 1 {
			return m, nil
		}
	}
	if len(names) == 0 {
		return platformed{}, errs.New(errs.Invalid, "the archive holds no image")
	}
	return platformed{}, errs.New(errs.Invalid, "the archive holds %d images: %s", len(names), strings.Join(names[:min(len(names), 12)], ", ")).
		WithHint("import it under the name of one of them")
}

// sameName compares an archive's name, full or only a tag, with the one that is wanted.
func sameName(in, want string) bool {
	if in == "" || want == "" {
		return false
	}
	w, err := ParseReference(want)
	if err != nil {
		return false
	}
	if in == w.Tag {
		return true
	}
	r, err := ParseReference(in)
	return err == nil && r == w
}

// usableName gives an archive's own name where it is more than a tag.
func usableName(n string) string {
	if !strings.ContainsAny(n, ":/") {
		return ""
	}
	if r, err := ParseReference(n); err != nil || r.Digest != "" {
		return ""
	}
	return n
}

// dockerImage is one entry of docker save's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func decodeDocker(raw []byte, lim Limits) ([]dockerImage, error) {
	var list []dockerImage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, errs.New(errs.Invalid, "manifest.json: not valid: %w", err)
	}
	if len(list) == 0 || len(list) > 1000 {
		return nil, errs.New(errs.Invalid, "manifest.json: %d images, must be 1 to 1000", len(list))
	}
	for i, m := range list {
		if m.Config == "" || len(m.Layers) > lim.Layers || len(m.RepoTags) > 1000 {
			return nil, errs.New(errs.Invalid, "manifest.json: image %d has no config, or more than %d layers or 1000 names", i, lim.Layers)
		}
	}
	return list, nil
}

// docker imports what docker save writes.
func (im *importer) docker(sp *spool, name string) (digest, own string, err error) {
	raw, err := sp.small("manifest.json", maxManifest)
	if err != nil {
		return "", "", err
	}
	list, err := decodeDocker(raw, im.s.opt.Limits)
	if err != nil {
		return "", "", err
	}
	m, own, err := pickDocker(list, name)
	if err != nil {
		return "", "", err
	}
	config, err := sp.small(m.Config, maxConfig)
	if err != nil {
		return "", "", err
	}
	cfg, err := decodeConfig(config)
	if err != nil {
		return "", "", err
	}
	if len(cfg.diffIDs) != len(m.Layers) {
		return "", "", errs.New(errs.Invalid, "manifest.json names %d layers, the config %d", len(m.Layers), len(cfg.diffIDs))
	}
	var layers []v1.Descriptor
	for _, l := range m.Layers {
		d, err := im.dockerLayer(sp, l)
		if err != nil {
			return "", "", err
		}
		layers = append(layers, d)
	}
	im.lease.add(digestOf(config))
	digest, err = im.manifest(config, layers)
	return digest, own, err
}

func pickDocker(list []dockerImage, name string) (dockerImage, string, error) {
	var names []string
	for _, m := range list {
		for _, t := range m.RepoTags {
			if sameName(t, name) {
				return m, t, nil
			}
			names = append(names, clip(t))
		}
	}
	if len(list) == 1 {
		own := ""
		if len(list[0].RepoTags) > 0 {
			own = usableName(list[0].RepoTags[0])
		}
		return list[0], own, nil
	}
	return dockerImage{}, "", errs.New(errs.Invalid, "the archive holds %d images: %s", len(list), strings.Join(names[:min(len(names), 12)], ", ")).
		WithHint("import it under the name of one of them")
}

// dockerLayer stores a layer, compressed; its uncompressed digest is checked when it is unpacked.
func (im *importer) dockerLayer(sp *spool, name string) (v1.Descriptor, error) {
	m, ok := sp.find(name)
	if !ok {
		return v1.Descriptor{}, errs.New(errs.Invalid, "the archive lacks the layer %q", clip(name))
	}
	f, err := os.Open(m.file)
	if err != nil {
		// The same layer twice in an image: it is a blob by now.
		if im.s.claimed(im.scope, m.digest) {
			return im.layerDescriptor(m.digest, m.size)
		}
		return v1.Descriptor{}, fmt.Errorf("image store: %w", err)
	}
	defer f.Close()
	c, err := sniff(bufio.NewReader(f))
	if err != nil {
		return v1.Descriptor{}, err
	}
	if c != plain {
		if err := im.adopt(m); err != nil {
			return v1.Descriptor{}, err
		}
		return im.layerDescriptor(m.digest, m.size)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return v1.Descriptor{}, err
	}
	w, err := im.s.newBlob()
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer w.discard()
	if err := pack(w, f); err != nil {
		return v1.Descriptor{}, noSpace(err)
	}
	im.lease.add(w.digest())
	d, err := w.commit()
	if err != nil {
		return v1.Descriptor{}, err
	}
	return im.layerDescriptor(d, w.n)
}

func (im *importer) layerDescriptor(d string, size int64) (v1.Descriptor, error) {
	c, err := blobCompression(im.s, d)
	mt := map[compression]string{plain: v1.MediaTypeImageLayer, gzipped: v1.MediaTypeImageLayerGzip, zstded: v1.MediaTypeImageLayerZstd}[c]
	return v1.Descriptor{MediaType: mt, Digest: digest.Digest(d), Size: size}, err
}

func blobCompression(s *Store, d string) (compression, error) {
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	defer f.Close()
	return sniff(bufio.NewReader(f))
}
