package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"atoll/internal/cli/term"
	"atoll/internal/errs"
)

func TestDownload(t *testing.T) {
	const content = "an archive"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/atoll.tar":
			_, _ = io.WriteString(w, content) // the test says what came
		case "/short.tar":
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, content)
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	bar := (term.Streams{Term: nowhere{}}).Progress(true)
	h := sha256.Sum256([]byte(content))
	sum := hex.EncodeToString(h[:])
	f, err := download(t.Context(), srv.URL+"/atoll.tar", sum, bar)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil || string(b) != content {
		t.Errorf("%q %v", b, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		path, sum, want string
		kind            errs.Kind
	}{
		{"/atoll.tar", strings.Repeat("0", 64), "nothing was sent", errs.Invalid},
		{"/short.tar", sum, "try again", errs.Unavailable},
		{"/nothing.tar", sum, "404", errs.NotFound},
	} {
		f, err := download(t.Context(), srv.URL+c.path, c.sum, bar)
		if errs.KindOf(err) != c.kind || f != nil || !strings.Contains(err.Error()+errs.HintOf(err), c.want) {
			t.Errorf("%s: %v %v, want %s", c.path, f, err, c.want)
		}
	}
	srv.Close()
	if _, err := download(t.Context(), srv.URL+"/atoll.tar", sum, bar); errs.KindOf(err) != errs.Unavailable || errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	for _, bad := range [][2]string{{"", sum}, {"ftp://h/a", sum}, {"https://u:p@h/a", sum}, {"https://", sum}, {"https://h/a", ""}, {"https://h/a", strings.ToUpper(sum)}, {"https://h/a", sum[1:]}} {
		if err := checkDownload(bad[0], bad[1]); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
