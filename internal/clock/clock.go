// Package clock is the only source of time from floor 1 up, so that the
// simulator can run the product's own code on a clock of its own. Real reads the
// machine; Manual moves only when told to.
package clock

import (
	"context"
	"sort"
	"sync"
	"time"
)

// Clock tells the time and waits.
type Clock interface {
	Now() time.Time
	// NewTimer sends the time on C once, d from now.
	NewTimer(d time.Duration) *Timer
	// Sleep returns after d, or earlier with ctx.Err().
	Sleep(ctx context.Context, d time.Duration) error
}

// Timer is one pending wake-up. Stop releases it; it reports whether it was still pending.
type Timer struct {
	C    <-chan time.Time
	stop func() bool
}

// Stop cancels the timer.
func (t *Timer) Stop() bool { return t.stop() }

// Real is the machine's clock.
type Real struct{}

// Now is the wall clock with its monotonic reading.
func (Real) Now() time.Time { return time.Now() }

// NewTimer starts a timer of the runtime.
func (Real) NewTimer(d time.Duration) *Timer {
	t := time.NewTimer(d)
	return &Timer{C: t.C, stop: t.Stop}
}

// Sleep waits for d or ctx.
func (Real) Sleep(ctx context.Context, d time.Duration) error { return sleep(ctx, Real{}, d) }

func sleep(ctx context.Context, c Clock, d time.Duration) error {
	t := c.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Manual stands still until Advance. It is safe for use by many goroutines.
type Manual struct {
	mu     sync.Mutex
	now    time.Time
	seq    int
	timers []*manualTimer // sorted by (at, seq)
}

type manualTimer struct {
	at  time.Time
	seq int
	c   chan time.Time
}

// NewManual starts a clock at t.
func NewManual(t time.Time) *Manual { return &Manual{now: t} }

// Now is the time last set.
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// NewTimer fires when Advance passes now+d; at once if d <= 0.
func (m *Manual) NewTimer(d time.Duration) *Timer {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := &manualTimer{at: m.now.Add(d), seq: m.seq, c: make(chan time.Time, 1)}
	m.seq++
	if d <= 0 {
		t.c <- m.now
		return &Timer{C: t.c, stop: func() bool { return false }}
	}
	i := sort.Search(len(m.timers), func(i int) bool { return m.timers[i].at.After(t.at) })
	m.timers = append(m.timers, nil)
	copy(m.timers[i+1:], m.timers[i:])
	m.timers[i] = t
	return &Timer{C: t.c, stop: func() bool { return m.remove(t) }}
}

func (m *Manual) remove(t *manualTimer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, x := range m.timers {
		if x == t {
			m.timers = append(m.timers[:i], m.timers[i+1:]...)
			return true
		}
	}
	return false
}

// Sleep waits until Advance passes now+d, or ctx.
func (m *Manual) Sleep(ctx context.Context, d time.Duration) error { return sleep(ctx, m, d) }

// Next tells when the earliest timer is due.
func (m *Manual) Next() (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.timers) == 0 {
		return time.Time{}, false
	}
	return m.timers[0].at, true
}

// Advance moves the clock by d and fires what is due, in order of time.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := m.now.Add(d)
	for len(m.timers) > 0 && !m.timers[0].at.After(end) {
		t := m.timers[0]
		m.timers = m.timers[1:]
		m.now = t.at
		t.c <- t.at
	}
	m.now = end
}
