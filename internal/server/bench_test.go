package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/store"
)

// full is an instance with everything a running one has.
func full(i int) *api.Instance {
	in := instance("acme", fmt.Sprintf("web-%03d", i))
	in.UID, in.Labels = strings.Repeat("a", 32), map[string]string{"app": "web", "tier": "front"}
	in.Spec = api.InstanceSpec{Image: "registry.example.com/team/app:1.4", Command: []string{"serve", "--port", "8080"}, Env: []api.EnvVar{{Name: "LANG", Value: "C.UTF-8"}},
		Requests: api.Resources{api.CPU: 500, api.Memory: 512 << 20}, Limits: api.Resources{api.Memory: 1 << 30}, Ports: []api.Port{{Port: 8080, Publish: uint16(8000 + i)}}}
	in.Status = api.InstanceStatus{State: api.StateRunning, Node: "isle1", Address: "10.88.0.2", RuntimeID: "xaaaaaaaaaaaaaaa", Pid: 4242, ImageDigest: "sha256:" + strings.Repeat("b", 64), Starts: 1}
	return in
}

// cached is a fixture whose store is a Cache over Mem, with 50 instances.
func cached(b *testing.B, cfg Config) *fixture {
	b.Helper()
	f := newFixture(b, cfg)
	for i := range 50 {
		if _, err := f.mem.Commit(context.Background(), store.Create(full(i))); err != nil {
			b.Fatal(err)
		}
	}
	c := store.NewCache(f.mem)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	if err := c.WaitLoaded(ctx); err != nil {
		b.Fatal(err)
	}
	f.Server = New(Deps{Store: c, Auth: auth.New(clock.Real{}, auth.Config{}), Clock: clock.Real{}, Rand: rand.Reader, Version: "test"}, cfg)
	if err := f.LoadAuth(ctx); err != nil {
		b.Fatal(err)
	}
	return f
}

// BenchmarkListSocket is the claim: 8 clients list 50 instances over the unix
// socket, the loader in the same process.
func BenchmarkListSocket(b *testing.B) {
	for _, who := range []string{"root", "ann"} {
		b.Run(who, func(b *testing.B) {
			cfg := socketConfig(b)
			f := cached(b, cfg)
			if who != "root" {
				h := f.handler
				f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), asKey{}, as(who))))
				})
			}
			socket := f.run()
			tr := &http.Transport{MaxIdleConnsPerHost: 8, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			}}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr}
			var left, size atomic.Int64
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						resp, err := client.Get("http://localhost/v1/instances")
						if err != nil {
							b.Error(err)
							return
						}
						n, err := io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
						if err != nil || resp.StatusCode != 200 {
							b.Error(resp.Status, err)
							return
						}
						size.Store(n)
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lists/s")
			b.ReportMetric(float64(size.Load()), "bytes/list")
		})
	}
}

type sink struct{ h http.Header }

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkHandler is the server's own part, without the network.
func BenchmarkHandler(b *testing.B) {
	f := cached(b, Config{})
	run := func(name, method, path string, body func(i int) string) {
		b.Run(name, func(b *testing.B) {
			h := f.As(as("ann"))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				req := httptest.NewRequest(method, path, strings.NewReader(body(i)))
				w := &sink{h: http.Header{}}
				h.ServeHTTP(w, req)
			}
		})
	}
	none := func(int) string { return "" }
	run("list", "GET", "/v1/instances?tenant=acme", none)
	run("get", "GET", "/v1/instances/web-007?tenant=acme", none)
	n := 0
	text := encode(b, full(0))
	run("create", "POST", "/v1/instances", func(int) string {
		n++
		return strings.Replace(text, "web-000", fmt.Sprintf("new-%d", n), 1)
	})
	b.Run("commit-alone", func(b *testing.B) { // what the store takes of create
		for i := 0; b.Loop(); i++ {
			in := full(0)
			in.Name = fmt.Sprintf("alone-%d", i)
			if _, err := f.Store.Commit(b.Context(), store.Create(in)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkOpenAPI(b *testing.B) {
	f := newFixture(b, Config{})
	for b.Loop() {
		if _, err := f.document(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNew is what the server adds to a cold start.
func BenchmarkNew(b *testing.B) {
	m := store.NewMem()
	for b.Loop() {
		New(Deps{Store: m, Auth: auth.New(clock.Real{}, auth.Config{}), Clock: clock.Real{}, Rand: rand.Reader}, Config{})
	}
}
