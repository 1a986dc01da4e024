package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"atoll/api"
	"atoll/internal/image/disk"
	"atoll/internal/image/oci"
	"atoll/internal/image/registry"
)

// fetch brings one blob. Callers of the same scope that need the same blob share
// one download. What was received is kept in partial/ until it is whole, so a
// broken connection, or a killed daemon, costs nothing that was there already.
func (s *Store) fetch(ctx context.Context, from []*registry.Source, scope string, d oci.Descriptor, tell func(api.Progress)) error {
	id := oci.Short(d.Digest)
	if s.claimed(scope, d.Digest) {
		tell(api.Progress{ID: id, Phase: "exists", Current: d.Size, Total: d.Size})
		return nil
	}
	tell(api.Progress{ID: id, Phase: "waiting", Total: d.Size})
	_, err := s.fetchs.Do(ctx, scope+"\x00"+d.Digest, tell, func(ctx context.Context, tell func(api.Progress)) (string, error) {
		if s.claimed(scope, d.Digest) {
			return "", nil
		}
		return "", s.download(ctx, from, scope, d, tell)
	})
	if err != nil {
		return fmt.Errorf("fetch %s: %w", id, err)
	}
	tell(api.Progress{ID: id, Phase: "done", Current: d.Size, Total: d.Size})
	return nil
}

func (s *Store) openPartial(scope string, d oci.Descriptor, tell func(api.Progress)) (*registry.Transfer, error) {
	name := filepath.Base(filepath.Dir(s.claimPath(scope, d.Digest))) + "-" + strings.TrimPrefix(d.Digest, "sha256:")
	f, err := os.OpenFile(s.path("partial", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", disk.NoSpace(err))
	}
	now := s.opt.Clock.Now() // GC goes by the age
	if err := os.Chtimes(f.Name(), now, now); err != nil {
		f.Close()
		return nil, fmt.Errorf("image store: %w", err)
	}
	p, err := registry.Resume(f, d, tell)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("image store: %w", err)
	}
	return p, nil
}

func (s *Store) download(ctx context.Context, from []*registry.Source, scope string, d oci.Descriptor, tell func(api.Progress)) error {
	if err := s.room(d.Size); err != nil {
		return err
	}
	p, err := s.openPartial(scope, d, tell)
	if err != nil {
		return err
	}
	defer p.File.Close()
	if err := s.remote.Download(ctx, from, p); err != nil {
		return err
	}
	if err := disk.Publish(p.File, s.blobPath(d.Digest)); err != nil {
		return err
	}
	return s.claim(scope, d.Digest)
}
