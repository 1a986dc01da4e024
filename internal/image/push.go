package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"atoll/api"
	"atoll/internal/errs"
)

// Push sends an image to a registry under the name dest; what the registry has
// already is not sent. auth is as in PullOptions. Layers that may not be
// distributed are left out, as their makers ask.
func (s *Store) Push(ctx context.Context, scope, ref, dest, auth string, progress func(api.Progress)) error {
	to, err := ParseReference(dest)
	if err != nil {
		return err
	}
	if to.Digest != "" {
		return errs.InvalidFields("image push", []errs.Field{{Field: "destination", Value: clip(dest), Rule: "must not have a digest", Example: "registry.example.com/team/app:1"}})
	}
	info, err := s.Resolve(ctx, scope, ref)
	if err != nil {
		return err
	}
	defer s.Hold(info.Digest)()
	img, err := s.image(info.Digest)
	if err == nil {
		err = s.push(ctx, img, info, to, auth, serial(progress))
	}
	if err != nil {
		return fmt.Errorf("push %s to %s: %w", clip(ref), to.Short(), err)
	}
	return nil
}

func (s *Store) push(ctx context.Context, img parsedImage, info Info, to Reference, auth string, tell func(api.Progress)) error {
	c := &source{s: s, host: to.Host, repo: to.Repo, given: auth, push: true}
	defer closeSources([]*source{c})
	err := s.retry(ctx, func() (bool, error) { _, err := c.connect(ctx); return false, err })
	if err != nil {
		return err
	}
	tag, err := name.NewTag(to.String(), c.nameOptions()...)
	if err != nil {
		return errs.New(errs.Invalid, "image reference %s: %w", to, err)
	}
	out, err := partial.CompressedToImage(&storedImage{s: s, img: img, digest: info.Digest})
	if err != nil {
		return err
	}
	updates, told := make(chan ggcr.Update, 16), make(chan struct{})
	go func() {
		defer close(told)
		for u := range updates {
			if u.Error == nil {
				tell(api.Progress{ID: shortDigest(info.Digest), Phase: "pushing", Current: u.Complete, Total: u.Total})
			}
		}
	}()
	err = remote.Write(tag, out, remote.WithContext(ctx), remote.WithTransport(c.rt), remote.WithJobs(s.opt.Parallel), remote.WithProgress(updates))
	<-told
	var t *transient
	switch {
	case err == nil:
		tell(api.Progress{ID: shortDigest(info.Digest), Phase: "done", Current: info.Size, Total: info.Size})
		return nil
	case done(ctx) != nil:
		return done(ctx)
	}
	if err = c.describe(err, true); errors.As(err, &t) {
		return t.err
	}
	return err
}

// storedImage shows an image of the store to the registry client.
type storedImage struct {
	s      *Store
	img    parsedImage
	digest string
}

func (i *storedImage) RawConfigFile() ([]byte, error) {
	return i.s.readBlob(i.img.doc.config.Digest, maxConfig)
}
func (i *storedImage) RawManifest() ([]byte, error) { return i.s.readBlob(i.digest, maxManifest) }
func (i *storedImage) MediaType() (types.MediaType, error) {
	return types.MediaType(i.img.doc.mediaType), nil
}

func (i *storedImage) LayerByDigest(h ggcr.Hash) (partial.CompressedLayer, error) {
	for _, d := range append([]descriptor{i.img.doc.config}, i.img.doc.layers...) {
		if d.Digest == h.String() {
			return &storedLayer{i.s, d, h}, nil
		}
	}
	return nil, errs.New(errs.NotFound, "layer %s is not of the image", h)
}

type storedLayer struct {
	s *Store
	d descriptor
	h ggcr.Hash
}

func (l *storedLayer) Digest() (ggcr.Hash, error) { return l.h, nil }
func (l *storedLayer) Size() (int64, error)       { return l.d.Size, nil }
func (l *storedLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(l.d.MediaType), nil
}
func (l *storedLayer) Compressed() (io.ReadCloser, error) {
	f, err := os.Open(l.s.blobPath(l.d.Digest))
	if err != nil {
		return nil, errs.New(errs.NotFound, "layer %s is not on this node", l.d.Digest).WithHint("pull the image again")
	}
	return f, nil
}
