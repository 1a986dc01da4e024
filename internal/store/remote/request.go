package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

// request is one call of the API.
type request struct {
	method, path string
	query        url.Values
	header       map[string]string
	body         []byte
	stream       io.Reader // instead of body; it can be sent once only

	safe bool // may be carried out twice without harm; every GET may
	slow bool // a server may take its time before it begins to answer
	// expects: it names the revision of all that it changes, so what was carried out is refused
	// when it is asked for again. Success the second time then says that the first was none.
	expects bool
	once    bool // ask each server once at most: the answer is about it
}

func (r *request) repeatable() bool { return r.safe || r.method == http.MethodGet }

// outcome is what a try at one server came to.
type outcome int

const (
	answered  outcome = iota // for good or ill: this is the answer
	nothing                  // it was not reached
	notYet                   // it says that it did nothing: it is starting
	cannot                   // the server says it cannot now
	uncertain                // it may have been carried out
)

// each asks one server after the other until one answers. read takes the answer in;
// when that breaks off, a question that may be repeated goes to the next server, too.
func (s *Store) each(ctx context.Context, in request, read func(*endpoint, *http.Response) error) error {
	begin := s.ring.clock.Now()
	tried := map[string]error{}
	var doubt error // a try that may have been carried out, when that cannot be asked otherwise
	for round := 0; ; round++ {
		order := s.ring.order()
		again := false
		for _, e := range order {
			limit := s.limit(in, round, len(order))
			what, err := s.try(ctx, e, in, limit, read)
			if what == answered {
				s.ring.good(e)
				s.recheck()
				if err != nil && doubt != nil {
					return doubt // refused, perhaps because it was carried out
				}
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.ring.bad(e, err)
			if what == cannot && !in.repeatable() {
				return cmp.Or(doubt, err)
			}
			if what == uncertain && !in.repeatable() {
				doubt = cmp.Or(doubt, unknownOutcome(s.name(e), err))
				if !in.expects || len(order) == 1 || errs.KindOf(err) == errs.Timeout {
					return doubt
				}
			}
			tried[e.base] = err
			again = again || what != nothing
		}
		if len(order) == 1 {
			return tried[order[0].base]
		}
		if doubt != nil {
			return doubt
		}
		pause := min(retryMin<<min(round, 5), 500*time.Millisecond)
		if !again || in.once || in.stream != nil || s.ring.clock.Now().Sub(begin)+pause > s.cfg.Patience {
			return s.none(tried)
		}
		if err := s.ring.clock.Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// limit is how long a server may take to begin to answer while there are others.
func (s *Store) limit(in request, round, servers int) time.Duration {
	switch {
	case servers == 1 || in.stream != nil:
		return 0
	case !in.repeatable():
		return writeLimit
	case in.slow:
		return 10 * s.cfg.TryTimeout
	}
	return s.cfg.TryTimeout << min(round, 4)
}

// writeLimit is how long a change may take: longer than a server itself waits for its
// store. After it, its outcome is not known.
const writeLimit = 30 * time.Second

// try asks one server.
func (s *Store) try(ctx context.Context, e *endpoint, in request, limit time.Duration, read func(*endpoint, *http.Response) error) (outcome, error) {
	u := e.base + in.path
	if len(in.query) > 0 {
		u += "?" + in.query.Encode()
	}
	tctx, cancel := context.WithCancelCause(ctx)
	var sent atomic.Bool
	tctx = httptrace.WithClientTrace(tctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	var body io.Reader
	switch {
	case in.stream != nil:
		body = io.NopCloser(in.stream)
	case in.body != nil:
		body = bytes.NewReader(in.body)
	}
	req, err := http.NewRequestWithContext(tctx, in.method, u, body)
	if err != nil {
		cancel(nil)
		return answered, errs.New(errs.Invalid, "make request: %w", err)
	}
	s.headers(req.Header)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range in.header {
		req.Header.Set(k, v)
	}
	w := &waiter{limit: limit}
	if limit > 0 {
		w.timer = time.AfterFunc(limit, func() {
			cancel(errs.New(errs.Timeout, "no answer within %s", limit))
		})
	}
	resp, err := s.client.Do(req)
	if err != nil {
		w.stop()
		cause := context.Cause(tctx)
		cancel(nil)
		if ctx.Err() == nil && errs.KindOf(cause) == errs.Timeout {
			err = cause
		} else {
			err = s.unreachable(ctx, e, err)
		}
		if sent.Load() {
			return uncertain, err
		}
		return nothing, err
	}
	w.ReadCloser, w.cancel = resp.Body, cancel
	resp.Body = w
	if resp.StatusCode >= 300 { // a server of ours never sends callers elsewhere
		defer resp.Body.Close()
		return judge(resp, problem(resp))
	}
	err = read(e, resp)
	if _, broke := errors.AsType[*brokeOff](err); broke {
		return uncertain, err
	}
	return answered, err
}

// judge says what an answer means that is not the one asked for.
func judge(resp *http.Response, err error) (outcome, error) {
	switch {
	case resp.Header.Get(api.HeaderNothingDone) != "" && errs.KindOf(err) == errs.Unavailable:
		return notYet, err
	case errs.KindOf(err) == errs.Unavailable || errs.KindOf(err) == errs.Timeout:
		return cannot, err
	}
	return answered, err
}

// waiter is the body of an answer. While it is read, the server has as long for
// each piece as it had for the beginning.
type waiter struct {
	io.ReadCloser
	limit  time.Duration
	timer  *time.Timer // nil: without a limit
	cancel context.CancelCauseFunc
}

// Read gives the next piece.
func (w *waiter) Read(p []byte) (int, error) {
	if w.timer != nil {
		w.timer.Reset(w.limit)
	}
	n, err := w.ReadCloser.Read(p)
	w.stop()
	return n, err
}

// stop lifts the limit until the next read.
func (w *waiter) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// forever lifts the limit for good: the answer is a stream.
func (w *waiter) forever() {
	w.stop()
	w.timer = nil
}

// Close ends the request.
func (w *waiter) Close() error {
	w.stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}

// brokeOff is an answer that was begun and is not whole.
type brokeOff struct{ err error }

func (b *brokeOff) Error() string { return b.err.Error() }
func (b *brokeOff) Unwrap() error { return b.err }

// do gives the answer of a call that went well; the caller closes its body.
func (s *Store) do(ctx context.Context, in request) (*http.Response, *endpoint, error) {
	var resp *http.Response
	var from *endpoint
	err := s.each(ctx, in, func(e *endpoint, r *http.Response) error {
		resp, from = r, e
		if w, ok := r.Body.(*waiter); ok {
			w.forever()
		}
		return nil
	})
	return resp, from, err
}

func (s *Store) json(ctx context.Context, in request, out any) error {
	return s.each(ctx, in, func(_ *endpoint, resp *http.Response) error {
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &brokeOff{errs.New(errs.Unavailable, "the server's answer broke off: %w", err)}
		}
		if err := json.Unmarshal(raw, out); err != nil {
			return errs.New(errs.Unavailable, "the server's answer cannot be read: %w", err)
		}
		return nil
	})
}

// name is how people know a server.
func (s *Store) name(e *endpoint) string {
	if s.cfg.Socket != "" {
		return s.cfg.Socket
	}
	return e.base
}

// unreachable says what to do when there is no server, without the URL's query.
func (s *Store) unreachable(ctx context.Context, e *endpoint, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	where := s.name(e)
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return errs.New(errs.Unauthenticated, "the server at %s shows a certificate of an unknown authority", where).WithHint("trust its ca.crt: atoll login URL --ca-file FILE")
	}
	return errs.New(errs.Unavailable, "no server answers at %s: %w", where, err).WithHint("is it running? start it: atolld up (or make up)")
}
