package prometheus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"atoll/internal/errs"
)

const saved = `{"status":"success","data":{"resultType":"matrix","result":[
 {"metric":{"__name__":"cpu","pod":"b"},"values":[[100,"0.5"],[130,"0.6"],[190,"NaN"]]},
 {"metric":{"pod":"a","zone":"x"},"values":[[130,"2"]]}]}}`

func TestASavedAnswer(t *testing.T) {
	tr, err := Read(strings.NewReader(saved))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(tr.Series[0].Name, tr.Series[0].Values, tr.Series[1].Name, tr.Series[1].Values, float64(tr.Series[0].Step))
	if want := `cpu{pod="b"}[0.5 0.6 0.6 0]{pod="a",zone="x"}[0 2 2 2] 30`; got != want {
		t.Fatalf("%s\nwant %s", got, want)
	}
}

func TestFetchInParts(t *testing.T) {
	calls := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		if r.URL.Path != "/prom/api/v1/query_range" || r.FormValue("query") != "up" || r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		from, _ := strconv.ParseFloat(r.FormValue("start"), 64)
		to, _ := strconv.ParseFloat(r.FormValue("end"), 64)
		if (to-from)/60 > 11_000 {
			http.Error(w, `{"status":"error","error":"exceeded maximum resolution"}`, http.StatusBadRequest)
			return
		}
		var vals []string
		for at := from; at <= to; at += 60 {
			vals = append(vals, fmt.Sprintf(`[%f,"%d"]`, at, int(at/60)%7))
		}
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[%s]}]}}`, strings.Join(vals, ","))
	}))
	defer srv.Close()
	q := Query{URL: srv.URL + "/prom/", Expr: "up", From: time.Unix(0, 0), To: time.Unix(25_000*60, 0), Step: time.Minute, Token: "secret"}
	tr, err := Fetch(context.Background(), srv.Client(), q)
	if err != nil {
		t.Fatal(err)
	}
	if calls != 3 || len(tr.Series) != 1 || len(tr.Series[0].Values) != 25_001 {
		t.Fatalf("%d calls, %d values", calls, len(tr.Series[0].Values))
	}
	for i, v := range tr.Series[0].Values {
		if v != float64(i%7) {
			t.Fatalf("value %d is %g", i, v)
		}
	}
	q.Token = "wrong"
	if _, err := Fetch(context.Background(), srv.Client(), q); !errors.Is(err, errs.Denied) || strings.Contains(err.Error(), "wrong") {
		t.Fatalf("%v", err)
	}
}

func TestRefused(t *testing.T) {
	for _, bad := range []string{"", "{}", `{"status":"error","error":"parse error"}`, `{"status":"success","data":{"resultType":"vector"}}`,
		`{"status":"success","data":{"resultType":"matrix","result":[{"values":[["x","1"]]}]}}`,
		`{"status":"success","data":{"resultType":"matrix","result":[{"values":[[1e300,"1"]]}]}}`} {
		if _, err := Read(strings.NewReader(bad)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := Read(strings.NewReader(`{"status":"success","data":{"resultType":"matrix","result":[]}}`)); !errors.Is(err, errs.NotFound) {
		t.Errorf("no series: %v", err)
	}
	if _, err := Fetch(context.Background(), http.DefaultClient, Query{URL: "file:///etc/passwd", Expr: "up", From: time.Unix(0, 0), To: time.Unix(1, 0), Step: time.Second}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a file: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(saved))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := Read(bytes.NewReader(b))
		if err == nil && tr.Check() != nil {
			t.Fatal("what was read breaks the rules of traces")
		}
	})
}
