package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/metrics"
)

// Record is one call, for the audit log.
type Record struct {
	At     time.Time
	Who    auth.Identity
	Source string // address, or the host account
	Route  string // GET /v1/instances/{name}
	Verb   api.Verb
	Ref    api.Ref
	Status int       // HTTP status
	Kind   errs.Kind // "" when it went well
	Took   time.Duration
}

// call is one request on its way.
type call struct {
	*Server
	w      *recorder
	r      *http.Request
	route  *Route
	id     auth.Identity
	source string
	ref    api.Ref // what it is about, as far as known
	begun  bool    // the route's own code has it: something may have been done
}

// recorder remembers the status. It unwraps for http.ResponseController and for WebSockets.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write notes that all is well unless said otherwise.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap gives the writer below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Flush sends what was written.
func (r *recorder) Flush() error { return http.NewResponseController(r.ResponseWriter).Flush() }

type stats struct {
	requests, took, inflight, watchers, streams, tunnels *metrics.Vec
}

func newStats(r *metrics.Registry) stats {
	return stats{
		requests: r.Counter("atoll_http_requests_total", "Requests answered, by route, method and status.", "route", "method", "code"),
		took: r.Histogram("atoll_http_request_seconds", "Time from request to answer, without watches and streams.",
			[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}, "route", "method"),
		inflight: r.Gauge("atoll_http_inflight", "Requests being answered."),
		watchers: r.Gauge("atoll_http_watchers", "Watches open."),
		streams:  r.Gauge("atoll_http_streams", "Live streams open."),
		tunnels:  r.Gauge("atoll_http_tunnels", "Connections of nodes open."),
	}
}

// serve makes the handler of a route: the one way in. Authentication and the
// route's right come before the route's own code.
func (s *Server) serve(rt *Route) http.Handler {
	inflight := s.stats.inflight.With()
	took := s.stats.took.With(rt.Path, rt.Method)
	ok := s.stats.requests.With(rt.Path, rt.Method, "200")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.Clock.Now()
		inflight.Add(1)
		defer inflight.Add(-1)
		if stop, ok := r.Context().Value(stopKey{}).(context.Context); ok && (rt.Long || isTrue(r.URL.Query().Get("watch"))) {
			ctx, cancel := context.WithCancel(r.Context())
			defer context.AfterFunc(stop, cancel)()
			r = r.WithContext(ctx)
		}
		c := &call{Server: s, w: &recorder{ResponseWriter: w}, r: r, route: rt, ref: api.Ref{Kind: rt.kind()}}
		err := c.run()
		if err != nil {
			c.fail(err)
		}
		d := s.Clock.Now().Sub(start)
		switch {
		case c.w.status == http.StatusOK:
			ok.Inc()
		case c.w.status != 0:
			s.stats.requests.With(rt.Path, rt.Method, strconv.Itoa(c.w.status)).Inc()
		}
		if !rt.Long {
			took.Observe(d.Seconds())
		}
		rec := Record{At: start, Who: c.id, Source: c.source, Route: rt.Method + " " + rt.Path, Verb: rt.Verb, Ref: c.ref, Status: c.w.status, Took: d}
		if err != nil {
			rec.Kind = errs.KindOf(err)
		}
		s.Audit(rec)
	})
}

func (c *call) run() (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			c.Log.Error("request handler panicked", slog.Any("panic", p), slog.String("route", c.route.Path), slog.String("stack", string(debug.Stack())))
			err = errs.New(errs.Internal, "the server made a mistake; it has been logged")
		}
	}()
	c.source = c.whence()
	if c.route.Public {
		c.begun = true
		return c.route.handle(c)
	}
	if err := c.authenticate(); err != nil {
		return err
	}
	if err := c.gate(); err != nil {
		return err
	}
	if c.route.ID != toldVersion {
		if err := c.Upgrades.Admit(c.id, c.r); err != nil {
			return err
		}
	}
	c.begun = true
	return c.route.handle(c)
}

// whence is where the call comes from: an address, or an account of this host.
func (c *call) whence() string {
	if info, ok := c.r.Context().Value(connKey{}).(*connInfo); ok && info.cred != nil {
		return "uid " + strconv.FormatUint(uint64(info.cred.UID), 10)
	}
	if host, _, err := net.SplitHostPort(c.r.RemoteAddr); err == nil {
		return host
	}
	return c.r.RemoteAddr
}

// authenticate finds the caller: a bearer token where one is shown, else the
// client's certificate, else the account at the other end of the unix socket.
func (c *call) authenticate() error {
	ctx := c.r.Context()
	info, _ := ctx.Value(connKey{}).(*connInfo)
	if id, ok := ctx.Value(asKey{}).(auth.Identity); ok {
		c.id = id
		return c.Auth.Check(id)
	}
	var err error
	if h := c.r.Header.Get("Authorization"); h != "" {
		scheme, token, _ := strings.Cut(h, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return errs.New(errs.Unauthenticated, "only bearer tokens are understood").WithHint("send the header Authorization: Bearer atoll_NAME_SECRET")
		}
		c.id, err = c.Auth.Bearer(strings.TrimSpace(token), c.source)
		return err
	}
	if id, ok := auth.Certificate(c.r.TLS); ok {
		c.id = id
		return c.desk.Recognise(ctx, id) // the certificate alone is not enough
	}
	if info != nil && info.cred != nil {
		c.id, err = c.Auth.Host(info.cred.UID)
		return err
	}
	return errs.New(errs.Unauthenticated, "who are you? no token was sent").
		WithHint("send the header Authorization: Bearer atoll_NAME_SECRET (make a token: atoll token create NAME), or use the unix socket")
}

// gate checks the right the route's row asks for, as far as the URL tells: for an
// object whose tenant only the body or the store knows, that the caller has the
// right anywhere at all. What is left is checked where the object is at hand.
func (c *call) gate() error {
	rt := c.route
	if rt.Known {
		return nil
	}
	q := c.r.URL.Query()
	tenant, nested := q.Get("tenant"), isTrue(q.Get("nested"))
	if rt.Def == nil { // rights over everything, not over a kind
		return c.Auth.Authorize(c.id, rt.Verb, rt.kind(), "")
	}
	name := c.r.PathValue("name")
	if rt.Def.Kind == api.KindMember {
		if err := c.Auth.Own(c.id, api.Ref{Kind: api.KindMember, Name: name}); err != nil {
			return err
		}
	}
	if rt.Def.Kind == api.KindTenant && name != "" {
		return c.Auth.Authorize(c.id, rt.Verb, api.KindTenant, auth.ScopeOfRef(rt.Verb, api.Ref{Kind: api.KindTenant, Name: name}))
	}
	switch {
	case poolWide(rt.Def):
		return c.Auth.Authorize(c.id, rt.Verb, rt.Def.Kind, "")
	case rt.Def.Tenanted && name != "":
		return c.Auth.Authorize(c.id, rt.Verb, rt.Def.Kind, tenant)
	}
	everywhere, roots := c.Auth.Roots(c.id, rt.Verb, rt.Def.Kind)
	if everywhere {
		return nil
	}
	for _, root := range roots {
		if tenant == "" || api.WithinTenant(tenant, root) || nested && api.WithinTenant(root, tenant) {
			return nil
		}
	}
	return c.Auth.Authorize(c.id, rt.Verb, rt.Def.Kind, tenant)
}

// poolWide reports whether rights over a kind are always rights in the pool itself.
func poolWide(d *api.Definition) bool {
	switch d.Kind {
	case api.KindTenant, api.KindRoleBinding, api.KindToken:
		return false
	}
	return !d.Tenanted
}

// fail answers with a problem, unless an answer was begun already.
func (c *call) fail(err error) {
	if errors.Is(err, context.Canceled) && c.r.Context().Err() != nil {
		if c.w.status == 0 {
			c.w.status = 499 // the caller went away; nobody reads this
		}
		return
	}
	if errors.Is(err, context.DeadlineExceeded) && errs.KindOf(err) == errs.Internal {
		err = errs.New(errs.Timeout, "the request took too long")
	}
	if errs.KindOf(err) == errs.Internal {
		c.Log.Error("request failed", slog.String("route", c.route.Path), slog.String("who", c.id.String()), slog.Any("error", err))
	}
	if c.w.status != 0 {
		return
	}
	if !c.begun {
		c.w.Header().Set(api.HeaderNothingDone, "true")
	}
	writeProblem(c.w, err)
}
