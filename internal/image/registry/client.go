// Package registry speaks to image registries: it asks for manifests, brings blobs and
// resumes them, and sends images.
//
// The goroutines that watch a connection end with the call that needed it. What comes is
// hostile until its digest was checked. It must never show credentials to another host than
// they are for, follow a registry to this host's own services, or put a secret into errors or
// logs.
package registry

import (
	"log/slog"
	"time"

	"atoll/internal/clock"
)

// Options say how registries are spoken to. The zero value of every field is usable.
type Options struct {
	// Mirrors are tried, in order, before a registry itself: "docker.io" -> "mirror.lan:5000/hub".
	Mirrors map[string][]string
	// CAFiles are PEM files trusted beside the system's, by registry host; "*" is for all.
	CAFiles map[string][]string
	// AuthFile holds credentials in the format of docker's config.json. It is read at every
	// pull, so it may change. Default: none.
	AuthFile string
	// Insecure are registry hosts that may be spoken to without TLS. Loopback always may.
	Insecure []string
	// Retries is how often in a row a request may fail without any progress. Default 5.
	Retries int
	// Backoff is the wait before the first retry; it doubles, up to 10 s. Default 250 ms.
	Backoff time.Duration
	// Parallel is how many blobs one pull fetches at once. Default 3: enough to fill
	// a link, few enough to be kind to a registry.
	Parallel int
	// IdleTimeout ends a connection that brings no byte for so long. Default 30 s.
	IdleTimeout time.Duration
}

// Client speaks to registries.
type Client struct {
	Options
	clock clock.Clock
	log   *slog.Logger
}

// New speaks to no registry yet.
func New(o Options, clk clock.Clock, log *slog.Logger) *Client {
	if o.Retries <= 0 {
		o.Retries = 5
	}
	if o.Backoff <= 0 {
		o.Backoff = 250 * time.Millisecond
	}
	if o.Parallel <= 0 {
		o.Parallel = 3
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 30 * time.Second
	}
	return &Client{Options: o, clock: clk, log: log}
}
