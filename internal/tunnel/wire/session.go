// Package wire carries tunnel streams over one TLS connection that a node keeps to
// each server. The node dials, asks for Protocol in the manner of HTTP/1.1, and then
// either side may open streams: the server for exec, logs and the like, the node for
// what it has to tell.
//
// A Session owns its goroutines: they have ended when Run returns, and so have all
// streams. A Link owns one Session to every server. Nothing here decides who may do
// what: the server has recognised the node before, by its certificate.
//
// Either side says that it is there when it has sent nothing for a second or so, and
// gives up a connection on which nothing at all has come for some seconds: a host
// without power sends no goodbye.
package wire

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/tunnel"
)

// Protocol is what both sides speak after the upgrade.
const Protocol = "atoll-tunnel/1"

// Path is where servers take tunnels.
const Path = "/v1/tunnel"

// Config bounds a Session. Zero values take the defaults given; Clock is needed.
type Config struct {
	Clock   clock.Clock
	Log     *slog.Logger
	Beat    time.Duration // after how long without a byte this side says that it is there; default 1 s
	Silence time.Duration // so long without a byte is the end of a connection; default 4 s
	// MaxOpen and MaxServe bound the streams at once that this side opened, and that the
	// other one did. Default 1024; what nodes open to servers is bounded more tightly.
	MaxOpen, MaxServe int
	// Linger is how long what this side sent before it closed a stream may wait for the
	// other side to read it; default 12 min, more than a server waits for its own caller.
	Linger time.Duration
}

func (c *Config) defaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	set(&c.Beat, time.Second)
	set(&c.Silence, 4*time.Second)
	set(&c.MaxOpen, 1024)
	set(&c.MaxServe, 1024)
	set(&c.Linger, 12*time.Minute)
}

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

const (
	window       = 512 << 10        // bytes of one stream on their way to a slow reader
	writeTimeout = 10 * time.Second // for one piece; a line this slow carries nothing
	openTimeout  = 10 * time.Second // for the other side to take note of a stream
	headTimeout  = 10 * time.Second // for the header of a stream
	leeway       = 256              // streams that are closing beside those in use
)

// Session is one connection with many streams.
type Session struct {
	cfg   Config
	conn  *heard
	mux   *yamux.Session
	slots chan struct{} // streams this side may still open
}

// NewServer makes the server's side of an upgraded connection.
func NewServer(conn net.Conn, cfg Config) (*Session, error) {
	return newSession(conn, cfg, yamux.Server)
}

// NewClient makes the node's side of an upgraded connection.
func NewClient(conn net.Conn, cfg Config) (*Session, error) {
	return newSession(conn, cfg, yamux.Client)
}

// newSession starts what moves bytes; Run or Close must follow.
func newSession(conn net.Conn, cfg Config, side func(io.ReadWriteCloser, *yamux.Config) (*yamux.Session, error)) (*Session, error) {
	cfg.defaults()
	s := &Session{cfg: cfg, conn: newHeard(conn, cfg.Clock), slots: make(chan struct{}, cfg.MaxOpen)}
	mux, err := side(s.conn, &yamux.Config{
		AcceptBacklog:          max(cfg.MaxOpen, cfg.MaxServe) + leeway, // so that opening never waits in there, where it could not be called off
		KeepAliveInterval:      cfg.Beat,                                // unused: its answer would have to overtake data; see watch
		ConnectionWriteTimeout: writeTimeout,
		MaxStreamWindowSize:    window,
		StreamOpenTimeout:      openTimeout,
		StreamCloseTimeout:     cfg.Linger,
		Logger:                 quiet{cfg.Log},
	})
	if err != nil {
		conn.Close()
		return nil, errs.New(errs.Internal, "make tunnel: %w", err)
	}
	s.mux = mux
	return s, nil
}

// quiet is a logger for what the multiplexer remarks: of use only to who hunts an error.
type quiet struct{ log *slog.Logger }

func (q quiet) Print(v ...any)   { q.log.Debug("tunnel", slog.Any("remark", v)) }
func (q quiet) Println(v ...any) { q.Print(v...) }
func (q quiet) Printf(f string, v ...any) {
	q.log.Debug("tunnel", slog.String("remark", f), slog.Any("of", v))
}

// Close ends the connection and all streams.
func (s *Session) Close() { _ = s.mux.Close() }

// Open gives a new stream to the other side; it is a tunnel.Dial.
func (s *Session) Open(ctx context.Context) (net.Conn, error) {
	select {
	case s.slots <- struct{}{}:
	case <-s.mux.CloseChan():
		return nil, errs.New(errs.Unavailable, "the connection has ended")
	case <-ctx.Done():
		return nil, errs.New(errs.Unavailable, "%d streams are open already: %w", s.cfg.MaxOpen, context.Cause(ctx))
	}
	st, err := s.mux.OpenStream()
	if err != nil {
		<-s.slots
		return nil, errs.New(errs.Unavailable, "the connection has ended: %w", err)
	}
	return &stream{Stream: st, done: func() { <-s.slots }}, nil
}

// Run serves the streams that the other side opens, until ctx ends or the
// connection does; it returns why. fn gets each one in a goroutine of its own.
func (s *Session) Run(ctx context.Context, fn tunnel.Handler) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.mux.Close()
	defer cancel(nil)
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	wg.Go(func() { s.beat(ctx) })
	wg.Go(func() { s.watch(ctx, cancel) })
	var serving atomic.Int64
	for {
		st, err := s.mux.AcceptStream()
		if err != nil {
			return s.reason(ctx, err)
		}
		if s.mux.NumStreams() > s.cfg.MaxOpen+s.cfg.MaxServe+leeway {
			return errs.New(errs.Invalid, "the other side opens streams without bound")
		}
		conn := &stream{Stream: st, done: func() { serving.Add(-1) }}
		if serving.Add(1) > int64(s.cfg.MaxServe) {
			s.refuse(conn)
			continue
		}
		wg.Go(func() { s.serve(ctx, conn, fn) })
	}
}

// serve runs one stream. Who opens one says at once what it is for.
func (s *Session) serve(ctx context.Context, conn *stream, fn tunnel.Handler) {
	_ = conn.SetReadDeadline(s.cfg.Clock.Now().Add(headTimeout)) // never fails: it only notes the time
	err := tunnel.Serve(ctx, conn, func(ctx context.Context, h tunnel.Header, st *tunnel.Stream) error {
		_ = conn.SetReadDeadline(time.Time{}) // as above
		return fn(ctx, h, st)
	})
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Debug("tunnel: a stream broke off", slog.Any("error", err))
	}
}

// refuse answers a stream that is one too many.
func (s *Session) refuse(conn *stream) {
	x := api.StreamExit{Code: errs.ExitCode(errs.Unavailable), Kind: string(errs.Unavailable), Message: "too many streams are open on this connection", Hint: "close some"}
	_ = tunnel.NewStream(conn).WriteJSON(api.ChanExit, x) // who opens too many may not listen either
	conn.Close()
}

// beat makes the other side hear something. What a node tells every second anyway, its
// heartbeat, and the answer to that, are signs enough: nothing is added to them, so the
// wait is a little longer than their pause.
func (s *Session) beat(ctx context.Context) {
	pause := s.cfg.Beat + s.cfg.Beat/4
	for s.cfg.Clock.Sleep(ctx, max(pause-s.conn.mute(), pause/8)) == nil {
		if s.conn.mute() < pause {
			continue
		}
		// A late answer is no proof of anything: it waits behind data. Silence is, see watch.
		if _, err := s.mux.Ping(); errors.Is(err, yamux.ErrSessionShutdown) {
			return
		}
	}
}

// watch ends the connection when nothing is heard any more. Any byte counts, so a
// line that is busy is never taken for one that is dead.
func (s *Session) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	for s.cfg.Clock.Sleep(ctx, max(s.cfg.Silence-s.conn.quiet(), s.cfg.Silence/8)) == nil {
		if quiet := s.conn.quiet(); quiet > s.cfg.Silence {
			cancel(errs.New(errs.Unavailable, "nothing was heard for %s", quiet.Round(100*time.Millisecond)))
			return
		}
	}
}

func (s *Session) reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, io.EOF) {
		return errs.New(errs.Unavailable, "the other side ended the connection")
	}
	return errs.New(errs.Unavailable, "the connection broke: %w", err)
}
