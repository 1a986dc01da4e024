package store

import (
	"context"
	"sync"
)

// Syncer tells how far a reader must have come to have missed nothing.
type Syncer interface {
	// Sync gives a revision not older than anything acknowledged before the call, by
	// whichever server.
	Sync(ctx context.Context) (rev int64, err error)
	// Sole reports whether nobody else writes: then there is nothing to ask.
	Sole() bool
}

// Shared asks another Syncer once for everybody who waits.
type Shared struct {
	src Syncer

	mu   sync.Mutex
	busy bool
	next *question // is asked when the present one is answered
}

// question is one Sync, for all who came before it was asked.
type question struct {
	turn, done chan struct{}
	rev        int64
	err        error
}

// NewShared asks src.
func NewShared(src Syncer) *Shared { return &Shared{src: src} }

// Sole is the source's.
func (s *Shared) Sole() bool { return s.src.Sole() }

// Sync gives the source's answer; 0 when nobody else writes. A question that was asked
// before the call cannot answer it, so those who come meanwhile share the next one; the
// first of them asks it.
func (s *Shared) Sync(ctx context.Context) (int64, error) {
	if s.src.Sole() {
		return 0, nil
	}
	s.mu.Lock()
	q, mine := s.next, false
	if q == nil {
		q, mine = &question{turn: make(chan struct{}), done: make(chan struct{})}, true
		if s.busy {
			s.next = q
		} else {
			s.busy = true
			close(q.turn)
		}
	}
	s.mu.Unlock()
	if mine {
		<-q.turn                                              // bounded, as the question before it is
		q.rev, q.err = s.src.Sync(context.WithoutCancel(ctx)) // others wait for it, too
		s.answered(q)
		return q.rev, q.err
	}
	select {
	case <-q.done:
		return q.rev, q.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// answered lets those go who waited for q, and gives the turn to the next.
func (s *Shared) answered(q *question) {
	close(q.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.busy = false
		return
	}
	close(s.next.turn)
	s.next = nil
}
