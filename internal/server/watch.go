package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// watchGrace is how long the answer's status is held back for a store that says at
// once that it cannot: then the caller gets a problem with its status. An event
// ends the wait, so nothing is delayed by it.
const watchGrace = 2 * time.Millisecond

// lines writes a watch: one JSON object per line, flushed at once.
type lines struct {
	c  *call
	rc *http.ResponseController

	mu      sync.Mutex
	w       *bufio.Writer // from linePool while there is something to send; thousands of watches are silent
	started bool
	rev     int64 // the caller has seen everything it may see up to here
}

// watch streams changes. Without rev, what is there comes first, then a ping with
// the revision it was true at.
func (c *call) watch(sel api.Selector, q url.Values) error {
	view, err := c.view(&sel, api.VerbWatch)
	if err != nil {
		return err
	}
	release, ok := c.hold("watch", c.id, c.cfg.MaxWatchers)
	if !ok {
		return errs.New(errs.Unavailable, "%s has %d watches open already", c.id, c.cfg.MaxWatchers).WithHint("close some")
	}
	defer release()
	gauge := c.stats.watchers.With()
	gauge.Add(1)
	defer gauge.Add(-1)

	l := &lines{c: c, rc: http.NewResponseController(c.w)}
	_ = l.rc.SetReadDeadline(time.Time{}) // not every writer knows deadlines; then there is none to lift
	sel.Limit, sel.After = 0, ""
	if s := q.Get("rev"); s != "" {
		if l.rev, err = strconv.ParseInt(s, 10, 64); err != nil || l.rev < 0 {
			return errs.InvalidFields("request", []errs.Field{{Field: "rev", Value: clip(s), Rule: "must be the revision of a list", Example: "42"}})
		}
	} else if err := l.list(sel, view); err != nil {
		return err
	}
	err = l.follow(sel)
	return l.end(err)
}

// follow sends changes until the caller leaves or must not see more. The heartbeat
// has ended when it returns, also by a panic: nothing may write after the handler.
func (l *lines) follow(sel api.Selector) error {
	ctx, cancel := context.WithCancelCause(l.c.r.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { l.beat(ctx, cancel) })
	err := l.c.Store.Watch(ctx, sel, l.rev, func(ev store.Event) error { return l.event(ctx, ev) })
	if ctx.Err() != nil && l.c.r.Context().Err() == nil {
		return context.Cause(ctx)
	}
	return err
}

// list sends what is there as if it were put just now.
func (l *lines) list(sel api.Selector, view func(api.Object) bool) error {
	objs, rev, err := l.c.listVisible(sel, view)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range objs {
		if err := l.put(o, "put", o.Metadata().Revision, true); err != nil {
			return err
		}
	}
	l.rev = rev
	return l.ping()
}

func (l *lines) event(ctx context.Context, ev store.Event) error {
	if err := l.c.Auth.Check(l.c.id); err != nil {
		return err
	}
	// Asked anew for each change: rights may have been taken meanwhile.
	scope := auth.ScopeOf(api.VerbWatch, ev.Object)
	if !l.c.Auth.Allowed(l.c.id, api.VerbWatch, ev.Object.ObjectKind(), scope) || !l.c.visible(ev.Object) {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	kind := "put"
	if ev.Deleted {
		kind = "delete"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.put(ev.Object, kind, ev.Rev, ev.More); err != nil {
		return err
	}
	l.rev = ev.Rev
	if ev.More {
		return nil
	}
	return l.flush()
}

// put writes one line; l.mu is held. more says that others follow at once.
func (l *lines) put(o api.Object, kind string, rev int64, more bool) error {
	b, err := api.Encode(shown(o))
	if err != nil {
		return errs.New(errs.Internal, "encode %s: %w", api.RefOf(o), err)
	}
	l.start()
	tail := ""
	if more {
		tail = `"more":true,`
	}
	fmt.Fprintf(l.w, `{"type":%q,"revision":%d,%s"object":`, kind, rev, tail)
	l.w.Write(b)
	_, err = l.w.WriteString("}\n")
	return err
}

var linePool = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 8<<10) }}

// start is called before anything is written.
func (l *lines) start() {
	if l.w == nil {
		l.w = linePool.Get().(*bufio.Writer)
		l.w.Reset(l.c.w)
	}
	if l.started {
		return
	}
	l.started = true
	h := l.c.w.Header()
	h.Set("Content-Type", typeLines)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	l.c.w.WriteHeader(http.StatusOK)
}

// flush bounds how long a caller may leave the pipe full: who does not read is
// dropped, and comes back from the revision it saw last.
func (l *lines) flush() error {
	_ = l.rc.SetWriteDeadline(l.c.Clock.Now().Add(l.c.cfg.WriteTimeout)) // see watch
	if l.w != nil {
		err := l.w.Flush()
		l.w.Reset(nil) // also its error, and what could not be sent
		linePool.Put(l.w)
		if l.w = nil; err != nil {
			return err
		}
	}
	return l.rc.Flush()
}

func (l *lines) ping() error {
	l.start()
	fmt.Fprintf(l.w, `{"type":"ping","revision":%d}`+"\n", l.rev)
	return l.flush()
}

// beat tells the caller that all is well, and finds out whether it is.
func (l *lines) beat(ctx context.Context, cancel context.CancelCauseFunc) {
	if l.c.Clock.Sleep(ctx, watchGrace) != nil {
		return
	}
	for {
		l.mu.Lock()
		err := l.c.Auth.Check(l.c.id)
		if err == nil {
			err = l.ping()
		}
		l.mu.Unlock()
		if err != nil {
			cancel(err)
			return
		}
		if l.c.Clock.Sleep(ctx, l.c.cfg.Heartbeat) != nil {
			return
		}
	}
}

// end tells a caller whose answer has begun why it ends; before that, a problem says it.
func (l *lines) end(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started || err == nil || l.c.r.Context().Err() != nil && !errors.Is(err, errs.Compacted) {
		return err
	}
	b, jerr := json.Marshal(problemOf(err))
	if jerr != nil {
		return err
	}
	l.start()
	fmt.Fprintf(l.w, `{"type":"error","revision":%d,"error":%s}`+"\n", l.rev, b)
	_ = l.flush() // the caller may be the reason for the end
	return err
}
