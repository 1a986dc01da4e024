package container

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSeekTail(t *testing.T) {
	dir := t.TempDir()
	var want []string
	var names []string
	for n, lines := range []int{3, 0, 5000, 1} {
		var b strings.Builder
		for i := range lines {
			l := fmt.Sprintf("%d-%d\n", n, i)
			want = append(want, l)
			b.WriteString(l)
		}
		p := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(p, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, p)
	}
	for _, n := range []int{1, 2, 3, 100, 4999, 5000, 5001, 5002, 5003, 5004, 5005, 100000} {
		var files []*os.File
		for _, p := range names {
			f, err := os.Open(p)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			files = append(files, f)
		}
		left, err := seekTail(files, n)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, f := range left {
			if _, err := io.Copy(&got, f); err != nil {
				t.Fatal(err)
			}
		}
		if w := strings.Join(want[max(0, len(want)-n):], ""); got.String() != w {
			t.Errorf("tail %d: %d bytes, want %d", n, got.Len(), len(w))
		}
	}
}

func TestWhatRuntimesComplainOfIsReadable(t *testing.T) {
	for in, want := range map[string]string{
		"2026-11-22T09:23:58.123456Z: executable file `nope` not found in $PATH: No such file or directory\n":                         "executable file `nope` not found in $PATH: No such file or directory",
		`time="2026-11-22T09:23:58Z" level=error msg="runc create failed: exec: \"nope\": executable file not found in $PATH"` + "\n": `runc create failed: exec: "nope": executable file not found in $PATH`,
		"time=\"x\" level=error msg=\"a\"\ntime=\"y\" level=error msg=\"a\"\nmore\n":                                                  "a; more",
		"time=\"x\" msg=unquoted\n": "time=\"x\" msg=unquoted",
	} {
		if got := cleanMessage(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
