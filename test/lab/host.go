package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"atoll/internal/errs"
	"atoll/internal/store/remote"
	"atoll/test/rig"
)

// Host is one host of a lab.
type Host struct {
	Name    string // isle1, isle2, …
	Address string
	State   string // what survives a reboot
	Run     string // what does not
	Group   string // root of its resource groups
	Socket  string // of its API, while it is a server
	Log     string

	lab    *Lab
	number int
	space  *rig.Space // nil while it is off

	mu     sync.Mutex
	begun  int           // the pid of the daemon that this process started
	done   chan struct{} // closed when that one has ended; nil: none was started
	from   int64         // where its part of the log begins
	client *remote.Store // nil until it is asked for
}

func newHost(l *Lab, number int) *Host {
	name := "isle" + strconv.Itoa(number)
	id := prefix + l.Name + "-" + strconv.Itoa(number)
	dir := filepath.Join(l.Dir, name)
	run := filepath.Join("/dev/shm", id)
	return &Host{Name: name, Address: network + strconv.Itoa(number), State: filepath.Join(dir, "state"), Run: run, Group: id,
		Socket: filepath.Join(run, "atoll.sock"), Log: filepath.Join(dir, "log"), lab: l, number: number}
}

// where are the settings that every call of the daemon's program gets.
func (h *Host) where() []string {
	return []string{"--config", "/dev/null", "--node", h.Name, "--state", h.State, "--run", h.Run, "--group", h.Group}
}

// Exec is a command on the host: in its network.
func (h *Host) Exec(name string, args ...string) *exec.Cmd { return h.space.Command(name, args...) }

// Begin starts the daemon and does not wait for it: of several servers that were all down, none is there
// before the others.
func (h *Host) Begin() error {
	if h.space == nil {
		return errs.New(errs.Conflict, "%s is off", h.Name).WithHint("switch it on first")
	}
	if h.Pid() != 0 {
		return nil
	}
	logf, err := os.OpenFile(h.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logf.Close()
	size, err := logf.Seek(0, 2)
	if err != nil {
		return err
	}
	args := slices.Concat([]string{"up"}, h.where(), []string{"--listen", h.Address + ":" + port}, h.lab.Flags)
	cmd := h.Exec(filepath.Join(h.lab.Bin, "atolld"), args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = logf, logf, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := cmd.Start
	if !h.lab.kept {
		start = func() error { return rig.StartTied(cmd) }
	}
	if err := start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(done)
	}()
	h.mu.Lock()
	h.begun, h.done, h.from = cmd.Process.Pid, done, size
	h.mu.Unlock()
	return nil
}

// own is the daemon that this process started and that has not ended; 0: there is none. What is started in a
// namespace goes by another name at first, so that looking for it would find nothing, and start a second one.
func (h *Host) own() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.done:
		return 0
	default:
	}
	if h.done == nil {
		return 0
	}
	return h.begun
}

// reaped waits for the end of the daemon that this process started, which was killed.
func (h *Host) reaped() error {
	h.mu.Lock()
	done, pid := h.done, h.begun
	h.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
	case <-time.After(endPatience):
		return errs.New(errs.Timeout, "atolld on %s, process %d, does not end:\n%s", h.Name, pid, h.Tail(2000))
	}
	h.mu.Lock()
	h.done = nil
	h.mu.Unlock()
	return nil
}

// Start starts the daemon and waits until its host is in the pool.
func (h *Host) Start(ctx context.Context) error {
	if err := h.Begin(); err != nil {
		return err
	}
	return h.Ready(ctx)
}

// Ready waits until the daemon that was begun has said that it is up.
func (h *Host) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	h.mu.Lock()
	done, from := h.done, h.from
	h.mu.Unlock()
	for {
		b, err := os.ReadFile(h.Log)
		if err == nil && bytes.Contains(b[min(from, int64(len(b))):], []byte(" msg=up ")) {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("atolld on %s ended:\n%s", h.Name, h.Tail(4000))
		case <-ctx.Done():
			return fmt.Errorf("atolld on %s is not up: %w\n%s", h.Name, ctx.Err(), h.Tail(4000))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Serving waits until the API answers on the host.
func (h *Host) Serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	return until(ctx, "the API of "+h.Name, func() error {
		if !rig.Ready(h.Socket) {
			return errs.New(errs.Unavailable, "%s does not answer", h.Socket)
		}
		return nil
	})
}

// until asks again until there is no error.
func until(ctx context.Context, what string, fn func() error) error {
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Tail is the end of the daemon's log.
func (h *Host) Tail(n int) string { return rig.Tail(h.Log, n) }

// Pid is the daemon's; 0: none runs.
func (h *Host) Pid() int {
	if pid := h.own(); pid != 0 {
		return pid
	}
	for pid, argv := range rig.Processes() {
		if filepath.Base(argv[0]) == "atolld" && len(argv) > 2 && argv[1] == "up" && h.is(argv) {
			return pid
		}
	}
	return 0
}

// Watchdog is the pid of the host's watchdog; 0: none runs.
func (h *Host) Watchdog() int {
	for pid, argv := range rig.Processes() {
		name := filepath.Base(argv[0])
		if (name == "atoll-watchdog" || name == "atolld" && len(argv) > 1 && argv[1] == "watchdog") && h.is(argv) {
			return pid
		}
	}
	return 0
}

func (h *Host) is(argv []string) bool {
	i := slices.Index(argv, "--run")
	return i >= 0 && i+1 < len(argv) && argv[i+1] == h.Run
}

// Stop ends the daemon with SIGTERM; instances run on.
func (h *Host) Stop() error { return h.end(syscall.SIGTERM) }

// Kill ends the daemon at once; instances run on.
func (h *Host) Kill() error { return h.end(syscall.SIGKILL) }

func (h *Host) end(s syscall.Signal) error {
	pid := h.Pid()
	if pid == 0 {
		return nil
	}
	_ = syscall.Kill(pid, syscall.SIGCONT) // one that is stopped takes no signal but SIGKILL
	_ = syscall.Kill(pid, s)               // it may have ended
	for deadline := time.Now().Add(endPatience); h.Pid() == pid; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			return errs.New(errs.Timeout, "atolld on %s, process %d, does not end:\n%s", h.Name, pid, h.Tail(2000))
		}
	}
	return h.reaped()
}

// endPatience is for a daemon that was told to end, or killed.
const endPatience = 20 * time.Second

// Pause stops the daemon's process, as if the host had nothing left for it; with the watchdog: as if it
// was a virtual machine that is stopped. Instances run on.
func (h *Host) Pause(watchdog bool) error { return h.signal(syscall.SIGSTOP, watchdog) }

// Resume lets it, and the watchdog, go on.
func (h *Host) Resume() error { return h.signal(syscall.SIGCONT, true) }

func (h *Host) signal(s syscall.Signal, watchdog bool) error {
	pids := []int{h.Pid()}
	if pids[0] == 0 {
		return errs.New(errs.Conflict, "no daemon runs on %s", h.Name)
	}
	if w := h.Watchdog(); watchdog && w != 0 {
		pids = append(pids, w)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, s); err != nil {
			return fmt.Errorf("signal %d to %d on %s: %w", s, pid, h.Name, err)
		}
	}
	return nil
}

// Do runs the CLI against the host's own socket and gives stdout; the error holds stderr.
func (h *Host) Do(args ...string) (string, error) {
	return did(args, h.Atoll(args...))
}

// Atoll is a CLI call over the host's own socket that is not started yet.
func (h *Host) Atoll(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(h.lab.Bin, "atoll"), args...)
	cmd.Env = append(os.Environ(), "ATOLL_SOCKET="+h.Socket, "ATOLL_TENANT=demo", "ATOLL_SERVER=", "XDG_CONFIG_HOME="+h.lab.Dir, "HOME="+h.lab.Dir)
	return cmd
}

func did(args []string, cmd *exec.Cmd) (string, error) {
	out, stderr, err := rig.Output(cmd)
	if err != nil {
		return out, fmt.Errorf("atoll %s: %w\n%s%s", strings.Join(args, " "), err, out, stderr)
	}
	return out, nil
}

// remove takes the host away for good.
func (h *Host) remove(ctx context.Context) error {
	err := h.Kill()
	if w := h.Watchdog(); w != 0 {
		_ = syscall.Kill(w, syscall.SIGKILL) // it may have ended
	}
	// A network of its own stands for the host's: what is taken away there must never be the machine's.
	args := append(append([]string{"down"}, h.where()...), "--data")
	down := exec.CommandContext(ctx, "unshare", append([]string{"--net", filepath.Join(h.lab.Bin, "atolld")}, args...)...)
	if h.space != nil {
		down = h.Exec(filepath.Join(h.lab.Bin, "atolld"), args...)
	}
	// The disk of its own cannot be removed as a directory while it is one.
	if out, derr := down.CombinedOutput(); derr != nil && h.lab.Disk == 0 {
		err = errors.Join(err, fmt.Errorf("atolld down on %s: %w: %s", h.Name, derr, out))
	}
	if h.space != nil {
		h.space.Close()
	}
	return errors.Join(err, unmountBelow(h.State), unmountBelow(h.Run), os.RemoveAll(h.Run))
}

// Paused reports whether its daemon stands still.
func (h *Host) Paused() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.Pid()))
	if err != nil {
		return false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return len(f) > 0 && (f[0] == "T" || f[0] == "t")
}
