// Package remote is a store.Store that speaks the API: what the CLI and agents on
// other hosts hold. It keeps one pool of connections, starts goroutines only to look
// at servers that failed, which Close ends, and must never print or log the token.
//
// It may know several servers of a pool. One is preferred until it fails. What only
// reads, what a server says it did not begin, and creates with a key are then asked of
// the next; any other change whose answer did not come is reported as such, with
// errs.Unavailable, and never sent twice.
//
// With Config.Full it keeps the contract of store.Store to the letter, for Atoll's
// own parts and administrators. Without it, what is written is what a user may
// write: spec, labels and annotations; a Remove asks for the removal and finalizers
// are waited for.
package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/release"
	"atoll/internal/store"
)

// Config says how to reach the pool: by Socket, or by the URLs of its servers.
type Config struct {
	Socket string // path of its unix socket
	URL    string // https://host:7443
	// Endpoints are the URLs of servers, in the order they are asked; URL, where it is
	// given, is the first. What can be asked of another server when one does not answer
	// is asked of the next.
	Endpoints []string
	Token     string // bearer token; over the socket the host account is enough
	CA        []byte // PEM certificates to trust for URL; default: the system's
	Cert      *tls.Certificate
	// ClientCert gives the certificate for each new connection, for one that is renewed
	// from time to time. It outranks Cert.
	ClientCert func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	Full       bool // write whole objects, see the package comment
	// Agent names the caller in the User-Agent header.
	Agent string

	// With several endpoints, or Full:
	DialTimeout time.Duration // for one connection; default 1.5 s (5 s with one endpoint)
	TryTimeout  time.Duration // for a server to begin to answer what is asked quickly, before the next is asked; default 2 s
	Patience    time.Duration // how long all of them together are asked again; default 5 s
	Probe       time.Duration // pause between looks at the server of a watch; default 10 s
}

func (c *Config) defaults() {
	if c.Agent == "" {
		c.Agent = "atoll"
	}
	many := len(c.Endpoints) > 1 || c.Full // a host may begin with one, and learns of the others
	for _, d := range []struct {
		p         *time.Duration
		one, many time.Duration
	}{{&c.DialTimeout, 5 * time.Second, 1500 * time.Millisecond}, {&c.TryTimeout, 2 * time.Second, 2 * time.Second},
		{&c.Patience, 5 * time.Second, 5 * time.Second}, {&c.Probe, 10 * time.Second, 10 * time.Second}} {
		if *d.p == 0 && many {
			*d.p = d.many
		} else if *d.p == 0 {
			*d.p = d.one
		}
	}
}

// Store talks to the servers of a pool. Safe for use by many goroutines.
type Store struct {
	cfg    Config
	ring   *ring
	client *http.Client
	stream *http.Client // HTTP/1.1 only, for WebSockets

	background func(func(context.Context)) // runs it in a goroutine that Close ends and waits for
	end        func()
}

const (
	maxProblem   = 1 << 20
	probeTimeout = 2 * time.Second
)

// New connects when it is first used.
func New(cfg Config) (*Store, error) {
	if cfg.URL != "" && !slices.Contains(cfg.Endpoints, cfg.URL) || len(cfg.Endpoints) == 0 {
		cfg.Endpoints = append([]string{cfg.URL}, cfg.Endpoints...)
	}
	cfg.defaults()
	s := &Store{cfg: cfg, ring: &ring{clock: clock.Real{}}}
	s.owned()
	if cfg.Socket != "" {
		s.ring.list = []*endpoint{{base: "http://localhost"}}
		t := &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				d := net.Dialer{Timeout: cfg.DialTimeout}
				return d.DialContext(ctx, "unix", cfg.Socket)
			},
			MaxIdleConnsPerHost: 32,
			IdleConnTimeout:     2 * time.Minute,
			DisableCompression:  true,
		}
		s.client = &http.Client{Transport: t, CheckRedirect: stay}
		s.stream = s.client
		return s, nil
	}
	var list []string
	for _, e := range cfg.Endpoints {
		base, err := address(e, cfg.Token != "")
		if err != nil {
			return nil, err
		}
		if !slices.Contains(list, base) {
			list = append(list, base)
		}
	}
	if len(list) > maxEndpoints {
		return nil, errs.New(errs.Invalid, "%d servers are more than a pool has", len(list)).WithHint("name at most %d", maxEndpoints)
	}
	s.ring.replace(list)
	conf := &tls.Config{MinVersion: tls.VersionTLS13, GetClientCertificate: cfg.ClientCert}
	if len(cfg.CA) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(cfg.CA) {
			return nil, errs.New(errs.Invalid, "the certificate authority is not PEM").WithHint("use ca.crt of the server")
		}
	}
	if cfg.Cert != nil {
		conf.Certificates = []tls.Certificate{*cfg.Cert}
	}
	s.client = &http.Client{Transport: transport(cfg, conf, true), CheckRedirect: stay}
	s.stream = &http.Client{Transport: transport(cfg, conf, false), CheckRedirect: stay}
	return s, nil
}

// A connection over which nothing comes is tried out: together well below the lease of a host.
const (
	pingAfter    = time.Second
	pingPatience = 2 * time.Second
)

func transport(cfg Config, conf *tls.Config, http2 bool) *http.Transport {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: cfg.DialTimeout}).DialContext,
		TLSClientConfig:       conf.Clone(),
		TLSHandshakeTimeout:   cfg.DialTimeout,
		MaxIdleConnsPerHost:   32,
		IdleConnTimeout:       2 * time.Minute,
		ForceAttemptHTTP2:     http2,
		ExpectContinueTimeout: time.Second,
	}
	if len(cfg.Endpoints) > 1 || cfg.Full {
		// A host that lost its power, or was cut off, ends no connection: without this, watches would hear nothing
		// of what was decided about it.
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingPatience}
	}
	if !http2 {
		t.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	return t
}

// owned makes what runs beside the calls, and its end.
func (s *Store) owned() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	s.background = func(fn func(context.Context)) { wg.Go(func() { fn(ctx) }) }
	s.end = func() {
		cancel()
		wg.Wait()
	}
}

// stay keeps the token from being sent where a redirect points.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Close gives idle connections back.
func (s *Store) Close() {
	s.end()
	s.client.CloseIdleConnections()
	s.stream.CloseIdleConnections()
}

func (s *Store) headers(h http.Header) {
	h.Set("User-Agent", s.cfg.Agent)
	h.Set(api.HeaderRelease, strconv.Itoa(release.Number()))
	if s.cfg.Token != "" {
		h.Set("Authorization", "Bearer "+s.cfg.Token)
	}
}

// problem restores the error a server answered with.
func problem(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil {
		return errs.New(errs.Unavailable, "the server's answer broke off: %w", err)
	}
	return problemError(b, resp.Status)
}

func problemError(b []byte, status string) error {
	var p struct {
		Type   string       `json:"type"`
		Detail string       `json:"detail"`
		Hint   string       `json:"hint"`
		Fields []errs.Field `json:"fields"`
	}
	kind, ok := "", false
	if json.Unmarshal(b, &p) == nil {
		kind, ok = strings.CutPrefix(p.Type, "urn:atoll:error:")
	}
	if !ok {
		return errs.New(errs.Unavailable, "unexpected answer %s", status).WithHint("is this an Atoll server?")
	}
	return &errs.Error{Kind: errs.Kind(kind), Msg: p.Detail, Hint: p.Hint, Fields: p.Fields}
}

// object reads an answer that is one object.
func (s *Store) object(ctx context.Context, in request, kind api.Kind) (api.Object, error) {
	var raw json.RawMessage
	if err := s.json(ctx, in, &raw); err != nil {
		return nil, err
	}
	return api.DecodeAs(kind, raw)
}

func plural(k api.Kind) (string, error) {
	d, ok := api.Lookup(string(k))
	if !ok {
		return "", errs.New(errs.Invalid, "unknown kind %q", k)
	}
	return "/v1/" + d.Plural, nil
}

// place is the path and query of an object.
func place(ref api.Ref) (string, url.Values, error) {
	p, err := plural(ref.Kind)
	if err != nil {
		return "", nil, err
	}
	if ref.Name == "" {
		return "", nil, errs.New(errs.Invalid, "%s: a name is needed", ref)
	}
	q := url.Values{}
	if ref.Tenant != "" {
		q.Set("tenant", ref.Tenant)
	}
	return p + "/" + url.PathEscape(ref.Name), q, nil
}

// Get reads one object.
func (s *Store) Get(ctx context.Context, ref api.Ref) (api.Object, error) {
	path, q, err := place(ref)
	if err != nil {
		return nil, err
	}
	return s.object(ctx, request{method: "GET", path: path, query: q}, ref.Kind)
}

// List reads the chosen objects.
func (s *Store) List(ctx context.Context, sel api.Selector) ([]api.Object, int64, error) {
	path, q, err := listPlace(sel)
	if err != nil {
		return nil, 0, err
	}
	if sel.Limit > 0 && sel.Kind != "" {
		q.Set("limit", strconv.Itoa(sel.Limit))
	}
	if sel.After != "" && sel.Kind != "" {
		q.Set("after", base64.RawURLEncoding.EncodeToString([]byte(sel.After)))
	}
	if sel.MinRev > 0 {
		q.Set("minRevision", strconv.FormatInt(sel.MinRev, 10))
	}
	var in struct {
		Revision int64             `json:"revision"`
		Items    []json.RawMessage `json:"items"`
	}
	if err := s.json(ctx, request{method: "GET", path: path, query: q, slow: sel.MinRev > 0}, &in); err != nil {
		return nil, 0, err
	}
	out := make([]api.Object, len(in.Items))
	for i, raw := range in.Items {
		if out[i], err = decode(sel.Kind, raw); err != nil {
			return nil, 0, err
		}
	}
	return out, in.Revision, nil
}

func decode(k api.Kind, raw []byte) (api.Object, error) {
	if k == "" {
		return api.Decode(raw)
	}
	return api.DecodeAs(k, raw)
}

func listPlace(sel api.Selector) (string, url.Values, error) {
	path, err := "/v1/all", error(nil)
	if sel.Kind != "" {
		if path, err = plural(sel.Kind); err != nil {
			return "", nil, err
		}
	}
	q := url.Values{}
	put := func(k, v string) {
		if v != "" {
			q.Set(k, v)
		}
	}
	put("tenant", sel.Tenant)
	put("name", sel.Name)
	if sel.Nested {
		q.Set("nested", "true")
	}
	labels, err := labelText(sel.Labels)
	if err != nil {
		return "", nil, err
	}
	put("labels", labels)
	var fields []string
	for k, v := range sel.Fields {
		fields = append(fields, k+"="+v)
	}
	put("fields", strings.Join(fields, ","))
	return path, q, nil
}

// labelText writes what api.ParseLabels reads.
func labelText(terms []api.LabelTerm) (string, error) {
	var out []string
	for _, t := range terms {
		switch {
		case t.Values == nil && t.Not:
			out = append(out, "!"+t.Key)
		case t.Values == nil:
			out = append(out, t.Key)
		case t.Not: // in none of them: unequal to each
			for _, v := range t.Values {
				out = append(out, t.Key+"!="+v)
			}
		case len(t.Values) == 1:
			out = append(out, t.Key+"="+t.Values[0])
		default:
			out = append(out, t.Key+" in ("+strings.Join(t.Values, " ")+")")
		}
		for _, v := range t.Values {
			if strings.ContainsAny(v, ",() ") {
				return "", errs.New(errs.Invalid, "label selector %s: %q cannot be a value", t.Key, v)
			}
		}
	}
	return strings.Join(out, ","), nil
}

type wireOp struct {
	Verb   string          `json:"verb"`
	Object json.RawMessage `json:"object,omitempty"`
	Ref    *api.Ref        `json:"ref,omitempty"`
	Rev    int64           `json:"rev"`
}

type wireCommit struct {
	Full bool     `json:"full,omitempty"`
	Ops  []wireOp `json:"ops"`
}

// Result is what became of one op: created, updated, unchanged, deleted, deleting or checked.
type Result struct {
	Action string
	Object api.Object // as it is now; nil for a check
}

// Commit applies all ops or none.
func (s *Store) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	_, rev, err := s.commit(ctx, ops, s.cfg.Full, false)
	return rev, err
}

// Apply is Commit as a user means it (see the package comment), also with
// Config.Full, and tells what became of each op. dry changes nothing.
func (s *Store) Apply(ctx context.Context, dry bool, ops ...store.Op) ([]Result, int64, error) {
	return s.commit(ctx, ops, false, dry)
}

func (s *Store) commit(ctx context.Context, ops []store.Op, full, dry bool) ([]Result, int64, error) {
	body := wireCommit{Full: full, Ops: make([]wireOp, len(ops))}
	expects := true
	for i, op := range ops {
		expects = expects && op.Rev != store.Any
		w := wireOp{Rev: op.Rev}
		switch op.Verb {
		case store.Put:
			b, err := api.Encode(op.Object)
			if err != nil {
				return nil, 0, errs.New(errs.Internal, "encode %s: %w", op.Target(), err)
			}
			w.Verb, w.Object = "put", b
		case store.Delete:
			w.Verb, w.Ref = "delete", &op.Ref
		default:
			ref := op.Target()
			w.Verb, w.Ref = "check", &ref
		}
		body.Ops[i] = w
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, 0, errs.New(errs.Internal, "encode commit: %w", err)
	}
	q := url.Values{}
	if dry {
		q.Set("dryRun", "true")
	}
	var in struct {
		Revision int64 `json:"revision"`
		Results  []struct {
			Action string          `json:"action"`
			Object json.RawMessage `json:"object"`
		} `json:"results"`
	}
	if err := s.json(ctx, request{method: "POST", path: "/v1/commit", query: q, body: b, safe: dry, expects: expects}, &in); err != nil {
		return nil, 0, err
	}
	out := make([]Result, len(in.Results))
	for i, r := range in.Results {
		out[i].Action = r.Action
		if len(r.Object) == 0 {
			continue
		}
		if out[i].Object, err = api.Decode(r.Object); err != nil {
			return nil, 0, err
		}
	}
	return out, in.Revision, nil
}

// Create makes one object and gives it as the server made it: with its UID, for an
// instance without a name the invented one, for a token its secret. With a key
// (any unique text) it may be repeated safely.
func (s *Store) Create(ctx context.Context, o api.Object, key string) (api.Object, error) {
	path, err := plural(o.ObjectKind())
	if err != nil {
		return nil, err
	}
	b, err := api.Encode(o)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
	}
	in := request{method: "POST", path: path, body: b}
	if key != "" {
		in.header, in.safe = map[string]string{"Idempotency-Key": key}, true
	}
	return s.object(ctx, in, o.ObjectKind())
}

// Replace writes spec, labels and annotations of an object that must still be at
// its metadata.revision (0: at any).
func (s *Store) Replace(ctx context.Context, o api.Object) (api.Object, error) {
	path, q, err := place(api.RefOf(o))
	if err != nil {
		return nil, err
	}
	b, err := api.Encode(o)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
	}
	return s.object(ctx, request{method: "PUT", path: path, query: q, body: b, expects: o.Metadata().Revision > 0}, o.ObjectKind())
}

// Patch changes what a merge patch (RFC 7396) names; rev 0 is any revision.
func (s *Store) Patch(ctx context.Context, ref api.Ref, patch any, rev int64) (api.Object, error) {
	path, q, err := place(ref)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(patch)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode patch: %w", err)
	}
	h := map[string]string{"Content-Type": "application/merge-patch+json"}
	match(h, rev)
	return s.object(ctx, request{method: "PATCH", path: path, query: q, header: h, body: b, expects: rev > 0}, ref.Kind)
}

// Delete asks for the removal of an object; rev 0 is any revision. It gives the
// last state; where its metadata.deletedAt is set, it goes when all is cleaned up.
func (s *Store) Delete(ctx context.Context, ref api.Ref, rev int64) (api.Object, error) {
	path, q, err := place(ref)
	if err != nil {
		return nil, err
	}
	h := map[string]string{}
	match(h, rev)
	return s.object(ctx, request{method: "DELETE", path: path, query: q, header: h, expects: rev > 0}, ref.Kind)
}

func match(h map[string]string, rev int64) {
	if rev > 0 {
		h["If-Match"] = fmt.Sprintf("%q", strconv.FormatInt(rev, 10))
	}
}

// Report writes the status of an object, for agents; rev 0 is any revision.
func (s *Store) Report(ctx context.Context, o api.Object, rev int64) (api.Object, error) {
	path, q, err := place(api.RefOf(o))
	if err != nil {
		return nil, err
	}
	b, err := api.Encode(o)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
	}
	h := map[string]string{}
	match(h, rev)
	return s.object(ctx, request{method: "PUT", path: path + "/status", query: q, header: h, body: b, expects: rev > 0}, o.ObjectKind())
}
