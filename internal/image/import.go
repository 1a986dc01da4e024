package image

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/image/archive"
	"atoll/internal/image/disk"
	"atoll/internal/image/flight"
	"atoll/internal/image/layer"
	"atoll/internal/image/oci"
)

// ImportOptions are of one import.
type ImportOptions struct {
	Format   string     // default: auto
	Config   oci.Config // rootfs: how the image is run
	Platform string     // rootfs: what it is made for; layout: which image of several; default: the store's
	Progress func(api.Progress)
}

// Import reads an archive, plain or compressed by gzip or zstd, and gives the image
// the name in the scope. Without a name the archive's own is taken. The stream is
// read once, in bounded memory. Nothing is visible unless all of it is right.
// errs.Invalid names what is wrong with it.
func (s *Store) Import(ctx context.Context, scope, name string, r io.Reader, opt ImportOptions) (Info, error) {
	im := &importer{s: s, scope: scope, opt: opt, lease: s.newLease(), tell: flight.Serial(opt.Progress)}
	defer im.lease.end()
	info, err := im.run(ctx, name, r)
	if err != nil {
		return Info{}, fmt.Errorf("import image %s: %w", oci.Clip(name), err)
	}
	return info, nil
}

type importer struct {
	s     *Store
	scope string
	opt   ImportOptions
	want  oci.Platform
	lease *lease
	tell  func(api.Progress)
}

func (im *importer) run(ctx context.Context, name string, r io.Reader) (Info, error) {
	var err error
	if im.want, err = oci.ParsePlatform(cmp.Or(im.opt.Platform, im.s.opt.Platform)); err != nil {
		return Info{}, err
	}
	if !slices.Contains([]string{"", archive.Auto, archive.Rootfs, archive.OCI, archive.Docker}, im.opt.Format) {
		return Info{}, errs.InvalidFields("image import", []errs.Field{{Field: "format", Value: oci.Clip(im.opt.Format), Rule: "must be auto, rootfs, oci or docker", Example: "auto"}})
	}
	if name != "" {
		if r, err := oci.Parse(name); err != nil {
			return Info{}, err
		} else if r.Digest != "" {
			return Info{}, errs.InvalidFields("image import", []errs.Field{{Field: "name", Value: oci.Clip(name), Rule: "must not have a digest", Example: "team/app:1"}})
		}
	}
	digest, own, err := im.read(ctx, name, r)
	if err != nil {
		return Info{}, err
	}
	if name = cmp.Or(name, own); name == "" {
		return Info{}, errs.InvalidFields("image import", []errs.Field{{Field: "name", Rule: "must be given: the archive has none", Example: "team/app:1"}})
	}
	ref, err := oci.Parse(name)
	if err != nil {
		return Info{}, err
	}
	defer im.s.Hold(digest)()
	img, err := im.s.image(digest)
	if err != nil {
		return Info{}, err
	}
	if _, err := im.s.unpackImage(ctx, digest, im.tell); err != nil {
		return Info{}, err
	}
	if err := im.s.claimImage(im.scope, img); err != nil {
		return Info{}, err
	}
	info := im.s.info(im.scope, ref, digest, img)
	return info, im.s.setName(info)
}

// read brings the content into the store and tells the manifest's digest and the archive's own name.
func (im *importer) read(ctx context.Context, name string, r io.Reader) (digest, own string, err error) {
	br := bufio.NewReaderSize(layer.NewBounded(ctx, r, im.s.opt.Limits.Image, "the archive"), 64<<10)
	c, err := layer.Sniff(br)
	if err != nil {
		return "", "", err
	}
	w, err := im.s.newBlob()
	if err != nil {
		return "", "", err
	}
	defer w.Discard()
	// A compressed rootfs is kept as it came, so its digest is what others know it by.
	keep := &switchTee{r: br, w: w, on: c != layer.Plain}
	z, _, err := layer.Decompress(keep)
	if err != nil {
		return "", "", err
	}
	defer z.Close()
	stream := io.Reader(layer.NewBounded(ctx, z, 2*im.s.opt.Limits.Unpacked+64<<20, "the archive"))
	format := im.opt.Format
	if format == "" || format == archive.Auto {
		if format, stream, err = archive.Detect(stream); err != nil {
			return "", "", err
		}
	}
	if format == archive.Rootfs {
		digest, err = im.rootfs(ctx, stream, keep, w)
		return digest, "", err
	}
	keep.on = false
	return im.archive(ctx, format, name, stream)
}

// switchTee copies what is read while it is on.
type switchTee struct {
	r  io.Reader
	w  io.Writer
	on bool
}

func (t *switchTee) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if t.on && n > 0 {
		if _, werr := t.w.Write(p[:n]); werr != nil {
			return n, werr
		}
	}
	return n, err
}

// rootfs makes an image of one layer.
func (im *importer) rootfs(ctx context.Context, stream io.Reader, keep *switchTee, w *disk.Writer) (string, error) {
	diff := sha256.New()
	in := io.TeeReader(stream, diff)
	if keep.on {
		if _, err := io.Copy(io.Discard, in); err != nil {
			return "", layer.BadTar(err)
		}
		if _, err := io.Copy(io.Discard, keep); err != nil { // what follows the compressed stream
			return "", layer.BadTar(err)
		}
	} else if err := layer.Pack(w, in); err != nil {
		return "", layer.BadTar(err)
	}
	im.lease.add(w.Digest())
	packed, err := im.s.commit(w)
	if err != nil {
		return "", err
	}
	mt := v1.MediaTypeImageLayerGzip
	if c, err := blobCompression(im.s, packed); err != nil {
		return "", err
	} else if c == layer.Zstd {
		mt = v1.MediaTypeImageLayerZstd
	}
	c := im.opt.Config
	cfg := v1.Image{Platform: v1.Platform{OS: im.want.OS, Architecture: im.want.Arch, Variant: im.want.Variant},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.Digest("sha256:" + hex.EncodeToString(diff.Sum(nil)))}},
		Config: v1.ImageConfig{User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir,
			StopSignal: c.StopSignal, Labels: c.Labels, Volumes: set(c.Volumes), ExposedPorts: set(c.ExposedPorts)}}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return "", err
	}
	return im.manifest(raw, []v1.Descriptor{{MediaType: mt, Digest: digest.Digest(packed), Size: w.N}})
}

// manifest stores config and manifest of layers that are here. The same input gives the same digest.
func (im *importer) manifest(config []byte, layers []v1.Descriptor) (string, error) {
	if layers == nil {
		layers = []v1.Descriptor{}
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Layers: layers,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.Digest(oci.Digest(config)), Size: int64(len(config))}}
	raw, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	im.lease.add(oci.Digest(config), oci.Digest(raw))
	if _, err := im.s.putBlob(config); err != nil {
		return "", err
	}
	return im.s.putBlob(raw)
}

func set(list []string) map[string]struct{} {
	if len(list) == 0 {
		return nil
	}
	m := map[string]struct{}{}
	for _, v := range list {
		m[v] = struct{}{}
	}
	return m
}
