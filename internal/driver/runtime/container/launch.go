package container

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/cgroup"
	"atoll/internal/sys/mount"
)

// launchPatience bounds how long the OCI runtime may take to create an instance.
const launchPatience = 60 * time.Second

// launch mounts the instance's files in a new mount namespace, starts conmon in
// it, and waits until the first process stands ready. It returns that process.
func (r *Runtime) launch(ctx context.Context, e *environment, s driver.Spec) (pid int, warnings []string, err error) {
	ns, err := e.userNS(s.IDs)
	if err != nil {
		return 0, nil, err
	}
	layers := s.Image.Layers
	if !e.idmapped {
		if layers, err = r.shifted(ctx, s); err != nil {
			return 0, nil, err
		}
		ns = nil
	}
	syncR, syncW, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer syncR.Close()
	// Looked up out here: the namespace does not show the v2 tree of a hybrid host.
	attr, done := e.groups.StartIn(e.conmonGroup(s.Cgroup.Path))
	defer done()
	var key string
	err = e.base.InCopy(func() error {
		defer syncW.Close()
		w, err := r.mountRoot(e, s, layers, ns)
		warnings = w
		if err != nil {
			return err
		}
		if key, err = r.writeBundle(e, s, &warnings); err != nil {
			return err
		}
		if err := e.enterGroup(s.Cgroup.Path); err != nil {
			return err
		}
		return r.startConmon(e, s, syncW, attr)
	})
	if err != nil {
		return 0, nil, err
	}
	pid, err = r.awaitCreated(ctx, s, syncR)
	if err != nil {
		return 0, nil, err
	}
	r.keepFilter(key, s.ID)
	return pid, warnings, nil
}

// mountRoot mounts the overlay at <Run>/rootfs of the calling thread's namespace.
func (r *Runtime) mountRoot(e *environment, s driver.Spec, layers []string, ns *os.File) (warnings []string, err error) {
	lower := make([]string, len(layers))
	for i, l := range layers {
		lower[i] = l
		f, err := mount.Clone(l, ns)
		if err != nil {
			return nil, fmt.Errorf("layer %d of the image: %w", i, err)
		}
		lower[i] = r.run("l", strconv.Itoa(i))
		err = mount.Attach(f, lower[i])
		_ = f.Close()
		if err != nil {
			return nil, err
		}
	}
	dir := r.state("i", s.ID)
	if limit := diskLimit(s); limit > 0 {
		w, err := r.mountDisk(s, limit)
		if err != nil {
			return nil, err
		}
		if w != "" {
			warnings = append(warnings, w)
		} else {
			dir = r.run("m", strconv.Itoa(maxMounts-1))
		}
	}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if err := r.makeUpper(s, layers[len(layers)-1], upper, work); err != nil {
		return nil, err
	}
	return warnings, mount.OverlayIn(r.run("l"), r.run("rootfs"), mount.Layers{Lower: lower, Upper: upper, Work: work, Volatile: s.Instance.Spec.AutoRm})
}

// makeUpper makes the writable layer; its directory is the root inside, so it
// belongs to root inside and has the image's mode.
func (r *Runtime) makeUpper(s driver.Spec, top, upper, work string) error {
	err := os.Mkdir(upper, 0o755)
	if err == nil {
		mode := os.FileMode(0o755)
		if st, serr := os.Stat(top); serr == nil {
			mode = st.Mode().Perm() | 0o111
		}
		err = errors.Join(os.Chown(upper, int(s.IDs.Base), int(s.IDs.Base)), os.Chmod(upper, mode))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make writable layer: %w", err)
	}
	err = os.Mkdir(work, 0o700)
	if errors.Is(err, os.ErrExist) { // of an earlier run: the overlay wants it fresh
		err = errors.Join(os.RemoveAll(work), os.Mkdir(work, 0o700))
	}
	if err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	return nil
}

// writeBundle writes config.json; it runs where the root is mounted, because users
// are resolved in the instance's own files.
func (r *Runtime) writeBundle(e *environment, s driver.Spec, warnings *[]string) (filterKey string, err error) {
	root, err := mount.OpenDir(r.run("rootfs"))
	if err != nil {
		return "", err
	}
	defer root.Close()
	who := s.Instance.Spec.User
	if who == "" {
		who = s.Image.Config.User
	}
	u, err := lookupUser(root, who, s.IDs.Count)
	if err != nil {
		return "", err
	}
	volumes, w, err := r.mountVolumes(e, s)
	if err != nil {
		return "", err
	}
	*warnings = append(*warnings, w...)
	o, err := r.build(e, s, u, volumes)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("write OCI config: %w", err)
	}
	return o.seccompKey, os.WriteFile(r.run("i", s.ID, "config.json"), b, 0o600)
}

// hardLog is how large a log file may get before conmon throws it away by itself, in
// multiples of its size limit. It acts only when nobody rotates for long.
const hardLog = 8

// startConmon starts conmon in the calling thread's namespaces.
func (r *Runtime) startConmon(e *environment, s driver.Spec, syncW *os.File, attr *syscall.SysProcAttr) error {
	bundle := r.run("i", s.ID)
	size, _ := logPolicy(s.Instance.Spec.Logs)
	args := []string{"--cid", s.ID, "--cuuid", s.ID, "--name", s.ID, "--bundle", bundle, "--sync",
		"--runtime", e.program, "--runtime-arg", "--root", "--runtime-arg", r.run("c"),
		"--container-pidfile", filepath.Join(bundle, "pid"), "--exit-dir", r.run("exit"),
		"--log-path", "k8s-file:" + r.logFile(s.ID), "--log-size-max", strconv.FormatInt(max(size*hardLog, 64<<20), 10),
		"--no-sync-log", "--full-attach", "--log-level", "error"}
	if m := e.manager(); m != "" {
		args = append(args, "--runtime-arg", m)
	}
	if s.Instance.Spec.TTY {
		args = append(args, "--terminal", "--leave-stdin-open")
	}
	if s.Instance.Spec.Stdin {
		args = append(args, "--stdin")
	}
	cmd := exec.Command(e.conmon, args...)
	cmd.Dir = bundle
	cmd.Env = []string{"_OCI_SYNCPIPE=3", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=" + r.run("x")}
	cmd.ExtraFiles = []*os.File{syncW}
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start conmon: %w", err)
	}
	pid := cmd.Process.Pid
	r.mu.Lock()
	r.conmons[s.ID] = pid
	r.mu.Unlock()
	_ = cmd.Process.Release() // collected by reap
	return os.WriteFile(filepath.Join(bundle, "conmon.pid"), []byte(strconv.Itoa(pid)), 0o600)
}

// supervisors is the cgroup of conmon where it is not in its instance's: beside the
// tenants', at the top of whatever the instance is in.
func supervisors(instance string) string {
	top, _, _ := strings.Cut(instance, "/")
	return top + "/conmon"
}

// conmonGroup is the cgroup of an instance's supervisor: never the daemon's, so that whoever
// ends the daemon's group does not end the instances. On v2, and with runc, the runtime puts the first process
// into a group that only that one is in. With crun on v1 everything is started in the instance's groups, because
// moving a process there later costs more than all the rest of the start; the tenant pays for its 0.4 MB.
func (e *environment) conmonGroup(instance string) string {
	if e.inherits() {
		return instance
	}
	return supervisors(instance)
}

// inherits reports whether the first process gets its cgroups by being started in them.
func (e *environment) inherits() bool { return e.isCrun && e.groups.Mode != cgroup.V2 }

// enterGroup moves the calling thread where what it starts shall be; on v2 that is done at the start.
func (e *environment) enterGroup(instance string) error {
	if e.groups.Mode == cgroup.V2 {
		return nil
	}
	group := e.conmonGroup(instance)
	if group != instance { // which is there already
		if err := e.groups.Create(group); err != nil {
			return err
		}
	}
	return e.groups.EnterThread(group)
}

func (r *Runtime) logFile(id string) string { return r.state("i", id, "log", "log") }

// awaitCreated reads from conmon whether the OCI runtime made the instance.
func (r *Runtime) awaitCreated(ctx context.Context, s driver.Spec, syncR *os.File) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, launchPatience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = syncR.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReaderSize(syncR, 64<<10).ReadSlice('\n')
	if ctx.Err() != nil {
		return 0, fmt.Errorf("wait for the OCI runtime: %w", ctx.Err())
	}
	if err != nil && len(line) == 0 {
		return 0, fmt.Errorf("conmon ended without an answer: %w", err)
	}
	var answer struct {
		Pid     int    `json:"pid"`
		Data    int    `json:"data"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return 0, fmt.Errorf("answer of conmon: %w", err)
	}
	if pid := max(answer.Pid, answer.Data); pid > 0 {
		return pid, nil
	}
	return 0, runtimeError(answer.Message, s)
}

// runtimeError says in plain words why the OCI runtime refused.
func runtimeError(message string, s driver.Spec) error {
	msg := cleanMessage(message)
	args, _ := argv(s)
	what := strings.Join(args[:min(1, len(args))], "")
	return commandError(what, msg)
}

func commandError(what, msg string) error {
	switch {
	case strings.Contains(msg, "executable file") && strings.Contains(msg, "not found"), strings.Contains(msg, "No such file or directory") && strings.Contains(msg, "exec"),
		strings.Contains(msg, "no such file or directory") && strings.Contains(msg, "exec"):
		return errs.New(errs.Invalid, "cannot start %q: no such program in the image (exit code 127)", what).WithHint("check the command and the image's PATH")
	case strings.Contains(msg, "ermission denied") && (strings.Contains(msg, "exec") || strings.Contains(msg, "executable")):
		return errs.New(errs.Invalid, "cannot start %q: it is not executable (exit code 126)", what).WithHint("set its x permission in the image")
	case strings.Contains(msg, "xec format error"):
		return errs.New(errs.Invalid, "cannot start %q: it is for another processor or not a program (exit code 126)", what).WithHint("use an image for this node's architecture")
	case msg == "":
		return errs.New(errs.Internal, "the OCI runtime failed without saying why")
	}
	return errs.New(errs.Internal, "the OCI runtime refused: %s", msg)
}

// cleanMessage takes the timestamps and colours out of what the OCI runtime says.
func cleanMessage(m string) string {
	var out []string
	for l := range strings.Lines(m) {
		l = strings.TrimSpace(l)
		if i := strings.Index(l, ": "); i > 0 && strings.HasPrefix(l, "20") && strings.Contains(l[:i], "T") {
			l = l[i+2:]
		}
		if _, msg, ok := strings.Cut(l, " msg="); ok && strings.HasPrefix(l, "time=") { // runc
			if q, err := strconv.QuotedPrefix(msg); err == nil {
				l, _ = strconv.Unquote(q) // just found to be quoted
			}
		}
		if l != "" && !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	s := strings.Join(out, "; ")
	return strings.ToValidUTF8(s[:min(len(s), 1000)], "?")
}
