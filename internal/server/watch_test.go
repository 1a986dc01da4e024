package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/remote"
)

type watchLine struct {
	Type     string
	Revision int64
	Object   struct{ Metadata api.Meta }
	Error    Problem
}

// open watches path as who; next gives line by line, without pings unless asked.
func (f *fixture) open(who auth.Identity, path string) (next func(pings bool) watchLine, status int) {
	f.t.Helper()
	hs := httptest.NewServer(f.As(who))
	f.t.Cleanup(hs.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	f.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", hs.URL+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := hs.Client().Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { resp.Body.Close() })
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 4<<20)
	return func(pings bool) watchLine {
		f.t.Helper()
		for sc.Scan() {
			var l watchLine
			if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
				f.t.Fatalf("%v in %s", err, sc.Bytes())
			}
			if l.Type != "ping" || pings {
				return l
			}
		}
		f.t.Fatalf("the watch ended: %v", sc.Err())
		return watchLine{}
	}, resp.StatusCode
}

func TestWatchStartsWithWhatIsThere(t *testing.T) {
	f := newFixture(t, Config{Heartbeat: 20 * time.Millisecond})
	f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", "a"))).want(201)
	f.do(root(), "POST", "/v1/instances", encode(t, instance("demo", "hidden"))).want(201)
	next, status := f.open(as("ann"), "/v1/instances?watch=true")
	if status != 200 {
		t.Fatal(status)
	}
	if l := next(true); l.Type != "put" || l.Object.Metadata.Name != "a" {
		t.Fatalf("%+v", l)
	}
	start := next(true)
	if start.Type != "ping" || start.Revision < 3 {
		t.Fatalf("no mark after the list: %+v", start)
	}
	f.do(root(), "POST", "/v1/instances", encode(t, instance("demo", "hidden2"))).want(201)
	f.do(as("ann"), "DELETE", "/v1/instances/a?tenant=acme", "").want(202)
	if l := next(false); l.Type != "put" || l.Object.Metadata.DeletedAt == nil {
		t.Fatalf("%+v", l)
	}
	if _, err := f.mem.Commit(t.Context(), store.Remove(api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: "a"}, store.Any)); err != nil {
		t.Fatal(err)
	}
	gone := next(false)
	if gone.Type != "delete" || gone.Object.Metadata.Name != "a" {
		t.Fatalf("%+v", gone)
	}
	for range 3 {
		if l := next(true); l.Type != "ping" || l.Revision != gone.Revision {
			t.Fatalf("heartbeat %+v", l)
		}
	}
	// A resumed watch sees only what came later.
	again, _ := f.open(as("ann"), fmt.Sprintf("/v1/instances?watch=true&rev=%d", start.Revision))
	if l := again(false); l.Type != "put" || l.Object.Metadata.DeletedAt == nil {
		t.Fatalf("%+v", l)
	}
}

func TestWatchCompacted(t *testing.T) {
	f := newFixture(t, Config{})
	for i := range 5 {
		f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", fmt.Sprint("i", i)))).want(201)
	}
	if err := f.mem.Compact(t.Context(), f.mem.Revision()); err != nil {
		t.Fatal(err)
	}
	f.do(as("ann"), "GET", "/v1/instances?watch=true&rev=2", "").problem(errs.Compacted)
	s, _ := f.served(as("ann"), false)
	err := s.Watch(background(t), api.Selector{Kind: api.KindInstance}, 2, func(store.Event) error { return nil })
	if !errors.Is(err, errs.Compacted) {
		t.Fatal(err)
	}
}

// A right that is taken ends what the watch shows; a user who is suspended loses it.
func TestWatchLosesRights(t *testing.T) {
	f := newFixture(t, Config{Heartbeat: 10 * time.Millisecond})
	next, _ := f.open(as("ann"), "/v1/instances?watch=true&tenant=acme")
	next(true)
	f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", "a"))).want(201)
	if l := next(false); l.Object.Metadata.Name != "a" {
		t.Fatalf("%+v", l)
	}
	f.do(root(), "DELETE", "/v1/rolebindings/ann", "").want(200)
	f.do(root(), "POST", "/v1/instances", encode(t, instance("acme", "secret"))).want(201)
	for range 3 {
		if l := next(true); l.Type != "ping" {
			t.Fatalf("still shown: %+v", l)
		}
	}
	f.do(root(), "PATCH", "/v1/users/ann", `{"spec":{"suspended":true}}`).want(200)
	l := next(false)
	if l.Type != "error" || l.Error.Type != ProblemType+"denied" {
		t.Fatalf("%+v", l)
	}
}

func TestWatchersAreBounded(t *testing.T) {
	f := newFixture(t, Config{MaxWatchers: 2})
	for range 2 {
		f.open(as("ann"), "/v1/instances?watch=true")
	}
	f.do(as("ann"), "GET", "/v1/instances?watch=true", "").problem(errs.Unavailable)
	if _, status := f.open(as("vera"), "/v1/instances?watch=true"); status != 200 {
		t.Fatal("one user's watches count for another")
	}
}

// The remote store survives connections that break anywhere, without losing or repeating a change.
func TestRemoteWatchReconnects(t *testing.T) {
	f := newFixture(t, Config{})
	var cut atomic.Int64
	inner := f.As(root())
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			inner.ServeHTTP(w, r)
			return
		}
		if cut.Add(1)%3 == 0 {
			w.WriteHeader(http.StatusBadGateway) // not a problem document: a proxy in between
			return
		}
		inner.ServeHTTP(&cutting{ResponseWriter: w, left: 700}, r)
	}))
	t.Cleanup(hs.Close)
	s := f.remote(remote.Config{URL: hs.URL, Full: true})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	start := f.mem.Revision()
	var want []string
	for i := range 12 {
		a, b := fmt.Sprintf("a%02d", i), fmt.Sprintf("b%02d", i)
		if _, err := f.mem.Commit(ctx, store.Create(instance("t", a)), store.Create(instance("t", b))); err != nil {
			t.Fatal(err)
		}
		want = append(want, a, b)
	}
	var got []string
	enough := errors.New("enough")
	err := s.Watch(ctx, api.Selector{Kind: api.KindInstance}, start, func(ev store.Event) error {
		if got = append(got, ev.Object.Metadata().Name); len(got) == len(want) {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("%v\n got %v\nwant %v", err, got, want)
	}
	if cut.Load() < 5 {
		t.Fatalf("the connection broke only %d times", cut.Load())
	}
}

// cutting breaks a connection after so many bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		_, _ = c.ResponseWriter.Write(p[:len(p)/2])
		return 0, io.ErrClosedPipe
	}
	return c.ResponseWriter.Write(p)
}

func (c *cutting) Unwrap() http.ResponseWriter { return c.ResponseWriter }
