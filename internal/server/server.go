// Package server is the HTTP API: REST and JSON over a unix socket and TLS,
// generic over api.Definitions(). For every kind and call it does five things:
// authenticate, authorize, decode and validate, commit, render; and it tells the
// audit hook of each. Anything more is business logic and belongs elsewhere.
//
// Run owns the goroutines: it serves both listeners, follows users, roles,
// bindings and tokens in the store for package auth, and returns when all of that
// has ended. Handler can be used without Run once the Authority has been filled.
//
// It must never answer a request that package auth did not allow, keep a secret in
// a log or an error, read without a bound, or connect to a node by itself.
package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/fence/bmc"
	"atoll/internal/metrics"
	"atoll/internal/plan"
	"atoll/internal/policy"
	"atoll/internal/server/enroll"
	"atoll/internal/server/once"
	"atoll/internal/server/picture"
	"atoll/internal/server/rollout"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

// Deps is what a Server works with. Store, Auth, Clock and Rand are needed.
type Deps struct {
	Store store.Store
	Auth  *auth.Authority
	CA    *auth.CA    // needed with Config.TLSAddr
	Hub   *tunnel.Hub // the way to the nodes; none: no streams
	// NodeStream serves what nodes open to this server, such as their heartbeats; none:
	// nothing. node is who opened it, by its certificate. An error is told to the node.
	NodeStream func(ctx context.Context, node string, h tunnel.Header, s *tunnel.Stream) error

	Clock   clock.Clock
	Rand    io.Reader // cryptographic
	Log     *slog.Logger
	Metrics *metrics.Registry
	Version string
	Audit   func(Record) // told of every call, denials too; must be fast

	// Chain is what the pool places by, for plans; none: no plans.
	Chain policy.Chain
	Keep  policy.Keep // what placement keeps of the pool

	// Power switches hosts by their management controllers, with the credentials on this server; none: not here.
	Power func(api.BMC) (bmc.Power, error)

	// Lists gives objects as JSON, for lists; default: Store, where it can. Needed
	// when Store is a decorator that hides the store.Cache below it.
	Lists EncodedLister
	// Base is the store below all decorators, which a restore writes to: a decorator
	// would judge objects by its rules while they are half there. None: no restore.
	Base store.Store
	// Group is the servers that keep the state, where they are the pool's own.
	Group    store.Cluster
	Upgrades *rollout.Desk // none: not from here
}

// Config bounds and places the server. Zero values take the defaults given.
type Config struct {
	Socket    string           // path of the unix socket; "": none
	TLSAddr   string           // host:port for TLS; "": none
	Hosts     []string         // names and addresses in the certificate, beside localhost and 127.0.0.1
	Node      string           // the host this server runs on; "": none of the pool's
	Advertise []string         // where others reach this server: https://10.0.0.1:7443; none: nobody can join
	Pool      api.PoolSettings // what hosts that join are told
	Binaries  string           // directory of the programs that hosts may fetch; "": none

	MaxBody       int64         // bytes of a request's body; default 1 MiB: no object is larger
	MaxOps        int           // ops of one commit; default 256, so that one caller cannot hold up the others; an external etcd may take fewer
	MaxWatchers   int           // watches of one caller at once; default 128
	MaxStreams    int           // live streams of one caller at once; default 256
	MaxConns      int           // connections of one host account or address at once; default 512
	Heartbeat     time.Duration // pause between pings of a watch; default 15 s
	AttachTimeout time.Duration // how long an attach waits for a node; default 10 min
	BodyTimeout   time.Duration // how long a request may take to arrive; default 30 s
	WriteTimeout  time.Duration // how long a caller may take to read an answer, or a piece of a stream; default 30 s
}

func (c *Config) defaults() {
	set(&c.MaxBody, 1<<20)
	set(&c.MaxOps, 256)
	set(&c.MaxWatchers, 128)
	set(&c.MaxStreams, 256)
	set(&c.MaxConns, 512)
	set(&c.Heartbeat, 15*time.Second)
	set(&c.AttachTimeout, 10*time.Minute)
	set(&c.BodyTimeout, 30*time.Second)
	set(&c.WriteTimeout, 30*time.Second)
}

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Server answers the API.
type Server struct {
	Deps
	cfg     Config
	routes  []*Route
	handler http.Handler
	picture *picture.Picture // of who may do what
	stats   stats
	keys    *once.Ring // answers to Idempotency-Keys
	buffers sync.Pool  // *bytes.Buffer, for lists
	ready   atomic.Bool
	openapi func() ([]byte, error)
	desk    *enroll.Desk
	plans   chan struct{} // as many as may be made at once
	planned atomic.Pointer[plan.Items]

	mu   sync.Mutex
	held map[string]int // watches and streams by caller
}

// New makes a server; nothing runs before Run.
func New(d Deps, cfg Config) *Server {
	cfg.defaults()
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Metrics == nil {
		d.Metrics = metrics.New()
	}
	if d.Hub == nil {
		d.Hub = tunnel.NewHub()
	}
	if d.Lists == nil {
		d.Lists, _ = d.Store.(EncodedLister)
	}
	if d.Audit == nil {
		d.Audit = func(Record) {}
	}
	s := &Server{Deps: d, cfg: cfg, keys: once.New(d.Clock), held: map[string]int{}, plans: make(chan struct{}, plansAtOnce)}
	s.desk = s.newDesk()
	s.picture = &picture.Picture{Store: d.Store, Auth: d.Auth, Clock: d.Clock, Log: d.Log}
	s.stats = newStats(d.Metrics)
	s.routes = s.table()
	s.openapi = sync.OnceValues(s.document)
	s.handler = s.mux()
	return s
}

// Handler answers requests. Without Run's listeners the caller is known by a
// bearer token only, or by As.
func (s *Server) Handler() http.Handler { return s.handler }

// Ready reports whether Run has everything that answers need.
func (s *Server) Ready() bool { return s.ready.Load() }

type asKey struct{}

// As makes a handler whose every caller is id: for parts of the same process and for tests.
func (s *Server) As(id auth.Identity) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), asKey{}, id)))
	})
}

// hold counts a watch or stream of a caller; the returned func gives it back. ok is false over the limit.
func (s *Server) hold(what string, id auth.Identity, limit int) (release func(), ok bool) {
	key := what + " " + id.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[key] >= limit {
		return nil, false
	}
	s.held[key]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[key]--; s.held[key] == 0 {
			delete(s.held, key)
		}
	}, true
}
