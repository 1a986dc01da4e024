// Package join is a host's side of belonging to a pool: its key, joining by a token,
// the certificate and its renewal.
//
// What a host has is in its state directory: pki/node.key, which never leaves it,
// pki/node.crt, pki/ca.crt, and join.json, which is written last: where it is, the
// host has joined. Each file is replaced as a whole, so that a crash anywhere leaves a
// host that has joined or one that may join again with the same token.
//
// Run renews until its context ends; nothing else runs. It must never tell the token
// or the key, and never speak to a server that is not one of the pool.
package join

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/release"
)

const (
	callTimeout = 20 * time.Second
	maxAnswer   = 1 << 20
	maxFile     = 1 << 20
)

// Deps is what joining works with.
type Deps struct {
	Clock clock.Clock
	Rand  io.Reader // cryptographic, also for jitter
}

// Request is a wish to join.
type Request struct {
	Dir     string   // the host's state directory
	URLs    []string // servers of the pool, tried in order
	Token   string   // as atoll node token printed it
	Node    string   // the name it wants
	Address string   // where it can be reached; "": where it calls from
	Version string
}

// record is join.json.
type record struct {
	Node      string           `json:"node"`
	Role      api.JoinRole     `json:"role"`
	Endpoints []string         `json:"endpoints"`
	Pool      api.PoolSettings `json:"pool"`
	JoinedAt  time.Time        `json:"joinedAt"`
	Founder   bool             `json:"founder,omitempty"` // the pool began here
}

func pki(dir, name string) string { return filepath.Join(dir, "pki", name) }

// Do joins, and gives who the host is from now on. joined is false when it had joined
// that pool before, under that name, and is still known there.
func Do(ctx context.Context, d Deps, r Request) (id *Identity, joined bool, err error) {
	text, err := auth.ParseJoin(strings.TrimSpace(r.Token))
	if err != nil {
		return nil, false, err
	}
	urls, err := servers(r.URLs)
	if err != nil {
		return nil, false, err
	}
	if err := errs.InvalidFields("join", api.NodeNameFields("node", r.Node)); err != nil {
		return nil, false, err
	}
	if id, err := again(ctx, d, r, text); id != nil || err != nil {
		return id, false, err
	}
	key, err := hostKey(r.Dir, d.Rand)
	if err != nil {
		return nil, false, err
	}
	csr, err := request(key, d.Rand)
	if err != nil {
		return nil, false, err
	}
	body := api.JoinRequest{Token: text.String(), CSR: string(csr), Node: r.Node, Address: r.Address, Version: r.Version, Release: release.Number(), Arch: runtime.GOARCH}
	var ans api.JoinAnswer
	at, err := ask(ctx, question{tls: auth.PinnedTLS(text.Authority, d.Clock), urls: urls, path: "/v1/join", body: body}, &ans)
	if err != nil {
		return nil, false, err
	}
	if err := checkAuthority([]byte(ans.Authority), text); err != nil {
		return nil, false, err
	}
	ans.Endpoints = known(urls[at], ans.Endpoints)
	if err := save(r.Dir, d, &ans, key, true); err != nil {
		return nil, false, err
	}
	id, err = Load(r.Dir, d)
	return id, true, err
}

// again finds out whether the host has joined already; nil: it has not, or it is not
// known any more.
func again(ctx context.Context, d Deps, r Request, text auth.JoinText) (*Identity, error) {
	id, err := Load(r.Dir, d)
	if errors.Is(err, errs.NotFound) {
		return nil, ownPool(r.Dir)
	}
	if err != nil {
		return nil, err
	}
	if err := checkAuthority(id.authorityPEM, text); err != nil {
		if id.Founder() {
			return nil, ownPool(r.Dir)
		}
		return nil, errs.New(errs.Conflict, "this host belongs to another pool, as %s", id.Node()).
			WithHint("take it out there first: atoll node remove %s; then here: atolld down --data", id.Node())
	}
	err = id.Renew(ctx)
	if k := errs.KindOf(err); err != nil && (k == errs.Unauthenticated || k == errs.Unavailable || k == errs.Timeout) {
		return nil, nil // removed, or the servers it knew are no more: the token decides
	}
	if err == nil && id.Node() != r.Node {
		return nil, errs.New(errs.Conflict, "this host is in the pool already, as %s", id.Node()).
			WithHint("a host keeps its name; to change it: atoll node remove %s, then here: atolld down --data, and join again", id.Node())
	}
	return id, err
}

// ownPool refuses where the host keeps a pool of its own: joining another one would
// leave what runs here without anybody.
func ownPool(dir string) error {
	for _, p := range []string{filepath.Join(dir, "etcd"), pki(dir, "ca.key")} {
		if _, err := os.Lstat(p); err == nil {
			return errs.New(errs.Conflict, "this host has a pool of its own in %s", dir).
				WithHint("bring what it runs along: atolld join URL --adopt TENANT, with a token of atoll node token --adopt TENANT (--dry-run shows what becomes of it). If nothing of it is needed any more: atolld down --data, and join again")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.Internal, "look at %s: %w", p, err)
		}
	}
	return nil
}

func servers(in []string) ([]string, error) {
	var out []string
	for _, s := range in {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
			return nil, errs.InvalidFields("join", []errs.Field{{Field: "URL", Value: clip(s), Rule: "must be the address of a server", Example: "https://10.0.0.1:7443"}})
		}
		out = append(out, "https://"+u.Host)
	}
	if len(out) == 0 {
		return nil, errs.InvalidFields("join", []errs.Field{{Field: "URL", Rule: "must name a server of the pool", Example: "https://10.0.0.1:7443"}})
	}
	return out, nil
}

func clip(s string) string { return s[:min(len(s), 80)] }

func checkAuthority(certPEM []byte, text auth.JoinText) error {
	c, err := auth.ParseAuthority(certPEM)
	if err != nil {
		return err
	}
	if auth.AuthorityHash(c) != text.Authority {
		return errs.New(errs.Unauthenticated, "this is not the pool that the token is of")
	}
	return nil
}

// hostKey is the host's key: the one it has, or a new one.
func hostKey(dir string, rand io.Reader) (*ecdsa.PrivateKey, error) {
	path := pki(dir, "node.key")
	b, err := readFile(path)
	if err == nil {
		return parseKey(b, path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.Internal, "read the host's key: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, errs.New(errs.Internal, "make the host's key: %w", err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, errs.New(errs.Internal, "make the host's key: %w", err)
	}
	err = create(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}))
	if errors.Is(err, fs.ErrExist) { // somebody else made it at the same time
		return hostKey(dir, rand)
	}
	return key, err
}

func parseKey(b []byte, path string) (*ecdsa.PrivateKey, error) {
	p, _ := pem.Decode(b)
	if p != nil {
		if key, err := x509.ParseECPrivateKey(p.Bytes); err == nil {
			return key, nil
		}
	}
	return nil, errs.New(errs.Invalid, "%s is not the key of a host", path).
		WithHint("remove it and join again; the pool must be told that it is a new key: atoll node token --node NAME")
}

// request asks for a certificate. Names in it would not be looked at.
func request(key *ecdsa.PrivateKey, rand io.Reader) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, errs.New(errs.Internal, "make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// save keeps an answer after checking that it is what was asked for; join.json is last.
func save(dir string, d Deps, ans *api.JoinAnswer, key *ecdsa.PrivateKey, first bool) error {
	if _, err := parseCert([]byte(ans.Certificate), []byte(ans.Authority), key, d.Clock.Now()); err != nil {
		return err
	}
	if f := api.NodeNameFields("node", ans.Node); f != nil {
		return errs.InvalidFields("the server's answer", f)
	}
	ends, err := servers(ans.Endpoints)
	if err != nil {
		return err
	}
	rec := record{Node: ans.Node, Role: ans.Role, Endpoints: ends, Pool: ans.Pool, JoinedAt: d.Clock.Now().UTC()}
	if !first {
		if old, err := readRecord(dir); err == nil {
			rec.JoinedAt, rec.Founder = old.JoinedAt, old.Founder
		}
	}
	b, err := encode(rec)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{{pki(dir, "ca.crt"), []byte(ans.Authority)}, {pki(dir, "node.crt"), []byte(ans.Certificate)}, {filepath.Join(dir, "join.json"), b}} {
		if old, err := readFile(f.path); err == nil && bytes.Equal(old, f.data) {
			continue
		}
		if err := replace(f.path, f.data); err != nil {
			return err
		}
	}
	return nil
}

func encode(rec record) ([]byte, error) {
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return nil, errs.New(errs.Internal, "write join.json: %w", err)
	}
	return append(b, '\n'), nil
}

func saveRecord(dir string, rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	return replace(filepath.Join(dir, "join.json"), b)
}

// parseCert is the host's certificate, checked: of this authority, for this key.
func parseCert(certPEM, authorityPEM []byte, key *ecdsa.PrivateKey, now time.Time) (*tls.Certificate, error) {
	bad := func(why string) (*tls.Certificate, error) {
		return nil, errs.New(errs.Invalid, "the host's certificate %s", why).WithHint("join again: atoll node token, and here: atolld join")
	}
	authority, err := auth.ParseAuthority(authorityPEM)
	if err != nil {
		return nil, err
	}
	p, rest := pem.Decode(certPEM)
	if p == nil || p.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return bad("is not one PEM block")
	}
	leaf, err := x509.ParseCertificate(p.Bytes)
	if err != nil {
		return bad("cannot be read")
	}
	if leaf.CheckSignatureFrom(authority) != nil {
		return bad("is not of this pool")
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return bad("is not for this host's key")
	}
	// That it has ended is no mistake: a new one can be had.
	if now.Before(leaf.NotBefore) {
		return nil, errs.New(errs.Invalid, "the host's certificate begins at %s, and this host's clock says %s", leaf.NotBefore.Format(time.DateTime), now.UTC().Format(time.DateTime)).
			WithHint("set the clock of this host")
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, authority.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func readRecord(dir string) (record, error) {
	var rec record
	b, err := readFile(filepath.Join(dir, "join.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return rec, errs.New(errs.NotFound, "this host has joined no pool").WithHint("atoll node token on a host of the pool, and here: atolld join")
	}
	if err != nil {
		return rec, errs.New(errs.Internal, "read join.json: %w", err)
	}
	if json.Unmarshal(b, &rec) != nil || api.NodeNameFields("node", rec.Node) != nil {
		return rec, errs.New(errs.Invalid, "join.json in %s cannot be read", dir).WithHint("remove it and join again: atolld join")
	}
	if rec.Endpoints, err = servers(rec.Endpoints); err != nil {
		return rec, err
	}
	return rec, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// replace writes a file as a whole, for root only. The daemon may renew while somebody
// joins once more, so each writes a file of its own before it takes the name.
func replace(path string, data []byte) error { return put(path, data, os.Rename) }

// create is replace, but what is there stays: then it is fs.ErrExist.
func create(path string, data []byte) error { return put(path, data, os.Link) }

func put(path string, data []byte, take func(from, to string) error) error {
	dir := filepath.Dir(path)
	err := os.MkdirAll(dir, 0o700)
	var tmp string
	if err == nil {
		tmp, err = write(dir, filepath.Base(path), data)
	}
	if err == nil {
		err = errors.Join(take(tmp, path), syncDir(dir))
	}
	if tmp != "" {
		_ = os.Remove(tmp) // renamed it is gone already
	}
	if err != nil {
		return errs.New(errs.Unavailable, "keep what joining gave: %w", err)
	}
	return nil
}

func write(dir, name string, data []byte) (string, error) {
	f, err := os.CreateTemp(dir, "."+name+".*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	return f.Name(), errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// question is what servers are asked.
type question struct {
	tls    *tls.Config
	urls   []string // tried in order
	path   string
	body   any
	bearer string        // shown in the header; "": nothing
	within time.Duration // one server's time; 0: the usual
	most   int64         // bytes of the answer; 0: the usual
}

// ask posts to the servers in order until one answers; what one refuses, no other is
// asked. It gives the index of who answered.
func ask(ctx context.Context, q question, out any) (int, error) {
	b, err := json.Marshal(q.body)
	if err != nil {
		return 0, errs.New(errs.Internal, "write request: %w", err)
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: q.tls, TLSHandshakeTimeout: callTimeout / 2, ForceAttemptHTTP2: true}
	defer t.CloseIdleConnections()
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var last error
	for i := range q.urls {
		err := q.post(ctx, client, i, b, out)
		if err == nil {
			return i, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		last = err
		if k := errs.KindOf(err); k != errs.Unavailable && k != errs.Timeout && !errors.Is(err, auth.ErrOtherPool) {
			break
		}
	}
	return 0, last
}

func (q *question) post(ctx context.Context, client *http.Client, i int, body []byte, out any) error {
	where := q.urls[i]
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(q.within, callTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where+q.path, bytes.NewReader(body))
	if err != nil {
		return errs.New(errs.Invalid, "make request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if q.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+q.bearer)
	}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		if errors.Is(err, auth.ErrOtherPool) {
			return errs.New(errs.Unauthenticated, "%s: %w", where, err).
				WithHint("the token names another pool than this server belongs to, or somebody answers in its place; make a token at this server: atoll node token")
		}
		return errs.New(errs.Unavailable, "no server answers at %s: %w", where, err).WithHint("does it run, with --listen 0.0.0.0:7443, and does a firewall let this host through?")
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, cmp.Or(q.most, maxAnswer)))
	if err != nil {
		return errs.New(errs.Unavailable, "the answer of %s broke off: %w", where, err)
	}
	if resp.StatusCode != http.StatusOK {
		return problem(b, where, resp.Status)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return errs.New(errs.Unavailable, "the answer of %s cannot be read", where)
	}
	return nil
}

// problem restores the error a server answered with.
func problem(b []byte, where, status string) error {
	var p struct {
		Type, Detail, Hint string
		Fields             []errs.Field
	}
	if json.Unmarshal(b, &p) == nil {
		if kind, ok := strings.CutPrefix(p.Type, "urn:atoll:error:"); ok {
			return &errs.Error{Kind: errs.Kind(kind), Msg: p.Detail, Hint: p.Hint, Fields: p.Fields}
		}
	}
	return errs.New(errs.Unavailable, "unexpected answer of %s: %s", where, status).WithHint("is this an Atoll server?")
}

// KeyHash is by what the key of the host with this state directory is known; the key is made if there is none.
func KeyHash(dir string, rand io.Reader) (string, error) {
	key, err := hostKey(dir, rand)
	if err != nil {
		return "", err
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return "", errs.New(errs.Internal, "write the host's public key: %w", err)
	}
	return auth.KeyHash(spki), nil
}
