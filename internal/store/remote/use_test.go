package remote

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// A host that knew one server when it began learns of another: what it asks and what it watches
// goes there when the first is no more.
func TestServersLearntLater(t *testing.T) {
	var watching [2]atomic.Int32
	serve := func(i int) *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("watch") == "" {
				_, _ = w.Write([]byte(`{"items":[],"metadata":{"revision":1}}`))
				return
			}
			watching[i].Add(1)
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
	}
	first, second := serve(0), serve(1)
	defer second.Close()
	s, err := New(Config{Endpoints: []string{first.URL}, Full: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, api.Selector{Kind: api.KindNode}, 1, func(store.Event) error { return nil })
	}()
	waits := func(i int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); watching[i].Load() == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no watch at server %d", i)
			}
		}
	}
	waits(0)
	if err := s.Use([]string{first.URL, second.URL}); err != nil {
		t.Fatal(err)
	}
	first.CloseClientConnections()
	first.Listener.Close()
	waits(1)
	if _, _, err := s.List(t.Context(), api.Selector{Kind: api.KindNode}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := s.Use([]string{"ftp://x"}); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}
