package announce

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/store"
)

// speaker is a driver.Announcer that remembers what it is told.
type speaker struct {
	mu      sync.Mutex
	said    driver.Announcing
	learned []driver.Learned
	state   string
	closed  bool
	fn      func()
}

func (s *speaker) Announce(_ context.Context, a driver.Announcing) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = a
	return nil
}

func (s *speaker) Sessions(context.Context) ([]driver.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []driver.Session
	for _, p := range s.said.Peers {
		out = append(out, driver.Session{Peer: p.Name, State: s.state, Sent: len(s.said.Routes)})
	}
	return out, nil
}

func (s *speaker) Learned(context.Context) ([]driver.Learned, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.learned, nil
}

func (s *speaker) Changed(fn func()) { s.fn = fn }

func (s *speaker) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *speaker) routes() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return lines(s.said.Routes)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func commit(t *testing.T, m *store.Mem, ops ...store.Op) {
	t.Helper()
	if _, err := m.Commit(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
}

// A host follows the store: peers, instances that come and go, what routers tell.
func TestFollows(t *testing.T) {
	m, s := store.NewMem(), &speaker{state: "Active"}
	var mu sync.Mutex
	var held atomic.Bool
	held.Store(true)
	published, taught := 0, map[uint32][]driver.Member{}
	a := New(Deps{Node: "n1", Store: m, Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler), Driver: s, Held: held.Load,
		Learn:   func(x map[uint32][]driver.Member) { mu.Lock(); taught = x; mu.Unlock() },
		Publish: func() { mu.Lock(); published++; mu.Unlock() }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	w := world()
	commit(t, m, store.Create(w.Node))
	for _, n := range w.Networks {
		commit(t, m, store.Create(n))
	}
	for _, e := range w.Endpoints {
		commit(t, m, store.Create(e))
	}
	time.Sleep(50 * time.Millisecond)
	if s.routes() != "" {
		t.Fatal("it announces to nobody")
	}
	p := w.Peers[0]
	p.Spec.Import = []string{"acme/main"}
	commit(t, m, store.Create(p))
	eventually(t, "members announced", func() bool { return strings.Contains(s.routes(), "2 70001:4465 10.1.0.5") })
	eventually(t, "published", func() bool { mu.Lock(); defer mu.Unlock(); return published == 1 })
	// An instance goes: what it was is withdrawn.
	commit(t, m, store.Remove(api.RefOf(w.Endpoints[0]), store.Any))
	eventually(t, "member withdrawn", func() bool { return !strings.Contains(s.routes(), "70001") && strings.Contains(s.routes(), "70002") })
	commit(t, m, store.Create(endpoint("acme", "web", "n1", iface("main", 70001, "10.1.0.7/16", "0a:58:0a:01:00:07"))))
	eventually(t, "member announced", func() bool { return strings.Contains(s.routes(), "10.1.0.7") })
	commit(t, m, store.Create(&api.Address{Head: api.Head{K: api.KindAddress, Meta: api.Meta{Tenant: "acme", Name: "ip"}}, Status: api.AddressStatus{Address: "203.0.113.9", Node: "n1"}}))
	eventually(t, "floating address announced", func() bool { return strings.Contains(s.routes(), "203.0.113.9/32 by 192.0.2.7") })
	held.Store(false)
	a.Look()
	eventually(t, "silence without the lease", func() bool {
		return !strings.Contains(s.routes(), "203.0.113.9") && !strings.Contains(s.routes(), "10.1.0.7")
	})
	held.Store(true)
	a.Look()
	eventually(t, "member announced", func() bool { return strings.Contains(s.routes(), "10.1.0.7") })
	// A router answers, and tells of an address.
	s.mu.Lock()
	s.state = "Established"
	s.learned = []driver.Learned{{Peer: "tor", VNI: 70001, Addr: netip.MustParseAddr("10.1.200.1"), MAC: [6]byte{2, 0, 0, 0, 0, 1}, Host: netip.MustParseAddr("192.0.2.50")}}
	s.mu.Unlock()
	s.fn()
	eventually(t, "member learned", func() bool { mu.Lock(); defer mu.Unlock(); return len(taught[70001]) == 1 && published == 2 })
	list, err := a.Sessions(t.Context())
	if err != nil || len(list) != 1 || list[0].State != api.BGPEstablished || list[0].Imported != 1 || list[0].Peer != "tor" || list[0].Sent == 0 {
		t.Errorf("%+v %v", list, err)
	}
	// The peer goes: so does all it was told and what it told.
	s.mu.Lock()
	s.learned = nil
	s.mu.Unlock()
	commit(t, m, store.Remove(api.RefOf(p), store.Any))
	eventually(t, "silence", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return s.routes() == "" && len(taught) == 0 && published == 3
	})
	if list, err := a.Sessions(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	cancel()
	<-done
	if !s.closed {
		t.Error("sessions are left open")
	}
}
