package server

import (
	"context"
	"crypto/rand"
	"os"
	"testing"

	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/internal/store/storetest"
)

// compactable lets the suite cut the history behind the server.
type compactable struct {
	*remote.Store
	mem *store.Mem
}

func (c compactable) Compact(ctx context.Context, rev int64) error { return c.mem.Compact(ctx, rev) }

// The remote store keeps the contract of store.Store, over a real socket.
func TestRemoteStoreContract(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("whole objects are written by administrators: run as root")
	}
	storetest.Run(t, func(t *testing.T) store.Store {
		mem := store.NewMem()
		cfg := socketConfig(t)
		f := &fixture{t: t, mem: mem, Server: New(Deps{Store: mem, Auth: auth.New(clock.Real{}, auth.Config{}), Clock: clock.Real{}, Rand: rand.Reader}, cfg)}
		f.run()
		return compactable{f.remote(remote.Config{Socket: cfg.Socket, Full: true}), mem}
	})
}

// The same over what a daemon serves: a cache before the store.
func TestRemoteStoreContractOverCache(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("whole objects are written by administrators: run as root")
	}
	storetest.Run(t, func(t *testing.T) store.Store {
		cache := store.NewCache(store.NewMem())
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- cache.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		cfg := socketConfig(t)
		f := &fixture{t: t, Server: New(Deps{Store: cache, Auth: auth.New(clock.Real{}, auth.Config{}), Clock: clock.Real{}, Rand: rand.Reader}, cfg)}
		f.run()
		return f.remote(remote.Config{Socket: cfg.Socket, Full: true})
	})
}
