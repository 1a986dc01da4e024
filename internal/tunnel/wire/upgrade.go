package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"atoll/internal/errs"
)

const (
	dialTimeout = 5 * time.Second // for connection, handshake and upgrade together
	maxAnswer   = 64 << 10
)

// Upgrade takes the connection of a request over, on a server. After an error
// without it, an answer can still be written.
func Upgrade(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	if r.ProtoMajor != 1 || !has(r.Header, "Connection", "upgrade") || !has(r.Header, "Upgrade", Protocol) {
		return nil, errs.New(errs.Invalid, "this is the way of nodes: upgrade the connection to %s", Protocol).WithHint("over TLS, use HTTP/1.1 for it")
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, errs.New(errs.Unsupported, "this connection cannot be upgraded: %w", err)
	}
	_ = conn.SetDeadline(time.Time{}) // the request's deadlines are not the tunnel's
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n"); err != nil {
		conn.Close()
		return nil, errs.New(errs.Unavailable, "upgrade connection: %w", err)
	}
	return unread(conn, buf.Reader), nil
}

func has(h http.Header, key, want string) bool {
	for _, v := range h.Values(key) {
		for _, part := range strings.Split(v, ",") {
			if strings.EqualFold(strings.TrimSpace(part), want) {
				return true
			}
		}
	}
	return false
}

// dial connects to a server, as a node, and upgrades.
func dial(ctx context.Context, endpoint string, conf *tls.Config) (net.Conn, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, errs.InvalidFields("server", []errs.Field{{Field: "endpoint", Value: endpoint, Rule: "must be the URL of a server", Example: "https://10.0.0.1:7443"}})
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "connect: %w", err)
	}
	conf = conf.Clone()
	if conf.ServerName == "" {
		conf.ServerName = u.Hostname()
	}
	conf.NextProtos = []string{"http/1.1"}
	conn := tls.Client(raw, conf)
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	out, err := ask(ctx, conn, u.Host)
	if !stop() && err == nil {
		err = errs.New(errs.Timeout, "the server did not answer within %s", dialTimeout)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return out, nil
}

// ask does the handshakes; its caller bounds the time.
func ask(ctx context.Context, conn *tls.Conn, host string) (net.Conn, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errs.New(errs.Unavailable, "TLS: %w", err)
	}
	if _, err := io.WriteString(conn, "GET "+Path+" HTTP/1.1\r\nHost: "+host+"\r\nUser-Agent: atolld\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n"); err != nil {
		return nil, errs.New(errs.Unavailable, "ask for the tunnel: %w", err)
	}
	br := bufio.NewReader(io.LimitReader(conn, maxAnswer))
	resp, err := http.ReadResponse(br, &http.Request{Method: "GET"})
	if err != nil {
		return nil, errs.New(errs.Unavailable, "read the server's answer: %w", err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols && has(resp.Header, "Upgrade", Protocol) {
		return unread(conn, br), nil
	}
	defer resp.Body.Close()
	return nil, refusal(resp)
}

// refusal is the error a server answered with.
func refusal(resp *http.Response) error {
	var p struct{ Type, Detail, Hint string }
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil && json.Unmarshal(b, &p) == nil {
		if kind, ok := strings.CutPrefix(p.Type, "urn:atoll:error:"); ok {
			return &errs.Error{Kind: errs.Kind(kind), Msg: p.Detail, Hint: p.Hint}
		}
	}
	return errs.New(errs.Unavailable, "unexpected answer %q", resp.Status).WithHint("is this an Atoll server?")
}

// unread gives a connection whose first bytes are already in a reader.
func unread(c net.Conn, r *bufio.Reader) net.Conn {
	n := r.Buffered()
	if n == 0 {
		return c
	}
	b, _ := r.Peek(n) // cannot fail: they are there
	return &early{Conn: c, first: bytes.NewReader(bytes.Clone(b))}
}

type early struct {
	net.Conn
	first *bytes.Reader
}

// Read gives the early bytes first.
func (e *early) Read(p []byte) (int, error) {
	if e.first.Len() > 0 {
		return e.first.Read(p)
	}
	return e.Conn.Read(p)
}
