package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/image/flight"
	"atoll/internal/image/oci"
	"atoll/internal/image/registry"
)

// PullOptions are of one pull.
type PullOptions struct {
	Platform string // os/arch[/variant]; default: the store's
	// Auth is "user:password" or a bearer token for the registry; used once, never kept.
	Auth string
	// Progress is told how far each blob is; calls never overlap. ID is a short digest.
	Progress func(api.Progress)
	// NoUnpack leaves the layers packed.
	NoUnpack bool
}

// Pull brings an image from its registry, or a mirror of that, and gives it the
// name in the scope. It always asks the registry what the name means now, and
// fetches only what is not here. Errors: errs.Invalid for a reference or content
// that is wrong (a digest is named), NotFound, Denied, Unavailable, NoCapacity,
// Unsupported (platform, obsolete format).
func (s *Store) Pull(ctx context.Context, scope, ref string, opt PullOptions) (Info, error) {
	r, err := oci.Parse(ref)
	if err != nil {
		return Info{}, err
	}
	p := &puller{s: s, scope: scope, ref: r, lease: s.newLease(), tell: flight.Serial(opt.Progress)}
	defer p.lease.end()
	if p.want, err = oci.ParsePlatform(cmp.Or(opt.Platform, s.opt.Platform)); err != nil {
		return Info{}, err
	}
	p.from = s.remote.Sources(r, opt.Auth)
	defer func() { registry.Close(p.from) }()
	info, err := p.run(ctx, !opt.NoUnpack)
	if err != nil {
		return Info{}, fmt.Errorf("pull %s: %w", r.Short(), err)
	}
	return info, nil
}

type puller struct {
	s     *Store
	scope string
	ref   oci.Reference
	want  oci.Platform
	from  []*registry.Source
	lease *lease
	tell  func(api.Progress)
}

func (p *puller) run(ctx context.Context, unpack bool) (Info, error) {
	index, raw, doc, err := p.manifests(ctx)
	if err != nil {
		return Info{}, err
	}
	digest := oci.Digest(raw)
	// From here on GC leaves the image alone, whatever of it is here.
	defer p.s.Hold(digest)()
	p.lease.add(doc.Config.Digest, digest)
	for _, l := range doc.Layers {
		p.lease.add(l.Digest)
	}
	img, err := p.content(ctx, doc)
	if err != nil {
		return Info{}, err
	}
	if _, err := p.s.putBlob(raw); err != nil {
		return Info{}, err
	}
	if err := p.s.claim(p.scope, digest); err != nil {
		return Info{}, err
	}
	indexDigest := ""
	if index != nil {
		p.lease.add(oci.Digest(index))
		if indexDigest, err = p.s.putBlob(index); err != nil {
			return Info{}, err
		}
	}
	if unpack {
		_, err := p.s.unpackImage(ctx, digest, p.tell)
		if errors.Is(err, errs.Invalid) && !p.whole(doc) {
			// A blob of an earlier life was damaged on the disk and is gone now.
			if _, err = p.content(ctx, doc); err == nil {
				_, err = p.s.unpackImage(ctx, digest, p.tell)
			}
		}
		if err != nil {
			return Info{}, err
		}
	}
	info := p.s.info(p.scope, p.ref, digest, img)
	info.Index = indexDigest
	return info, p.s.setName(info)
}

// info describes an image that is here.
func (s *Store) info(scope string, r oci.Reference, digest string, img oci.Image) Info {
	i := Info{Scope: scope, Reference: r.String(), Digest: digest, Size: img.Manifest.Config.Size, Layers: len(img.Manifest.Layers),
		Platform: img.Config.Platform.String(), Created: img.Config.Created, Since: s.opt.Clock.Now()}
	for _, l := range img.Manifest.Layers {
		i.Size += l.Size
	}
	return i
}

// manifests finds the manifest for the platform; index is nil when the name is of one image.
func (p *puller) manifests(ctx context.Context) (index, raw []byte, doc oci.Document, err error) {
	raw, doc, err = p.top(ctx)
	if err != nil || !doc.IsIndex {
		return nil, raw, doc, err
	}
	index = raw
	for depth := 0; doc.IsIndex; depth++ {
		if depth == 3 {
			return nil, nil, doc, errs.New(errs.Invalid, "image index: nested more than 3 deep")
		}
		m, err := doc.Choose(p.want)
		if err != nil {
			return nil, nil, doc, err
		}
		if raw, doc, err = p.child(ctx, m); err != nil {
			return nil, nil, doc, err
		}
	}
	return index, raw, doc, nil
}

// top asks every source what the reference means, until one knows.
func (p *puller) top(ctx context.Context) ([]byte, oci.Document, error) {
	ref := cmp.Or(p.ref.Digest, p.ref.Tag)
	var last error
	for i, c := range p.from {
		raw, mt, err := c.Manifest(ctx, ref)
		if err == nil {
			doc, err := oci.DecodeManifest(raw, mt, p.s.opt.Limits)
			if err != nil {
				return nil, oci.Document{}, err
			}
			// Where the manifest came from, the rest is most likely.
			p.from[0], p.from[i] = p.from[i], p.from[0]
			return raw, doc, nil
		}
		if flight.CalledOff(ctx) != nil {
			return nil, oci.Document{}, err
		}
		if i < len(p.from)-1 {
			p.s.log.Info("mirror does not help", "mirror", c.Host, "image", p.ref.Short(), "error", err)
		}
		last = err
	}
	return nil, oci.Document{}, last
}

func (p *puller) child(ctx context.Context, m oci.Entry) (raw []byte, doc oci.Document, err error) {
	if p.s.claimed(p.scope, m.Digest) {
		if raw, err = p.s.readBlob(m.Digest, oci.MaxManifest); err == nil {
			doc, err = oci.DecodeManifest(raw, m.MediaType, p.s.opt.Limits)
			return raw, doc, err
		}
	}
	for _, c := range p.from {
		var mt string
		if raw, mt, err = c.Manifest(ctx, m.Digest); err == nil {
			doc, err = oci.DecodeManifest(raw, mt, p.s.opt.Limits)
			return raw, doc, err
		}
		if flight.CalledOff(ctx) != nil {
			break
		}
	}
	return nil, oci.Document{}, err
}

// content brings config and layers, several at a time.
func (p *puller) content(ctx context.Context, doc oci.Document) (oci.Image, error) {
	blobs := append([]oci.Descriptor{doc.Config}, doc.Layers...)
	var need int64
	for _, b := range blobs {
		if !p.s.claimed(p.scope, b.Digest) {
			need += b.Size
		}
	}
	if err := p.s.room(need); err != nil {
		return oci.Image{}, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.s.remote.Parallel)
	for _, b := range oci.Unique(blobs) {
		g.Go(func() error { return p.s.fetch(gctx, p.from, p.scope, b, p.tell) })
	}
	if err := g.Wait(); err != nil {
		return oci.Image{}, err
	}
	raw, err := p.s.readBlob(doc.Config.Digest, oci.MaxConfig)
	if err != nil {
		return oci.Image{}, err
	}
	cfg, err := oci.DecodeConfig(raw)
	if err != nil {
		return oci.Image{}, err
	}
	if oci.Rank(cfg.Platform, p.want) == 0 && cfg.Platform.OS != "" {
		return oci.Image{}, errs.New(errs.Unsupported, "image is made for %s, not for %s", cfg.Platform, p.want).
			WithHint("choose its platform with --platform if this machine can run it")
	}
	return oci.Join(doc, cfg)
}

// whole tells whether all blobs are here.
func (p *puller) whole(doc oci.Document) bool {
	for _, b := range append([]oci.Descriptor{doc.Config}, doc.Layers...) {
		if !p.s.present(b.Digest) {
			return false
		}
	}
	return true
}
