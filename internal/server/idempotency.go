package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

// keyAnnotation remembers on an object the Idempotency-Key it was made with, as
// hashes of key and body. Users cannot set it.
const keyAnnotation = "atoll/idempotency"

const (
	keyLife = 24 * time.Hour
	maxKeys = 2048 // answers kept in memory: a few MB at most
	maxKey  = 256
)

func digest(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:16])
}

func (c *call) idempotencyKey() (string, error) {
	key := c.r.Header.Get("Idempotency-Key")
	if len(key) > maxKey || !plainText(key) {
		return "", errs.InvalidFields("request", []errs.Field{{Field: "Idempotency-Key", Rule: "must be at most 256 printable characters", Example: "b1e4a3f0-create-web"}})
	}
	return key, nil
}

// keyring keeps the answers to creates that named a key, and lets one attempt with a key run at a time.
type keyring struct {
	clock clock.Clock
	mu    sync.Mutex
	slots map[string]*keySlot
	order []*keySlot // oldest first
}

type keySlot struct {
	scope  string
	body   string // digest
	at     time.Time
	busy   chan struct{} // closed when the attempt is over
	answer api.Object
	failed bool
}

func newKeyring(c clock.Clock) *keyring {
	return &keyring{clock: c, slots: map[string]*keySlot{}}
}

// take finds the answer to a key, or makes the caller the one who finds it: then
// answer is nil and give must be called.
func (k *keyring) take(ctx context.Context, scope string, body []byte) (*keySlot, error) {
	sum := digest(string(body))
	for {
		k.mu.Lock()
		s, ok := k.slots[scope]
		if !ok || s.failed || k.clock.Now().Sub(s.at) > keyLife {
			s = &keySlot{scope: scope, body: sum, at: k.clock.Now(), busy: make(chan struct{})}
			k.slots[scope] = s
			k.order = append(k.order, s)
			k.drop()
			k.mu.Unlock()
			return s, nil
		}
		same, busy, done := s.body == sum, s.busy, s.answer != nil
		k.mu.Unlock()
		if !same {
			return nil, errs.InvalidFields("request", []errs.Field{{Field: "Idempotency-Key", Rule: "was used for another request; a new request needs a new key"}})
		}
		if done {
			return s, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// give ends an attempt. The secret of a token is not kept: it is shown once.
func (k *keyring) give(s *keySlot, o api.Object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o == nil {
		s.failed = true
	} else {
		s.answer = api.Clone(o)
		takeSecret(s.answer)
	}
	close(s.busy)
}

// drop forgets the oldest answers; k.mu is held. Attempts under way stay.
func (k *keyring) drop() {
	for len(k.order) > maxKeys {
		old := k.order[0]
		k.order = k.order[1:]
		if k.slots[old.scope] != old {
			continue
		}
		if old.answer == nil && !old.failed {
			k.order = append(k.order, old)
			return
		}
		delete(k.slots, old.scope)
	}
}
