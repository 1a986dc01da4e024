package rig

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Client speaks HTTP over the pool's unix socket.
func (p *Pool) Client() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.Socket)
		}}}
}

func (p *Pool) ready() bool {
	c := p.Client()
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://atoll/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
