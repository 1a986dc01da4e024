// Package rig gives tests and benches a pool of their own on this machine: the
// real binaries, a network namespace as "the host", and directories and resource
// groups that nobody else uses. Close takes every trace away. It ends only
// processes it started.
package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Pool is a running pool of one host.
type Pool struct {
	Bin    string // directory of the binaries
	Dir    string // state and log
	Run    string // short, for unix sockets
	Group  string // name of the tree of resource groups
	Socket string
	Log    string
	Flags  []string // more flags for atolld up

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan error
	host *Space // stays while the daemon is down
}

// Root finds the module's directory.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Build builds the binaries into the module's bin directory.
func Build(ctx context.Context) (string, error) {
	root := Root()
	bin := filepath.Join(root, "bin")
	for _, b := range []string{"atoll", "atolld", "atoll-watchdog"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=test", "-o", filepath.Join(bin, b), "./cmd/"+b)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", b, err, out)
		}
	}
	return bin, nil
}

// Missing names what this machine lacks for a real pool; "" when nothing.
func Missing() string {
	if os.Geteuid() != 0 {
		return "root"
	}
	for _, p := range []string{"crun", "conmon", "nft", "ip"} {
		if _, err := exec.LookPath(p); err != nil {
			return p
		}
	}
	return ""
}

// New makes a pool that is not running yet.
func New(bin string, flags ...string) (*Pool, error) {
	dir, err := os.MkdirTemp("", "atoll-rig-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	name := strings.TrimPrefix(filepath.Base(dir), "atoll-rig-")
	p := &Pool{Bin: bin, Dir: dir, Run: "/dev/shm/atr" + name, Group: "atollrig" + name, Log: filepath.Join(dir, "atolld.log"), Flags: flags}
	p.Socket = filepath.Join(p.Run, "atoll.sock")
	if p.host, err = NewSpace(p.Group, false); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, nil
}

// MountsVar names a mount namespace to run "the host" in; benches that hide parts of
// the file system from themselves set it to where they came from.
const MountsVar = "ATOLL_RIG_MOUNTS"

// Host is a command on "the host": in its network namespace.
func (p *Pool) Host(name string, args ...string) *exec.Cmd { return p.host.Command(name, args...) }

// Start starts the daemon and waits until it answers; it returns how long that took.
func (p *Pool) Start(ctx context.Context) (time.Duration, error) {
	logf, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer logf.Close()
	args := append([]string{"up", "--config", "/dev/null", "--node", "isle1", "--state", filepath.Join(p.Dir, "state"), "--run", p.Run, "--group", p.Group, "--listen", ""}, p.Flags...)
	cmd := p.Host(filepath.Join(p.Bin, "atolld"), args...)
	cmd.Stdout, cmd.Stderr = logf, logf
	// Its own session: what kills the test must not look like what kills a daemon.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	p.mu.Lock()
	p.cmd, p.done = cmd, done
	p.mu.Unlock()
	for {
		if Ready(p.Socket) {
			return time.Since(began), nil
		}
		select {
		case err := <-done:
			done <- err
			return 0, fmt.Errorf("atolld ended: %w\n%s", err, p.Tail())
		case <-ctx.Done():
			return 0, fmt.Errorf("atolld is not ready: %w\n%s", ctx.Err(), p.Tail())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Pid is the daemon's.
func (p *Pool) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill ends the daemon at once; Stop lets it end.
func (p *Pool) Kill() { p.signal(syscall.SIGKILL) }

// Stop ends the daemon with SIGTERM.
func (p *Pool) Stop() { p.signal(syscall.SIGTERM) }

func (p *Pool) signal(s syscall.Signal) {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.cmd = nil
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(s) // it may have ended already
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-done
	}
}

// Tail is the end of the daemon's log.
func (p *Pool) Tail() string { return Tail(p.Log, 4000) }

// Tail is the end of a file, at most n bytes.
func Tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// Env makes the CLI talk to this pool.
func (p *Pool) Env() []string {
	return append(os.Environ(), "ATOLL_SOCKET="+p.Socket, "ATOLL_TENANT=demo", "ATOLL_SERVER=", "XDG_CONFIG_HOME="+p.Dir, "HOME="+p.Dir)
}

// Atoll is a CLI call that is not started yet.
func (p *Pool) Atoll(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.Bin, "atoll"), args...)
	cmd.Env = p.Env()
	return cmd
}

// Do runs the CLI and gives stdout; the error holds stderr.
func (p *Pool) Do(args ...string) (string, error) {
	out, stderr, err := p.Do2(args...)
	if err != nil {
		return out, fmt.Errorf("atoll %s: %w\n%s%s", strings.Join(args, " "), err, out, stderr)
	}
	return out, nil
}

// Do2 runs the CLI and gives both outputs.
func (p *Pool) Do2(args ...string) (stdout, stderr string, err error) {
	return Output(p.Atoll(args...))
}

// Close takes everything away: instances, groups, namespace, files.
func (p *Pool) Close() error {
	p.Stop()
	down := p.Host(filepath.Join(p.Bin, "atolld"), "down", "--config", "/dev/null", "--data", "--state", filepath.Join(p.Dir, "state"), "--run", p.Run, "--group", p.Group)
	out, err := down.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("atolld down: %w: %s", err, out)
	}
	p.host.Close()
	return errors.Join(err, os.RemoveAll(p.Dir), os.RemoveAll(p.Run))
}
