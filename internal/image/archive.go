package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"atoll/internal/errs"
	"atoll/internal/image/archive"
	"atoll/internal/image/disk"
	"atoll/internal/image/layer"
	"atoll/internal/image/oci"
)

func (im *importer) archive(ctx context.Context, format, name string, r io.Reader) (digest, own string, err error) {
	dir, err := os.MkdirTemp(im.s.path("tmp"), "import-")
	if err != nil {
		return "", "", fmt.Errorf("image store: %w", disk.NoSpace(err))
	}
	defer os.RemoveAll(dir)
	sp, err := archive.Open(dir, r, im.s.opt.Limits.Image, im.s.room)
	if err != nil {
		return "", "", err
	}
	_, layout := sp.Find("index.json")
	_, docker := sp.Find("manifest.json")
	switch {
	case layout && (im.opt.Format != archive.Docker || !docker):
		return im.layout(sp, name)
	case docker:
		return im.docker(sp, name)
	}
	return "", "", errs.New(errs.Invalid, "the archive has neither index.json nor manifest.json: it is no image").
		WithHint("if it is the tar of a root directory, say so: --format rootfs")
}

// adopt makes a member a blob.
func (im *importer) adopt(m archive.Member) error {
	im.lease.add(m.Digest)
	if im.s.present(m.Digest) {
		return im.s.claim(im.scope, m.Digest)
	}
	f, err := os.OpenFile(m.File, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if err := disk.Publish(f, im.s.blobPath(m.Digest)); err != nil {
		return err
	}
	return im.s.claim(im.scope, m.Digest)
}

// layout imports an OCI image layout.
func (im *importer) layout(sp *archive.Spool, name string) (digest, own string, err error) {
	raw, err := sp.Small("index.json", oci.MaxManifest)
	if err != nil {
		return "", "", err
	}
	doc, err := oci.DecodeManifest(raw, v1.MediaTypeImageIndex, im.s.opt.Limits)
	if err != nil {
		return "", "", err
	}
	top, err := archive.Pick(doc, name, im.want)
	if err != nil {
		return "", "", err
	}
	for depth, m := 0, top; ; depth++ {
		if depth == 3 {
			return "", "", errs.New(errs.Invalid, "image index: nested more than 3 deep")
		}
		file, ok, err := sp.Blob(m.Descriptor)
		if err != nil {
			return "", "", err
		}
		if !ok {
			return "", "", errs.New(errs.Invalid, "the archive lacks the manifest %s", m.Digest)
		}
		if raw, err = os.ReadFile(file.File); err != nil {
			return "", "", err
		}
		if doc, err = oci.DecodeManifest(raw, m.MediaType, im.s.opt.Limits); err != nil {
			return "", "", err
		}
		if !doc.IsIndex {
			break
		}
		if m, err = doc.Choose(im.want); err != nil {
			return "", "", err
		}
	}
	for _, d := range oci.Unique(append([]oci.Descriptor{doc.Config}, doc.Layers...)) {
		if err := im.layoutBlob(sp, d); err != nil {
			return "", "", err
		}
	}
	im.lease.add(oci.Digest(raw))
	digest, err = im.s.putBlob(raw)
	return digest, archive.UsableName(top.RefName), err
}

func (im *importer) layoutBlob(sp *archive.Spool, d oci.Descriptor) error {
	m, ok, err := sp.Blob(d)
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

// docker imports what docker save writes.
func (im *importer) docker(sp *archive.Spool, name string) (digest, own string, err error) {
	raw, err := sp.Small("manifest.json", oci.MaxManifest)
	if err != nil {
		return "", "", err
	}
	list, err := archive.DecodeSaved(raw, im.s.opt.Limits)
	if err != nil {
		return "", "", err
	}
	m, own, err := archive.PickSaved(list, name)
	if err != nil {
		return "", "", err
	}
	config, err := sp.Small(m.Config, oci.MaxConfig)
	if err != nil {
		return "", "", err
	}
	cfg, err := oci.DecodeConfig(config)
	if err != nil {
		return "", "", err
	}
	if len(cfg.DiffIDs) != len(m.Layers) {
		return "", "", errs.New(errs.Invalid, "manifest.json names %d layers, the config %d", len(m.Layers), len(cfg.DiffIDs))
	}
	var layers []v1.Descriptor
	for _, l := range m.Layers {
		d, err := im.dockerLayer(sp, l)
		if err != nil {
			return "", "", err
		}
		layers = append(layers, d)
	}
	im.lease.add(oci.Digest(config))
	digest, err = im.manifest(config, layers)
	return digest, own, err
}

// dockerLayer stores a layer, compressed; its uncompressed digest is checked when it is unpacked.
func (im *importer) dockerLayer(sp *archive.Spool, name string) (v1.Descriptor, error) {
	m, ok := sp.Find(name)
	if !ok {
		return v1.Descriptor{}, errs.New(errs.Invalid, "the archive lacks the layer %q", oci.Clip(name))
	}
	f, err := os.Open(m.File)
	if err != nil {
		// The same layer twice in an image: it is a blob by now.
		if im.s.claimed(im.scope, m.Digest) {
			return im.layerDescriptor(m.Digest, m.Size)
		}
		return v1.Descriptor{}, fmt.Errorf("image store: %w", err)
	}
	defer f.Close()
	c, err := layer.Sniff(bufio.NewReader(f))
	if err != nil {
		return v1.Descriptor{}, err
	}
	if c != layer.Plain {
		if err := im.adopt(m); err != nil {
			return v1.Descriptor{}, err
		}
		return im.layerDescriptor(m.Digest, m.Size)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return v1.Descriptor{}, err
	}
	w, err := im.s.newBlob()
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer w.Discard()
	if err := layer.Pack(w, f); err != nil {
		return v1.Descriptor{}, disk.NoSpace(err)
	}
	im.lease.add(w.Digest())
	d, err := im.s.commit(w)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return im.layerDescriptor(d, w.N)
}

func (im *importer) layerDescriptor(d string, size int64) (v1.Descriptor, error) {
	c, err := blobCompression(im.s, d)
	mt := map[layer.Compression]string{layer.Plain: v1.MediaTypeImageLayer, layer.Gzip: v1.MediaTypeImageLayerGzip, layer.Zstd: v1.MediaTypeImageLayerZstd}[c]
	return v1.Descriptor{MediaType: mt, Digest: digest.Digest(d), Size: size}, err
}

func blobCompression(s *Store, d string) (layer.Compression, error) {
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	defer f.Close()
	return layer.Sniff(bufio.NewReader(f))
}
