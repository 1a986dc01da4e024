package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	stdfs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"atoll/internal/errs"
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

// blobWriter takes a new blob.
type blobWriter struct {
	s *Store
	f *os.File
	h hash.Hash
	n int64
}

func (s *Store) newBlob() (*blobWriter, error) {
	f, err := os.CreateTemp(s.path("tmp"), "blob-")
	if err != nil {
		return nil, fmt.Errorf("image store: %w", noSpace(err))
	}
	return &blobWriter{s: s, f: f, h: sha256.New()}, nil
}

func (w *blobWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.h.Write(p[:n])
	w.n += int64(n)
	return n, noSpace(err)
}

func (w *blobWriter) digest() string { return "sha256:" + hex.EncodeToString(w.h.Sum(nil)) }

// commit makes it visible.
func (w *blobWriter) commit() (string, error) {
	d := w.digest()
	return d, w.s.publish(w.f, w.s.blobPath(d))
}

// discard removes it; harmless after commit.
func (w *blobWriter) discard() {
	w.f.Close()
	os.Remove(w.f.Name())
}

// publish makes a file durable, then visible under its name. It closes f.
func (s *Store) publish(f *os.File, to string) error {
	err := f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err == nil {
		err = syncDir(filepath.Dir(to))
	}
	if err != nil {
		return fmt.Errorf("image store: %w", noSpace(err))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// replaceFile writes a small file of the store's own, all or nothing.
func (s *Store) replaceFile(name string, raw []byte) error {
	f, err := os.CreateTemp(s.path("tmp"), "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(raw); err != nil {
		f.Close()
		return err
	}
	return s.publish(f, s.path(name))
}

// putBlob stores a small blob whose bytes are known.
func (s *Store) putBlob(raw []byte) (string, error) {
	w, err := s.newBlob()
	if err != nil {
		return "", err
	}
	defer w.discard()
	if s.present(digestOf(raw)) {
		return digestOf(raw), nil
	}
	if _, err := w.Write(raw); err != nil {
		return "", err
	}
	return w.commit()
}

func digestOf(raw []byte) string {
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:])
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
	if digestOf(raw) != digest {
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
func (s *Store) image(digest string) (parsedImage, error) {
	s.mu.Lock()
	img, ok := s.parsed[digest]
	s.mu.Unlock()
	if ok {
		return img, nil
	}
	img, err := s.readImage(digest)
	if err != nil {
		return parsedImage{}, err
	}
	s.mu.Lock()
	s.parsed[digest] = img
	s.mu.Unlock()
	return img, nil
}

func (s *Store) readImage(digest string) (parsedImage, error) {
	if !digestRE.MatchString(digest) {
		return parsedImage{}, errs.New(errs.Invalid, "image digest %q is not sha256: and 64 hex digits", clip(digest))
	}
	raw, err := s.readBlob(digest, maxManifest)
	if err != nil {
		return parsedImage{}, err
	}
	doc, err := decodeManifest(raw, "", s.opt.Limits)
	if err != nil {
		return parsedImage{}, err
	}
	if doc.index {
		return parsedImage{}, errs.New(errs.Invalid, "image %s is an index of several platforms; name one of its images", digest)
	}
	if raw, err = s.readBlob(doc.config.Digest, maxConfig); err != nil {
		return parsedImage{}, err
	}
	cfg, err := decodeConfig(raw)
	if err != nil {
		return parsedImage{}, err
	}
	return parseImage(doc, cfg)
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
		return fmt.Errorf("image store: %w", noSpace(err))
	}
	return nil
}

func (s *Store) claimImage(scope string, img parsedImage) error {
	for _, d := range append([]descriptor{img.doc.config}, img.doc.layers...) {
		if !s.present(d.Digest) {
			continue
		}
		if err := s.claim(scope, d.Digest); err != nil {
			return err
		}
	}
	return nil
}

// hashFile gives the digest of a file's bytes.
func hashFile(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), n, err
}

// zeros tells whether a block holds nothing.
func zeros(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }
