package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

func readResponse(r io.Reader, req *http.Request) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReaderSize(io.LimitReader(r, 64<<10), 4096), req)
}

// Handle serves one live stream; it is the tunnel.Handler of this node. Who calls
// was authorized by the API already.
func (a *Agent) Handle(ctx context.Context, h tunnel.Header, s *tunnel.Stream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	switch h.Verb {
	case tunnel.VerbExec:
		return serve(ctx, h, s, cancel, a.exec)
	case tunnel.VerbAttach:
		return serve(ctx, h, s, cancel, a.attach)
	case tunnel.VerbLogs:
		return serve(ctx, h, s, cancel, a.logs)
	case tunnel.VerbCopy:
		return serve(ctx, h, s, cancel, a.copy)
	case tunnel.VerbImage:
		return serve(ctx, h, s, cancel, a.image)
	case tunnel.VerbNet:
		return serve(ctx, h, s, cancel, a.net)
	case tunnel.VerbCapture:
		return serve(ctx, h, s, cancel, a.capture)
	case tunnel.VerbUsage:
		return s.WriteJSON(api.ChanStdout, a.Usage(ctx))
	}
	return errs.New(errs.Unsupported, "this node does not know streams of kind %q", h.Verb)
}

// call is one stream being served: what the peer sends, sorted by channel.
type call struct {
	h      tunnel.Header
	s      *tunnel.Stream
	in     *io.PipeReader
	resize chan api.TermSize
	signal chan string
}

// serve decodes the parameters, sorts what the peer sends, and runs fn. When the
// peer goes away ctx ends.
func serve[P any](ctx context.Context, h tunnel.Header, s *tunnel.Stream, cancel context.CancelFunc, fn func(context.Context, *call, P) error) error {
	var p P
	if err := json.Unmarshal(h.Params, &p); err != nil && len(h.Params) > 0 {
		return errs.New(errs.Invalid, "parameters of %s: %w", h.Verb, err)
	}
	pr, pw := io.Pipe()
	c := &call{h: h, s: s, in: pr, resize: make(chan api.TermSize, 4), signal: make(chan string, 4)}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		defer pw.Close()
		for {
			ch, data, err := s.Read()
			if err != nil {
				return
			}
			c.sort(ch, data, pw)
		}
	})
	err := fn(ctx, c, p)
	pr.Close()
	if err != nil {
		// The peer hears it before the connection is closed under its reader.
		err = s.WriteJSON(api.ChanExit, api.StreamExit{Code: errs.ExitCode(err), Kind: string(errs.KindOf(err)), Message: err.Error(), Hint: errs.HintOf(err)})
	}
	s.Close()
	wg.Wait()
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

func (c *call) sort(ch byte, data []byte, stdin *io.PipeWriter) {
	switch ch {
	case api.ChanStdin:
		if len(data) == 0 {
			stdin.Close()
			return
		}
		// A reader that went away is no reason to end: output goes on.
		_, _ = stdin.Write(data)
	case api.ChanResize:
		var size api.TermSize
		if json.Unmarshal(data, &size) == nil {
			select {
			case c.resize <- size:
			default: // a newer size follows
			}
		}
	case api.ChanSignal:
		select {
		case c.signal <- string(data):
		default:
		}
	}
}

func (c *call) exit(code int) error {
	return c.s.WriteJSON(api.ChanExit, api.StreamExit{Code: code})
}

// running finds the instance's life on this node.
func (a *Agent) running(ctx context.Context, ref api.Ref) (string, life, error) {
	in, err := store.Get[*api.Instance](ctx, a.Store, ref)
	if err != nil {
		return "", life{}, err
	}
	id := runtimeID(in.UID)
	l, ok := a.look(id)
	if !ok || l.runtime == nil {
		return id, l, errs.New(errs.Conflict, "%s does not run on node %s", ref, a.Node).WithHint("atoll why %s", short(ref))
	}
	return id, l, nil
}

func short(ref api.Ref) string { return "instance/" + ref.Name + " --tenant " + ref.Tenant }

func ability[T any](l life, what string) (T, error) {
	t, ok := l.runtime.(T)
	if !ok {
		return t, errs.New(errs.Unsupported, "this isolation cannot %s", what)
	}
	return t, nil
}

func (a *Agent) exec(ctx context.Context, c *call, p api.ExecRequest) error {
	id, l, err := a.running(ctx, c.h.Instance)
	if err != nil {
		return err
	}
	if l.obs.Phase != driver.PhaseRunning {
		return errs.New(errs.Conflict, "%s is not running", c.h.Instance).WithHint("atoll start %s", short(c.h.Instance))
	}
	if len(p.Argv) == 0 {
		return errs.New(errs.Invalid, "exec: no command given")
	}
	ex, err := ability[driver.Execer](l, "run commands")
	if err != nil {
		return err
	}
	st := driver.Stream{Out: c.s.Writer(api.ChanStdout), Resize: c.resize}
	if p.Stdin {
		st.In = c.in
	}
	if !p.TTY {
		st.Err = c.s.Writer(api.ChanStderr)
	}
	code, err := ex.Exec(ctx, id, p, st)
	if err != nil {
		return err
	}
	return c.exit(code)
}

func (a *Agent) logs(ctx context.Context, c *call, p api.LogRequest) error {
	id, l, err := a.running(ctx, c.h.Instance)
	if err != nil {
		return err
	}
	lg, err := ability[driver.Logger](l, "show its output")
	if err != nil {
		return err
	}
	if err := lg.Logs(ctx, id, p, driver.Stream{Out: c.s.Writer(api.ChanStdout), Err: c.s.Writer(api.ChanStderr)}); err != nil {
		return err
	}
	return c.exit(0)
}

// attach follows the output and feeds input. With Wait it is the other half of a
// run: it waits for the first start, and ends with the exit code.
func (a *Agent) attach(ctx context.Context, c *call, p api.AttachRequest) error {
	in, err := store.Get[*api.Instance](ctx, a.Store, c.h.Instance)
	if err != nil {
		return err
	}
	id := runtimeID(in.UID)
	a.set(id, func(l *life) { l.ref = c.h.Instance; l.readers++; l.read = true })
	defer func() {
		a.set(id, func(l *life) { l.readers-- })
		a.engine.Enqueue("instances", c.h.Instance)
	}()
	l, err := a.launched(ctx, c, id, p.Logs.Wait)
	if err != nil && l.failure != nil {
		return c.s.WriteJSON(api.ChanExit, api.StreamExit{Code: startCode(err), Kind: string(errs.KindOf(err)), Message: err.Error(), Hint: errs.HintOf(err)})
	}
	if err != nil {
		return err
	}
	ended := l.ended
	lg, err := ability[driver.Logger](l, "show its output")
	if err != nil {
		return err
	}
	actx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if at, ok := l.runtime.(driver.Attacher); ok {
		st := driver.Stream{Resize: c.resize}
		if p.Stdin {
			st.In = c.in
		}
		if p.Size.Cols > 0 {
			c.resize <- p.Size
		}
		wg.Go(func() { _ = at.Attach(actx, id, st) }) // the output tells what became of it
	}
	wg.Go(func() { a.signals(actx, c, l, id) })
	p.Logs.Follow = true
	err = lg.Logs(ctx, id, p.Logs, driver.Stream{Out: c.s.Writer(api.ChanStdout), Err: c.s.Writer(api.ChanStderr)})
	stop()
	c.in.Close()
	wg.Wait()
	if err != nil {
		return err
	}
	code, err := a.exitCode(ctx, id, ended)
	if err != nil {
		return err
	}
	return c.exit(code)
}

// signals forwards what the caller's Ctrl-C means to the first process.
func (a *Agent) signals(ctx context.Context, c *call, l life, id string) {
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-c.signal:
			if k, ok := l.runtime.(driver.Signaler); ok {
				_ = k.Signal(ctx, id, name) // it may have ended meanwhile
			}
		}
	}
}

// launched waits until an instance has been started once, or failed to; meanwhile
// the caller is told how far its image is.
func (a *Agent) launched(ctx context.Context, c *call, id string, wait bool) (life, error) {
	told := map[string]api.Progress{}
	for {
		l, _ := a.look(id)
		for _, p := range l.pulling {
			if told[p.ID] != p {
				told[p.ID] = p
				if err := c.s.WriteJSON(api.ChanMessage, p); err != nil {
					return life{}, err
				}
			}
		}
		switch {
		case l.failure != nil:
			return l, l.failure
		case l.runtime != nil && (l.launches > 0 || l.obs.Phase == driver.PhaseRunning || l.obs.Phase == driver.PhaseExited):
			return l, nil
		case !wait:
			return l, errs.New(errs.Conflict, "the instance does not run here").WithHint("atoll get instances")
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			return l, ctx.Err()
		}
	}
}

// exitCode waits for the end that follows what was seen.
func (a *Agent) exitCode(ctx context.Context, id string, seen int64) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // its output has ended already
	defer cancel()
	for {
		l, ok := a.look(id)
		if !ok {
			return 0, errs.New(errs.Conflict, "the instance was removed")
		}
		if l.ended > seen || l.obs.Phase == driver.PhaseExited {
			return l.obs.ExitCode, nil
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			return 0, errs.New(errs.Timeout, "the output has ended, but the instance has not")
		}
	}
}

func (a *Agent) copy(ctx context.Context, c *call, p api.CopyRequest) error {
	id, l, err := a.running(ctx, c.h.Instance)
	if err != nil {
		return err
	}
	cp, err := ability[driver.Copier](l, "copy files")
	if err != nil {
		return err
	}
	if p.In {
		err = cp.CopyIn(ctx, id, p.Path, c.in)
	} else {
		err = cp.CopyOut(ctx, id, p.Path, c.s.Writer(api.ChanStdout))
	}
	if err != nil {
		return err
	}
	return c.exit(0)
}

func (a *Agent) image(ctx context.Context, c *call, p api.ImageRequest) error {
	if a.Images == nil {
		return errs.New(errs.Unsupported, "this node keeps no images")
	}
	buf := make([]byte, 256<<10)
	err := a.Images.Handle(ctx, p, ImageStream{
		In: func() ([]byte, error) {
			n, err := c.in.Read(buf)
			return buf[:n], err
		},
		Out: func(b []byte) error { return c.s.Write(api.ChanStdout, b) },
		Progress: func(pr api.Progress) {
			_ = c.s.WriteJSON(api.ChanMessage, pr) // a peer that went away ends ctx
		},
		Commit: a.commitImage,
	})
	if err != nil {
		return err
	}
	a.engine.Enqueue("upkeep", upkeepRef)
	return c.exit(0)
}
