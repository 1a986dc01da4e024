package setup

import (
	"bytes"
	"strings"
	"testing"

	"atoll/internal/cli/render"
	"atoll/internal/cli/term"
	"atoll/internal/cli/verb"
)

// nowhere is no terminal.
type nowhere struct{ term.Terminal }

func (nowhere) OutIs() bool { return false }

func TestTellChecks(t *testing.T) {
	var out bytes.Buffer
	c := &verb.Call{IO: verb.IO{Streams: term.Streams{Out: &out, Term: nowhere{}, Getenv: func(string) string { return "" }}}}
	checks, err := readChecks([]byte(`[{"name":"cgroup","ok":true,"severity":"info","detail":"v2"},
		{"name":"ufw","ok":false,"severity":"warning","detail":"is active","fix":"ufw allow 8080\nufw reload"},
		{"name":"crun","ok":false,"severity":"error","detail":"is missing","fix":"apt-get install crun"}]`))
	if err != nil {
		t.Fatal(err)
	}
	if err := tellChecks(c, checks, render.Output{Format: "table"}); err != nil {
		t.Fatal(err)
	}
	want := `ok       cgroup  v2
warning  ufw     is active
                 what would help: ufw allow 8080
                                  ufw reload
error    crun    is missing
                 what would help: apt-get install crun
1 ok, 1 warning, 1 error
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if p := paintChecks(want); !strings.HasPrefix(p, "\x1b[32mok\x1b[0m ") || strings.Count(p, "\x1b[") != 6 {
		t.Errorf("%q", p)
	}
	if _, err := readChecks([]byte("no")); err == nil {
		t.Error("nonsense was read")
	}
}
