package image

import (
	"context"
	"fmt"
	"io"
	"os"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/image/flight"
	"atoll/internal/image/oci"
)

// Push sends an image to a registry under the name dest; what the registry has
// already is not sent. auth is as in PullOptions. Layers that may not be
// distributed are left out, as their makers ask.
func (s *Store) Push(ctx context.Context, scope, ref, dest, auth string, progress func(api.Progress)) error {
	to, err := oci.Parse(dest)
	if err != nil {
		return err
	}
	if to.Digest != "" {
		return errs.InvalidFields("image push", []errs.Field{{Field: "destination", Value: oci.Clip(dest), Rule: "must not have a digest", Example: "registry.example.com/team/app:1"}})
	}
	info, err := s.Resolve(ctx, scope, ref)
	if err != nil {
		return err
	}
	defer s.Hold(info.Digest)()
	img, err := s.image(info.Digest)
	if err == nil {
		err = s.remote.Push(ctx, to, auth, &storedImage{s: s, img: img, digest: info.Digest}, info.Size, flight.Serial(progress))
	}
	if err != nil {
		return fmt.Errorf("push %s to %s: %w", oci.Clip(ref), to.Short(), err)
	}
	return nil
}

// storedImage shows an image of the store to the registry client.
type storedImage struct {
	s      *Store
	img    oci.Image
	digest string
}

// Named is the digest of its manifest.
func (i *storedImage) Named() string { return i.digest }

func (i *storedImage) RawConfigFile() ([]byte, error) {
	return i.s.readBlob(i.img.Manifest.Config.Digest, oci.MaxConfig)
}

func (i *storedImage) RawManifest() ([]byte, error) { return i.s.readBlob(i.digest, oci.MaxManifest) }

func (i *storedImage) MediaType() (types.MediaType, error) {
	return types.MediaType(i.img.Manifest.MediaType), nil
}

func (i *storedImage) LayerByDigest(h ggcr.Hash) (partial.CompressedLayer, error) {
	for _, d := range append([]oci.Descriptor{i.img.Manifest.Config}, i.img.Manifest.Layers...) {
		if d.Digest == h.String() {
			return &storedLayer{i.s, d, h}, nil
		}
	}
	return nil, errs.New(errs.NotFound, "layer %s is not of the image", h)
}

type storedLayer struct {
	s *Store
	d oci.Descriptor
	h ggcr.Hash
}

func (l *storedLayer) Digest() (ggcr.Hash, error) { return l.h, nil }

func (l *storedLayer) Size() (int64, error) { return l.d.Size, nil }

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
