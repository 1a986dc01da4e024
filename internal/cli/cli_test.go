package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/term"
	"atoll/internal/cli/verb"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

var updateScripts = flag.Bool("update", false, "rewrite what scripts compare with")

// fakeTerminal says what the test wants.
type fakeTerminal struct {
	in, out, err bool
	size         api.TermSize
	raw          int
}

func (f *fakeTerminal) InIs() bool { return f.in }

func (f *fakeTerminal) OutIs() bool { return f.out }

func (f *fakeTerminal) ErrIs() bool { return f.err }

func (f *fakeTerminal) Raw() (func(), error) { f.raw++; return func() { f.raw-- }, nil }

func (f *fakeTerminal) Size() api.TermSize { return f.size }

func (f *fakeTerminal) Password() (string, error) { return "t0ken", nil }

// fixed is a clock that stands still for Now and lets timers run.
type fixed struct{ clock.Real }

func (fixed) Now() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// syncBuffer is written by several goroutines and read by the test.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Reset()
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// rig is one user at one world.
type rig struct {
	world *world
	term  *fakeTerminal
	home  string
	env   map[string]string
	in    io.Reader
	out   syncBuffer
	err   syncBuffer
	sig   chan os.Signal
	seen  *conn.Settings
	// socket, when set, is where a server stands between the user and the world.
	socket string
	clock  clock.Clock
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return &rig{world: newWorld(t, 2000), term: &fakeTerminal{}, clock: fixed{}, home: t.TempDir(), env: map[string]string{"TMPDIR": t.TempDir()}, in: strings.NewReader(""), sig: make(chan os.Signal, 8)}
}

func (r *rig) io() verb.IO {
	return verb.IO{Streams: term.Streams{In: r.in, Out: &r.out, Err: &r.err, Term: r.term,
		Getenv:  func(k string) string { return r.env[k] },
		Signals: func(...os.Signal) (<-chan os.Signal, func()) { return r.sig, func() {} }}, Clock: r.clock, Home: r.home,
		Dial: func(s conn.Settings) (conn.Client, error) {
			r.seen = &s
			if r.socket != "" {
				s.Socket, s.Server = r.socket, ""
				return conn.Dial(s)
			}
			return r.world, nil
		}}
}

// run gives the exit code; output since the last run is in out and err.
func (r *rig) run(args ...string) int {
	r.out.reset()
	r.err.reset()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return Main(ctx, r.io(), args)
}

func (r *rig) must(t *testing.T, args ...string) string {
	t.Helper()
	if code := r.run(args...); code != 0 {
		t.Fatalf("atoll %s: code %d\n%s%s", strings.Join(args, " "), code, r.out.String(), r.err.String())
	}
	return r.out.String()
}

func (r *rig) fails(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	got := r.run(args...)
	if got != code || !strings.Contains(r.err.String(), want) {
		t.Fatalf("atoll %s: code %d, want %d and %q in:\n%s%s", strings.Join(args, " "), got, code, want, r.out.String(), r.err.String())
	}
}

// TestScripts runs testdata/script: each has a world of its own. Commands: atoll,
// rc N atoll … (expects an exit code), host NAME BOOT (a node that is there), and feed FILE (the next call's input).
func TestScripts(t *testing.T) { runScripts(t, nil) }

// TestScriptsServer is the same by way of the real server and the real remote store.
func TestScriptsServer(t *testing.T) { runScripts(t, serveWorld) }

func runScripts(t *testing.T, prepare func(testing.TB, *rig)) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *updateScripts,
		Setup: func(e *testscript.Env) error {
			r := newRig(e.T().(testing.TB))
			if prepare != nil {
				prepare(e.T().(testing.TB), r)
			}
			e.Values["rig"] = r
			e.Setenv("HOME", r.home)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "server" {
				return false, errs.New(errs.Invalid, "unknown condition %s", cond)
			}
			return prepare != nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"atoll": func(ts *testscript.TestScript, neg bool, args []string) {
				code := scriptRun(ts, args)
				if neg != (code != 0) {
					ts.Fatalf("exit code %d", code)
				}
			},
			"rc": func(ts *testscript.TestScript, _ bool, args []string) {
				if code := scriptRun(ts, args[2:]); strings.TrimSpace(args[0]) != strconv.Itoa(code) {
					ts.Fatalf("exit code %d, want %s", code, args[0])
				}
			},
			"host": func(ts *testscript.TestScript, _ bool, args []string) {
				rigOf(ts).world.host(args[0], args[1])
			},
			"feed": func(ts *testscript.TestScript, _ bool, args []string) {
				rigOf(ts).in = strings.NewReader(ts.ReadFile(args[0]))
			},
		},
	})
}

func rigOf(ts *testscript.TestScript) *rig { return ts.Value("rig").(*rig) }

func scriptRun(ts *testscript.TestScript, args []string) int {
	r := rigOf(ts)
	for _, k := range []string{"ATOLL_TENANT", "EDITOR", "NO_COLOR"} {
		r.env[k] = ts.Getenv(k)
	}
	dir := ts.MkAbs(".")
	for i, a := range args { // paths are the script's, not the test process's
		if strings.HasPrefix(a, "./") {
			args[i] = dir + a[1:]
		}
	}
	code := r.run(args...)
	_, _ = io.WriteString(ts.Stdout(), r.out.String())
	_, _ = io.WriteString(ts.Stderr(), r.err.String())
	r.in = strings.NewReader("")
	return code
}

func TestRunForwardsSignals(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	done := make(chan int)
	go func() { done <- r.run("run", "--name", "x", "busybox", "trap") }()
	r.await(t, "INT", func() { r.sig <- syscall.SIGINT })
	r.await(t, "TERM", func() { r.sig <- syscall.SIGTERM })
	if code := <-done; code != 3 {
		t.Fatalf("code %d, want the process's own: 3\n%s%s", code, r.out.String(), r.err.String())
	}
}

// await does something and waits until it shows in the output.
func (r *rig) await(t *testing.T, want string, do func()) {
	t.Helper()
	do()
	for range 1000 {
		if strings.Contains(r.out.String(), want) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%q never came:\n%s%s", want, r.out.String(), r.err.String())
}

func TestRunThirdSignalForces(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	done := make(chan int)
	go func() { done <- r.run("run", "--rm", "--name", "x", "busybox", "sleep") }()
	r.waitRunning(t, "x")
	for range 3 {
		r.sig <- syscall.SIGINT
	}
	if code := <-done; code != 130 {
		t.Fatalf("code %d, want 130\n%s", code, r.err.String())
	}
	r.waitGone(t, "x")
}

func (r *rig) waitRunning(t *testing.T, name string) {
	t.Helper()
	for range 1000 {
		o, err := r.world.Get(context.Background(), api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: name})
		if err == nil && o.(*api.Instance).StateOf() == api.StateRunning {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s does not run", name)
}

func (r *rig) waitGone(t *testing.T, name string) {
	t.Helper()
	for range 1000 {
		if _, err := r.world.Get(context.Background(), api.Ref{Kind: api.KindInstance, Tenant: "acme", Name: name}); errors.Is(err, errs.NotFound) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s is still there", name)
}

func TestRunAbortedBeforeItRuns(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	r.world.stall = make(chan struct{})
	done := make(chan int)
	go func() { done <- r.run("run", "--name", "x", "busybox", "sleep") }()
	time.Sleep(2 * verb.QuietFor) // by then it knows that nothing runs yet
	r.sig <- syscall.SIGINT
	if code := <-done; code != 130 {
		t.Fatalf("code %d, want 130", code)
	}
	close(r.world.stall)
	r.waitGone(t, "x")
}

func TestRunTerminal(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	r.term.in, r.term.out, r.term.size = true, true, api.TermSize{Cols: 80, Rows: 24}
	pr, pw := io.Pipe()
	r.in = pr
	done := make(chan int)
	go func() { done <- r.run("run", "-it", "--name", "x", "busybox", "cat") }()
	r.waitRunning(t, "x")
	r.await(t, "hello", func() { _, _ = pw.Write([]byte("hello")) })
	r.await(t, `size {"cols":80`, func() { r.sig <- syscall.SIGWINCH })
	if _, err := pw.Write([]byte{'a', 16, 17}); err != nil { // Ctrl-P Ctrl-Q
		t.Fatal(err)
	}
	if code := <-done; code != 0 || !strings.Contains(r.err.String(), "detached") {
		t.Fatalf("code %d\n%s", code, r.err.String())
	}
	if r.term.raw != 0 {
		t.Error("the terminal was left raw")
	}
	r.waitRunning(t, "x")
	_ = pw.Close()
}

func TestRunNoCapacity(t *testing.T) {
	for _, args := range [][]string{{"run", "--cpu", "64", "busybox", "sleep"}, {"run", "-d", "--cpu", "64", "busybox", "sleep"}} {
		r := newRig(t)
		r.must(t, "tenant", "create", "acme")
		r.fails(t, 5, "error: no node can run instance/acme/keen-crab: 64 CPU requested\n"+
			"  1 node: not enough CPU (closest isle1: CPU 2 free of 2)\n"+
			"  what would help: at most --cpu 2\n(exit 5: no capacity; nothing was created)\n", args...)
		r.waitGone(t, "keen-crab")
	}
}

func TestSettingsOrder(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	r.must(t, "tenant", "create", "demo")
	r.fails(t, 2, "which tenant?", "run", "busybox")
	r.must(t, "use", "acme")
	if out := r.must(t, "use"); out != "acme\n" {
		t.Errorf("use: %q", out)
	}
	r.env["ATOLL_TENANT"] = "demo"
	if out := r.must(t, "use"); out != "commands now mean tenant demo\n" && out != "demo\n" {
		t.Errorf("environment does not outrank the file: %q", out)
	}
	r.env["ATOLL_SOCKET"] = "/from/env"
	r.must(t, "get", "tenants")
	if r.seen.Socket != "/from/env" {
		t.Errorf("socket %q", r.seen.Socket)
	}
	r.must(t, "get", "tenants", "--socket", "/from/flag")
	if r.seen.Socket != "/from/flag" {
		t.Errorf("socket %q", r.seen.Socket)
	}
	r.must(t, "--socket", "/before/verb", "get", "tenants")
	if r.seen.Socket != "/before/verb" {
		t.Errorf("socket %q", r.seen.Socket)
	}
}

func TestLoginKeepsTokenPrivate(t *testing.T) {
	r := newRig(t)
	r.in = strings.NewReader("atoll_ci_s3cret\n")
	r.must(t, "login", "https://isle1:7443")
	if r.seen.Token != "atoll_ci_s3cret" || r.seen.Server != "https://isle1:7443" {
		t.Fatalf("settings %+v", r.seen)
	}
	st, err := os.Stat(r.home + "/.config/atoll/token")
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("token file: %v %v", st, err)
	}
	conf, err := os.ReadFile(r.home + "/.config/atoll/config.yaml")
	if err != nil || bytes.Contains(conf, []byte("s3cret")) {
		t.Fatalf("config holds the token, or is not there: %s %v", conf, err)
	}
	r.must(t, "get", "tenants", "--verbose")
	if r.seen.Token != "atoll_ci_s3cret" {
		t.Error("the kept token was not used")
	}
	r.must(t, "login", "local")
	r.must(t, "get", "tenants")
	if r.seen.Server != "" || r.seen.Token != "" {
		t.Errorf("login local left %+v", r.seen)
	}
}

func TestConfirmOnTerminalOnly(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	r.must(t, "create", "--name", "a", "busybox")
	r.term.in, r.term.err = true, true
	r.in = strings.NewReader("n\n")
	r.fails(t, 2, "not done", "delete", "instances", "--all")
	r.in = strings.NewReader("y\n")
	r.must(t, "delete", "instances", "--all")
	r.must(t, "create", "--name", "b", "busybox")
	r.term.in = false
	r.must(t, "delete", "instances", "--all")
}

func TestColourOnTerminalOnly(t *testing.T) {
	r := newRig(t)
	r.term.err = true
	r.fails(t, 2, "\x1b[31merror:\x1b[0m", "get", "nonsense")
	r.env["NO_COLOR"] = "1"
	r.fails(t, 2, "error: ", "get", "nonsense")
	if strings.Contains(r.err.String(), "\x1b") {
		t.Error("NO_COLOR is not kept")
	}
}

// TestEveryVerbHelps: a sentence, an example and no surprise for each verb.
func TestEveryVerbHelps(t *testing.T) {
	var walk func(path string, list []verb.Def)
	walk = func(path string, list []verb.Def) {
		for _, v := range list {
			name := path + " " + strings.Fields(v.Use)[0]
			if v.Short == "" || v.Example == "" {
				t.Errorf("%s: no sentence or no example", name)
			}
			if v.Run == nil && len(v.Sub) == 0 {
				t.Errorf("%s does nothing", name)
			}
			if path == "" && v.Group == "" {
				t.Errorf("%s is in no group", name)
			}
			walk(name, v.Sub)
		}
	}
	walk("", Commands())
}

// TestReadsHaveOutput: -o on every read, --wait on every write of instances.
func TestReadsHaveOutput(t *testing.T) {
	for _, line := range []string{"get", "events", "top", "version", "doctor", "api-resources", "tenant list", "node list", "image list", "user list", "token list", "role list"} {
		c := &verb.Call{}
		cmd, _, err := tree(c).Find(strings.Fields(line))
		if err != nil || cmd.Flags().Lookup("output") == nil {
			t.Errorf("%s has no -o (%v)", line, err)
		}
	}
	for _, line := range []string{"run", "start", "stop", "restart", "delete", "apply", "tenant delete"} {
		c := &verb.Call{}
		cmd, _, err := tree(c).Find(strings.Fields(line))
		if err != nil || cmd.Flags().Lookup("wait") == nil {
			t.Errorf("%s has no --wait (%v)", line, err)
		}
	}
}

func TestCompletion(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	r.must(t, "create", "--name", "web", "busybox")
	for args, want := range map[string]string{
		"__complete logs ":                     "web\n",
		"__complete get inst":                  "instances\n",
		"__complete get instances ":            "web\n",
		"__complete why instance/":             "instance/web\n",
		"__complete use ":                      "acme\n",
		"__complete get nodes -o w":            "wide\n",
		"__complete explain instance.spec.lim": "instance.spec.limits\n",
	} {
		if out := r.must(t, strings.Split(args, " ")...); !strings.Contains(out, want) {
			t.Errorf("%s: %q is not in %q", args, want, out)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := r.must(t, "completion", shell); !strings.Contains(out, "atoll") {
			t.Errorf("%s: %.80s", shell, out)
		}
	}
}
