package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// serve makes a client of a server that is played by fn.
func serve(t testing.TB, fn http.HandlerFunc) *Store {
	t.Helper()
	hs := httptest.NewServer(fn)
	t.Cleanup(hs.Close)
	s, err := New(Config{URL: hs.URL, Token: "atoll_t_secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestLabelText(t *testing.T) {
	for _, s := range []string{"", "app", "!app", "app=db", "app!=db", "app in (a b c)", "app=", "a=b,!c,d!=e,f in (g h),example.com/x=y"} {
		terms, err := api.ParseLabels(s)
		if err != nil {
			t.Fatal(err)
		}
		text, err := labelText(terms)
		if err != nil {
			t.Fatal(err)
		}
		again, err := api.ParseLabels(text)
		if err != nil || !reflect.DeepEqual(terms, again) {
			t.Errorf("%q became %q: %+v, %v", s, text, again, err)
		}
	}
	if text, err := labelText([]api.LabelTerm{{Key: "a", Values: []string{"x", "y"}, Not: true}}); err != nil || text != "a!=x,a!=y" {
		t.Errorf("%q %v", text, err)
	}
	if _, err := labelText([]api.LabelTerm{{Key: "a", Values: []string{"x,b=c"}}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a value became a selector: %v", err)
	}
}

// An error crosses the wire whole.
func TestProblems(t *testing.T) {
	answer := `{"type":"urn:atoll:error:quota","title":"x","status":429,"detail":"too much","hint":"less","fields":[{"field":"spec.limits.cpu","value":"9","rule":"at most 4","example":"4"}]}`
	status := 429
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer atoll_t_secret" {
			t.Errorf("authorization %q", r.Header.Get("Authorization"))
		}
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	})
	_, err := s.Get(bounded(t), api.Ref{Kind: api.KindNode, Name: "x"})
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Quota || e.Msg != "too much" || e.Hint != "less" || len(e.Fields) != 1 || e.Fields[0].Example != "4" {
		t.Fatalf("%+v", err)
	}
	for what, text := range map[string]string{"a proxy": "<html>502</html>", "nothing": "", "other JSON": `{"type":"about:blank"}`} {
		if answer, status = text, 502; true {
			_, err = s.Get(bounded(t), api.Ref{Kind: api.KindNode, Name: "x"})
		}
		if !errors.Is(err, errs.Unavailable) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", what, err)
		}
	}
	answer, status = `{"kind":"User"}`, 200
	if _, err = s.Get(bounded(t), api.Ref{Kind: api.KindNode, Name: "x"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("another kind than asked for: %v", err)
	}
	answer = `{"kind":"Node","metadata"`
	if _, err = s.Get(bounded(t), api.Ref{Kind: api.KindNode, Name: "x"}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("half an answer: %v", err)
	}
	if _, err = s.Get(bounded(t), api.Ref{Kind: api.KindNode}); !errors.Is(err, errs.Invalid) {
		t.Errorf("no name: %v", err)
	}
}

// The token stays with the server it was meant for.
func TestRedirectsAreNotFollowed(t *testing.T) {
	visited := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visited = true }))
	defer other.Close()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	if _, err := s.WhoAmI(bounded(t)); !errors.Is(err, errs.Unavailable) || visited {
		t.Fatalf("visited %v, %v", visited, err)
	}
}

func node(name string) json.RawMessage {
	b, _ := api.Encode(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: name}}})
	return b
}

// A commit of several changes that is cut in the middle is told once and whole.
func TestWatchResumesInsideACommit(t *testing.T) {
	var froms []string
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		from := r.URL.Query().Get("rev")
		froms = append(froms, from)
		send := func(rev int, names ...string) {
			for _, n := range names {
				fmt.Fprintf(w, `{"type":"put","revision":%d,"object":%s}`+"\n", rev, node(n))
			}
		}
		switch len(froms) {
		case 1:
			send(6, "a")
			send(7, "b", "c")
			fmt.Fprint(w, `{"type":"put","revision":7,"obj`) // cut here
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"type":"urn:atoll:error:unavailable","detail":"starting"}`)
		case 3:
			fmt.Fprint(w, `{"type":"ping","revision":7}`+"\n")
			send(7, "b", "c", "d", "e")
			send(8, "f")
			fmt.Fprintf(w, `{"type":"delete","revision":9,"object":%s}`+"\n", node("a"))
		default:
			fmt.Fprint(w, `{"type":"error","revision":9,"error":{"type":"urn:atoll:error:compacted","detail":"gone"}}`+"\n")
		}
	})
	var got []string
	err := s.Watch(bounded(t), api.Selector{Kind: api.KindNode}, 5, func(ev store.Event) error {
		got = append(got, fmt.Sprintf("%d%s %v", ev.Rev, ev.Object.Metadata().Name, ev.Deleted))
		return nil
	})
	if !errors.Is(err, errs.Compacted) {
		t.Fatal(err)
	}
	if want := "6a false 7b false 7c false 7d false 7e false 8f false 9a true"; strings.Join(got, " ") != want {
		t.Fatalf("got %v", got)
	}
	if strings.Join(froms, " ") != "5 6 6 8" {
		t.Fatalf("asked from %v", froms)
	}
}

func TestWatchEnds(t *testing.T) {
	for kind, want := range map[string]errs.Kind{"denied": errs.Denied, "unauthenticated": errs.Unauthenticated, "compacted": errs.Compacted, "invalid": errs.Invalid} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(errs.HTTPStatus(errs.Kind(kind)))
			fmt.Fprintf(w, `{"type":"urn:atoll:error:%s","detail":"no"}`, kind)
		})
		if err := s.Watch(bounded(t), api.Selector{Kind: api.KindNode}, 5, func(store.Event) error { return nil }); !errors.Is(err, want) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	s, err := New(Config{Socket: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Watch(ctx, api.Selector{Kind: api.KindNode}, 5, func(store.Event) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a watch without a server: %v", err)
	}
}

func TestNewChecks(t *testing.T) {
	for _, c := range []Config{{URL: "isle1:7443"}, {URL: "ftp://x"}, {URL: "https://"}, {URL: "http://example.org", Token: "t"}, {URL: "https://x", CA: []byte("no")}} {
		if _, err := New(c); !errors.Is(err, errs.Invalid) || c.Token != "" && strings.Contains(err.Error(), `"t"`) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// Whatever a server sends, a watch neither crashes nor tells of what it cannot read.
func FuzzWatchLines(f *testing.F) {
	for _, s := range []string{`{"type":"put","revision":3,"object":{"kind":"Node","metadata":{"name":"a"}}}`, `{"type":"error","error":{}}`, "{}\n[]\n", `{"type":"put","object":null}`, "\x00", `{"type":"error","error":{"type":"urn:atoll:error:"}}`} {
		f.Add(s)
	}
	var body string
	calls := 0
	s := serve(f, func(w http.ResponseWriter, _ *http.Request) {
		if calls++; calls > 1 {
			w.WriteHeader(http.StatusGone)
			fmt.Fprint(w, `{"type":"urn:atoll:error:compacted","detail":"end of the test"}`)
			return
		}
		fmt.Fprint(w, body)
	})
	f.Fuzz(func(t *testing.T, text string) {
		body, calls = text+"\n", 0
		err := s.Watch(bounded(t), api.Selector{Kind: api.KindNode}, 5, func(ev store.Event) error {
			if ev.Object == nil || ev.Object.ObjectKind() != api.KindNode {
				t.Fatalf("told of %+v", ev)
			}
			return nil
		})
		if err == nil {
			t.Fatal("a watch ended well")
		}
	})
}
