package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"atoll/internal/errs"
	"atoll/internal/image/flight"
	"atoll/internal/image/oci"
)

// Source is a place an image can come from: its registry, or a mirror of it.
type Source struct {
	c          *Client
	Host, repo string
	given      string // credentials of the caller
	push       bool

	mu     sync.Mutex
	base   *http.Transport
	rt     http.RoundTripper // after the handshake
	scheme string
	api    string // host of the registry's API
}

// Sources lists where a reference can be pulled from, the registry itself last.
func (c *Client) Sources(r oci.Reference, given string) []*Source {
	var out []*Source
	for _, m := range c.Mirrors[r.Host] {
		m = strings.TrimSuffix(strings.TrimPrefix(m, "https://"), "/")
		host, prefix, _ := strings.Cut(m, "/")
		out = append(out, &Source{c: c, Host: host, repo: strings.TrimPrefix(prefix+"/"+r.Repo, "/")})
	}
	return append(out, &Source{c: c, Host: r.Host, repo: r.Repo, given: given})
}

// Close gives their connections back.
func Close(list []*Source) {
	for _, s := range list {
		s.mu.Lock()
		if s.base != nil {
			s.base.CloseIdleConnections()
		}
		s.mu.Unlock()
	}
}

// connect makes the handshake with the registry once.
func (s *Source) connect(ctx context.Context) (http.RoundTripper, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rt != nil {
		return s.rt, nil
	}
	reg, err := name.NewRegistry(s.Host, s.nameOptions()...)
	if err != nil {
		return nil, errs.InvalidFields("image reference", []errs.Field{{Field: "registry", Value: oci.Clip(s.Host), Rule: "must be a host name or address, with an optional port", Example: "registry.example.com:5000"}})
	}
	auth, err := s.c.credentials(s.Host, s.repo, s.given)
	if err != nil {
		return nil, err
	}
	if s.base == nil {
		if s.base, err = s.c.newTransport(s.Host); err != nil {
			return nil, err
		}
	}
	scope := "repository:" + s.repo + ":" + transport.PullScope
	if s.push {
		scope = "repository:" + s.repo + ":" + transport.PushScope
	}
	rt, err := transport.NewWithContext(ctx, reg, auth, &guard{base: s.base, origin: s.Host, c: s.c}, []string{scope})
	if err != nil {
		return nil, s.describe(err, auth != authn.Anonymous)
	}
	s.rt, s.scheme, s.api = rt, reg.Scheme(), reg.RegistryStr()
	return rt, nil
}

func (s *Source) nameOptions() []name.Option {
	if s.c.plainAllowed(s.Host) {
		return []name.Option{name.Insecure}
	}
	return nil
}

// newTransport makes connections that trust what is configured for the host.
func (c *Client) newTransport(host string) (*http.Transport, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if files := append(slices.Clone(c.CAFiles["*"]), c.CAFiles[host]...); len(files) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, f := range files {
			pem, err := os.ReadFile(f)
			if err != nil {
				return nil, fmt.Errorf("certificate authority of %s: %w", host, err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, errs.New(errs.Invalid, "certificate authority of %s: %s holds no PEM certificate", host, f)
			}
		}
		cfg.RootCAs = pool
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:       cfg,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: c.IdleTimeout,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true, // blobs are compressed, and ranges count their bytes
		ForceAttemptHTTP2:     true,
	}, nil
}

// plainAllowed tells whether a host may be spoken to without TLS.
func (c *Client) plainAllowed(host string) bool {
	return loopback(host) || slices.Contains(c.Insecure, host)
}

func loopback(host string) bool {
	h := host
	if hh, _, err := net.SplitHostPort(host); err == nil {
		h = hh
	}
	h = strings.Trim(h, "[]")
	ip := net.ParseIP(h)
	return h == "localhost" || ip != nil && ip.IsLoopback()
}

// guard keeps a registry, by redirects or token addresses, from sending us where we
// would not go by ourselves: to plain text, or to this host's own services.
type guard struct {
	base   http.RoundTripper
	origin string
	c      *Client
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	host := r.URL.Host
	if r.URL.Scheme != "https" && !g.c.plainAllowed(host) {
		return nil, errs.New(errs.Denied, "registry %s would be reached without TLS", oci.Clip(host)).
			WithHint("give it a certificate, or list %s as insecure in the node's image settings", oci.Clip(host))
	}
	if loopback(host) && !loopback(g.origin) {
		return nil, errs.New(errs.Denied, "registry %s refers to this host's own address %s", oci.Clip(g.origin), oci.Clip(host))
	}
	return g.base.RoundTrip(r)
}

// do sends one request to the registry's API and gives an answer of one of the codes.
func (s *Source) do(ctx context.Context, path string, header map[string]string, codes ...int) (*http.Response, error) {
	rt, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.scheme+"://"+s.api+"/v2/"+s.repo+"/"+path, nil)
	if err != nil {
		return nil, errs.New(errs.Invalid, "registry %s: %w", s.Host, err)
	}
	return send(&http.Client{Transport: rt}, req, header, codes, s.describe)
}

func send(client *http.Client, req *http.Request, header map[string]string, codes []int, describe func(error, bool) error) (*http.Response, error) {
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, describe(err, true)
	}
	if slices.Contains(codes, resp.StatusCode) {
		return resp, nil
	}
	defer resp.Body.Close()
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	err = describe(transport.CheckError(resp, codes...), true)
	var t *transient
	if errors.As(err, &t) {
		t.after = time.Duration(max(0, min(after, 60))) * time.Second
	}
	return nil, err
}

// transient marks an error that a later attempt may not meet.
type transient struct {
	err   error
	after time.Duration // not sooner than this
}

func (t *transient) Error() string { return t.err.Error() }

func (t *transient) Unwrap() error { return t.err }

// describe gives an error of the transport its kind and words. What a server wrote
// is quoted only where it follows the registry's error format, and shortened.
func (s *Source) describe(err error, known bool) error {
	var te *transport.Error
	var cert *tls.CertificateVerificationError
	if !errors.As(err, &te) || errors.As(err, &cert) { // TLS failed, and plain text did too
		return describeLink(s.Host, err)
	}
	said := ""
	for _, d := range te.Errors[:min(len(te.Errors), 2)] {
		said += ": " + oci.Clip(strings.Map(printable, string(d.Code)+" "+d.Message))
	}
	where := s.Host + "/" + s.repo
	switch code := te.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		e := errs.New(errs.Denied, "registry %s refuses access to %s (%d)%s", s.Host, where, code, said)
		if known {
			return e.WithHint("check the credentials and that they may read %s; also a name that does not exist is answered like this", where)
		}
		return e.WithHint("give credentials with --auth user:password or in the node's auth file; also a name that does not exist is answered like this")
	case code == http.StatusNotFound:
		return errs.New(errs.NotFound, "registry %s does not have it in %s%s", s.Host, s.repo, said).WithHint("check the spelling and the tag")
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500:
		return &transient{err: errs.New(errs.Unavailable, "registry %s answers %d for %s%s", s.Host, code, s.repo, said).WithHint("try again later")}
	default:
		return errs.New(errs.Unavailable, "registry %s answers %d for %s%s", s.Host, code, s.repo, said)
	}
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}

// describeLink is about a connection that failed.
func describeLink(host string, err error) error {
	var own *errs.Error
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	switch {
	case flight.Canceled(err):
		return err
	case errors.As(err, &cert) || errors.As(err, &unknown):
		return errs.New(errs.Unavailable, "registry %s: its certificate is not trusted: %w", host, err).
			WithHint("add its certificate authority to the node's image settings (caFiles)")
	case errors.As(err, &own):
		return own
	case errors.As(err, &record):
		return errs.New(errs.Unavailable, "registry %s does not speak TLS", host).WithHint("list it as insecure in the node's image settings if that is meant")
	}
	return &transient{err: errs.New(errs.Unavailable, "registry %s: connection broken: %w", host, err).WithHint("check the network and the name")}
}

// retry calls fn until it succeeds, fails for good, or has failed Retries times in a
// row without progress. fn tells whether it got any further.
func (c *Client) retry(ctx context.Context, fn func() (progress bool, err error)) error {
	wait, failed := c.Backoff, 0
	for {
		progress, err := fn()
		var t *transient
		if err == nil || !errors.As(err, &t) {
			return err
		}
		if cause := flight.CalledOff(ctx); cause != nil {
			return cause
		}
		if progress {
			wait, failed = c.Backoff, 0
		}
		if failed++; failed > c.Retries {
			return err
		}
		c.log.Debug("retry", "error", err, "wait", wait)
		if err := c.clock.Sleep(ctx, max(wait, t.after)); err != nil {
			return err
		}
		wait = min(2*wait, 10*time.Second)
	}
}

// Manifest fetches a manifest by tag or digest, checked against the digest where one is known.
func (s *Source) Manifest(ctx context.Context, ref string) (raw []byte, mediaType string, err error) {
	err = s.c.retry(ctx, func() (bool, error) {
		raw, mediaType, err = s.tryManifest(ctx, ref)
		return false, err
	})
	return raw, mediaType, err
}

func (s *Source) tryManifest(ctx context.Context, ref string) ([]byte, string, error) {
	ctx, _, stop := s.c.watch(ctx)
	defer stop()
	resp, err := s.do(ctx, "manifests/"+ref, map[string]string{"Accept": oci.Accepted}, http.StatusOK)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, oci.MaxManifest+1))
	if err != nil {
		return nil, "", describeLink(s.Host, err)
	}
	if len(raw) > oci.MaxManifest {
		return nil, "", errs.New(errs.Invalid, "registry %s: a manifest of more than %d bytes", s.Host, oci.MaxManifest)
	}
	got, want := oci.Digest(raw), resp.Header.Get("Docker-Content-Digest")
	if oci.IsDigest(ref) {
		want = ref
	}
	if want != "" && want != got {
		return nil, "", errs.New(errs.Invalid, "registry %s: the manifest for %s should be %s, but its bytes are %s", s.Host, oci.Clip(ref), oci.Clip(want), got).
			WithHint("the registry or something on the way to it is broken; pull from another mirror")
	}
	return raw, resp.Header.Get("Content-Type"), nil
}

// watch gives a context that ends when touch was not called for IdleTimeout.
func (c *Client) watch(ctx context.Context) (watched context.Context, touch func(), stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	alive, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		t := c.clock.NewTimer(c.IdleTimeout)
		defer func() { t.Stop() }()
		quiet := true
		for {
			select {
			case <-ctx.Done():
				return
			case <-alive:
				quiet = false
			case <-t.C:
				if quiet {
					cancel()
					return
				}
				quiet = true
				t = c.clock.NewTimer(c.IdleTimeout)
			}
		}
	}()
	touch = func() {
		select {
		case alive <- struct{}{}:
		default:
		}
	}
	return ctx, touch, func() { cancel(); <-ended }
}
