package container

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) await(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(b.String(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q is not in %q", want, b.String())
		}
	}
}

func TestExecOnATerminal(t *testing.T) {
	f := open(t)
	f.begin(f.spec("tty", "sleep", "1000"))
	in, inW := io.Pipe()
	defer inW.Close()
	sizes := make(chan api.TermSize)
	var out buffer
	done := make(chan int, 1)
	go func() {
		code, err := f.Exec(t.Context(), "tty", api.ExecRequest{Argv: []string{"sh"}, TTY: true, Stdin: true, Size: api.TermSize{Cols: 91, Rows: 33}, Env: []string{"X=y"}},
			driver.Stream{In: in, Out: &out, Resize: sizes})
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	say := func(s string) {
		if _, err := io.WriteString(inW, s+"\n"); err != nil {
			t.Error(err)
		}
	}
	say("stty size; echo $X $TERM")
	out.await(t, "33 91\r\ny xterm")
	sizes <- api.TermSize{Cols: 100, Rows: 40}
	say("sleep 0.1; stty size")
	out.await(t, "40 100\r\n")
	say("exit 4")
	select {
	case code := <-done:
		if code != 4 {
			t.Fatalf("code %d: %s", code, out.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("does not end: %q", out.String())
	}
	code, err := f.Exec(t.Context(), "tty", api.ExecRequest{Argv: []string{"nope"}, TTY: true}, driver.Stream{Out: io.Discard})
	if code != 127 || !errors.Is(err, errs.Invalid) {
		t.Errorf("%d %v", code, err)
	}
	if es, err := os.ReadDir(f.run("i", "tty", "exec")); err != nil || len(es) != 0 {
		t.Errorf("sessions left: %v %v", es, err)
	}
}

func TestExecAsAnotherUserInTheSameCgroup(t *testing.T) {
	f := open(t)
	f.begin(f.spec("as", "sleep", "1000"))
	var out bytes.Buffer
	code, err := f.Exec(t.Context(), "as", api.ExecRequest{Argv: []string{"sh", "-c", "id -u; pwd; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; cat /proc/self/cgroup | grep -vc ':/$'"}, User: "web", Workdir: "/tmp"}, driver.Stream{Out: &out})
	if err != nil || code > 1 {
		t.Fatal(code, err)
	}
	want := "1000\n/tmp\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n0\n"
	if out.String() != want {
		t.Fatalf("%q, want %q", &out, want)
	}
}

// failing fails after some bytes, as a caller that went away.
type failing struct{ left int }

func (f *failing) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errors.New("gone")
	}
	return len(b), nil
}

func TestExecEndsWhenNobodyReads(t *testing.T) {
	f := open(t)
	f.begin(f.spec("gone", "sleep", "1000"))
	for _, tty := range []bool{false, true} {
		_, err := f.Exec(t.Context(), "gone", api.ExecRequest{Argv: []string{"yes"}, TTY: tty}, driver.Stream{Out: &failing{left: 1000}})
		if err == nil || !strings.Contains(err.Error(), "gone") {
			t.Fatalf("tty %v: %v", tty, err)
		}
	}
	if got := f.mustExec("gone", "sh", "-c", "ps | grep -c '[y]es' || true"); got != "0\n" {
		t.Fatalf("still running: %s", got)
	}
}

func TestAttachToATerminal(t *testing.T) {
	f := open(t)
	s := f.spec("shell", "sh")
	s.Instance.Spec.TTY, s.Instance.Spec.Stdin = true, true
	f.begin(s)
	in, inW := io.Pipe()
	sizes := make(chan api.TermSize, 1)
	var out buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := f.Logs(ctx, "shell", api.LogRequest{Follow: true, Raw: true}, driver.Stream{Out: &out}); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := f.Attach(ctx, "shell", driver.Stream{In: in, Resize: sizes}); err != nil {
			t.Error(err)
		}
	})
	sizes <- api.TermSize{Cols: 77, Rows: 22}
	time.Sleep(50 * time.Millisecond)
	_, _ = io.WriteString(inW, "stty size; exit 6\n")
	out.await(t, "22 77\r\n")
	if o := f.wait("shell"); o.ExitCode != 6 {
		t.Fatalf("%+v", o)
	}
	_ = inW.Close()
}

func TestAFollowerLosesNothingThroughRotations(t *testing.T) {
	f := open(t)
	s := f.spec("rotate", "sh", "-c", "seq 1 30000; sleep 0.3; seq 30001 60000; printf end")
	s.Instance.Spec.Logs = &api.LogPolicy{MaxSize: "64Ki", Files: 3}
	if _, err := f.Ensure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	var out buffer
	done := make(chan error, 1)
	go func() {
		done <- f.Logs(t.Context(), s.ID, api.LogRequest{Follow: true, Raw: true}, driver.Stream{Out: &out})
	}()
	if err := f.Start(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	for range 400 { // more often than in life, to have many rotations; one comes in the pause at the latest
		if err := f.tend(t.Context(), f.env, s.ID); err != nil {
			t.Fatal(err)
		}
		if o, _, _ := f.look(f.env, s.ID); o.Phase == driver.PhaseExited {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range 60000 {
		fmt.Fprintln(&want, i+1)
	}
	want.WriteString("end")
	if out.String() != want.String() {
		t.Fatalf("%d bytes of %d", len(out.String()), want.Len())
	}
	if n := len(f.rotated(s.ID)); n == 0 || n > 2 {
		t.Errorf("%d rotated files", n)
	}
	var tail bytes.Buffer
	if err := f.Logs(t.Context(), s.ID, api.LogRequest{Tail: 3}, driver.Stream{Out: &tail}); err != nil || tail.String() != "59999\n60000\nend\n" {
		t.Errorf("%q %v", &tail, err)
	}
}

func TestTimestampsAndSince(t *testing.T) {
	f := open(t)
	f.output(f.spec("stamp"), "echo one; sleep 0.3; echo two")
	var out bytes.Buffer
	if err := f.Logs(t.Context(), "stamp", api.LogRequest{Timestamps: true}, driver.Stream{Out: &out}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	at, err := time.Parse(time.RFC3339Nano, strings.Fields(lines[1])[0])
	if err != nil || len(lines) != 2 || !strings.HasSuffix(lines[1], " two") {
		t.Fatalf("%q %v", lines, err)
	}
	out.Reset()
	if err := f.Logs(t.Context(), "stamp", api.LogRequest{Since: at}, driver.Stream{Out: &out}); err != nil || out.String() != "two\n" {
		t.Fatalf("%q %v", &out, err)
	}
}

func TestCopyInAndOut(t *testing.T) {
	f := open(t)
	f.begin(f.spec("copy", "sh", "-c", "mkdir -p /d/sub; echo a >/d/a; ln -s /etc/passwd /d/link; echo b >/d/sub/b; ln -s ../../../../../../../../etc /out; echo ready; sleep 1000"))
	for !strings.Contains(f.logged("copy"), "ready") {
		time.Sleep(5 * time.Millisecond)
	}
	var out bytes.Buffer
	if err := f.CopyOut(t.Context(), "copy", "/d", &out); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(tr)
		got[h.Name] = string(b) + h.Linkname
		if h.Uid != 0 {
			t.Errorf("%s belongs to %d", h.Name, h.Uid)
		}
	}
	if len(got) != 5 || got["d/a"] != "a\n" || got["d/sub/b"] != "b\n" || got["d/link"] != "/etc/passwd" {
		t.Fatalf("%v", got)
	}
	if err := f.CopyOut(t.Context(), "copy", "/nope", io.Discard); !errors.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
	in := tarOf(t, tar.Header{Name: "../../x/y", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 3}, tar.Header{Name: "evil", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "evil/pwned", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3})
	if err := f.CopyIn(t.Context(), "copy", "/d/sub", in); err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Denied) {
		t.Fatal(err)
	}
	if s := f.mustExec("copy", "stat", "-c", "%a %u", "/d/sub/x/y"); s != "755 0\n" {
		t.Errorf("%q", s)
	}
	if err := f.CopyIn(t.Context(), "copy", "/out", tarOf(t, tar.Header{Name: "inside-copy", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3})); err != nil {
		t.Fatal(err)
	}
	if s := f.mustExec("copy", "cat", "/etc/inside-copy"); s != "xyz" {
		t.Errorf("a link inside leads inside: %q", s)
	}
	for _, p := range []string{"/etc/inside-copy", "/etc/pwned"} {
		if _, err := os.Stat(p); err == nil {
			t.Fatalf("the host's %s was written", p)
		}
	}
}

func tarOf(t *testing.T, hs ...tar.Header) *bytes.Buffer {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "xyz"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestDialReachesAPortInside(t *testing.T) {
	f := open(t)
	f.begin(f.spec("dial", "sh", "-c", "echo up; nc -l -p 7777 -e echo hello; sleep 1000"))
	for !strings.Contains(f.logged("dial"), "up") {
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	c, err := f.Dial(t.Context(), "dial", "tcp", "7777")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello\n" {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := f.Dial(t.Context(), "dial", "tcp", "7778"); !errors.Is(err, errs.Unavailable) {
		t.Errorf("%v", err)
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte("2026-11-22T07:00:00.000000001+00:00 stdout F text\n"))
	f.Add([]byte("2026-11-22T07:00:00.1+01:00 stderr P te\xffxt\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, ok := parseLine(b)
		if ok && (len(l.text) >= len(b) || !bytes.Contains(b, l.text)) {
			t.Fatalf("%q from %q", l.text, b)
		}
	})
}

func FuzzResolveUser(f *testing.F) {
	f.Add("web:extra", "web:x:1000:1000::/home/web:/bin/sh\n", "extra:x:2000:web\n")
	f.Fuzz(func(t *testing.T, who, passwd, group string) {
		u, err := resolveUser(who, passwd, group)
		if err == nil && (u.Home == "" || u.Home[0] != '/' || len(u.Groups) > 256) {
			t.Fatalf("%+v", u)
		}
	})
}
