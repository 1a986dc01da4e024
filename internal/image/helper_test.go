package image

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	memory "github.com/google/go-containerregistry/pkg/registry"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"atoll/internal/clock"
	"atoll/internal/image/imagetest"
)

func newStore(t testing.TB, opt Options) *Store {
	t.Helper()
	imagetest.NeedRoot(t)
	return openStore(t, filepath.Join(t.TempDir(), "images"), opt)
}

func openStore(t testing.TB, dir string, opt Options) *Store {
	t.Helper()
	if opt.Clock == nil {
		opt.Clock = clock.Real{}
	}
	if opt.Registry.Backoff == 0 {
		opt.Registry.Backoff = time.Millisecond
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

func (l tarLayer) Size() (int64, error) { return int64(len(l.packed)), nil }

func (l tarLayer) MediaType() (types.MediaType, error) { return l.mt, nil }

func gzLayer(t testing.TB, entries ...imagetest.Entry) ggcr.Layer {
	raw := imagetest.Tar(t, entries...)
	return tarLayer{raw, imagetest.Gz(t, raw), types.OCILayer}
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
	return &reg{inner: memory.New(memory.Logger(log.New(io.Discard, "", 0))), served: map[string]int64{}}
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
