package image

import (
	"context"
	"errors"
	"fmt"
	stdfs "io/fs"
	"os"
	"path/filepath"
	"sort"

	"atoll/internal/errs"
	"atoll/internal/image/disk"
	"atoll/internal/image/flight"
	"atoll/internal/image/oci"
)

// GC removes content that nothing needs: no name, no hold, no work under way, no
// digest of inUse, and not used within Options.Grace. It tells the bytes freed and
// what it removed: blobs by digest, unpacked layers as "layer:" and their chain.
// inUse lists the manifests that instances run from; when one of them cannot be
// read, GC removes nothing. Safe while everything else goes on.
func (s *Store) GC(ctx context.Context, inUse func() map[string]bool) (freed int64, removed []string, err error) {
	c := &collector{s: s, inUse: inUse}
	if err := c.look(); err != nil {
		return 0, nil, fmt.Errorf("collect images: %w", err)
	}
	for _, kind := range []struct{ dir, prefix string }{{"blobs/sha256", "sha256:"}, {"layers", "layer:"}} {
		list, err := os.ReadDir(s.path(kind.dir))
		if err != nil {
			return freed, removed, fmt.Errorf("collect images: %w", err)
		}
		for _, e := range list {
			if err := flight.CalledOff(ctx); err != nil {
				return freed, removed, err
			}
			n, gone, err := c.collect(kind.dir, kind.prefix, e.Name())
			if err != nil {
				return freed, removed, fmt.Errorf("collect images: %w", err)
			}
			if gone {
				freed += n
				removed = append(removed, kind.prefix+e.Name())
			}
		}
	}
	n, err := s.collectPartials()
	if err == nil {
		err = s.collectClaims()
	}
	if err != nil {
		return freed, removed, fmt.Errorf("collect images: %w", err)
	}
	sort.Strings(removed)
	return freed + n, removed, nil
}

type collector struct {
	s     *Store
	inUse func() map[string]bool
	gen   int
	live  map[string]bool // manifests, blobs by digest, layers as "layer:" and chain
}

// look finds out what is needed.
func (c *collector) look() error {
	running := map[string]bool{}
	if c.inUse != nil {
		running = c.inUse()
	}
	s := c.s
	c.live = map[string]bool{"layer:" + emptyLayer: true}
	roots := map[string]bool{}
	s.mu.Lock()
	c.gen = s.gen
	oldest := s.opt.Clock.Now().Add(-s.opt.Grace)
	for d, at := range s.used {
		if at.Before(oldest) {
			delete(s.used, d)
			continue
		}
		roots[d] = true
	}
	for d := range s.holds {
		roots[d] = true
	}
	for _, i := range s.names {
		roots[i.Digest] = true
		if i.Index != "" {
			c.live[i.Index] = true
		}
	}
	s.mu.Unlock()
	for d := range running {
		if _, err := s.image(d); err != nil {
			return errs.New(errs.Internal, "image %s is in use but cannot be read, so nothing is removed: %w", oci.Clip(d), err).
				WithHint("pull it again by its digest")
		}
		roots[d] = true
	}
	for d := range roots {
		c.live[d] = true
		img, err := s.image(d)
		if errors.Is(err, errs.NotFound) {
			continue // not here yet, or not any more: it has nothing to lose
		}
		if err != nil {
			return err
		}
		for i, l := range img.Manifest.Layers {
			c.live[l.Digest], c.live["layer:"+img.Chains[i]] = true, true
		}
		c.live[img.Manifest.Config.Digest] = true
	}
	return nil
}

// collect takes one thing away if it is not needed. What is under way is looked at
// with the lock held, so nobody can begin to need it in between: whoever does says
// so, under the same lock, before looking whether it is there.
func (c *collector) collect(dir, prefix, name string) (bytes int64, gone bool, err error) {
	s, key := c.s, prefix+name
	s.mu.Lock()
	for s.gen != c.gen {
		s.mu.Unlock()
		if err := c.look(); err != nil {
			return 0, false, err
		}
		s.mu.Lock()
	}
	if c.live[key] || s.leased(key, name) {
		s.mu.Unlock()
		return 0, false, nil
	}
	trash, err := os.MkdirTemp(s.path("tmp"), "gone-")
	if err == nil {
		err = os.Rename(s.path(dir, name), filepath.Join(trash, name))
	}
	if err == nil {
		delete(s.layers, name)
		for d := range s.parsed {
			if !c.live[d] {
				delete(s.parsed, d)
			}
		}
		for d := range s.roots {
			if !c.live[d] {
				delete(s.roots, d)
			}
		}
	}
	s.mu.Unlock()
	if err != nil {
		if errors.Is(err, stdfs.ErrNotExist) {
			return 0, false, nil
		}
		return 0, false, err
	}
	bytes = disk.Usage(trash)
	return bytes, true, os.RemoveAll(trash)
}

// leased tells whether work under way needs a blob (by key) or a layer (by chain); s.mu is held.
func (s *Store) leased(key, chain string) bool {
	for l := range s.leases {
		if l.keys[key] || l.keys[chain] {
			return true
		}
	}
	return false
}

func (s *Store) collectPartials() (freed int64, err error) {
	list, err := os.ReadDir(s.path("partial"))
	if err != nil {
		return 0, err
	}
	for _, e := range list {
		fi, err := e.Info()
		if err != nil || s.opt.Clock.Now().Sub(fi.ModTime()) < s.opt.PartialAge {
			continue
		}
		if err := os.Remove(s.path("partial", e.Name())); err != nil && !errors.Is(err, stdfs.ErrNotExist) {
			return freed, err
		}
		freed += fi.Size()
	}
	return freed, nil
}

func (s *Store) collectClaims() error {
	scopes, err := os.ReadDir(s.path("claims"))
	if err != nil {
		return err
	}
	for _, sc := range scopes {
		list, err := os.ReadDir(s.path("claims", sc.Name()))
		if err != nil {
			return err
		}
		for _, e := range list {
			if s.present("sha256:" + e.Name()) {
				continue
			}
			if err := os.Remove(s.path("claims", sc.Name(), e.Name())); err != nil && !errors.Is(err, stdfs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Disk tells how many bytes the store takes: blobs, unpacked layers by the size of
// their files, and downloads under way.
func (s *Store) Disk() int64 {
	total := disk.Usage(s.path("blobs")) + disk.Usage(s.path("partial"))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.layers {
		total += m.Bytes
	}
	return total
}

// Problem is something Verify found.
type Problem struct {
	Digest string   // of the blob
	What   string   // damaged, missing
	Images []string // names that need it
}

// Verify reads all content again and reports what is not what its digest says, and
// what named images lack. It changes nothing; a pull puts it right after Remove and GC.
func (s *Store) Verify(ctx context.Context) ([]Problem, error) {
	list, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return nil, fmt.Errorf("verify images: %w", err)
	}
	bad := map[string]string{}
	for _, e := range list {
		if err := flight.CalledOff(ctx); err != nil {
			return nil, err
		}
		got, _, err := disk.Hash(s.blobPath(e.Name()))
		if errors.Is(err, stdfs.ErrNotExist) {
			continue // collected meanwhile
		}
		if err != nil || got != "sha256:"+e.Name() {
			bad["sha256:"+e.Name()] = "damaged"
		}
	}
	users := s.users(bad)
	var out []Problem
	for d, what := range bad {
		out = append(out, Problem{Digest: d, What: what, Images: users[d]})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Digest < out[j].Digest })
	return out, nil
}

// users tells which names need which blob, and adds those that are missing to bad.
func (s *Store) users(bad map[string]string) map[string][]string {
	s.mu.Lock()
	names := s.sorted(func(Info) bool { return true })
	s.mu.Unlock()
	users := map[string][]string{}
	for _, i := range names {
		need := []string{i.Digest}
		s.mu.Lock()
		img, ok := s.parsed[i.Digest]
		s.mu.Unlock()
		if !ok && bad[i.Digest] == "" {
			if raw, err := os.ReadFile(s.blobPath(i.Digest)); err == nil {
				if doc, err := oci.DecodeManifest(raw, "", s.opt.Limits); err == nil {
					img.Manifest, ok = doc, true
				}
			}
		}
		if ok {
			need = append(need, img.Manifest.Config.Digest)
			for _, l := range img.Manifest.Layers {
				if !l.Foreign() {
					need = append(need, l.Digest)
				}
			}
		}
		for _, d := range need {
			users[d] = append(users[d], i.Name())
			if !s.present(d) {
				bad[d] = "missing"
			}
		}
	}
	return users
}
