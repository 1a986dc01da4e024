package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/image/imagetest"
	"atoll/internal/image/oci"
	"atoll/internal/image/registry"
)

var ctx = context.Background()

func TestPullResolveUnpack(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	img := makeImage(t, gzLayer(t, imagetest.Dir("etc/"), imagetest.File("etc/a", "one"), imagetest.File("gone", "x")), gzLayer(t, imagetest.File("etc/b", "two"), imagetest.File(".wh.gone", "")))
	ref := g.push(t, "team/app:1", img)
	var mu sync.Mutex
	seen := map[string]bool{}
	info, err := s.Pull(ctx, "acme", ref, PullOptions{Progress: func(p api.Progress) { mu.Lock(); seen[p.Phase] = true; mu.Unlock() }})
	if err != nil {
		t.Fatal(err)
	}
	if info.Digest != digestOfImage(t, img) || info.Layers != 2 || info.Platform != "linux/amd64" || info.Size == 0 || info.Scope != "acme" {
		t.Fatalf("%+v", info)
	}
	for _, phase := range []string{"waiting", "pulling", "done", "unpacking"} {
		if !seen[phase] {
			t.Errorf("phase %s was not told: %v", phase, seen)
		}
	}
	for _, r := range []string{ref, g.host() + "/team/app@" + info.Digest, info.Digest} {
		if got, err := s.Resolve(ctx, "acme", r); err != nil || got.Digest != info.Digest {
			t.Errorf("%s: %+v %v", r, got, err)
		}
		if _, err := s.Resolve(ctx, "other", r); !errors.Is(err, errs.NotFound) || errs.HintOf(err) == "" {
			t.Errorf("%s: another tenant sees it: %v", r, err)
		}
	}
	root, err := s.Unpack(ctx, info.Digest)
	if err != nil || len(root.Layers) != 2 {
		t.Fatal(root, err)
	}
	want := oci.Config{Entrypoint: []string{"/e"}, Cmd: []string{"c"}, Env: []string{"A=1"}, WorkingDir: "/w", User: "7:8", StopSignal: "SIGINT",
		Volumes: []string{"/v1", "/v2"}, ExposedPorts: []string{"80/tcp"}, Labels: map[string]string{"l": "v"}}
	if !reflect.DeepEqual(root.Config, want) {
		t.Errorf("config %+v", root.Config)
	}
	if b, err := os.ReadFile(root.Layers[0] + "/etc/a"); err != nil || string(b) != "one" {
		t.Error(string(b), err)
	}
	if fi, err := os.Lstat(root.Layers[1] + "/gone"); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		t.Error("no whiteout", err)
	}
	// A second store on the same directory must not exist; after a restart all is there.
	if _, err := Open(s.dir, s.opt); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
	before := g.bytes()
	s.Close()
	s = openStore(t, s.dir, Options{})
	if again, err := s.Unpack(ctx, info.Digest); err != nil || !reflect.DeepEqual(again, root) {
		t.Fatal(again, err)
	}
	pull(t, s, "acme", ref)
	if g.bytes() != before {
		t.Error("blobs that are here were fetched again")
	}
	if fi, err := os.Stat(s.dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Error("other users can reach the layers", fi.Mode())
	}
}

func TestPullOfIndexTakesThePlatform(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	one, two := makeImage(t, gzLayer(t, imagetest.File("amd", "1"))), makeImage(t, gzLayer(t, imagetest.File("arm", "2")))
	cf, _ := two.ConfigFile()
	cf = cf.DeepCopy()
	cf.Architecture = "arm64"
	two, err := mutate.ConfigFile(two, cf)
	if err != nil {
		t.Fatal(err)
	}
	ix := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: two, Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}},
		mutate.IndexAddendum{Add: makeImage(t), Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "unknown", Architecture: "unknown"}}},
		mutate.IndexAddendum{Add: one, Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: "amd64"}}})
	ref := g.push(t, "multi:1", ix)
	info := pull(t, s, "", ref)
	if info.Digest != digestOfImage(t, one) || info.Index != digestOfImage(t, ix) {
		t.Fatalf("%+v", info)
	}
	if got, err := s.Resolve(ctx, "any/tenant", g.host()+"/multi@"+info.Index); err != nil || got.Digest != info.Digest {
		t.Fatal("shared image not found by its index", err)
	}
	if got, err := s.Pull(ctx, "x", ref, PullOptions{Platform: "linux/arm64"}); err != nil || got.Digest != digestOfImage(t, two) {
		t.Fatal(got, err)
	}
	_, err = s.Pull(ctx, "x", ref, PullOptions{Platform: "linux/s390x"})
	if !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "linux/arm64/v8, linux/amd64") {
		t.Fatal(err)
	}
	if _, err := s.Pull(ctx, "x", ref, PullOptions{Platform: "amd64"}); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}

func TestPullResumesAfterBrokenConnections(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	big := gzLayer(t, imagetest.File("big", imagetest.Noise(1, 3<<20)))
	ref := g.push(t, "big:1", makeImage(t, big))
	size, _ := big.Size()
	var cuts atomic.Int32
	g.set(nil, func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		if isBlob(r) && cuts.Add(1) <= 7 { // more often than Retries: progress counts
			return &cutter{w, 400 << 10}
		}
		return w
	})
	resumed := false
	if _, err := s.Pull(ctx, "", ref, PullOptions{Progress: func(p api.Progress) { resumed = resumed || p.Phase == "resuming" && p.Current > 0 }}); err != nil {
		t.Fatal(err)
	}
	h, _ := big.Digest()
	if got := g.blob(h); got != size {
		t.Errorf("%d bytes of a layer of %d were served: some twice", got, size)
	}
	if !resumed {
		t.Error("resuming was not told")
	}
}

func TestPullGoesOnInTheNextLife(t *testing.T) {
	s, g := newStore(t, Options{Registry: registry.Options{Retries: 1}}), newRegistry(t)
	big, small := gzLayer(t, imagetest.File("big", imagetest.Noise(2, 2<<20))), gzLayer(t, imagetest.File("small", imagetest.Noise(3, 200<<10)))
	ref := g.push(t, "big:1", makeImage(t, small, big))
	h, _ := big.Digest()
	hs, _ := small.Digest()
	first := true
	broken := func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		if strings.HasSuffix(r.URL.Path, h.String()) && isBlob(r) {
			for !s.claimed("t", hs.String()) { // the small one is whole when the big one breaks
				time.Sleep(time.Millisecond)
			}
			left := 0
			if first {
				left, first = 1<<20, false
			}
			return &cutter{w, left}
		}
		return w
	}
	g.set(nil, broken)
	if _, err := s.Pull(ctx, "t", ref, PullOptions{}); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
	if _, err := s.Resolve(ctx, "t", ref); !errors.Is(err, errs.NotFound) {
		t.Fatal("half an image has a name", err)
	}
	s.Close()
	g.set(nil, nil)
	s = openStore(t, s.dir, Options{})
	pull(t, s, "t", ref)
	bs, _ := big.Size()
	if got := g.blob(h); got != bs {
		t.Errorf("%d bytes of %d served", got, bs)
	}
	ss, _ := small.Size()
	if got := g.blob(hs); got != ss {
		t.Errorf("a whole blob was fetched again: %d of %d", got, ss)
	}
}

func TestDamagedPartialIsFetchedAnew(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	l := gzLayer(t, imagetest.File("f", imagetest.Noise(4, 1<<20)))
	ref := g.push(t, "a:1", makeImage(t, l))
	h, _ := l.Digest()
	d := oci.Descriptor{Digest: h.String(), Size: 1 << 30}
	p, err := s.openPartial("", d, func(api.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	p.Write(make([]byte, 300<<10)) // as after a power cut
	p.File.Close()
	pull(t, s, "", ref)
}

func TestServerErrorsAreTriedAgain(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	ref := g.push(t, "a:1", makeImage(t, gzLayer(t, imagetest.File("f", "x"))))
	var n atomic.Int32
	codes := []int{503, 429, 500, 502}
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if i := n.Add(1); i%2 == 1 && i < 16 {
			w.WriteHeader(codes[int(i/2)%len(codes)])
			return true
		}
		return false
	}, nil)
	pull(t, s, "", ref)
	if n.Load() < 8 {
		t.Error("no faults met", n.Load())
	}
	g.set(func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(503); return true }, nil)
	_, err := s.Pull(ctx, "", ref, PullOptions{})
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "503") {
		t.Fatal(err)
	}
}

func TestWrongBytesAreRefusedByDigest(t *testing.T) {
	l := gzLayer(t, imagetest.File("f", imagetest.Noise(5, 100<<10)))
	h, _ := l.Digest()
	size, _ := l.Size()
	for what, forge := range map[string]func(http.ResponseWriter){
		"other bytes": func(w http.ResponseWriter) { w.Write(make([]byte, size)) },
		"too long":    func(w http.ResponseWriter) { w.Write(make([]byte, size+10)) },
	} {
		s, g := newStore(t, Options{}), newRegistry(t)
		ref := g.push(t, "a:1", makeImage(t, l))
		g.set(func(w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) && strings.HasSuffix(r.URL.Path, h.String()) {
				forge(w)
				return true
			}
			return false
		}, nil)
		_, err := s.Pull(ctx, "", ref, PullOptions{})
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), h.String()) {
			t.Errorf("%s: %v", what, err)
		}
		if s.present(h.String()) || len(s.List("")) != 0 {
			t.Errorf("%s: kept", what)
		}
		g.set(nil, nil)
		pull(t, s, "", ref) // the honest registry helps at once
	}
}

func TestForgedManifestIsRefused(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	img := makeImage(t, gzLayer(t, imagetest.File("f", "x")))
	ref := g.push(t, "a:1", img)
	other, _ := makeImage(t, gzLayer(t, imagetest.File("f", "y"))).RawManifest()
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			w.Write(other)
			return true
		}
		return false
	}, nil)
	pinned := strings.TrimSuffix(ref, ":1") + "@" + digestOfImage(t, img)
	if _, err := s.Pull(ctx, "", pinned, PullOptions{}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), digestOfImage(t, img)) {
		t.Fatal(err)
	}
}

func TestDiffIDIsChecked(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	a, b := imagetest.Tar(t, imagetest.File("f", "a")), imagetest.Tar(t, imagetest.File("f", "b"))
	ref := g.push(t, "a:1", makeImage(t, tarLayer{a, imagetest.Gz(t, b), types.OCILayer}))
	_, err := s.Pull(ctx, "", ref, PullOptions{})
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), oci.Digest(b)) || !strings.Contains(err.Error(), oci.Digest(a)) {
		t.Fatal(err)
	}
	if l, _ := os.ReadDir(s.path("layers")); len(l) != 0 {
		t.Error("the layer is visible")
	}
}

func TestConcurrentPullsShareDownloads(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	l := gzLayer(t, imagetest.File("f", imagetest.Noise(6, 1<<20)))
	ref := g.push(t, "a:1", makeImage(t, l))
	release, asked := make(chan struct{}), make(chan struct{}, 100)
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			asked <- struct{}{}
			<-release
		}
		return false
	}, nil)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c, cancel := context.WithCancel(ctx)
			defer cancel()
			if i == 0 { // the one that began it loses interest; the others do not notice
				go func() { <-asked; time.Sleep(20 * time.Millisecond); cancel(); close(release) }()
			}
			_, err := s.Pull(c, "t", ref, PullOptions{})
			if err != nil && i != 0 {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	h, _ := l.Digest()
	if size, _ := l.Size(); g.blob(h) != size {
		t.Errorf("%d bytes of %d served", g.blob(h), size)
	}
}

func TestTenantsCannotReachOthersLayersByDigest(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	secret := gzLayer(t, imagetest.File("secret", imagetest.Noise(7, 10<<10)))
	h, _ := secret.Digest()
	pull(t, s, "a", g.push(t, "private:1", makeImage(t, secret)))
	// The other tenant's registry names the layer but does not have it.
	evil := newRegistry(t)
	ref := evil.push(t, "evil:1", makeImage(t, secret))
	evil.set(func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) && strings.HasSuffix(r.URL.Path, h.String()) {
			w.WriteHeader(404)
			return true
		}
		return false
	}, nil)
	if _, err := s.Pull(ctx, "b", ref, PullOptions{}); !errors.Is(err, errs.NotFound) {
		t.Fatal("got another tenant's layer", err)
	}
	evil.set(nil, nil)
	pull(t, s, "b", ref)
	if evil.blob(h) == 0 {
		t.Error("not fetched by the tenant itself")
	}
}

func TestAuth(t *testing.T) {
	imagetest.NeedRoot(t)
	user, pass := "joe", "s3cr:et"
	basic := func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == pass {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(401)
		return true
	}
	g := newRegistry(t)
	token := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if u, p, ok := r.BasicAuth(); !ok || u != user || p != pass || !strings.Contains(r.URL.Query().Get("scope"), "repository:a:") {
				w.WriteHeader(401)
				return true
			}
			json.NewEncoder(w).Encode(map[string]string{"token": "tok"})
			return true
		}
		if r.Header.Get("Authorization") == "Bearer tok" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, g.URL))
		w.WriteHeader(401)
		return true
	}
	ref := g.push(t, "a:1", makeImage(t, gzLayer(t, imagetest.File("f", "x"))))
	authPath := filepath.Join(t.TempDir(), "config.json")
	cfg := fmt.Sprintf(`{"auths":{"http://%s/v2/":{"auth":%q}}}`, g.host(), base64.StdEncoding.EncodeToString([]byte(user+":"+pass)))
	if err := os.WriteFile(authPath, []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	for how, hook := range map[string]func(http.ResponseWriter, *http.Request) bool{"basic": basic, "token": token} {
		g.set(hook, nil)
		s := newStore(t, Options{})
		_, err := s.Pull(ctx, "", ref, PullOptions{})
		if !errors.Is(err, errs.Denied) || errs.HintOf(err) == "" {
			t.Errorf("%s: without credentials: %v", how, err)
		}
		if _, err := s.Pull(ctx, "", ref, PullOptions{Auth: user + ":wr0ng"}); !errors.Is(err, errs.Denied) || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("%s: wrong credentials: %v", how, err)
		}
		if _, err := s.Pull(ctx, "", ref, PullOptions{Auth: user + ":" + pass}); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		if err := s.Push(ctx, "", ref, g.host()+"/a:copy", user+":"+pass, nil); err != nil {
			t.Errorf("%s: push: %v", how, err)
		}
		s = newStore(t, Options{Registry: registry.Options{AuthFile: authPath}})
		if _, err := s.Pull(ctx, "", g.host()+"/a:copy", PullOptions{}); err != nil {
			t.Errorf("%s: auth file: %v", how, err)
		}
	}
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer given" {
			return false
		}
		w.WriteHeader(401)
		return true
	}, nil)
	if _, err := newStore(t, Options{}).Pull(ctx, "", ref, PullOptions{Auth: "given"}); err != nil {
		t.Error(err)
	}
}

func TestMirrorsNeverSeeTheCallersCredentials(t *testing.T) {
	g, m := newRegistry(t), newRegistry(t)
	img := makeImage(t, gzLayer(t, imagetest.File("f", imagetest.Noise(8, 10<<10))))
	g.push(t, "team/a:1", img)
	m.push(t, "hub/team/a:2", img)
	s := newStore(t, Options{Registry: registry.Options{Mirrors: map[string][]string{g.host(): {"127.0.0.1:1", m.host() + "/hub"}}, Retries: 1}})
	m.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("a mirror got credentials")
		}
		return false
	}, nil)
	// The mirror has 2 only, the registry 1 only.
	if _, err := s.Pull(ctx, "", g.host()+"/team/a:2", PullOptions{Auth: "u:p"}); err != nil {
		t.Fatal(err)
	}
	if len(s.List("")) != 1 || s.List("")[0].Reference != g.host()+"/team/a:2" {
		t.Fatal(s.List(""))
	}
	if _, err := s.Pull(ctx, "x", g.host()+"/team/a:1", PullOptions{Auth: "u:p"}); err != nil {
		t.Fatal(err)
	}
}

func TestPrivateCA(t *testing.T) {
	g := newHandler()
	g.Server = httptest.NewUnstartedServer(g)
	g.TLS = &tls.Config{}
	g.Config.ErrorLog = newLogger()
	g.StartTLS()
	t.Cleanup(g.Close)
	ref := g.push(t, "a:1", makeImage(t, gzLayer(t, imagetest.File("f", "x"))))
	_, err := newStore(t, Options{Registry: registry.Options{Retries: 1}}).Pull(ctx, "", ref, PullOptions{})
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "not trusted") || !strings.Contains(errs.HintOf(err), "certificate") {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, newStore(t, Options{Registry: registry.Options{CAFiles: map[string][]string{g.host(): {ca}}}}), "", ref)
}

func TestUnusableManifests(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	for body, kind := range map[string]errs.Kind{
		`{"schemaVersion":1,"name":"x","fsLayers":[{"blobSum":"y"}],"history":[]}`: errs.Unsupported,
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + imagetest.SomeDigest + `","size":2},"layers":[]}`: errs.Unsupported,
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + imagetest.SomeDigest + `","size":2},"layers":[],"manifests":[]}`:                                           errs.Invalid,
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:../../etc","size":2}}`:                                                                                  errs.Invalid,
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + imagetest.SomeDigest + `","size":-2}}`:                                                                     errs.Invalid,
		`not json`:            errs.Invalid,
		`{"schemaVersion":2}`: errs.Invalid,
		`{"schemaVersion":2,"padding":"` + strings.Repeat("x", oci.MaxManifest) + `"}`: errs.Invalid,
	} {
		g.set(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				io.WriteString(w, body)
				return true
			}
			return false
		}, nil)
		if _, err := s.Pull(ctx, "", g.host()+"/a:1", PullOptions{}); !errors.Is(err, kind) {
			t.Errorf("%.80s: %v", body, err)
		}
	}
	g.set(nil, nil)
	if _, err := s.Pull(ctx, "", g.host()+"/none:1", PullOptions{}); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

func TestPullIsCancelled(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	ref := g.push(t, "a:1", makeImage(t, gzLayer(t, imagetest.File("f", imagetest.Noise(9, 1<<20)))))
	c, cancel := context.WithCancel(ctx)
	stop := make(chan struct{})
	defer close(stop)
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			cancel()
			select {
			case <-stop:
			case <-r.Context().Done():
			}
			return true
		}
		return false
	}, nil)
	if _, err := s.Pull(c, "", ref, PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(s.leases) != 0 || !s.fetchs.Idle() {
		t.Error("something is still under way")
	}
}

func TestSilentRegistryIsGivenUp(t *testing.T) {
	s, g := newStore(t, Options{Registry: registry.Options{IdleTimeout: 30 * time.Millisecond, Retries: 1}}), newRegistry(t)
	ref := g.push(t, "a:1", makeImage(t, gzLayer(t, imagetest.File("f", imagetest.Noise(10, 100<<10)))))
	stop := make(chan struct{})
	defer close(stop)
	g.set(func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			select {
			case <-stop:
			case <-r.Context().Done():
			}
			return true
		}
		return false
	}, nil)
	if _, err := s.Pull(ctx, "", ref, PullOptions{}); !errors.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
}

func TestFullDiskIsNoticedBefore(t *testing.T) {
	s, g := newStore(t, Options{Limits: oci.Limits{MinFree: 1 << 60}}), newRegistry(t)
	ref := g.push(t, "a:1", makeImage(t, gzLayer(t, imagetest.File("f", "x"))))
	if _, err := s.Pull(ctx, "", ref, PullOptions{}); !errors.Is(err, errs.NoCapacity) || errs.HintOf(err) == "" {
		t.Fatal(err)
	}
	if g.bytes() != 0 {
		t.Error("fetched anyway")
	}
}

func TestPushKeepsTheDigest(t *testing.T) {
	s, g, to := newStore(t, Options{}), newRegistry(t), newRegistry(t)
	img := makeImage(t, gzLayer(t, imagetest.File("f", imagetest.Noise(11, 1<<20))), gzLayer(t, imagetest.File("g", "x")))
	ref := g.push(t, "a:1", img)
	pull(t, s, "t", ref)
	phases := map[string]bool{}
	if err := s.Push(ctx, "t", ref, to.host()+"/b/c:2", "", func(p api.Progress) { phases[p.Phase] = true }); err != nil {
		t.Fatal(err)
	}
	if !phases["pushing"] || !phases["done"] {
		t.Error(phases)
	}
	other := newStore(t, Options{})
	if i := pull(t, other, "", to.host()+"/b/c:2"); i.Digest != digestOfImage(t, img) {
		t.Error(i)
	}
	if err := s.Push(ctx, "u", ref, to.host()+"/b/c:2", "", nil); !errors.Is(err, errs.NotFound) {
		t.Error("pushed another tenant's image", err)
	}
	if err := s.Push(ctx, "t", ref, "127.0.0.1:1/b", "", nil); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
}

func TestDamagedBlobIsFetchedAgain(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	l := gzLayer(t, imagetest.File("f", imagetest.Noise(12, 100<<10)))
	ref := g.push(t, "a:1", makeImage(t, l))
	if _, err := s.Pull(ctx, "", ref, PullOptions{NoUnpack: true}); err != nil {
		t.Fatal(err)
	}
	h, _ := l.Digest()
	raw, _ := os.ReadFile(s.blobPath(h.String()))
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(s.blobPath(h.String()), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	bad, err := s.Verify(ctx)
	if err != nil || len(bad) != 1 || bad[0].Digest != h.String() || bad[0].What != "damaged" || len(bad[0].Images) != 1 {
		t.Fatal(bad, err)
	}
	pull(t, s, "", ref)
	if bad, err := s.Verify(ctx); err != nil || len(bad) != 0 {
		t.Fatal(bad, err)
	}
	if err := os.Remove(s.blobPath(h.String())); err != nil {
		t.Fatal(err)
	}
	if bad, err := s.Verify(ctx); err != nil || len(bad) != 1 || bad[0].What != "missing" {
		t.Fatal(bad, err)
	}
	var buf bytes.Buffer
	if err := s.Export(ctx, "", ref, "", &buf); !errors.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}

func TestRegistryWithoutRanges(t *testing.T) {
	for what, fault := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"ignores": func(w http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false },
		"refuses": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return true
			}
			return false
		},
		"other part": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes 0-9/1000")
				w.WriteHeader(http.StatusPartialContent)
				io.WriteString(w, "0123456789")
				return true
			}
			return false
		},
	} {
		s, g := newStore(t, Options{}), newRegistry(t)
		l := gzLayer(t, imagetest.File("f", imagetest.Noise(20, 500<<10)))
		ref := g.push(t, "a:1", makeImage(t, l))
		h, _ := l.Digest()
		var n atomic.Int32
		g.set(fault, func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			if isBlob(r) && strings.HasSuffix(r.URL.Path, h.String()) && n.Add(1) == 1 {
				return &cutter{w, 100 << 10}
			}
			return w
		})
		if _, err := s.Pull(ctx, "", ref, PullOptions{}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The layers as the kernel sees them, mounted where nobody else can see the mount.
func TestOverlayShowsTheImage(t *testing.T) {
	s, g := newStore(t, Options{}), newRegistry(t)
	ref := g.push(t, "a:1", makeImage(t,
		gzLayer(t, imagetest.Dir("d/"), imagetest.File("d/old", "1"), imagetest.Dir("o/"), imagetest.File("o/hidden", "1"), imagetest.File("gone", "1"), imagetest.File("same", "low"), imagetest.Dir("r/"), imagetest.File("r/hidden", "1")),
		gzLayer(t, imagetest.File(".wh.gone", ""), imagetest.File("d/new", "2"), imagetest.Dir("o/"), imagetest.File("o/.wh..wh..opq", ""), imagetest.File("o/shown", "2"), imagetest.File("same", "high"), imagetest.File(".wh.r", ""), imagetest.Dir("r/"), imagetest.File("r/shown", "2"))))
	info := pull(t, s, "", ref)
	root, err := s.Unpack(ctx, info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	script := `mount --make-rprivate / 2>/dev/null; mount -t overlay overlay -o "lowerdir=$1:$2" "$3" || exit 42; cd "$3" && find . -type f | sort && cat same`
	out, err := exec.Command("unshare", "-m", "sh", "-c", script, "sh", root.Layers[1], root.Layers[0], at).CombinedOutput()
	var exit *exec.ExitError
	if errors.Is(err, exec.ErrNotFound) || errors.As(err, &exit) && exit.ExitCode() == 42 {
		t.Skipf("cannot mount an overlay here: %s", out)
	}
	if want := "./d/new\n./d/old\n./o/shown\n./r/shown\n./same\nhigh"; err != nil || string(out) != want {
		t.Errorf("got %q %v\nwant %q", out, err, want)
	}
}
