package remote

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"

	"atoll/api"
	"atoll/internal/errs"
)

// maxMessage is one frame of a stream with its channel byte.
const maxMessage = 1<<20 + 1

// Conn is a live stream. Reads come from one goroutine, writes from many.
type Conn struct {
	ws  *websocket.Conn
	ctx context.Context // of the stream as a whole: it ends with the call that opened it
	end context.CancelFunc
}

// Stream opens a live stream: exec, attach, logs or copy of an instance (see
// InstanceStream), or work on images (see ImageStream). params is an api.…Request;
// it travels in the first message, never in the URL. ctx bounds the whole stream.
func (s *Store) Stream(ctx context.Context, path string, query url.Values, params any) (*Conn, error) {
	b, err := json.Marshal(params)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode request: %w", err)
	}
	u := path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	tried := map[string]error{}
	for _, e := range s.ring.order() {
		c, turned, err := s.open(ctx, e, u, b)
		switch {
		case err == nil:
			s.ring.good(e)
			return c, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case turned && errs.KindOf(err) != errs.Unavailable:
			return nil, err
		}
		s.ring.bad(e, err)
		tried[e.base] = err
	}
	if len(tried) == 1 {
		for _, err := range tried {
			return nil, err
		}
	}
	return nil, s.none(tried)
}

// open opens a stream on one server. What is asked for goes over the open stream
// only, so a server that turned it away or did not answer has begun nothing.
func (s *Store) open(ctx context.Context, e *endpoint, path string, params []byte) (c *Conn, turned bool, err error) {
	h := http.Header{}
	s.headers(h)
	sctx, cancel := context.WithCancel(ctx)
	if s.ring.several() {
		timer := time.AfterFunc(s.cfg.DialTimeout+s.cfg.TryTimeout, cancel)
		defer timer.Stop()
	}
	ws, resp, err := websocket.Dial(sctx, e.base+path, &websocket.DialOptions{HTTPClient: s.stream, HTTPHeader: h, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		cancel()
		if resp != nil && resp.StatusCode >= 400 {
			return nil, true, problem(resp)
		}
		return nil, false, s.unreachable(ctx, e, dialError(err))
	}
	ws.SetReadLimit(maxMessage)
	if err := ws.Write(sctx, websocket.MessageText, params); err != nil {
		ws.CloseNow()
		cancel()
		return nil, false, errs.New(errs.Unavailable, "open stream: %w", err)
	}
	return &Conn{ws: ws, ctx: sctx, end: cancel}, false, nil
}

// dialError drops the URL that the HTTP client puts into its errors.
func dialError(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// InstanceStream opens verb exec, attach, logs or copy of an instance.
func (s *Store) InstanceStream(ctx context.Context, ref api.Ref, verb string, params any) (*Conn, error) {
	return s.Stream(ctx, "/v1/instances/"+url.PathEscape(ref.Name)+"/"+verb, url.Values{"tenant": {ref.Tenant}}, params)
}

// ImageStream opens pull, import, export or push; node "" lets the server choose.
func (s *Store) ImageStream(ctx context.Context, req api.ImageRequest, node string) (*Conn, error) {
	q := url.Values{"tenant": {req.Tenant}}
	if node != "" {
		q.Set("node", node)
	}
	return s.Stream(ctx, "/v1/images/"+url.PathEscape(req.Verb)+"/stream", q, req)
}

// Read gives the next message: its channel (api.Chan…) and payload. The last one
// is api.ChanExit; after it, io.EOF.
func (c *Conn) Read() (ch byte, p []byte, err error) {
	typ, b, err := c.ws.Read(c.ctx)
	switch {
	case err != nil && c.ctx.Err() != nil:
		return 0, nil, c.ctx.Err()
	case websocket.CloseStatus(err) == websocket.StatusNormalClosure:
		return 0, nil, io.EOF
	case err != nil: // not wrapped: the io.EOF inside would look like a good end
		return 0, nil, errs.New(errs.Unavailable, "the stream broke off: %s", err.Error()).WithHint("the server may be restarting; try again")
	case typ != websocket.MessageBinary || len(b) == 0:
		return 0, nil, errs.New(errs.Invalid, "the stream has a message without a channel")
	}
	return b[0], b[1:], nil
}

const piece = 64 << 10 // of input; small enough to share a slow line with sizes and signals

// Write sends p on a channel; it may be split into several messages. An empty p on
// api.ChanStdin closes the input.
func (c *Conn) Write(ch byte, p []byte) error {
	buf := make([]byte, 0, min(len(p), piece)+1)
	for {
		n := min(len(p), piece)
		buf = append(append(buf[:0], ch), p[:n]...)
		if err := c.ws.Write(c.ctx, websocket.MessageBinary, buf); err != nil {
			if c.ctx.Err() != nil {
				return c.ctx.Err()
			}
			return errs.New(errs.Unavailable, "the stream broke off: %w", err)
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// WriteJSON sends v as one message.
func (c *Conn) WriteJSON(ch byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return errs.New(errs.Internal, "encode message: %w", err)
	}
	return c.Write(ch, b)
}

// Writer sends all that is written on one channel; nothing closes it.
func (c *Conn) Writer(ch byte) io.Writer { return chanWriter{c, ch} }

type chanWriter struct {
	c  *Conn
	ch byte
}

func (w chanWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // an empty message would close the input
	}
	if err := w.c.Write(w.ch, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close ends the stream at once.
func (c *Conn) Close() error {
	defer c.end()
	return c.ws.CloseNow()
}

// ExitError is the error in an exit message, nil when the stream itself went well;
// the command's own exit code is in Code.
func ExitError(x api.StreamExit) error {
	if x.Kind == "" {
		return nil
	}
	return &errs.Error{Kind: errs.Kind(x.Kind), Msg: x.Message, Hint: x.Hint}
}

// WhoAmI is who the server takes the caller for.
type WhoAmI struct {
	User     string     `json:"user"`
	Node     string     `json:"node"`
	Admin    bool       `json:"admin"`
	Via      string     `json:"via"` // socket, token, certificate
	Token    string     `json:"token"`
	Expires  *time.Time `json:"expires"`
	Bindings []struct {
		Role   string `json:"role"`
		Tenant string `json:"tenant"`
	} `json:"bindings"`
}

// WhoAmI asks who the server takes the caller for.
func (s *Store) WhoAmI(ctx context.Context) (WhoAmI, error) {
	var out WhoAmI
	err := s.json(ctx, request{method: "GET", path: "/v1/whoami"}, &out)
	return out, err
}

// Usage asks what nodes, tenants and instances use now; tenant "" is all.
func (s *Store) Usage(ctx context.Context, tenant string) (api.UsageReport, error) {
	q := url.Values{}
	if tenant != "" {
		q.Set("tenant", tenant)
	}
	var out api.UsageReport
	err := s.json(ctx, request{method: "GET", path: "/v1/usage", query: q}, &out)
	return out, err
}

// Version is the server's version.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	API     string `json:"api"`
}

// Version asks for the server's version; no rights are needed.
func (s *Store) Version(ctx context.Context) (Version, error) {
	var out Version
	err := s.json(ctx, request{method: "GET", path: "/version"}, &out)
	return out, err
}

// Ready reports whether the server can do its work: nil, or errs.Unavailable.
func (s *Store) Ready(ctx context.Context) error {
	resp, _, err := s.do(ctx, request{method: "GET", path: "/readyz", once: true})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Backup writes the whole state of the control plane to w.
func (s *Store) Backup(ctx context.Context, w io.Writer) (int64, error) {
	resp, _, err := s.do(ctx, request{method: "GET", path: "/v1/backup", slow: true})
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(w, resp.Body)
	if err != nil {
		return n, errs.New(errs.Unavailable, "the backup broke off after %d bytes: %w", n, err).WithHint("do not keep this file; try again")
	}
	return n, nil
}

// Restore replaces the whole state of the control plane by a backup.
func (s *Store) Restore(ctx context.Context, r io.Reader) (int64, error) {
	var out struct {
		Revision int64 `json:"revision"`
	}
	in := request{method: "POST", path: "/v1/backup", stream: r, header: map[string]string{"Content-Type": "application/octet-stream"}}
	err := s.json(ctx, in, &out)
	return out.Revision, err
}

// Logs reads output as plain text, for where no live stream is needed.
func (s *Store) Logs(ctx context.Context, ref api.Ref, req api.LogRequest, w io.Writer) error {
	c, err := s.InstanceStream(ctx, ref, "logs", req)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		ch, p, err := c.Read()
		if err != nil {
			return err
		}
		switch ch {
		case api.ChanStdout, api.ChanStderr:
			if _, err := w.Write(p); err != nil {
				return err
			}
		case api.ChanExit:
			var x api.StreamExit
			if err := json.Unmarshal(p, &x); err != nil {
				return errs.New(errs.Internal, "the end of the stream cannot be read: %s", strings.TrimSpace(err.Error()))
			}
			return ExitError(x)
		}
	}
}
