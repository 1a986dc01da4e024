package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
)

// When a certificate is renewed, and how failures are repeated.
const (
	renewBelow = 2.0 / 3 // of its life is left: a day's certificate after eight hours
	jitterPart = 0.1     // of its life: so that hosts that joined together do not renew together
	retryFirst = 2 * time.Second
	retryMost  = 5 * time.Minute
	lookAgain  = 10 * time.Minute // a host may sleep, and its clock be set
)

// Identity is who this host is in its pool, kept current by Run. Safe for use by many
// goroutines.
type Identity struct {
	dir          string
	deps         Deps
	key          *ecdsa.PrivateKey
	authority    *x509.Certificate
	authorityPEM []byte

	mu   sync.Mutex
	rec  record
	cert *tls.Certificate
	lead time.Duration // renewed so much earlier; drawn anew for every certificate
	told error         // why the pool turns this host away; nil: it does not
}

// incomplete is the error of a host that lost part of what joining left.
func incomplete(dir string, rec record, what string, err error) error {
	return errs.New(errs.Internal, "read %s: %w", what, err).
		WithHint("bring %s/pki back from a copy of it. Without one remove %s/join.json: then the host joins again (atoll node token --node %s; atolld join), or, when the whole pool is lost, begins from a backup (atolld recover --from)", dir, dir, rec.Node)
}

// Load reads what joining left in a host's state directory; errs.NotFound: it has not joined.
func Load(dir string, d Deps) (*Identity, error) {
	rec, err := readRecord(dir)
	if err != nil {
		return nil, err
	}
	i := &Identity{dir: dir, deps: d, rec: rec}
	b, err := readFile(pki(dir, "node.key"))
	if err != nil {
		return nil, incomplete(dir, rec, "the host's key", err)
	}
	if i.key, err = parseKey(b, pki(dir, "node.key")); err != nil {
		return nil, err
	}
	if i.authorityPEM, err = readFile(pki(dir, "ca.crt")); err != nil {
		return nil, incomplete(dir, rec, "the pool's authority", err)
	}
	if i.authority, err = auth.ParseAuthority(i.authorityPEM); err != nil {
		return nil, err
	}
	b, err = readFile(pki(dir, "node.crt"))
	if err != nil {
		return nil, incomplete(dir, rec, "the host's certificate", err)
	}
	if i.cert, err = parseCert(b, i.authorityPEM, i.key, d.Clock.Now()); err != nil {
		return nil, err
	}
	return i, i.draw()
}

// Node is the host's name in the pool.
func (i *Identity) Node() string { return i.record().Node }

// Role is what the host is.
func (i *Identity) Role() api.JoinRole { return i.record().Role }

// Endpoints are the servers of the pool, as last heard; the one that answered last is first.
func (i *Identity) Endpoints() []string { return slices.Clone(i.record().Endpoints) }

// Pool is what is the same on every host.
func (i *Identity) Pool() api.PoolSettings { return i.record().Pool }

// Authority is the certificate of the pool's authority, PEM.
func (i *Identity) Authority() []byte { return slices.Clone(i.authorityPEM) }

func (i *Identity) record() record {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rec
}

// Refused is why the pool turned this host away when it was last asked for a
// certificate: it was removed, revoked or replaced. nil: it did not.
func (i *Identity) Refused() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.told
}

// Certificate is the present one; with its key, for peers as well as for servers.
func (i *Identity) Certificate() *tls.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert
}

// TLS is how to speak to servers of the pool: only to these, showing the certificate
// that is good at the time of each new connection.
func (i *Identity) TLS() *tls.Config {
	c := auth.ClientTLS(i.authority, i.deps.Clock)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.Certificate(), nil }
	return c
}

// Run renews the certificate in time until ctx ends. When the pool turns the host away
// it goes on asking, seldom: the host may be let in again.
func (i *Identity) Run(ctx context.Context, log *slog.Logger) error {
	fails := 0
	for {
		wait := i.due()
		if fails > 0 {
			wait = i.backoff(fails)
		}
		if wait > 0 {
			if i.deps.Clock.Sleep(ctx, min(wait, lookAgain)) != nil {
				return nil
			}
			if fails == 0 && i.due() > 0 {
				continue
			}
		}
		err := i.Renew(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			fails = 0
			log.Info("certificate renewed", slog.Time("until", i.Certificate().Leaf.NotAfter))
			continue
		}
		fails++
		log.Warn("the certificate could not be renewed", slog.Int("attempt", fails), slog.Time("until", i.Certificate().Leaf.NotAfter), slog.Any("error", err), slog.String("hint", errs.HintOf(err)))
	}
}

// due is how long the certificate is good enough; 0 or less: no longer.
func (i *Identity) due() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	leaf := i.cert.Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	at := leaf.NotAfter.Add(-time.Duration(renewBelow * float64(life))).Add(-i.lead)
	return at.Sub(i.deps.Clock.Now())
}

// backoff doubles, with chance in it, so that hosts do not all come back at once.
func (i *Identity) backoff(fails int) time.Duration {
	d := min(retryFirst<<min(fails-1, 16), retryMost)
	part, err := i.chance()
	if err != nil {
		part = 1
	}
	return d/2 + time.Duration(part*float64(d)/2)
}

func (i *Identity) chance() (float64, error) {
	var b [8]byte
	if _, err := io.ReadFull(i.deps.Rand, b[:]); err != nil {
		return 0, errs.New(errs.Internal, "draw a number: %w", err)
	}
	return float64(binary.LittleEndian.Uint64(b[:])>>11) / (1 << 53), nil
}

// draw says how much earlier than needed the present certificate is renewed.
func (i *Identity) draw() error {
	part, err := i.chance()
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	life := i.cert.Leaf.NotAfter.Sub(i.cert.Leaf.NotBefore)
	i.lead = time.Duration(part * jitterPart * float64(life))
	return nil
}

// Renew gets a new certificate now. It shows none: an ended one would not be taken.
func (i *Identity) Renew(ctx context.Context) error {
	csr, err := request(i.key, i.deps.Rand)
	if err != nil {
		return err
	}
	rec := i.record()
	var ans api.JoinAnswer
	at, err := ask(ctx, question{tls: auth.ClientTLS(i.authority, i.deps.Clock), urls: rec.Endpoints, path: "/v1/join/renew", body: api.RenewRequest{CSR: string(csr), Node: rec.Node}}, &ans)
	if err != nil {
		if errors.Is(err, errs.Unauthenticated) && !errors.Is(err, auth.ErrOtherPool) {
			i.mu.Lock()
			i.told = err
			i.mu.Unlock()
		}
		return err
	}
	if ans.Node != rec.Node {
		return errs.New(errs.Invalid, "the server took this host for %q", clip(ans.Node))
	}
	ans.Authority = string(i.authorityPEM) // it does not change
	ans.Endpoints = known(rec.Endpoints[at], ans.Endpoints)
	if err := save(i.dir, i.deps, &ans, i.key, false); err != nil {
		return err
	}
	cert, err := parseCert([]byte(ans.Certificate), i.authorityPEM, i.key, i.deps.Clock.Now())
	if err != nil {
		return err
	}
	i.mu.Lock()
	i.cert, i.told = cert, nil
	i.rec.Role, i.rec.Endpoints, i.rec.Pool = ans.Role, ans.Endpoints, ans.Pool
	i.mu.Unlock()
	return i.draw()
}

// known is where servers are: what answered comes first, also when the server itself
// knows it under other addresses only.
func known(answered string, told []string) []string {
	out := []string{answered}
	for _, u := range told {
		if ok, err := servers([]string{u}); err == nil && !slices.Contains(out, ok[0]) {
			out = append(out, u)
		}
	}
	return out
}

// SetEndpoints notes where the servers are, as others say; what answered last stays in front.
func (i *Identity) SetEndpoints(urls []string) error {
	ends, err := servers(urls)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.rec.Endpoints) > 0 && slices.Contains(ends, i.rec.Endpoints[0]) {
		ends = known(i.rec.Endpoints[0], ends)
	}
	if slices.Equal(ends, i.rec.Endpoints) {
		return nil
	}
	rec := i.rec
	rec.Endpoints = ends
	if err := saveRecord(i.dir, rec); err != nil {
		return err
	}
	i.rec = rec
	return nil
}

// Founder reports whether the pool began on this host.
func (i *Identity) Founder() bool { return i.record().Founder }

// Demote notes that this host is one like all others from now on.
func (i *Identity) Demote() error { return i.founder(false) }

// Promote notes that the pool goes on from this host: what it has is all there is.
func (i *Identity) Promote() error { return i.founder(true) }

func (i *Identity) founder(is bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	rec := i.rec
	rec.Founder = is
	if err := saveRecord(i.dir, rec); err != nil {
		return err
	}
	i.rec = rec
	return nil
}

// WriteFile replaces a file as a whole and for certain: a crash leaves the old or the new one.
func WriteFile(path string, data []byte) error { return replace(path, data) }

// Found makes the identity of the host that a pool begins on, as joining makes those of
// the others: ans is what it would be answered. The host's key is there already.
func Found(dir string, d Deps, ans *api.JoinAnswer) (*Identity, error) {
	key, err := hostKey(dir, d.Rand)
	if err != nil {
		return nil, err
	}
	if err := save(dir, d, ans, key, true); err != nil {
		return nil, err
	}
	rec, err := readRecord(dir)
	if err != nil {
		return nil, err
	}
	rec.Founder = true
	if err := saveRecord(dir, rec); err != nil {
		return nil, err
	}
	return Load(dir, d)
}

// Sign makes a certificate request for the host's key.
func Sign(dir string, d Deps) ([]byte, error) {
	key, err := hostKey(dir, d.Rand)
	if err != nil {
		return nil, err
	}
	return request(key, d.Rand)
}
