package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"atoll/internal/clock"
)

// heard is a connection that knows when it last brought something. It also joins
// the head of a message with its body: the multiplexer writes them one after the
// other, and each write would become a TLS record and a system call of its own.
type heard struct {
	net.Conn
	clock clock.Clock
	begin time.Time
	last  atomic.Int64 // ns after begin, when something came
	said  atomic.Int64 // and when something was sent

	out  []byte // a head that waits for its body; only the multiplexer's sender writes
	body bool
}

func newHeard(c net.Conn, clk clock.Clock) *heard {
	return &heard{Conn: c, clock: clk, begin: clk.Now()}
}

// Read notes that something came.
func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 {
		h.last.Store(int64(h.clock.Now().Sub(h.begin)))
	}
	return n, err
}

// quiet is how long nothing came, mute how long nothing was sent.
func (h *heard) quiet() time.Duration { return h.since(&h.last) }
func (h *heard) mute() time.Duration  { return h.since(&h.said) }

func (h *heard) since(at *atomic.Int64) time.Duration {
	return h.clock.Now().Sub(h.begin) - time.Duration(at.Load())
}

// send passes bytes on, and notes that it did.
func (h *heard) send(p []byte) (int, error) {
	n, err := h.Conn.Write(p)
	if err == nil {
		h.said.Store(int64(h.clock.Now().Sub(h.begin)))
	}
	return n, err
}

const (
	headSize = 12 // version, type, flags (2), stream (4), length (4)
	typeData = 0
	record   = 16 << 10 // what fits into one TLS record
)

// Write sends what the multiplexer writes: heads of 12 bytes, and after a head that
// announces data, the data.
func (h *heard) Write(p []byte) (int, error) {
	switch {
	case h.body:
		h.body = false
		n := min(len(p), record-headSize)
		h.out = append(h.out, p[:n]...)
		if _, err := h.send(h.out); err != nil {
			return 0, err
		}
		if n == len(p) {
			return n, nil
		}
		rest, err := h.send(p[n:])
		return n + rest, err
	case len(p) == headSize && p[1] == typeData && binary.BigEndian.Uint32(p[8:]) > 0:
		h.body = true
		h.out = append(h.out[:0], p...)
		return len(p), nil
	}
	return h.send(p)
}

// stream is one stream as a net.Conn. Closing ends both directions, as with other
// connections: the multiplexer's own close leaves the other side writing to nobody.
type stream struct {
	*yamux.Stream
	once sync.Once
	done func()
}

// Read ends the stream when the other side has closed it: nobody reads there any more.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if errors.Is(err, io.EOF) {
		s.Close()
	}
	return n, err
}

// Close ends the stream. What was written before still arrives.
func (s *stream) Close() error {
	s.once.Do(s.done)
	return s.Stream.Close()
}
