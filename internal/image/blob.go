package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	stdfs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"atoll/internal/errs"
	"atoll/internal/image/disk"
	"atoll/internal/image/oci"
)

// A blob is a file named by the SHA-256 of its bytes. It is written in tmp/ and
// renamed to blobs/ when its digest was checked, so whatever is there was whole.

func (s *Store) blobPath(digest string) string {
	return s.path("blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

// present tells whether a blob is here.
func (s *Store) present(digest string) bool {
	_, err := os.Lstat(s.blobPath(digest))
	return err == nil
}

// newBlob takes a new blob.
func (s *Store) newBlob() (*disk.Writer, error) { return disk.New(s.path("tmp")) }

// commit makes a blob visible.
func (s *Store) commit(w *disk.Writer) (string, error) {
	d := w.Digest()
	return d, disk.Publish(w.File, s.blobPath(d))
}

// putBlob stores a small blob whose bytes are known.
func (s *Store) putBlob(raw []byte) (string, error) {
	w, err := s.newBlob()
	if err != nil {
		return "", err
	}
	defer w.Discard()
	if s.present(oci.Digest(raw)) {
		return oci.Digest(raw), nil
	}
	if _, err := w.Write(raw); err != nil {
		return "", err
	}
	return s.commit(w)
}

// readBlob gives a small blob, checked again: disks lie.
func (s *Store) readBlob(digest string, limit int64) ([]byte, error) {
	f, err := os.Open(s.blobPath(digest))
	if errors.Is(err, stdfs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "image content %s is not on this node", digest).WithHint("pull the image again")
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if oci.Digest(raw) != digest {
		return nil, s.corrupt(digest)
	}
	return raw, nil
}

// corrupt takes a damaged blob out of the way, so that a pull brings it again.
func (s *Store) corrupt(digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Warn("image content is damaged on disk and was removed", "digest", digest)
	if err := os.Remove(s.blobPath(digest)); err != nil && !errors.Is(err, stdfs.ErrNotExist) {
		return fmt.Errorf("image store: %w", err)
	}
	return errs.New(errs.Invalid, "image content %s is damaged on disk and was removed", digest).WithHint("pull or import the image again")
}

// image gives manifest and config of an image that is here.
func (s *Store) image(digest string) (oci.Image, error) {
	s.mu.Lock()
	img, ok := s.parsed[digest]
	s.mu.Unlock()
	if ok {
		return img, nil
	}
	img, err := s.readImage(digest)
	if err != nil {
		return oci.Image{}, err
	}
	s.mu.Lock()
	s.parsed[digest] = img
	s.mu.Unlock()
	return img, nil
}

func (s *Store) readImage(digest string) (oci.Image, error) {
	if !oci.IsDigest(digest) {
		return oci.Image{}, errs.New(errs.Invalid, "image digest %q is not sha256: and 64 hex digits", oci.Clip(digest))
	}
	raw, err := s.readBlob(digest, oci.MaxManifest)
	if err != nil {
		return oci.Image{}, err
	}
	doc, err := oci.DecodeManifest(raw, "", s.opt.Limits)
	if err != nil {
		return oci.Image{}, err
	}
	if doc.IsIndex {
		return oci.Image{}, errs.New(errs.Invalid, "image %s is an index of several platforms; name one of its images", digest)
	}
	if raw, err = s.readBlob(doc.Config.Digest, oci.MaxConfig); err != nil {
		return oci.Image{}, err
	}
	cfg, err := oci.DecodeConfig(raw)
	if err != nil {
		return oci.Image{}, err
	}
	return oci.Join(doc, cfg)
}

// Claims: that content is on the disk does not prove that a tenant may have it.
// A scope may use a blob without fetching it only after it has once brought all
// of its bytes, or when everybody may. So a tenant cannot get at another's private
// layers by naming their digests in a manifest of its own.

func (s *Store) claimPath(scope, digest string) string {
	sum := sha256.Sum256([]byte(scope))
	return s.path("claims", hex.EncodeToString(sum[:8]), strings.TrimPrefix(digest, "sha256:"))
}

// claimed tells whether a blob is here and the scope may use it.
func (s *Store) claimed(scope, digest string) bool {
	if !s.present(digest) {
		return false
	}
	for _, sc := range []string{scope, ""} {
		if _, err := os.Lstat(s.claimPath(sc, digest)); err == nil {
			return true
		}
	}
	return false
}

func (s *Store) claim(scope, digest string) error {
	p := s.claimPath(scope, digest)
	err := os.WriteFile(p, nil, 0o600)
	if errors.Is(err, stdfs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(p), 0o700); err == nil {
			err = os.WriteFile(p, nil, 0o600)
		}
	}
	if err != nil {
		return fmt.Errorf("image store: %w", disk.NoSpace(err))
	}
	return nil
}

func (s *Store) claimImage(scope string, img oci.Image) error {
	for _, d := range append([]oci.Descriptor{img.Manifest.Config}, img.Manifest.Layers...) {
		if !s.present(d.Digest) {
			continue
		}
		if err := s.claim(scope, d.Digest); err != nil {
			return err
		}
	}
	return nil
}
