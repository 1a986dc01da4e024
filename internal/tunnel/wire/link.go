package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

// LinkConfig says how a node reaches its servers. TLS, Handler, Clock and Rand are needed.
type LinkConfig struct {
	// TLS recognises the servers and shows the node's certificate; with
	// GetClientCertificate a renewed one is used from the next connection on.
	TLS     *tls.Config
	Handler tunnel.Handler // serves what servers open
	Clock   clock.Clock
	Rand    *rand.Rand // jitter, so that a thousand nodes do not come back at once
	Log     *slog.Logger
	Session Config // Clock and Log are taken from here

	RetryMin time.Duration // first pause before another attempt; default 100 ms
	RetryMax time.Duration // longest pause; default 5 s
	// Changed is told when a connection begins or ends; it must be fast.
	Changed func(State)
}

// State is what is known of the connection to one server.
type State struct {
	Endpoint  string
	Connected bool
	Since     time.Time // of its being so, or not so
	Attempts  int       // in vain, since the last connection
	Error     string    // why the last attempt or connection ended
}

// Link holds one connection to every server of a list that may change.
type Link struct {
	cfg  LinkConfig
	wake chan struct{}

	mu    sync.Mutex
	want  []string
	peers map[string]*peer
}

// peer is one server.
type peer struct {
	state   State
	session *Session // nil: not connected
	cancel  context.CancelFunc
}

// NewLink connects to nobody before Run.
func NewLink(cfg LinkConfig) *Link {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func(State) {}
	}
	set(&cfg.RetryMin, 100*time.Millisecond)
	set(&cfg.RetryMax, 5*time.Second)
	cfg.Session.Clock, cfg.Session.Log = cfg.Clock, cfg.Log
	return &Link{cfg: cfg, wake: make(chan struct{}, 1), peers: map[string]*peer{}}
}

// Set says which servers there are, by the URLs of their APIs; a connection to one
// that is no longer there ends. An empty list is no news: a node without servers
// could never hear of new ones.
func (l *Link) Set(endpoints []string) {
	var list []string
	for _, e := range endpoints {
		if e = strings.TrimSuffix(e, "/"); e != "" && !slices.Contains(list, e) {
			list = append(list, e)
		}
	}
	if len(list) == 0 {
		return
	}
	l.mu.Lock()
	l.want = list
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default: // it is awake already
	}
}

// Run keeps the connections until ctx ends.
func (l *Link) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		l.adjust(ctx, &wg)
		select {
		case <-l.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// adjust starts and ends connections as the list says.
func (l *Link) adjust(ctx context.Context, wg *sync.WaitGroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e, p := range l.peers {
		if !slices.Contains(l.want, e) {
			p.cancel()
			delete(l.peers, e)
		}
	}
	for _, e := range l.want {
		if l.peers[e] != nil {
			continue
		}
		pctx, cancel := context.WithCancel(ctx)
		p := &peer{state: State{Endpoint: e, Since: l.cfg.Clock.Now()}, cancel: cancel}
		l.peers[e] = p
		wg.Go(func() {
			defer cancel()
			l.hold(pctx, p)
		})
	}
}

// refusedMax is the longest pause, before jitter, while a server's host says that nobody
// listens: it is about to begin, and whoever asks it for this node then waits tunnel.Hub's
// Patience, no longer.
const refusedMax = time.Second

// hold keeps the connection to one server.
func (l *Link) hold(ctx context.Context, p *peer) {
	pause := l.cfg.RetryMin
	for {
		began := l.cfg.Clock.Now()
		err := l.once(ctx, p)
		if ctx.Err() != nil {
			return
		}
		wait := l.cfg.RetryMax
		switch {
		case l.cfg.Clock.Now().Sub(began) > l.cfg.RetryMax: // it had held
			pause = l.cfg.RetryMin
			wait = pause
		case errs.KindOf(err) == errs.Unavailable || errs.KindOf(err) == errs.Timeout:
			wait = pause
			pause = min(pause*2, l.cfg.RetryMax)
			if errors.Is(err, syscall.ECONNREFUSED) {
				pause = min(pause, refusedMax)
			}
		} // else a server that does not want this node: asking often does not change that
		if l.cfg.Clock.Sleep(ctx, l.jitter(wait)) != nil {
			return
		}
	}
}

// jitter is half to one and a half of d.
func (l *Link) jitter(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return d/2 + time.Duration(l.cfg.Rand.Int64N(int64(d)+1))
}

// once is one connection from its beginning to its end.
func (l *Link) once(ctx context.Context, p *peer) error {
	conn, err := dial(ctx, p.state.Endpoint, l.cfg.TLS)
	if err != nil {
		l.ended(ctx, p, err)
		return err
	}
	s, err := NewClient(conn, l.cfg.Session)
	if err != nil {
		return err
	}
	l.note(p, func(st *State) {
		p.session = s
		*st = State{Endpoint: st.Endpoint, Connected: true, Since: l.cfg.Clock.Now()}
	})
	l.cfg.Log.Info("connected to server", slog.String("server", p.state.Endpoint))
	err = s.Run(ctx, l.cfg.Handler)
	l.ended(ctx, p, err)
	return err
}

func (l *Link) ended(ctx context.Context, p *peer, err error) {
	if ctx.Err() != nil {
		err = errors.New("no longer wanted")
	}
	was := false
	l.note(p, func(st *State) {
		was = st.Connected
		if p.session = nil; was {
			st.Connected, st.Since, st.Attempts = false, l.cfg.Clock.Now(), 0
		} else {
			st.Attempts++
		}
		st.Error = err.Error()
	})
	if ctx.Err() == nil {
		level := slog.LevelDebug
		if was || p.state.Attempts == 1 { // once is news, the rest is repetition
			level = slog.LevelWarn
		}
		l.cfg.Log.Log(ctx, level, "no connection to server", slog.String("server", p.state.Endpoint), slog.Any("error", err))
	}
}

// note changes what is known of a server, and tells of it. Only the goroutine that
// holds the connection writes p.
func (l *Link) note(p *peer, change func(*State)) {
	l.mu.Lock()
	change(&p.state)
	st := p.state
	l.mu.Unlock()
	l.cfg.Changed(st)
}

// States tells of every server, by endpoint.
func (l *Link) States() []State {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]State, 0, len(l.peers))
	for _, p := range l.peers {
		out = append(out, p.state)
	}
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.Endpoint, b.Endpoint) })
	return out
}

// Open starts a stream to a server; errs.Unavailable when it is not connected. ctx
// bounds the opening only.
func (l *Link) Open(ctx context.Context, endpoint string, head tunnel.Header) (*tunnel.Stream, error) {
	l.mu.Lock()
	var s *Session
	p := l.peers[strings.TrimSuffix(endpoint, "/")]
	if p != nil {
		s = p.session
	}
	l.mu.Unlock()
	if s == nil {
		return nil, errs.New(errs.Unavailable, "no connection to server %s", endpoint)
	}
	conn, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	st, err := tunnel.Open(conn, head)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "open stream to server %s: %w", endpoint, err)
	}
	return st, nil
}
