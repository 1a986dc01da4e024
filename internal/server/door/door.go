// Package door is how the server listens: on its socket, and with so many connections
// of one caller at most.
//
// It starts no goroutine. It must never let one caller use up what all need.
package door

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"atoll/internal/errs"
	"atoll/internal/sys/peer"
)

// Socket listens on path; it takes over a socket that nobody listens on any more.
func Socket(ctx context.Context, path string) (net.Listener, error) {
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, errs.New(errs.Conflict, "a server is running already on %s", path).WithHint("stop it first, or use another directory")
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, errs.New(errs.Unavailable, "remove the socket a dead server left: %w", err)
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "listen on %s: %w", path, err)
	}
	// Everybody may connect: the kernel says who they are, and package auth what they may do.
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, errs.New(errs.Unavailable, "open the socket to all users: %w", err)
	}
	return l, nil
}

// Limit bounds the connections of one host account or address, so that one caller
// cannot use up the descriptors of all. Administrators are not counted.
type Limit struct {
	net.Listener
	max int
	mu  sync.Mutex
	m   map[string]int
}

// NewLimit lets everybody have n connections of l.
func NewLimit(l net.Listener, n int) *Limit { return &Limit{Listener: l, max: n, m: map[string]int{}} }

// Accept gives the next connection of somebody who has not too many.
func (l *Limit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		lc := &Conn{Conn: c, l: l}
		if cred, err := peer.Of(c); err == nil {
			lc.Cred = &cred
			if cred.UID != 0 {
				lc.key = fmt.Sprint("uid ", cred.UID)
			}
		} else if host, _, err := net.SplitHostPort(c.RemoteAddr().String()); err == nil {
			lc.key = host
		}
		if lc.key == "" || l.take(lc.key) {
			return lc, nil
		}
		lc.key = ""
		c.Close()
	}
}

func (l *Limit) take(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m[key] >= l.max {
		return false
	}
	l.m[key]++
	return true
}

// Conn is a connection that is counted.
type Conn struct {
	net.Conn
	Cred *peer.Cred // of a unix socket

	l    *Limit
	key  string
	once sync.Once
}

// Close gives the place back.
func (c *Conn) Close() error {
	c.once.Do(func() {
		if c.key == "" {
			return
		}
		c.l.mu.Lock()
		defer c.l.mu.Unlock()
		if c.l.m[c.key]--; c.l.m[c.key] == 0 {
			delete(c.l.m, c.key)
		}
	})
	return c.Conn.Close()
}
