package cli

import (
	"context"
	"crypto/rand"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"atoll/cmd/atolld/builtin"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/server"
	"atoll/internal/tunnel"
)

// slow is the machine's clock, a minute behind: whatever was made is 0s old.
type slow struct{ clock.Real }

func (slow) Now() time.Time { return time.Now().Add(-time.Minute) }

// serveWorld puts the real server between a rig's user and its world, whose node
// it reaches by a tunnel.
func serveWorld(t testing.TB, r *rig) {
	r.clock = slow{}
	ctx, cancel := context.WithCancel(context.Background())
	hub := tunnel.NewHub()
	dial, wait := tunnel.Local(ctx, r.world.serve)
	hub.Register("isle1", dial)
	ca := auth.NewCA(filepath.Join(r.home, "pki"), clock.Real{}, rand.Reader)
	if _, err := ca.ServerTLS([]string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	srv := server.New(server.Deps{Store: r.world.Mem, Auth: auth.New(clock.Real{}, auth.Config{}), CA: ca, Hub: hub, Clock: clock.Real{}, Rand: rand.Reader, Version: "0.1.0-test", Chain: builtin.Policies()}, server.Config{Advertise: []string{"https://10.0.0.1:7443"}})
	if err := srv.LoadAuth(ctx); err != nil {
		t.Fatal(err)
	}
	r.socket = filepath.Join(r.home, "s")
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: srv.As(auth.Identity{User: "root", Admin: true, Via: "socket"}), ReadHeaderTimeout: time.Second}
	var wg sync.WaitGroup
	wg.Go(func() { _ = web.Serve(l) }) // ends with Close below
	t.Cleanup(func() {
		cancel()
		_ = web.Close()
		wg.Wait()
		wait()
	})
}
