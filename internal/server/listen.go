package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"atoll/internal/errs"
	"atoll/internal/server/door"
	"atoll/internal/store"
	"atoll/internal/sys/peer"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 3 * time.Minute
	maxHeader     = 64 << 10
	shutdownGrace = 2 * time.Second
)

// Run serves until ctx ends. It is ready (see Ready) when it listens and knows the users.
func (s *Server) Run(ctx context.Context) error {
	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	loaded := make(chan struct{})
	g.Go(func() error { return s.picture.Follow(ctx, loaded) })
	g.Go(func() error {
		select {
		case <-loaded:
			s.ready.Store(true)
		case <-ctx.Done():
		}
		return nil
	})
	for _, l := range listeners {
		g.Go(func() error { return s.serveOn(ctx, l) })
	}
	err = g.Wait()
	s.ready.Store(false)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

func (s *Server) listen(ctx context.Context) ([]net.Listener, error) {
	var out []net.Listener
	fail := func(err error) ([]net.Listener, error) {
		for _, l := range out {
			l.Close()
		}
		return nil, err
	}
	if s.cfg.Socket != "" {
		l, err := door.Socket(ctx, s.cfg.Socket)
		if err != nil {
			return fail(err)
		}
		out = append(out, door.Limit(l, s.cfg.MaxConns))
	}
	if s.cfg.TLSAddr != "" {
		if s.CA == nil {
			return fail(errs.New(errs.Internal, "serve TLS: no certificate authority was given"))
		}
		conf, err := s.CA.ServerTLS(s.hosts())
		if err != nil {
			return fail(err)
		}
		conf.NextProtos = []string{"h2", "http/1.1"}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", s.cfg.TLSAddr)
		if err != nil {
			return fail(errs.New(errs.Unavailable, "listen on %s: %w", s.cfg.TLSAddr, err).WithHint("another program may use this port: choose another with --listen"))
		}
		out = append(out, tls.NewListener(door.Limit(l, s.cfg.MaxConns), conf))
	}
	return out, nil
}

func (s *Server) hosts() []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if h, err := os.Hostname(); err == nil && h != "" {
		hosts = append(hosts, h)
	}
	return append(hosts, s.cfg.Hosts...)
}

type connKey struct{}

type stopKey struct{} // of what ends when the server is to stop

// connInfo is what is known of a connection before the first request.
type connInfo struct {
	cred *peer.Cred // of a unix socket
}

func (s *Server) serveOn(ctx context.Context, l net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	base, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), stopKey{}, ctx))
	defer cancel()
	hs := &http.Server{
		Handler:           s.handler,
		Protocols:         &protocols,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       s.cfg.BodyTimeout,                      // watches and streams set their own
		WriteTimeout:      s.cfg.BodyTimeout + s.cfg.WriteTimeout, // from the request's header to the answer's end
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, s.identify(c))
		},
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(done)
		<-ctx.Done()
		grace, stop := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer stop()
		if hs.Shutdown(grace) != nil { // watches and streams ended with ctx; short requests had a moment
			cancel()
			hs.Close()
		}
	})
	err := hs.Serve(l)
	if ctx.Err() == nil {
		hs.Close()
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	wg.Wait()
	return nil
}

func (s *Server) identify(c net.Conn) *connInfo {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return &connInfo{cred: door.Account(c)}
}

// LoadAuth reads the users, roles, bindings and tokens once, for a server that is not Run.
func (s *Server) LoadAuth(ctx context.Context) error { return s.picture.Load(ctx) }

// learn tells package auth of one change.
func (s *Server) learn(ev store.Event) { s.picture.Learn(ev) }
