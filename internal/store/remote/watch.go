package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
)

const (
	retryMin = 20 * time.Millisecond
	retryMax = 2 * time.Second
	silence  = 45 * time.Second // three heartbeats missed: the connection is dead
	maxLine  = 4 << 20          // an object of 1 MiB, with room for escapes
)

// Watch follows changes. When the connection breaks it comes back by itself, to
// another server where there is one, and goes on after the last change it told of:
// revisions are the same on all servers.
func (s *Store) Watch(ctx context.Context, sel api.Selector, rev int64, fn func(store.Event) error) error {
	w := &watch{s: s, sel: sel, start: rev, fn: fn}
	pause := retryMin
	for {
		before := w.told
		err := w.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if w.fnErr != nil {
			return w.fnErr
		}
		if final(err) {
			return err
		}
		if w.told != before {
			pause = retryMin
		}
		if err := (clock.Real{}).Sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(pause*2, retryMax)
	}
}

// final reports whether trying again cannot help.
func final(err error) bool {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.Timeout, errs.Internal:
		return false
	}
	return true
}

type watch struct {
	s     *Store
	sel   api.Selector
	start int64
	fn    func(store.Event) error
	fnErr error

	told int64 // events told so far
	last int64 // revision of the last of them, 0 before the first
	same int   // how many of them were of that revision
}

type line struct {
	Type     string          `json:"type"`
	Revision int64           `json:"revision"`
	More     bool            `json:"more"`
	Object   json.RawMessage `json:"object"`
	Error    json.RawMessage `json:"error"`
}

// once reads one connection to its end. A commit may hold several changes of one
// revision; as the connection may have broken between them, the next one starts a
// revision earlier and passes over what was told.
func (w *watch) once(ctx context.Context) error {
	path, q, err := listPlace(w.sel)
	if err != nil {
		return err
	}
	from, skip := w.start, 0
	if w.last > 0 {
		from, skip = w.last-1, w.same
	}
	q.Set("watch", "true")
	q.Set("rev", strconv.FormatInt(from, 10))
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, server, err := w.s.do(ctx, request{method: "GET", path: path, query: q})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if w.s.cfg.Socket == "" {
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { w.guard(ctx, cancel, server) })
	}
	err = w.read(ctx, cancel, resp.Body, skip)
	if w.fnErr == nil && outer.Err() == nil && !final(err) {
		w.s.ring.bad(server, err) // it ended what has no end: the next server is asked at once
	}
	return err
}

// guard ends a watch whose server stays connected but is not ready any more: another
// one may be.
func (w *watch) guard(ctx context.Context, cancel context.CancelFunc, e *endpoint) {
	every := w.s.cfg.Probe
	pause := every
	for w.s.ring.clock.Sleep(ctx, pause) == nil {
		pause = every
		if !w.s.ring.several() {
			continue // there may be others later
		}
		if !w.s.ring.look(e, every) { // another watch has looked
			if w.s.ring.failed(e) {
				cancel()
				return
			}
			pause = min(every, probeTimeout) // what it saw is known by then
			continue
		}
		if err := w.s.probe(ctx, e); err != nil && ctx.Err() == nil {
			w.s.ring.bad(e, err)
			cancel()
			return
		}
	}
}

// read tells of what comes over one connection, but for the first skip changes of the
// last revision told.
func (w *watch) read(ctx context.Context, cancel context.CancelFunc, body io.Reader, skip int) error {
	// The timer runs only while this side waits for the server, not while fn works.
	dead := time.AfterFunc(silence, cancel)
	defer dead.Stop()
	r := bufio.NewReaderSize(body, 16<<10)
	for {
		dead.Reset(silence)
		b, err := readLine(r)
		dead.Stop()
		if err != nil {
			return err
		}
		var l line
		if err := json.Unmarshal(b, &l); err != nil {
			return errs.New(errs.Unavailable, "watch: a line cannot be read: %w", err)
		}
		switch l.Type {
		case "put", "delete":
			if l.Revision == w.last && skip > 0 {
				skip--
				continue
			}
			if err := w.tell(ctx, l); err != nil {
				return err
			}
		case "error":
			return problemError(l.Error, "in a watch")
		}
	}
}

func (w *watch) tell(ctx context.Context, l line) error {
	o, err := decode(w.sel.Kind, l.Object)
	if err != nil {
		return errs.New(errs.Unavailable, "watch: an object cannot be read: %w", err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if w.fnErr = w.fn(store.Event{Rev: l.Revision, Deleted: l.Type == "delete", More: l.More, Object: o}); w.fnErr != nil {
		return w.fnErr
	}
	if l.Revision != w.last {
		w.last, w.same = l.Revision, 0
	}
	w.same++
	w.told++
	return nil
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var out []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(out)+len(part) > maxLine {
			return nil, errs.New(errs.Unavailable, "watch: a line is over %d bytes", maxLine)
		}
		if err == nil && out == nil {
			return part, nil
		}
		out = append(out, part...)
		switch {
		case err == nil:
			return out, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil, errs.New(errs.Unavailable, "watch: the server ended it")
		default:
			return nil, errs.New(errs.Unavailable, "watch: %w", err)
		}
	}
}
