package server

import (
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"atoll/api"
)

// Whatever is sent, the answer is JSON, never a 500, and nothing invalid is stored.
func FuzzBodies(f *testing.F) {
	for _, s := range []string{
		`{"metadata":{"name":"a","tenant":"acme"},"spec":{"image":"b"}}`, `{"kind":"Instance"}`, `{"spec":{"limits":{"cpu":"1e9"}}}`, `{"metadata":null}`,
		`{"ops":[{"verb":"put","rev":-1,"object":{"kind":"User","metadata":{"name":"x"}}}]}`, `{"full":true,"ops":[{"verb":"delete","rev":-1,"ref":{"kind":"Node","name":"x"}}]}`,
		`[]`, `{"metadata":{"annotations":{"atoll/idempotency":"x"}}}`, `{"spec":{"volumes":[{"hostPath":"/","mount":"/x"}]}}`, "{\"\xff\":1}", `{"ops":[{"verb":"check","ref":{}}]}`,
	} {
		for route := range 6 {
			f.Add(s, uint8(route))
		}
	}
	fx := newFixture(f, Config{})
	f.Fuzz(func(t *testing.T, body string, route uint8) {
		routes := [][2]string{{"POST", "/v1/instances"}, {"PUT", "/v1/instances/a?tenant=acme"}, {"PATCH", "/v1/instances/a?tenant=acme"},
			{"POST", "/v1/commit"}, {"POST", "/v1/tenants"}, {"PUT", "/v1/instances/a/status?tenant=acme"}}
		rt := routes[int(route)%len(routes)]
		for _, who := range []string{"root", "ann", "node"} {
			w := httptest.NewRecorder()
			fx.As(as(who)).ServeHTTP(w, httptest.NewRequest(rt[0], rt[1], strings.NewReader(body)))
			if w.Code >= 500 && w.Code != 501 || !json.Valid(w.Body.Bytes()) {
				t.Fatalf("%s %s as %s: %d %s", rt[0], rt[1], who, w.Code, w.Body)
			}
			if rt[1] != "/v1/commit" && w.Code == 201 {
				o, err := api.Decode(w.Body.Bytes())
				if err != nil {
					t.Fatal(err)
				}
				if err := api.Check(o); err != nil {
					t.Fatalf("stored although %v", err)
				}
			}
		}
	})
}

// Queries are bounded and never crash; nobody sees more by them.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"labels=a%3Db", "fields=status.node%3Dx", "limit=1&after=AAAA", "tenant=demo", "tenant=acme&nested=true", "after=" + page("demo\x00"), "watch=false", "name=x", "tenant=acme%2F..%2Fdemo", "minRevision=1"} {
		f.Add(s)
	}
	fx := newFixture(f, Config{})
	for _, tn := range []string{"acme", "demo"} {
		fx.do(root(), "POST", "/v1/instances", encode(f, instance(tn, "x"))).want(201)
	}
	f.Fuzz(func(t *testing.T, query string) {
		if q, err := url.ParseQuery(query); err != nil || isTrue(q.Get("watch")) || q.Get("minRevision") != "" {
			return // a watch, and a revision that is still to come, rightly wait
		}
		req := httptest.NewRequest("GET", "/v1/instances", nil)
		req.URL.RawQuery = query
		w := httptest.NewRecorder()
		fx.As(as("ann")).ServeHTTP(w, req)
		if w.Code >= 500 || !json.Valid(w.Body.Bytes()) || w.Code == 200 && strings.Contains(w.Body.String(), `"tenant":"demo"`) {
			t.Fatalf("%q: %d %s", query, w.Code, w.Body)
		}
	})
}
