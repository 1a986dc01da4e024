package rig

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Space is a network namespace that stands for a host. It outlives the daemons in it, as a
// host outlives them: a process that does nothing holds it.
type Space struct {
	name string
	pid  int
	cmd  *exec.Cmd // nil when another process started the holder
}

// NewSpace makes one whose loopback works. The holder goes by the name, so that it can be found again
// (FindSpace); kept, it stays when this process ends.
func NewSpace(name string, kept bool) (*Space, error) {
	path, err := exec.LookPath("sleep")
	if err != nil {
		return nil, err
	}
	s := &Space{name: name, cmd: &exec.Cmd{Path: path, Args: []string{name, "infinity"}, Dir: "/"}}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Setsid: true}
	if !kept {
		s.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	s.pid = s.cmd.Process.Pid
	if out, err := s.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		s.Close()
		return nil, fmt.Errorf("bring lo up: %w: %s", err, out)
	}
	return s, nil
}

// OwnSpace is the namespace this process is in. Closing it does nothing.
func OwnSpace() *Space { return &Space{pid: os.Getpid()} }

// FindSpace finds one by its holder's name; nil when there is none.
func FindSpace(name string) *Space {
	for pid, argv := range Processes() {
		if len(argv) == 2 && argv[0] == name && argv[1] == "infinity" {
			return &Space{name: name, pid: pid}
		}
	}
	return nil
}

// Processes lists the arguments of every process. Those without any are the kernel's, or have ended.
func Processes() map[int][]string {
	out := map[int][]string{}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, f := range files {
		b, err := os.ReadFile(f)
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil && perr == nil && len(b) > 0 {
			out[pid] = strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		}
	}
	return out
}

// Path names the namespace for as long as it is held.
func (s *Space) Path() string { return fmt.Sprintf("/proc/%d/ns/net", s.pid) }

// Pid is the holder's.
func (s *Space) Pid() int { return s.pid }

// Command is a command in the namespace.
func (s *Space) Command(name string, args ...string) *exec.Cmd {
	enter := []string{"--net=" + s.Path()}
	if m := os.Getenv(MountsVar); m != "" {
		enter = append(enter, "--mount="+m)
	}
	return exec.Command("nsenter", append(append(enter, "--", name), args...)...)
}

// Close ends the holder. The namespace goes when nothing else is in it.
func (s *Space) Close() {
	switch {
	case s.cmd != nil:
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait() // killed
	case s.name != "" && FindSpace(s.name) != nil:
		_ = syscall.Kill(s.pid, syscall.SIGKILL) // it may have ended
	}
}

// Output runs a command and gives both outputs.
func Output(cmd *exec.Cmd) (stdout, stderr string, err error) {
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err = cmd.Run()
	return out.String(), errb.String(), err
}

// aloneVar tells a process that Alone has started which namespace it must not be in.
const aloneVar = "ATOLL_RIG_ALONE"

// IsAlone reports whether this process is in a network namespace that Alone made.
func IsAlone() bool {
	mine, err := os.Readlink("/proc/self/ns/net")
	from := os.Getenv(aloneVar)
	return err == nil && from != "" && from != mine
}

// Alone puts this process into a network namespace of its own, by starting it anew there: what it does cannot
// touch the machine's network, and it reaches the hosts of a lab that is made with Options.Here by their
// addresses. Call it first in main.
func Alone() error {
	if IsAlone() {
		return nil
	}
	mine, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command("unshare", append([]string{"--net", self}, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), aloneVar+"="+mine)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	signal.Ignore(os.Interrupt) // the child cleans up
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1))
	}
	if err != nil {
		return fmt.Errorf("a network namespace of its own: %w", err)
	}
	os.Exit(0)
	return nil
}
