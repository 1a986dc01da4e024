// Package tunnel carries live streams (exec, attach, logs, files, image work)
// between the API and a node. It is the only path beside the store, and it is
// always dialled by the node: the API never connects to a host.
//
// A stream is a net.Conn. The side that opens it sends one Header frame; then both
// send frames: one byte channel (api.Chan…), four bytes length (big endian), the
// payload. The node ends a stream with one ChanExit frame.
package tunnel

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

// The verbs a node serves, and the api type in Header.Params.
const (
	VerbExec   = "exec"   // api.ExecRequest
	VerbAttach = "attach" // api.AttachRequest
	VerbLogs   = "logs"   // api.LogRequest
	VerbCopy   = "copy"   // api.CopyRequest
	VerbImage  = "image"  // api.ImageRequest
	VerbUsage  = "usage"  // none; answers one ChanStdout frame with an api.UsageReport of the node
	// About networks of tenants: api.NetAsk, answered by JSON on ChanStdout; and api.CaptureRequest, by pcap.
	VerbNet     = "net"
	VerbCapture = "capture"
)

// Header opens a stream.
type Header struct {
	Verb     string          `json:"verb"`
	Instance api.Ref         `json:"instance,omitzero"`
	Params   json.RawMessage `json:"params,omitempty"`
}

// MaxFrame bounds a payload; a longer one is a broken or hostile peer.
const MaxFrame = 1 << 20

const chanHeader byte = 0xff

// Stream reads and writes frames. Writes may come from many goroutines, reads from one.
type Stream struct {
	conn net.Conn
	r    *bufio.Reader
	mu   sync.Mutex // one frame at a time
	buf  []byte     // a small frame with its head
}

// small is what is put behind its head and sent in one piece. A connection that is
// multiplexed and encrypted pays for each piece, and most frames are a line or a key.
const small = 4 << 10

// medium is what is still sent in one piece, from a buffer that streams share.
const medium = 64 << 10

var pieces = sync.Pool{New: func() any { return new([5 + medium]byte) }}

// NewStream frames a connection.
func NewStream(c net.Conn) *Stream { return &Stream{conn: c, r: bufio.NewReaderSize(c, 16<<10)} }

// Write sends one frame; a payload over MaxFrame is split.
func (s *Stream) Write(ch byte, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		n := min(len(p), MaxFrame)
		if err := s.frame(ch, p[:n]); err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// frame sends one frame; s.mu is held.
func (s *Stream) frame(ch byte, p []byte) error {
	var head [5]byte
	head[0] = ch
	binary.BigEndian.PutUint32(head[1:], uint32(len(p)))
	if len(p) <= small {
		s.buf = append(append(s.buf[:0], head[:]...), p...)
		_, err := s.conn.Write(s.buf)
		return err
	}
	if len(p) <= medium {
		b := pieces.Get().(*[5 + medium]byte)
		defer pieces.Put(b)
		n := copy(b[:], head[:])
		n += copy(b[n:], p)
		_, err := s.conn.Write(b[:n])
		return err
	}
	bufs := net.Buffers{head[:], p}
	_, err := bufs.WriteTo(s.conn)
	return err
}

// WriteJSON sends v as one frame.
func (s *Stream) WriteJSON(ch byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.Write(ch, b)
}

// Read gives the next frame; io.EOF at the end. The payload is the caller's.
func (s *Stream) Read() (ch byte, p []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, errs.New(errs.Invalid, "stream: frame of %d bytes is over %d", n, MaxFrame)
	}
	p = make([]byte, n)
	_, err = io.ReadFull(s.r, p)
	return head[0], p, err
}

// Close ends the stream.
func (s *Stream) Close() error { return s.conn.Close() }

// Writer gives an io.Writer that sends everything on one channel.
func (s *Stream) Writer(ch byte) io.Writer { return chanWriter{s, ch} }

type chanWriter struct {
	s  *Stream
	ch byte
}

func (w chanWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.s.Write(w.ch, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Handler serves one stream on the node. It returns when the stream is done; the
// caller closes it. An error is sent to the peer as api.StreamExit by Serve.
type Handler func(ctx context.Context, h Header, s *Stream) error

// Serve reads the header and runs the handler.
func Serve(ctx context.Context, conn net.Conn, fn Handler) error {
	s := NewStream(conn)
	defer s.Close()
	ch, p, err := s.Read()
	if err != nil {
		return err
	}
	var h Header
	if ch != chanHeader || json.Unmarshal(p, &h) != nil {
		return errs.New(errs.Invalid, "stream: no header")
	}
	if err := fn(ctx, h, s); err != nil {
		return s.WriteJSON(api.ChanExit, api.StreamExit{Code: errs.ExitCode(err), Kind: string(errs.KindOf(err)), Message: err.Error(), Hint: errs.HintOf(err)})
	}
	return nil
}

// Open begins a stream on a connection: it sends the header. The connection is
// closed when that fails.
func Open(conn net.Conn, head Header) (*Stream, error) {
	s := NewStream(conn)
	if err := s.WriteJSON(chanHeader, head); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Dial gives a new connection to a node.
type Dial func(ctx context.Context) (net.Conn, error)

// Hub knows how to reach the nodes that dialled in.
type Hub struct {
	// Patience is how long a node that is not connected is waited for: a server that has
	// just begun is dialled by each of them within that time. Default 2 s.
	Patience time.Duration

	mu    sync.Mutex
	nodes map[string][]*Dial // the newest last
	more  chan struct{}      // closed and replaced when a node connects
}

// NewHub is empty.
func NewHub() *Hub {
	return &Hub{Patience: 2 * time.Second, nodes: map[string][]*Dial{}, more: make(chan struct{})}
}

// Register makes a node reachable; the returned func takes that back, and only
// that: a node whose connection broke is often back before the end of the old one is
// noticed. Of several registrations of a node the newest is used.
func (h *Hub) Register(node string, dial Dial) (remove func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	entry := &dial
	h.nodes[node] = append(h.nodes[node], entry)
	close(h.more)
	h.more = make(chan struct{})
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		rest := slices.DeleteFunc(slices.Clone(h.nodes[node]), func(d *Dial) bool { return d == entry })
		if h.nodes[node] = rest; len(rest) == 0 {
			delete(h.nodes, node)
		}
	}
}

// Await returns when a node is connected, "" for any; errs.Unavailable when none is within Patience.
func (h *Hub) Await(ctx context.Context, node string) error {
	_, err := h.dials(ctx, node)
	return err
}

func (h *Hub) dials(ctx context.Context, node string) ([]*Dial, error) {
	late, cancel := context.WithTimeout(ctx, h.Patience)
	defer cancel()
	for {
		h.mu.Lock()
		dials, more := h.nodes[node], h.more
		if node == "" {
			for _, dials = range h.nodes {
				break
			}
		}
		h.mu.Unlock()
		if len(dials) > 0 {
			return dials, nil
		}
		select {
		case <-more:
		case <-late.Done():
			if node == "" {
				return nil, errs.New(errs.Unavailable, "no node is connected to this server").WithHint("atoll get nodes")
			}
			return nil, errs.New(errs.Unavailable, "node %s is not connected to this server", node).WithHint("atoll describe node/%s", node)
		}
	}
}

// Open starts a stream to a node, which it awaits if it must. A connection that is just
// ending is passed over for an older one that is not.
func (h *Hub) Open(ctx context.Context, node string, head Header) (*Stream, error) {
	dials, err := h.dials(ctx, node)
	if err != nil {
		return nil, err
	}
	var first error
	for _, dial := range slices.Backward(dials) {
		c, err := (*dial)(ctx)
		if err == nil {
			s, err := Open(c, head)
			if err != nil {
				return nil, errs.New(errs.Unavailable, "open stream to node %s: %w", node, err)
			}
			return s, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errs.New(errs.Unavailable, "connect to node %s: %w", node, first)
}

// Nodes lists who is connected.
func (h *Hub) Nodes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]string, 0, len(h.nodes))
	for n := range h.nodes {
		out = append(out, n)
	}
	return out
}

// Local makes a node of the same process reachable: every stream is a socket pair
// served by fn in a goroutine that the returned wait waits for.
func Local(ctx context.Context, fn Handler) (dial func(context.Context) (net.Conn, error), wait func()) {
	var wg sync.WaitGroup
	return func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		wg.Go(func() { _ = Serve(ctx, b, fn) }) // a peer that went away is not the node's error
		return a, nil
	}, wg.Wait
}
