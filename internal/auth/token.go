package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"io"
	"strings"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

// TokenLife is how long a token works when its spec does not say.
const TokenLife = 30 * 24 * time.Hour

const (
	tokenPrefix = "atoll_"
	secretBytes = 32
	maxToken    = 200 // a name of 63, a secret of 43 and the rest
)

// Mint makes a secret for the token named name. The text is what the caller shows
// later; only the hash may be stored.
func Mint(name string, rand io.Reader) (text, hash string, err error) {
	var b [secretBytes]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return "", "", errs.New(errs.Internal, "make token %s: %w", name, err)
	}
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	return tokenPrefix + name + "_" + secret, hashSecret(secret), nil
}

func hashSecret(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func badToken() error {
	return errs.New(errs.Unauthenticated, "this token is not known").
		WithHint("it was removed, or mistyped; make a new one: atoll token create NAME")
}

// Bearer recognises a token. source says where the call comes from (an address):
// a source that fails often is slowed down, but a good token always passes, so
// nobody can lock others out by failing on purpose.
func (a *Authority) Bearer(text, source string) (Identity, error) {
	id, err := a.bearer(text)
	if err != nil && errs.KindOf(err) == errs.Unauthenticated && !a.fails.allow(source) {
		return Identity{}, errs.New(errs.Unavailable, "too many failed attempts from %s", source).WithHint("wait a few seconds")
	}
	return id, err
}

func (a *Authority) bearer(text string) (Identity, error) {
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	name, secret, ok2 := strings.Cut(rest, "_")
	if !ok || !ok2 || len(text) > maxToken || !api.ValidName(name) {
		return Identity{}, errs.New(errs.Unauthenticated, "this is not a token of this pool").WithHint("a token looks like atoll_NAME_SECRET")
	}
	hash := hashSecret(secret)
	a.mu.RLock()
	defer a.mu.RUnlock()
	if !a.ready {
		return Identity{}, starting()
	}
	t, known := a.tokens[name]
	want := strings.Repeat("0", len(hash)) // compared all the same, so that time does not tell which names exist
	if known && t.Status.Hash != "" {
		want = t.Status.Hash
	}
	same := subtle.ConstantTimeCompare([]byte(hash), []byte(want)) == 1
	if !known || t.Status.Hash == "" || !same || t.DeletedAt != nil {
		return Identity{}, badToken()
	}
	id := Identity{User: t.Spec.User, Token: t, Via: "token"}
	if err := a.check(id); err != nil {
		return Identity{}, err
	}
	return id, nil
}

// limiter counts failures by source: a bucket of failBurst that refills with failRate a second.
type limiter struct {
	clock clock.Clock
	mu    sync.Mutex
	m     map[string]*bucket
}

type bucket struct {
	left float64
	at   time.Time
}

const (
	failBurst   = 10
	failRate    = 1.0
	failSources = 4096 // bounds memory under a flood of sources
)

func newLimiter(c clock.Clock) *limiter { return &limiter{clock: c, m: map[string]*bucket{}} }

func (l *limiter) allow(source string) bool {
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.m[source]
	if !ok {
		if len(l.m) >= failSources {
			l.drop(now)
		}
		b = &bucket{left: failBurst, at: now}
		l.m[source] = b
	}
	b.left = min(failBurst, b.left+now.Sub(b.at).Seconds()*failRate)
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// drop forgets the sources that have recovered, and all of them if none has.
func (l *limiter) drop(now time.Time) {
	for s, b := range l.m {
		if now.Sub(b.at).Seconds()*failRate >= failBurst {
			delete(l.m, s)
		}
	}
	if len(l.m) >= failSources {
		l.m = map[string]*bucket{}
	}
}
