package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAThreadIsThrownAway(t *testing.T) {
	mine, _ := os.Readlink("/proc/thread-self/ns/mnt")
	for range 20 {
		tid := 0
		if err := OnThread(func() error { tid = unix.Gettid(); return nil }); err != nil {
			t.Fatal(err)
		}
		if tid == os.Getpid() {
			t.Fatal("the process's first thread was used")
		}
	}
	if err := OnThread(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that ends its goroutine is reported as done")
	}
	if now, _ := os.Readlink("/proc/thread-self/ns/mnt"); now != mine {
		t.Error("the caller changed its namespace")
	}
}

func TestNamespacesStayApart(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	b, err := NewBase(func() error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k") })
	if err != nil {
		t.Skip(err)
	}
	defer b.Close()
	if err := b.InCopy(func() error { return os.WriteFile(dir+"/f", nil, 0o600) }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/f"); err == nil {
		t.Error("the mount is visible outside")
	}
	if err := b.InCopy(func() error { return unix.Unmount(dir, 0) }); err != nil {
		t.Fatal(err)
	}
	if err := b.InBase(func() error { _, err := os.Stat(dir + "/f"); return err }); err != nil {
		t.Error("a copy's unmount reached the base")
	}
	f, err := UserNS(1<<20, 65536)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if kids := Children(os.Getpid()); len(kids) != 0 {
		t.Errorf("children left: %v", kids)
	}
}

func TestProcesses(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || p.Ended() || !Alive(p.Pid) || Reap(p.Pid) {
		t.Fatalf("%v", err)
	}
	if err := p.Signal(Kill); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil || !p.Ended() || Alive(p.Pid) {
		t.Fatalf("%v", err)
	}
	_ = cmd.Wait()
	if err := p.Signal(Kill); err != nil {
		t.Errorf("signal to one that is gone: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%v", err)
	}
	if !Reap(cmd.Process.Pid) {
		t.Error("a process that is nobody's is not done")
	}
}

func TestSignalNames(t *testing.T) {
	for s, want := range map[string]unix.Signal{"": 15, "TERM": 15, "sigint": 2, "9": 9, "SIGUSR1": 10} {
		if got, err := SignalNumber(s); err != nil || got != want {
			t.Errorf("%q: %v %v", s, got, err)
		}
	}
	for _, s := range []string{"NOPE", "0", "-1", "65", "SIGSIGTERM"} {
		if got, err := SignalNumber(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	w, err := NewWatch(Moved, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if ev, err := w.Next(t.Context(), 20*time.Millisecond); err != nil || len(ev) != 0 {
		t.Fatalf("%v %v", ev, err)
	}
	if err := os.WriteFile(dir+"/a", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/a", dir+"/b"); err != nil {
		t.Fatal(err)
	}
	if ev, err := w.Next(t.Context(), 5*time.Second); err != nil || len(ev) != 1 || ev[0].Name != "b" {
		t.Fatalf("%v %v", ev, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := w.Next(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestFIFO(t *testing.T) {
	p := filepath.Join(t.TempDir(), "f")
	if err := WriteFIFO(p, []byte("x")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := unix.Mkfifo(p, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFIFO(p, []byte("x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody reads: %v", err)
	}
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := WriteFIFO(p, []byte("x")); err != nil {
		t.Error(err)
	}
}

func TestADescriptorIsReceived(t *testing.T) {
	dir, err := os.MkdirTemp("", "fd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s, err := ListenFD(dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Receive(10 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: s.Path}); err != nil {
		t.Fatal(err)
	}
	// A slow sender is waited for.
	if _, err := s.Receive(10 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := unix.Sendmsg(fd, []byte("name"), unix.UnixRights(int(w.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	got, err := s.Receive(time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := got.WriteString("hi"); err != nil {
		t.Fatal(err)
	}
	_ = got.Close()
	b := make([]byte, 8)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "hi" {
		t.Fatal(n, err)
	}
}

func TestATerminalPassesEverythingOn(t *testing.T) {
	ours, theirs, err := OpenTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if err := SetWinsize(ours, 91, 33); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	for _, way := range []struct{ from, to *os.File }{{ours, theirs}, {theirs, ours}} {
		const text = "a\x03\x04b\r\n" // an interrupt and an end of file for a terminal that is not raw
		if _, err := way.from.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if n, err := way.to.Read(buf); err != nil || string(buf[:n]) != text {
			t.Errorf("%q %v", buf[:n], err)
		}
	}
}

func FuzzParseEvents(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 'a', 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if ev := parseEvents(b); len(ev) > len(b)/unix.SizeofInotifyEvent {
			t.Fatal("more events than fit")
		}
	})
}
