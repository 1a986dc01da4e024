package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"atoll/internal/clock"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners, devices and trusted attributes")
	}
}

func newStore(t testing.TB, opt Options) *Store {
	t.Helper()
	needRoot(t)
	return openStore(t, filepath.Join(t.TempDir(), "images"), opt)
}

func openStore(t testing.TB, dir string, opt Options) *Store {
	t.Helper()
	if opt.Clock == nil {
		opt.Clock = clock.Real{}
	}
	if opt.Backoff == 0 {
		opt.Backoff = time.Millisecond
	}
	if opt.Platform == "" {
		opt.Platform = "linux/amd64"
	}
	s, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// file makes the header of a plain file; data is its content.
type entry struct {
	h    tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}, data}
}
func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}
func symlink(name, to string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, ""}
}
func hardlink(name, to string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		if err := tw.WriteHeader(&e.h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// noise is data that does not compress, the same for the same seed.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 33)
	}
	return string(b)
}

// tarLayer shows a tar as a compressed layer to the registry client.
type tarLayer struct {
	raw, packed []byte
	mt          types.MediaType
}

func (l tarLayer) Digest() (ggcr.Hash, error) {
	h, _, err := ggcr.SHA256(bytes.NewReader(l.packed))
	return h, err
}
func (l tarLayer) DiffID() (ggcr.Hash, error) {
	h, _, err := ggcr.SHA256(bytes.NewReader(l.raw))
	return h, err
}
func (l tarLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.packed)), nil
}
func (l tarLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.raw)), nil
}
func (l tarLayer) Size() (int64, error)                { return int64(len(l.packed)), nil }
func (l tarLayer) MediaType() (types.MediaType, error) { return l.mt, nil }

func gzLayer(t testing.TB, entries ...entry) ggcr.Layer {
	raw := makeTar(t, entries...)
	return tarLayer{raw, gz(t, raw), types.OCILayer}
}

func makeImage(t testing.TB, layers ...ggcr.Layer) ggcr.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config = ggcr.Config{Env: []string{"A=1"}, Entrypoint: []string{"/e"}, Cmd: []string{"c"}, User: "7:8", WorkingDir: "/w", StopSignal: "SIGINT",
		Labels: map[string]string{"l": "v"}, Volumes: map[string]struct{}{"/v2": {}, "/v1": {}}, ExposedPorts: map[string]struct{}{"80/tcp": {}}}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOfImage(t testing.TB, img interface{ Digest() (ggcr.Hash, error) }) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// reg is a registry on loopback that can misbehave.
type reg struct {
	*httptest.Server
	inner http.Handler

	mu     sync.Mutex
	hook   func(w http.ResponseWriter, r *http.Request) bool // true: answered
	wrap   func(w http.ResponseWriter, r *http.Request) http.ResponseWriter
	served map[string]int64 // bytes of blobs, by digest
	asked  []string
}

func newRegistry(t testing.TB) *reg {
	r := newHandler()
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func newHandler() *reg {
	return &reg{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0))), served: map[string]int64{}}
}

func (g *reg) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	hook, wrap := g.hook, g.wrap
	g.asked = append(g.asked, r.Method+" "+r.URL.Path)
	g.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	if i := strings.Index(r.URL.Path, "/blobs/sha256:"); i >= 0 && r.Method == http.MethodGet {
		w = &countingWriter{w, g, r.URL.Path[i+len("/blobs/"):]}
	}
	if wrap != nil {
		w = wrap(w, r)
	}
	g.inner.ServeHTTP(w, r)
}

func (g *reg) set(hook func(http.ResponseWriter, *http.Request) bool, wrap func(http.ResponseWriter, *http.Request) http.ResponseWriter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hook, g.wrap = hook, wrap
}

func (g *reg) bytes() (n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range g.served {
		n += b
	}
	return n
}

func (g *reg) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(g.URL, "http://"), "https://")
}

type countingWriter struct {
	http.ResponseWriter
	g      *reg
	digest string
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.g.mu.Lock()
	c.g.served[c.digest] += int64(n)
	c.g.mu.Unlock()
	return n, err
}

func (c *countingWriter) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

// cutter lets so many bytes of a body through and then breaks the connection.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func (g *reg) push(t testing.TB, ref string, img remote.Taggable) string {
	t.Helper()
	full := g.host() + "/" + ref
	tag, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	opts := []remote.Option{}
	if g.Server.TLS != nil {
		opts = append(opts, remote.WithTransport(g.Client().Transport))
	}
	switch v := img.(type) {
	case ggcr.ImageIndex:
		err = remote.WriteIndex(tag, v, opts...)
	case ggcr.Image:
		err = remote.Write(tag, v, opts...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return full
}

// isBlob tells whether a request is for a blob of more than the config's size.
func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
}

// tree lists what is in a directory, in words.
func tree(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		line := rel + " " + fi.Mode().String()
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + shortDigest(digestOf(b))
		case fi.Mode()&os.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			line += " -> " + to
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return out
}

func pull(t testing.TB, s *Store, scope, ref string) Info {
	t.Helper()
	i, err := s.Pull(context.Background(), scope, ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func newLogger() *log.Logger { return log.New(io.Discard, "", 0) }

func newStoreOptions() Options { return Options{Clock: clock.Real{}, Platform: "linux/amd64"} }

// blob tells how many bytes of a blob were served.
func (g *reg) blob(h ggcr.Hash) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.served[h.String()]
}
