package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

const (
	paramsTimeout = 10 * time.Second // for the first message
	maxParams     = 256 << 10
	pingEvery     = 30 * time.Second
	pingTimeout   = 20 * time.Second
)

// instanceStream serves exec, attach, logs and copy.
func (c *call) instanceStream(verb string) error {
	ref := c.target()
	o, err := c.read(ref, c.route.Verb)
	if err != nil {
		return err
	}
	in, ok := o.(*api.Instance)
	if !ok {
		return errs.New(errs.Internal, "%s is a %T", ref, o)
	}
	if verb == tunnel.VerbLogs && c.r.Header.Get("Upgrade") == "" {
		return c.plainLogs(in)
	}
	if in.Status.Node != "" { // while another server can still be asked
		if err := c.desk.Elsewhere(c.r.Context(), c.Hub.Await(c.r.Context(), in.Status.Node)); err != nil {
			return err
		}
	}
	return c.socket(func(ctx context.Context, params json.RawMessage) (*tunnel.Stream, error) {
		wait := false
		switch verb {
		case tunnel.VerbAttach:
			var p api.AttachRequest
			if err := json.Unmarshal(params, &p); err != nil {
				return nil, badParams(err)
			}
			wait = p.Logs.Wait
		case tunnel.VerbLogs:
			var p api.LogRequest
			if err := json.Unmarshal(params, &p); err != nil {
				return nil, badParams(err)
			}
			wait = p.Wait
		case tunnel.VerbExec:
			var p api.ExecRequest
			if err := json.Unmarshal(params, &p); err != nil {
				return nil, badParams(err)
			}
			if len(p.Argv) == 0 {
				return nil, errs.InvalidFields("exec", []errs.Field{{Field: "argv", Rule: "must name a command", Example: `["sh"]`}})
			}
		case tunnel.VerbCopy:
			var p api.CopyRequest
			if err := json.Unmarshal(params, &p); err != nil {
				return nil, badParams(err)
			}
		}
		node, err := c.nodeOf(ctx, in, wait)
		if err != nil {
			return nil, err
		}
		return c.Hub.Open(ctx, node, tunnel.Header{Verb: verb, Instance: ref, Params: params})
	})
}

func badParams(err error) error {
	return errs.New(errs.Invalid, "read the stream's parameters: %w", err).WithHint("send them as JSON in ?params=, or as the first text message")
}

// nodeOf finds where an instance is: where it runs, or where it was assigned to.
// With wait it waits for the assignment, as long as the instance is there.
func (c *call) nodeOf(ctx context.Context, in *api.Instance, wait bool) (string, error) {
	if in.Status.Node != "" {
		return in.Status.Node, nil
	}
	ref := api.Ref{Kind: api.KindAssignment, Tenant: in.Tenant, Name: in.Name}
	sel := api.Selector{Kind: api.KindAssignment, Tenant: in.Tenant, Name: in.Name}
	list, rev, err := store.List[*api.Assignment](ctx, c.Store, sel)
	if err != nil {
		return "", err
	}
	for _, a := range list {
		if a.Spec.Node != "" && a.Spec.InstanceUID == in.UID {
			return a.Spec.Node, nil
		}
	}
	if !wait {
		return "", errs.New(errs.Conflict, "%s runs nowhere yet", api.RefOf(in)).WithHint("atoll why instance/%s says what it waits for", in.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.AttachTimeout)
	defer cancel()
	return c.awaitNode(ctx, in, ref, rev)
}

type foundNode string

// Error makes it usable to end a watch.
func (f foundNode) Error() string { return "placed on " + string(f) }

// awaitNode watches the assignment, and the instance for its removal.
func (c *call) awaitNode(ctx context.Context, in *api.Instance, ref api.Ref, rev int64) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil) // before the wait: deferred calls run last first
	wg.Go(func() {
		err := c.Store.Watch(ctx, api.Selector{Kind: api.KindInstance, Tenant: in.Tenant, Name: in.Name}, rev, func(ev store.Event) error {
			if ev.Deleted || ev.Object.Metadata().UID != in.UID {
				return errs.New(errs.NotFound, "%s was removed before it started", api.RefOf(in))
			}
			return nil
		})
		cancel(err)
	})
	err := c.Store.Watch(ctx, api.Selector{Kind: ref.Kind, Tenant: ref.Tenant, Name: ref.Name}, rev, func(ev store.Event) error {
		if a, ok := ev.Object.(*api.Assignment); ok && !ev.Deleted && a.Spec.Node != "" && a.Spec.InstanceUID == in.UID {
			return foundNode(a.Spec.Node)
		}
		return nil
	})
	var found foundNode
	if errors.As(err, &found) {
		return string(found), nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, errs.NotFound) {
		return "", cause
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return "", errs.New(errs.Timeout, "%s has no node after %s", api.RefOf(in), c.cfg.AttachTimeout).WithHint("atoll why instance/%s says what it waits for", in.Name)
	}
	return "", err
}

// imageStream serves pull, import, export and push on a node.
func (c *call) imageStream(op string) error {
	q := c.r.URL.Query()
	tenant := q.Get("tenant")
	c.ref = api.Ref{Kind: api.KindImage, Tenant: tenant}
	if err := c.Auth.Authorize(c.id, c.route.Verb, api.KindImage, tenant); err != nil {
		return err
	}
	if err := c.desk.Elsewhere(c.r.Context(), c.Hub.Await(c.r.Context(), q.Get("node"))); err != nil {
		return err
	}
	return c.socket(func(ctx context.Context, params json.RawMessage) (*tunnel.Stream, error) {
		var p api.ImageRequest
		if err := json.Unmarshal(params, &p); err != nil {
			return nil, badParams(err)
		}
		if p.Tenant != "" && p.Tenant != tenant || p.Verb != "" && p.Verb != op {
			return nil, errs.InvalidFields("image", []errs.Field{{Field: "tenant", Value: clip(p.Tenant), Rule: "verb and tenant must be those in the URL, or left out", Example: clip(tenant)}})
		}
		p.Tenant, p.Verb = tenant, op
		if err := c.mayShare(p.Shared); err != nil {
			return nil, err
		}
		node, err := c.imageNode(q.Get("node"), p)
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(p)
		if err != nil {
			return nil, errs.New(errs.Internal, "encode request: %w", err)
		}
		return c.Hub.Open(ctx, node, tunnel.Header{Verb: tunnel.VerbImage, Params: b})
	})
}

// imageNode chooses where: the node asked for, one that has the image, or the first.
func (c *call) imageNode(want string, p api.ImageRequest) (string, error) {
	nodes := c.Hub.Nodes()
	sort.Strings(nodes)
	if want != "" || len(nodes) == 0 {
		return want, nil // Open says when it is not connected
	}
	if p.Verb == "export" || p.Verb == "push" {
		images, _, err := store.List[*api.Image](c.r.Context(), c.Store, api.Selector{Kind: api.KindImage, Tenant: p.Tenant})
		if err != nil {
			return "", err
		}
		for _, im := range images {
			for _, n := range im.Status.Nodes {
				if i := sort.SearchStrings(nodes, n); im.Spec.Reference == p.Reference && i < len(nodes) && nodes[i] == n {
					return n, nil
				}
			}
		}
	}
	return nodes[0], nil
}

// socket upgrades to a WebSocket, reads the parameters, opens the way to the node
// and relays until both sides are done. After the upgrade errors travel as the
// exit frame, which is always the last message.
func (c *call) socket(open func(context.Context, json.RawMessage) (*tunnel.Stream, error)) error {
	release, ok := c.hold("stream", c.id, c.cfg.MaxStreams)
	if !ok {
		return errs.New(errs.Unavailable, "%s has %d streams open already", c.id, c.cfg.MaxStreams).WithHint("close some")
	}
	defer release()
	if c.r.Header.Get("Upgrade") == "" {
		return errs.New(errs.Invalid, "this is a stream: connect to it as a WebSocket").WithHint("over TLS, use HTTP/1.1 for it")
	}
	gauge := c.stats.streams.With()
	gauge.Add(1)
	defer gauge.Add(-1)
	c.w.status = http.StatusSwitchingProtocols
	ws, err := websocket.Accept(c.w, c.r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return errs.New(errs.Invalid, "open stream: %w", err)
	}
	defer ws.CloseNow()
	ws.SetReadLimit(maxParams)
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	params, err := c.params(ctx, ws)
	if err != nil {
		return endSocket(ctx, ws, err)
	}
	ws.SetReadLimit(tunnel.MaxFrame + 1)
	r := &relay{c: c, ws: ws}
	st, err := r.openWhileReading(ctx, cancel, func(ctx context.Context) (*tunnel.Stream, error) { return open(ctx, params) })
	if err != nil {
		if ctx.Err() == nil { // else the caller left
			err = endSocket(ctx, ws, err)
		}
		cancel()
		r.wg.Wait()
		return err
	}
	return r.run(ctx, cancel, st)
}

func (c *call) params(ctx context.Context, ws *websocket.Conn) (json.RawMessage, error) {
	if p := c.r.URL.Query().Get("params"); p != "" {
		if len(p) > maxParams || !json.Valid([]byte(p)) {
			return nil, badParams(errors.New("not JSON"))
		}
		return json.RawMessage(p), nil
	}
	ctx, cancel := context.WithTimeout(ctx, paramsTimeout)
	defer cancel()
	typ, b, err := ws.Read(ctx)
	if err != nil {
		return nil, badParams(err)
	}
	if typ != websocket.MessageText || !json.Valid(b) {
		return nil, badParams(errors.New("not JSON in a text message"))
	}
	return b, nil
}

// endSocket tells a caller why there is no stream.
func endSocket(ctx context.Context, ws *websocket.Conn, err error) error {
	p := problemOf(err)
	x := api.StreamExit{Code: errs.ExitCode(err), Kind: string(errs.KindOf(err)), Message: p.Detail, Hint: p.Hint}
	b, jerr := json.Marshal(x)
	if jerr != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, paramsTimeout)
	defer cancel()
	if ws.Write(ctx, websocket.MessageBinary, append([]byte{api.ChanExit}, b...)) == nil {
		_ = ws.Close(websocket.StatusNormalClosure, "") // the caller may have left already
	}
	return err
}

// relay moves messages between a caller and a node. Each direction has one
// goroutine that reads a message only when the last one was taken, so the slower
// side sets the pace.
type relay struct {
	c   *call
	ws  *websocket.Conn
	wg  sync.WaitGroup
	in  chan []byte // caller's messages, one at a time
	bad error       // why the caller's side ended; read after in is closed
}

// openWhileReading opens the way to the node while it listens to the caller, so
// that a caller who leaves during a long wait is noticed.
func (r *relay) openWhileReading(ctx context.Context, cancel context.CancelFunc, open func(context.Context) (*tunnel.Stream, error)) (*tunnel.Stream, error) {
	r.in = make(chan []byte)
	r.wg.Go(func() {
		defer close(r.in)
		for {
			typ, b, err := r.ws.Read(ctx)
			if err == nil && (typ != websocket.MessageBinary || len(b) == 0 || b[0] != api.ChanStdin && b[0] != api.ChanResize && b[0] != api.ChanSignal) {
				err = errs.New(errs.Invalid, "a message must be binary and start with channel 0 (input), 3 (size) or 4 (signal)")
			}
			if err != nil {
				r.bad = err
				cancel() // the caller is gone: so is the reason for the stream
				return
			}
			select {
			case r.in <- b:
			case <-ctx.Done():
				return
			}
		}
	})
	return open(ctx)
}

// run relays until the node says how it ended, or the caller leaves.
func (r *relay) run(ctx context.Context, cancel context.CancelFunc, st *tunnel.Stream) error {
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	r.wg.Go(func() {
		for b := range r.in {
			if st.Write(b[0], b[1:]) != nil {
				for range r.in { // the node has ended it: take the rest until the caller hears of it
				}
				return
			}
		}
	})
	r.wg.Go(func() { r.ping(ctx, cancel) })
	err := r.down(ctx, st)
	st.Close()
	if err == nil {
		_ = r.ws.Close(websocket.StatusNormalClosure, "") // waits for the caller's close frame, or gives up by itself
	}
	cancel()
	r.ws.CloseNow()
	r.wg.Wait()
	var e *errs.Error
	if errors.As(r.bad, &e) {
		return e
	}
	return err
}

// down carries what the node sends, up to and with the exit frame.
func (r *relay) down(ctx context.Context, st *tunnel.Stream) error {
	var buf []byte
	for {
		ch, p, err := st.Read()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return endSocket(ctx, r.ws, errs.New(errs.Unavailable, "the connection to the node broke: %w", brokenOff(err)).WithHint("it may be restarting; try again"))
		}
		buf = append(append(buf[:0], ch), p...)
		wctx, done := context.WithTimeout(ctx, 10*time.Minute) // a caller may stop reading for a while, such as a paused terminal
		err = r.ws.Write(wctx, websocket.MessageBinary, buf)
		done()
		if err != nil {
			return context.Canceled // the caller went away
		}
		if ch == api.ChanExit {
			return nil
		}
	}
}

func brokenOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ping finds callers that vanished without a word, and rights that were taken.
func (r *relay) ping(ctx context.Context, cancel context.CancelFunc) {
	for r.c.Clock.Sleep(ctx, pingEvery) == nil {
		pctx, done := context.WithTimeout(ctx, pingTimeout)
		err := r.ws.Ping(pctx)
		done()
		if err == nil {
			err = r.c.Auth.Authorize(r.c.id, r.c.route.Verb, r.c.route.kind(), auth.ScopeOfRef(r.c.route.Verb, r.c.ref))
		}
		if err != nil {
			cancel()
			return
		}
	}
}

// plainLogs is logs for curl: text, as it comes.
func (c *call) plainLogs(in *api.Instance) error {
	p, err := c.logParams()
	if err != nil {
		return err
	}
	release, ok := c.hold("stream", c.id, c.cfg.MaxStreams)
	if !ok {
		return errs.New(errs.Unavailable, "%s has %d streams open already", c.id, c.cfg.MaxStreams).WithHint("close some")
	}
	defer release()
	node, err := c.nodeOf(c.r.Context(), in, false)
	if err != nil {
		return err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return errs.New(errs.Internal, "encode request: %w", err)
	}
	st, err := c.Hub.Open(c.r.Context(), node, tunnel.Header{Verb: tunnel.VerbLogs, Instance: api.RefOf(in), Params: b})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(c.r.Context(), func() { st.Close() })
	defer stop()
	defer st.Close()
	return c.copyLogs(st)
}

func (c *call) copyLogs(st *tunnel.Stream) error {
	rc := http.NewResponseController(c.w)
	_ = rc.SetReadDeadline(time.Time{}) // not every writer knows deadlines; then there is none to lift
	c.w.Header().Set("Content-Type", typeText)
	for {
		ch, p, err := st.Read()
		switch {
		case err != nil && c.w.status == 0:
			return errs.New(errs.Unavailable, "the connection to the node broke: %w", brokenOff(err))
		case err != nil:
			panic(http.ErrAbortHandler) // the answer is not whole, and the caller must see that
		case ch == api.ChanStdout || ch == api.ChanStderr:
			_ = rc.SetWriteDeadline(c.Clock.Now().Add(c.cfg.WriteTimeout)) // as above
			if _, err := c.w.Write(p); err != nil {
				return err
			}
			if err := rc.Flush(); err != nil {
				return err
			}
		case ch == api.ChanExit:
			return c.endLogs(p)
		}
	}
}

func (c *call) endLogs(p []byte) error {
	var x api.StreamExit
	if err := json.Unmarshal(p, &x); err != nil {
		return errs.New(errs.Internal, "the node ended the stream in a way that cannot be read: %w", err)
	}
	if x.Kind != "" && c.w.status == 0 {
		return errs.New(errs.Kind(x.Kind), "%s", x.Message).WithHint("%s", x.Hint)
	}
	if c.w.status == 0 {
		c.w.WriteHeader(http.StatusOK)
	}
	return nil
}

func (c *call) logParams() (api.LogRequest, error) {
	q := c.r.URL.Query()
	p := api.LogRequest{Follow: isTrue(q.Get("follow")), Raw: isTrue(q.Get("raw")), Timestamps: isTrue(q.Get("timestamps"))}
	var bad []errs.Field
	if s := q.Get("tail"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			bad = append(bad, errs.Field{Field: "tail", Value: clip(s), Rule: "must be a number of lines", Example: "100"})
		}
		p.Tail = n
	}
	if s := q.Get("since"); s != "" {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			bad = append(bad, errs.Field{Field: "since", Value: clip(s), Rule: "must be a time as in RFC 3339", Example: "2026-01-02T15:04:05Z"})
		}
		p.Since = t
	}
	return p, errs.InvalidFields("request", bad)
}
