// Package door is what a connection to the server meets before its first request: the
// socket that is taken over from a dead server, and the bound on the connections of
// one host account or address. It starts no goroutines.
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

// Socket takes over a socket that nobody listens on any more.
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

// limit bounds the connections of one host account or address, so that one caller
// cannot use up the descriptors of all. Administrators are not counted.
type limit struct {
	net.Listener
	max int
	mu  sync.Mutex
	m   map[string]int
}

// Limit bounds what a listener accepts to n connections of one host account or address.
func Limit(l net.Listener, n int) net.Listener {
	return &limit{Listener: l, max: n, m: map[string]int{}}
}

// Account is the host account at the other end of a connection from a Limit; nil
// when it came over a network.
func Account(c net.Conn) *peer.Cred {
	if l, ok := c.(*limitedConn); ok {
		return l.cred
	}
	return nil
}

// Accept gives the next connection of somebody who has not too many.
func (l *limit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		lc := &limitedConn{Conn: c, l: l}
		if cred, err := peer.Of(c); err == nil {
			lc.cred = &cred
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

func (l *limit) take(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m[key] >= l.max {
		return false
	}
	l.m[key]++
	return true
}

type limitedConn struct {
	net.Conn
	l    *limit
	cred *peer.Cred
	key  string
	once sync.Once
}

// Close gives the place back.
func (c *limitedConn) Close() error {
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
