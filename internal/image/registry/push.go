package registry

import (
	"context"
	"errors"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/image/flight"
	"atoll/internal/image/oci"
)

// Image is an image that can be sent.
type Image interface {
	partial.CompressedImageCore
	Named() string // digest of its manifest
}

// Push sends an image to a registry under the name to; what the registry has already is not sent.
func (c *Client) Push(ctx context.Context, to oci.Reference, auth string, img Image, size int64, tell func(api.Progress)) error {
	s := &Source{c: c, Host: to.Host, repo: to.Repo, given: auth, push: true}
	defer Close([]*Source{s})
	err := c.retry(ctx, func() (bool, error) { _, err := s.connect(ctx); return false, err })
	if err != nil {
		return err
	}
	tag, err := name.NewTag(to.String(), s.nameOptions()...)
	if err != nil {
		return errs.New(errs.Invalid, "image reference %s: %w", to, err)
	}
	out, err := partial.CompressedToImage(img)
	if err != nil {
		return err
	}
	updates, told := make(chan ggcr.Update, 16), make(chan struct{})
	go func() {
		defer close(told)
		for u := range updates {
			if u.Error == nil {
				tell(api.Progress{ID: oci.Short(img.Named()), Phase: "pushing", Current: u.Complete, Total: u.Total})
			}
		}
	}()
	err = remote.Write(tag, out, remote.WithContext(ctx), remote.WithTransport(s.rt), remote.WithJobs(c.Parallel), remote.WithProgress(updates))
	<-told
	var t *transient
	switch {
	case err == nil:
		tell(api.Progress{ID: oci.Short(img.Named()), Phase: "done", Current: size, Total: size})
		return nil
	case flight.CalledOff(ctx) != nil:
		return flight.CalledOff(ctx)
	}
	if err = s.describe(err, true); errors.As(err, &t) {
		return t.err
	}
	return err
}
