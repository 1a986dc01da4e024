package rig

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Client speaks HTTP over a unix socket.
func Client(socket string) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}}
}

// Ready reports whether the API answers on a unix socket.
func Ready(socket string) bool {
	c := Client(socket)
	c.Timeout = 2 * time.Second // one that stands still must not hold up who only looks
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://atoll/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Client speaks HTTP over the pool's unix socket.
func (p *Pool) Client() *http.Client { return Client(p.Socket) }
