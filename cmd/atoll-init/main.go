// Command atoll-init is the first process of an instance that has a kernel of its
// own: it mounts what a program expects, starts the one that run.json names, reaps
// what is orphaned, passes signals on, and ends the machine with the program's exit
// code as its last word. It is static and uses the standard library alone.
//
//	atoll-init [--config /atoll/run.json] [--no-mounts]
//
// Without being process 1 (in tests, or as the init of a container) it mounts and
// powers off nothing and exits with the program's code.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// run says what to start.
type run struct {
	Argv     []string `json:"argv"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir"`
	Hostname string   `json:"hostname"`
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Groups   []uint32 `json:"groups"`
}

// maxConfig bounds run.json; a longer one is not ours.
const maxConfig = 1 << 20

func main() {
	path := flag.String("config", "/atoll/run.json", "what to run")
	noMounts := flag.Bool("no-mounts", false, "mount nothing")
	flag.Parse()
	machine := os.Getpid() == 1 && !*noMounts
	if machine {
		mounts()
	}
	code, err := start(*path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "atoll-init:", err)
	}
	if machine {
		fmt.Printf("\natoll-init: exit %d\n", code)
		syscall.Sync()
		// Nothing can be done about a machine that will not power off but to stop.
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	}
	os.Exit(code)
}

// mounts makes a bare root usable. What is mounted already is left alone.
func mounts() {
	for _, m := range []struct {
		src, dst, fs, data string
		flags              uintptr
	}{
		{"proc", "/proc", "proc", "", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC},
		{"sysfs", "/sys", "sysfs", "", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC},
		{"devtmpfs", "/dev", "devtmpfs", "mode=0755", syscall.MS_NOSUID},
		{"devpts", "/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5", syscall.MS_NOSUID | syscall.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777", syscall.MS_NOSUID | syscall.MS_NODEV},
		{"tmpfs", "/run", "tmpfs", "mode=0755", syscall.MS_NOSUID | syscall.MS_NODEV},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", "", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC},
	} {
		if err := os.MkdirAll(m.dst, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, "atoll-init:", err)
			continue
		}
		if err := syscall.Mount(m.src, m.dst, m.fs, m.flags, m.data); err != nil && !errors.Is(err, syscall.EBUSY) {
			fmt.Fprintf(os.Stderr, "atoll-init: mount %s: %v\n", m.dst, err)
		}
	}
}

func read(path string) (run, error) {
	var r run
	st, err := os.Stat(path)
	if err != nil {
		return r, err
	}
	if st.Size() > maxConfig {
		return r, fmt.Errorf("%s has %d bytes, more than %d", path, st.Size(), maxConfig)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if len(r.Argv) == 0 {
		return r, fmt.Errorf("%s: argv is empty", path)
	}
	return r, nil
}

// start runs the program to its end. Codes are the shell's: 127 not found, 126 cannot be run, 128 + signal.
func start(path string) (int, error) {
	r, err := read(path)
	if err != nil {
		return 125, err
	}
	if r.Hostname != "" {
		if err := syscall.Sethostname([]byte(r.Hostname)); err != nil && os.Getpid() == 1 {
			fmt.Fprintln(os.Stderr, "atoll-init: set host name:", err)
		}
	}
	bin, err := find(r.Argv[0], r.Env)
	if err != nil {
		return 127, err
	}
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs)
	attr := &os.ProcAttr{Dir: r.Dir, Env: r.Env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Setsid: true}}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: r.UID, Gid: r.GID, Groups: r.Groups}
	}
	p, err := os.StartProcess(bin, r.Argv, attr)
	if err != nil {
		return 126, err
	}
	go func() {
		for s := range sigs {
			if s != syscall.SIGCHLD && s != syscall.SIGURG { // SIGURG is the Go runtime's own
				_ = p.Signal(s) // it may have ended
			}
		}
	}()
	return reap(p.Pid)
}

// reap waits for the program and, as process 1, for every orphan that ends before it.
func reap(pid int) (int, error) {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return 125, fmt.Errorf("wait: %w", err)
		}
		if got != pid {
			continue
		}
		if ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return ws.ExitStatus(), nil
	}
}

// find looks a program up in the PATH it will get.
func find(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s", name, exec.ErrNotFound, path)
}
