// Package once keeps the answers to creates that named an Idempotency-Key, and lets
// one attempt with a key run at a time.
//
// It starts no goroutine. It must never keep the secret of what was created: who
// gives it an answer takes that out first.
package once

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

const (
	keyLife = 24 * time.Hour
	maxKeys = 2048 // answers kept in memory: a few MB at most
)

// Digest is a short hash of a text.
func Digest(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:16])
}

// Ring is the answers. Safe for use by many goroutines.
type Ring struct {
	clock clock.Clock
	mu    sync.Mutex
	slots map[string]*Slot
	order []*Slot // oldest first
}

// Slot is one key: an answer, or an attempt under way.
type Slot struct {
	Answer api.Object // nil: the caller of Take finds it

	scope  string
	body   string // digest
	at     time.Time
	busy   chan struct{} // closed when the attempt is over
	failed bool
}

// New makes an empty ring.
func New(c clock.Clock) *Ring { return &Ring{clock: c, slots: map[string]*Slot{}} }

// Take finds the answer to a key, or makes the caller the one who finds it: then
// Answer is nil and Give must be called.
func (k *Ring) Take(ctx context.Context, scope string, body []byte) (*Slot, error) {
	sum := Digest(string(body))
	for {
		k.mu.Lock()
		s, ok := k.slots[scope]
		if !ok || s.failed || k.clock.Now().Sub(s.at) > keyLife {
			s = &Slot{scope: scope, body: sum, at: k.clock.Now(), busy: make(chan struct{})}
			k.slots[scope] = s
			k.order = append(k.order, s)
			k.drop()
			k.mu.Unlock()
			return s, nil
		}
		same, busy, done := s.body == sum, s.busy, s.Answer != nil
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

// Give ends an attempt; nil: it failed, and the next one is made anew. The object is kept as it is.
func (k *Ring) Give(s *Slot, o api.Object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o == nil {
		s.failed = true
	} else {
		s.Answer = o
	}
	close(s.busy)
}

// drop forgets the oldest answers; k.mu is held. Attempts under way stay.
func (k *Ring) drop() {
	for len(k.order) > maxKeys {
		old := k.order[0]
		k.order = k.order[1:]
		if k.slots[old.scope] != old {
			continue
		}
		if old.Answer == nil && !old.failed {
			k.order = append(k.order, old)
			return
		}
		delete(k.slots, old.scope)
	}
}
