package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdfs "io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"atoll/internal/errs"
	"atoll/internal/image/archive"
	"atoll/internal/image/layer"
	"atoll/internal/image/oci"
)

// Export writes an image as a tar: FormatOCI (default), which keeps its digest, or
// FormatDocker for docker load. The same image gives the same bytes.
func (s *Store) Export(ctx context.Context, scope, ref, format string, w io.Writer) error {
	if !slices.Contains([]string{"", archive.OCI, archive.Docker}, format) {
		return errs.InvalidFields("image export", []errs.Field{{Field: "format", Value: oci.Clip(format), Rule: "must be oci or docker", Example: "oci"}})
	}
	info, err := s.Resolve(ctx, scope, ref)
	if err != nil {
		return err
	}
	defer s.Hold(info.Digest)()
	img, err := s.image(info.Digest)
	if err != nil {
		return fmt.Errorf("export %s: %w", oci.Clip(ref), err)
	}
	ex := &exporter{ctx: ctx, s: s, tw: tar.NewWriter(w), seen: map[string]bool{}}
	if format == archive.Docker {
		err = ex.docker(info, img)
	} else {
		err = ex.layout(info, img)
	}
	if err == nil {
		err = ex.tw.Close()
	}
	if err != nil {
		return fmt.Errorf("export %s: %w", oci.Clip(ref), err)
	}
	return nil
}

type exporter struct {
	ctx  context.Context
	s    *Store
	tw   *tar.Writer
	seen map[string]bool
}

func (ex *exporter) layout(info Info, img oci.Image) error {
	manifest, err := ex.s.readBlob(info.Digest, oci.MaxManifest)
	if err != nil {
		return err
	}
	p := img.Config.Platform
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{{
		MediaType: img.Manifest.MediaType, Digest: digest.Digest(info.Digest), Size: int64(len(manifest)),
		Platform:    &v1.Platform{OS: p.OS, Architecture: p.Arch, Variant: p.Variant},
		Annotations: map[string]string{v1.AnnotationRefName: tagged(info)}}}}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := ex.bytes(v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+v1.ImageLayoutVersion+`"}`)); err != nil {
		return err
	}
	if err := ex.bytes(v1.ImageIndexFile, raw); err != nil {
		return err
	}
	const blobs = "blobs/sha256/"
	if err := ex.bytes(blobs+strings.TrimPrefix(info.Digest, "sha256:"), manifest); err != nil {
		return err
	}
	for _, d := range append([]oci.Descriptor{img.Manifest.Config}, img.Manifest.Layers...) {
		if err := ex.blob(blobs+strings.TrimPrefix(d.Digest, "sha256:"), d); err != nil {
			return err
		}
	}
	return nil
}

func (ex *exporter) docker(info Info, img oci.Image) error {
	hex := func(d string) string { return strings.TrimPrefix(d, "sha256:") }
	m := archive.Saved{Config: hex(img.Manifest.Config.Digest) + ".json", RepoTags: []string{}, Layers: []string{}}
	if t := tagged(info); t != "" {
		m.RepoTags = append(m.RepoTags, t)
	}
	for _, l := range img.Manifest.Layers {
		m.Layers = append(m.Layers, hex(l.Digest)+".tar.gz") // readers look at the bytes, not at the name
	}
	raw, err := json.Marshal([]archive.Saved{m})
	if err != nil {
		return err
	}
	if err := ex.bytes("manifest.json", raw); err != nil {
		return err
	}
	if err := ex.blob(m.Config, img.Manifest.Config); err != nil {
		return err
	}
	for i, l := range img.Manifest.Layers {
		if err := ex.blob(m.Layers[i], l); err != nil {
			return err
		}
	}
	return nil
}

// tagged is the name as docker writes it, without a digest.
func tagged(info Info) string {
	r, err := oci.Parse(info.Reference)
	if err != nil || r.Tag == "" {
		return ""
	}
	r.Digest = ""
	return r.Short()
}

func (ex *exporter) header(name string, size int64) error {
	return ex.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

func (ex *exporter) bytes(name string, raw []byte) error {
	ex.seen[name] = true
	if err := ex.header(name, int64(len(raw))); err != nil {
		return err
	}
	_, err := ex.tw.Write(raw)
	return err
}

// blob writes a blob and checks it on the way: nobody should carry damage elsewhere.
func (ex *exporter) blob(name string, d oci.Descriptor) error {
	if ex.seen[name] {
		return nil
	}
	ex.seen[name] = true
	f, err := os.Open(ex.s.blobPath(d.Digest))
	if errors.Is(err, stdfs.ErrNotExist) {
		return errs.New(errs.NotFound, "layer %s is not on this node", d.Digest).WithHint("pull the image again")
	}
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	defer f.Close()
	if err := ex.header(name, d.Size); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(ex.tw, h), layer.NewBounded(ex.ctx, f, d.Size, "blob "+d.Digest)); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != d.Digest {
		return ex.s.corrupt(d.Digest)
	}
	return nil
}
