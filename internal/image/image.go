// Package image keeps OCI images on a node: it parses references, pulls from any
// registry, verifies every byte by digest, imports, exports and pushes, unpacks
// layers into directories an overlay can be mounted from, and collects what
// nobody needs.
//
// The life of an image: Pull or Import brings its content and gives it a name in
// a scope (a tenant's path, or "" for everybody). Resolve finds the name. Unpack
// makes its layers ready and, when they are, only looks into memory. Hold keeps
// content while somebody is about to use it. Remove drops a name; GC removes what
// no name, no hold and no running instance needs.
//
// A Store starts no goroutine that outlives the call that needed it. Whatever is
// visible under blobs/ and layers/ is complete: content is written beside it and
// renamed, so the process may be killed at any time. What comes from a registry or
// an archive is hostile until its digest was checked, and bounded also then. The
// package must never write outside its directory, follow a link out of a layer, or
// put credentials into errors or logs.
package image

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/image/disk"
	"atoll/internal/image/flight"
	"atoll/internal/image/oci"
	"atoll/internal/image/registry"
	"atoll/internal/sys/fs"
)

// Options configures a Store. The zero value of every field is usable, except Clock.
type Options struct {
	Clock clock.Clock
	Log   *slog.Logger // default: silent
	// Platform is os/arch[/variant] of the images wanted. Default: this machine's.
	Platform string
	Registry registry.Options
	Limits   oci.Limits
	// Grace keeps content this long after it was last used or brought, so that a start under
	// way never loses its image to GC. Default 10 minutes.
	Grace time.Duration
	// PartialAge is how long an unfinished download is kept to be resumed. Default 24 h.
	PartialAge time.Duration
}

const maxNames = 100_000

// Store is a directory of images. It is safe for use by many goroutines, but only
// one process may have it open.
type Store struct {
	dir    string
	opt    Options
	log    *slog.Logger
	lock   *os.File
	remote *registry.Client
	fetchs flight.Group[string]    // scope and blob
	unpack flight.Group[layerMeta] // chain

	mu     sync.Mutex // guards all below, and every rename into or out of blobs/ and layers/ by GC
	names  map[nameKey]Info
	roots  map[string]Root      // unpacked images, by manifest digest
	holds  map[string]int       // manifest digests
	leases map[*lease]struct{}  // content of work under way
	used   map[string]time.Time // manifest digests, last use
	gen    int                  // counts additions to used
	layers map[string]layerMeta // unpacked layers, by chain ID
	parsed map[string]oci.Image // by manifest digest
}

// Open opens or makes a store at dir, which it makes accessible to its owner only:
// layers hold other people's set-user-ID files. Leftovers of a killed process are
// removed. errs.Unavailable: another process has it.
func Open(dir string, opts Options) (*Store, error) {
	if opts.Clock == nil {
		return nil, errs.New(errs.Internal, "image store: no clock")
	}
	opts.defaults()
	if _, err := oci.ParsePlatform(opts.Platform); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s := &Store{dir: dir, opt: opts, log: opts.Log, remote: registry.New(opts.Registry, opts.Clock, opts.Log),
		names: map[nameKey]Info{}, roots: map[string]Root{}, holds: map[string]int{}, leases: map[*lease]struct{}{},
		used: map[string]time.Time{}, layers: map[string]layerMeta{}, parsed: map[string]oci.Image{}}
	for _, d := range []string{"", "blobs", "blobs/sha256", "layers", "partial", "claims"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if s.lock, err = os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.load(); err != nil {
		s.lock.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) load() error {
	ok, err := fs.TryLock(s.lock)
	if err != nil {
		return fmt.Errorf("image store: lock: %w", err)
	}
	if !ok {
		return errs.New(errs.Unavailable, "image store %s is in use by another process", s.dir).WithHint("stop the other atolld first")
	}
	if err := os.RemoveAll(s.path("tmp")); err != nil {
		return fmt.Errorf("image store: remove leftovers: %w", err)
	}
	if err := os.Mkdir(s.path("tmp"), 0o700); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if err := s.loadLayers(); err != nil {
		return err
	}
	return s.loadNames()
}

// Close gives the store free for another process. Nothing may be under way.
func (s *Store) Close() error { return s.lock.Close() }

func (o *Options) defaults() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Platform == "" {
		o.Platform = runtime.GOOS + "/" + runtime.GOARCH
	}
	o.Limits = o.Limits.OrDefaults()
	if o.Grace <= 0 {
		o.Grace = 10 * time.Minute
	}
	if o.PartialAge <= 0 {
		o.PartialAge = 24 * time.Hour
	}
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// Hold keeps the content of an image, by manifest digest, until release is called.
// It may be called before the content is here.
func (s *Store) Hold(digest string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touch(digest)
	s.holds[digest]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.holds[digest]--; s.holds[digest] == 0 {
			delete(s.holds, digest)
		}
		s.touch(digest)
	})
}

// touch notes that an image is needed now; s.mu is held. GC starts over when an
// image became needed that was not when it looked.
func (s *Store) touch(digest string) {
	if _, ok := s.used[digest]; !ok {
		s.gen++
	}
	s.used[digest] = s.opt.Clock.Now()
}

// lease keeps single blobs and layers while work on them is under way.
type lease struct {
	s    *Store
	keys map[string]bool // blob digests and chain IDs
}

func (s *Store) newLease() *lease {
	l := &lease{s: s, keys: map[string]bool{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[l] = struct{}{}
	return l
}

// add must come before looking whether the content is there.
func (l *lease) add(keys ...string) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, k := range keys {
		l.keys[k] = true
	}
}

func (l *lease) end() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	delete(l.s.leases, l)
}

// room refuses work that would fill the disk.
func (s *Store) room(need int64) error { return disk.Room(s.dir, need, s.opt.Limits.MinFree) }
