package replica

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/store"
	"atoll/internal/store/storetest"
)

// start runs a replica until the test ends.
func start(t testing.TB, c Config) *Replica {
	t.Helper()
	if c.Path == "" {
		c.Path = filepath.Join(t.TempDir(), "replica", "n")
	}
	if c.Clock == nil {
		c.Clock = clock.Real{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// oneByOne lets one commit after the other through: of those under way at once, a replica
// may show a later one first, and then orders what it shows by numbers of its own.
type oneByOne struct {
	*Replica
	mu sync.Mutex
}

func (o *oneByOne) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Replica.Commit(ctx, ops...)
}

// What is kept answers as the pool would.
func TestConformanceOfWhatIsKept(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return &oneByOne{Replica: start(t, Config{Node: "n", Source: store.NewMem(), parts: []api.Selector{{Kind: api.KindAssignment}}})}
	})
}

// So does what is passed on.
func TestConformanceOfTheRest(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return start(t, Config{Node: "n", Source: store.NewMem()}) })
}
