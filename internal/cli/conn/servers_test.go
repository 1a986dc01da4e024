package conn

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"atoll/internal/errs"
)

// pool is two servers that know of each other.
func pool(t *testing.T) (a, b *httptest.Server, asked *atomic.Int64) {
	t.Helper()
	asked = &atomic.Int64{}
	var list string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/servers":
			asked.Add(1)
			fmt.Fprint(w, list)
		case "/v1/whoami":
			fmt.Fprint(w, `{"user":"ann"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	a, b = httptest.NewServer(h), httptest.NewServer(h)
	t.Cleanup(a.Close)
	t.Cleanup(b.Close)
	list = fmt.Sprintf(`{"endpoints":[{"name":"a","url":%q},{"name":"b","url":%q},{"url":"http://in.the.clear:1"}]}`, a.URL, b.URL)
	return a, b, asked
}

// command is one run of the program; it gives the servers it began with.
func command(t *testing.T, s Settings) (first []string, err error) {
	t.Helper()
	c, err := Dial(s)
	if err != nil {
		t.Fatal(err)
	}
	first = c.(Located).Endpoints()
	_, err = c.WhoAmI(context.Background())
	c.Close()
	return first, err
}

// One address is enough: the others are learned, the one that answers is remembered,
// and the pool is not asked for its servers by every command.
func TestServersAreRemembered(t *testing.T) {
	a, b, asked := pool(t)
	s := Settings{Server: a.URL, Token: "atoll_t_secret", Memory: filepath.Join(t.TempDir(), "servers.json")}
	if first, err := command(t, s); err != nil || !slices.Equal(first, []string{a.URL}) {
		t.Fatal(first, err)
	}
	first, err := command(t, s)
	if err != nil || !slices.Equal(first, []string{a.URL, b.URL}) || asked.Load() != 1 {
		t.Fatal(first, err, asked.Load())
	}
	a.Close()
	if _, err := command(t, s); err != nil {
		t.Fatal(err)
	}
	if first, err = command(t, s); err != nil || first[0] != b.URL || !slices.Contains(first, a.URL) {
		t.Fatalf("a dead server is asked first again: %v %v", first, err)
	}
	raw, err := os.ReadFile(s.Memory)
	if err != nil || strings.Contains(string(raw), "secret") {
		t.Fatalf("%s %v", raw, err)
	}
	if st, err := os.Stat(s.Memory); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st, err)
	}
	// After some time the pool is asked again.
	var m memory
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	m.Asked = time.Now().Add(-refreshAfter - time.Second)
	old, _ := json.Marshal(m)
	if err := os.WriteFile(s.Memory, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := command(t, s); err != nil || asked.Load() != 2 {
		t.Fatal(err, asked.Load())
	}
	// Another setting is another pool; a broken memory is none.
	other := s
	other.Server = b.URL + "," + a.URL
	if first, err := command(t, other); err != nil || !slices.Equal(first, []string{b.URL, a.URL}) {
		t.Fatal(first, err)
	}
	for _, junk := range []string{"", "{", "null", `{"for":"` + s.Server + `","servers":null}`} {
		if err := os.WriteFile(s.Memory, []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		if first, err := command(t, s); err != nil || !slices.Equal(first, []string{a.URL}) && first != nil {
			if errs.KindOf(err) != errs.Unavailable { // a is dead, and nobody knows of b
				t.Fatal(junk, first, err)
			}
		}
	}
}

func TestServersInASetting(t *testing.T) {
	for in, want := range map[string]string{"": "", "https://a:1": "https://a:1", " https://a:1/ ,, https://b:1,https://a:1": "https://a:1 https://b:1"} {
		if got := strings.Join(Servers(in), " "); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	if _, err := Dial(Settings{Server: ","}); errs.KindOf(err) != errs.Invalid {
		t.Error(err)
	}
	if _, err := Dial(Settings{Server: "https://a:1,b:1"}); errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "b:1") {
		t.Error(err)
	}
}

// When none answers, each is named with its reason, and nothing is remembered.
func TestNoServerAnswers(t *testing.T) {
	a, b, _ := pool(t)
	a.Close()
	b.Close()
	s := Settings{Server: a.URL + "," + b.URL, Memory: filepath.Join(t.TempDir(), "servers.json")}
	_, err := command(t, s)
	if errs.KindOf(err) != errs.Unavailable || !strings.Contains(err.Error(), a.URL) || !strings.Contains(err.Error(), b.URL) || strings.Count(err.Error(), "refused") != 2 {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.Memory); !os.IsNotExist(err) {
		t.Fatal("remembered nothing worth it")
	}
}
