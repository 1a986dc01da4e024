package remote

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

// endpoint is one server.
type endpoint struct {
	base string // https://host:port

	// Guarded by ring.mu.
	fails int
	down  time.Time // the others come first until then
	why   error     // of the last failure
	busy  bool      // it is being looked at
	seen  time.Time // when it was last found ready
}

// ring is the servers there are. The preferred one stays so until it fails; then the
// next that answers is, and the one that failed comes last for a while.
type ring struct {
	clock clock.Clock
	mu    sync.Mutex
	list  []*endpoint
	pref  *endpoint
}

const (
	penaltyMin = time.Second
	penaltyMax = 30 * time.Second
)

// order lists the servers, the one to ask first in front.
func (r *ring) order() []*endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 1 {
		return r.list
	}
	now := r.clock.Now()
	rank := func(e *endpoint) int {
		switch {
		case e == r.pref:
			return 0
		case !now.Before(e.down):
			return 1
		}
		return 2
	}
	out := slices.Clone(r.list)
	slices.SortStableFunc(out, func(a, b *endpoint) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return a.down.Compare(b.down)
	})
	return out
}

func (r *ring) several() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list) > 1
}

// good notes that a server answered.
func (r *ring) good(e *endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.fails, e.down, e.why = 0, time.Time{}, nil
	if r.pref == nil {
		r.pref = e
	}
}

// bad notes that a server did not answer, or said that it cannot.
func (r *ring) bad(e *endpoint, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.down = r.clock.Now().Add(min(penaltyMin<<min(e.fails, 5), penaltyMax))
	e.fails++
	e.why = why
	if r.pref == e {
		r.pref = nil
	}
}

// due is a server whose time in the last row is over and that nobody has looked at since.
func (r *ring) due() *endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.list {
		if e.fails > 0 && !e.busy && !r.clock.Now().Before(e.down) {
			e.busy = true
			return e
		}
	}
	return nil
}

// look reports whether it is time to look at a server, and notes that somebody does.
func (r *ring) look(e *endpoint, every time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	if now.Sub(e.seen) < every {
		return false
	}
	e.seen = now
	return true
}

// failed reports whether a server is one that did not answer when it was asked last.
func (r *ring) failed(e *endpoint) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return e.fails > 0
}

// bases lists the addresses, the preferred one first.
func (r *ring) bases() []string {
	var out []string
	for _, e := range r.order() {
		out = append(out, e.base)
	}
	return out
}

// replace takes a new list. What is known of a server stays known; those no longer
// named stay at the end, for they were given as a way to the pool.
func (r *ring) replace(bases []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.list
	find := func(base string) int {
		return slices.IndexFunc(old, func(e *endpoint) bool { return e.base == base })
	}
	var list []*endpoint
	for _, b := range bases {
		if i := find(b); i >= 0 {
			list = append(list, old[i])
		} else {
			list = append(list, &endpoint{base: b})
		}
	}
	for _, e := range old {
		if !slices.Contains(bases, e.base) && len(list) < maxEndpoints {
			list = append(list, e)
		}
	}
	r.list = list
	if r.pref != nil && !slices.Contains(list, r.pref) {
		r.pref = nil
	}
}

// maxEndpoints is more servers than a pool has.
const maxEndpoints = 16

// address checks the URL of a server and gives it in one form.
func address(s string, secret bool) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return "", errs.New(errs.Invalid, "%q is not the address of a server", s).WithHint("example: https://isle1:7443")
	}
	if u.Scheme == "http" && secret && !loopback(u.Hostname()) {
		return "", errs.New(errs.Invalid, "a token would be sent in the clear to %s", u.Host).WithHint("use https://")
	}
	return u.Scheme + "://" + u.Host, nil
}

// Endpoints lists the servers known, the one that is asked first in front; over a
// socket there are none.
func (s *Store) Endpoints() []string {
	if s.cfg.Socket != "" {
		return nil
	}
	return s.ring.bases()
}

// Answered reports whether a server has answered and still did when it was last asked.
func (s *Store) Answered() bool {
	s.ring.mu.Lock()
	defer s.ring.mu.Unlock()
	return s.ring.pref != nil
}

// RefreshEndpoints asks where the servers of the pool are, and uses these from now on.
// What a server tells is believed only as far as the connection it came over.
func (s *Store) RefreshEndpoints(ctx context.Context) ([]string, error) {
	var in struct {
		Endpoints []struct {
			URL string `json:"url"`
		} `json:"endpoints"`
	}
	if err := s.json(ctx, request{method: "GET", path: "/v1/servers"}, &in); err != nil {
		return nil, err
	}
	if s.cfg.Socket != "" {
		return nil, nil
	}
	secure := !slices.ContainsFunc(s.ring.bases(), func(b string) bool { return strings.HasPrefix(b, "http://") })
	var list []string
	for _, e := range in.Endpoints {
		base, err := address(e.URL, s.cfg.Token != "" || secure)
		if err == nil && !slices.Contains(list, base) && len(list) < maxEndpoints {
			list = append(list, base)
		}
	}
	if len(list) > 0 {
		s.ring.replace(list)
	}
	return s.ring.bases(), nil
}

// Use has these servers asked from now on, besides those known; watches that run stay where they are.
func (s *Store) Use(urls []string) error {
	if s.cfg.Socket != "" {
		return nil
	}
	var list []string
	for _, u := range urls {
		base, err := address(u, s.cfg.Token != "")
		if err != nil {
			return err
		}
		if !slices.Contains(list, base) && len(list) < maxEndpoints {
			list = append(list, base)
		}
	}
	if len(list) > 0 {
		s.ring.replace(list)
	}
	return nil
}

// probe asks a server whether it can do its work.
func (s *Store) probe(ctx context.Context, e *endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", e.base+"/readyz", nil)
	if err != nil {
		return errs.New(errs.Invalid, "make request: %w", err)
	}
	req.Header.Set("User-Agent", s.cfg.Agent)
	resp, err := s.client.Do(req)
	if err != nil {
		return s.unreachable(ctx, e, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return problem(resp)
	}
	return nil
}

// recheck looks in the background at one server that has failed some time ago.
func (s *Store) recheck() {
	e := s.ring.due()
	if e == nil {
		return
	}
	s.background(func(ctx context.Context) {
		err := s.probe(ctx, e)
		s.ring.mu.Lock()
		e.busy = false
		s.ring.mu.Unlock()
		if err != nil {
			s.ring.bad(e, err)
			return
		}
		s.ring.good(e)
	})
}

// none is the error when no server answers: it names each, and why.
func (s *Store) none(tried map[string]error) error {
	var parts []string
	kind, hint := errs.Kind(""), ""
	for _, base := range slices.Sorted(maps.Keys(tried)) {
		err := tried[base]
		k := errs.KindOf(err)
		if kind == "" {
			kind, hint = k, errs.HintOf(err)
		}
		if k != kind {
			kind, hint = errs.Unavailable, "is the pool running, and are these its servers? atoll login URL[,URL…]"
		}
		parts = append(parts, base+" ("+reason(err, base)+")")
	}
	return errs.New(kind, "no server answers: %s", strings.Join(parts, "; ")).WithHint("%s", hint)
}

// reason is an error without what the address beside it says already.
func reason(err error, base string) string {
	return strings.TrimPrefix(err.Error(), "no server answers at "+base+": ")
}

// unknownOutcome is the error of a change that may have been made.
func unknownOutcome(base string, err error) error {
	return errs.New(errs.Unavailable, "%s did not answer (%s): whether the change was made is not known", base, reason(err, base)).
		WithHint("look before you repeat it")
}
