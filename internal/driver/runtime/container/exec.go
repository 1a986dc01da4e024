package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/mount"
	"atoll/internal/sys/proc"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// drain is how long output is still read after the command has ended while something
// it left behind keeps the pipe open.
const drain = 250 * time.Millisecond

// session is one command in an instance.
type session struct {
	dir   string // <Run>/i/<id>/exec/<n>
	rec   *record
	pid   int // of the instance's first process
	req   api.ExecRequest
	st    driver.Stream
	cmd   *exec.Cmd
	leads bool          // standard input is the terminal that cmd controls
	done  chan struct{} // closed when cmd has ended
	werr  error         // of cmd.Wait, valid after done
}

// Exec runs a command in a running instance. A Read of st.In that blocks is left to
// the caller to end.
func (r *Runtime) Exec(ctx context.Context, id string, req api.ExecRequest, st driver.Stream) (int, error) {
	e, err := r.setup()
	if err != nil {
		return 0, err
	}
	if len(req.Argv) == 0 || req.Argv[0] == "" {
		return 0, errs.New(errs.Invalid, "no command given")
	}
	s := &session{req: req, st: st, done: make(chan struct{})}
	if err := r.openSession(ctx, e, id, s); err != nil {
		return 0, err
	}
	defer r.closeSession(s)
	r.awaitProgram(ctx, e, s.pid)
	if req.TTY {
		err = r.execTTY(ctx, e, id, s)
	} else {
		err = r.execPipes(ctx, e, id, s)
	}
	if err != nil {
		return 137, fmt.Errorf("exec in %s: %w", id, err)
	}
	code := s.cmd.ProcessState.ExitCode()
	if code < 0 {
		code = 137
	}
	if code != 0 {
		if msg := s.runtimeMessage(); msg != "" {
			err := commandError(req.Argv[0], msg)
			if errors.Is(err, errs.Invalid) {
				return 127, err
			}
			if o, _, _ := r.look(e, id); o.Phase != driver.PhaseRunning {
				return 137, errs.New(errs.Conflict, "instance %s ended", id)
			}
			return code, err
		}
	}
	return code, nil
}

// openSession finds the instance and notes the command on disk.
func (r *Runtime) openSession(ctx context.Context, e *environment, id string, s *session) error {
	unlock, err := r.keys.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	o, rec, found := r.look(e, id)
	switch {
	case !found:
		return notHere(id)
	case o.Phase != driver.PhaseRunning:
		return errs.New(errs.Conflict, "instance %s is not running", id).WithHint("start it: atoll start %s", o.Ref.Name)
	}
	s.rec, s.pid = rec, o.Pid
	parent := r.run("i", id, "exec")
	if err := os.Mkdir(parent, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if s.dir, err = os.MkdirTemp(parent, ""); err != nil {
		return err
	}
	r.mu.Lock()
	r.sessions[s.dir] = true
	r.mu.Unlock()
	if err := r.writeProcess(s); err != nil {
		r.closeSession(s)
		return err
	}
	return nil
}

// awaitProgram waits until the first process has become the instance's program: the
// kernel lets nobody join its namespaces while the OCI runtime turns into it.
func (r *Runtime) awaitProgram(ctx context.Context, e *environment, pid int) {
	link := fmt.Sprintf("/proc/%d/exe", pid)
	for range 1000 {
		exe, err := os.Readlink(link)
		turning := exe == "/" || exe == e.runtime || exe == e.program || strings.HasPrefix(exe, "/memfd:")
		if err != nil || !turning || r.clk.Sleep(ctx, time.Millisecond) != nil {
			return
		}
	}
}

func (r *Runtime) closeSession(s *session) {
	_ = os.RemoveAll(s.dir)
	r.mu.Lock()
	delete(r.sessions, s.dir)
	r.mu.Unlock()
}

// writeProcess writes the OCI process: the instance's own, with the command in its place.
func (r *Runtime) writeProcess(s *session) error {
	b, err := os.ReadFile(r.run("i", s.rec.ID, "config.json"))
	if err != nil {
		return err
	}
	var cfg struct {
		Process *specs.Process `json:"process"`
	}
	if err := json.Unmarshal(b, &cfg); err != nil || cfg.Process == nil {
		return fmt.Errorf("OCI config of %s: %w", s.rec.ID, errors.Join(err, os.ErrInvalid))
	}
	p := cfg.Process
	p.Args, p.Terminal = s.req.Argv, s.req.TTY
	p.Env = mergeEnv(p.Env, s.req.Env)
	if s.req.TTY {
		p.Env = mergeEnv([]string{"TERM=xterm"}, p.Env)
		if s.req.Size.Cols > 0 {
			p.ConsoleSize = &specs.Box{Height: uint(s.req.Size.Rows), Width: uint(s.req.Size.Cols)}
		}
	}
	if s.req.Workdir != "" {
		p.Cwd = path.Clean("/" + s.req.Workdir)
	}
	if s.req.User != "" {
		root, err := mount.OpenDir(fmt.Sprintf("/proc/%d/root", s.pid))
		if err != nil {
			return err
		}
		defer root.Close()
		u, err := lookupUser(root, s.req.User, s.rec.IDs.Count)
		if err != nil {
			return err
		}
		p.User = specs.User{UID: u.UID, GID: u.GID, AdditionalGids: u.Groups}
		p.Env = mergeEnv(p.Env, []string{"HOME=" + u.Home})
		p.Capabilities.Permitted, p.Capabilities.Effective = p.Capabilities.Bounding, p.Capabilities.Bounding
		if u.UID != 0 {
			p.Capabilities.Permitted, p.Capabilities.Effective = nil, nil
		}
	}
	return writeJSON(filepath.Join(s.dir, "process.json"), p)
}

// start starts the OCI runtime where the instance's root is mounted.
func (r *Runtime) start(e *environment, id string, s *session, in, out, errw *os.File, extra ...string) error {
	args := append(r.ociArgs(e), "--log", filepath.Join(s.dir, "log"), "exec", "--process", filepath.Join(s.dir, "process.json"), "--pid-file", filepath.Join(s.dir, "pid"))
	args = append(append(args, extra...), id)
	s.cmd = exec.Command(e.program, args...)
	s.cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if in != nil {
		s.cmd.Stdin = in
	}
	if out != nil {
		s.cmd.Stdout = out
	}
	if errw != nil {
		s.cmd.Stderr = errw
	}
	attr, done := e.groups.StartBeside(s.rec.Cgroup)
	defer done()
	if s.leads {
		if attr == nil {
			attr = &syscall.SysProcAttr{}
		}
		attr.Setsid, attr.Setctty = true, true // its standard input tells it of new sizes
	}
	s.cmd.SysProcAttr = attr
	err := proc.InMountNS(r.conmonPid(id), func() error {
		if err := e.enterGroup(s.rec.Cgroup); err != nil {
			return err
		}
		return s.cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("start the OCI runtime: %w", err)
	}
	go func() {
		s.werr = s.cmd.Wait()
		close(s.done)
	}()
	return nil
}

// kill ends the command and the runtime that waits for it, and waits for both.
func (s *session) kill(e *environment) {
	for {
		for _, pid := range proc.Children(s.cmd.Process.Pid) {
			if p, err := proc.Open(pid); err == nil {
				_ = p.Signal(proc.Kill)
				p.Close()
			}
		}
		killFromFile(e, filepath.Join(s.dir, "pid"), s.rec.Cgroup)
		look := clock.Real{}.NewTimer(20 * time.Millisecond) // real processes end in real time
		select {
		case <-s.done:
			look.Stop()
			return
		case <-look.C:
		}
		// Without a child it has not started one yet, or hangs: it must not start one later.
		if len(proc.Children(s.cmd.Process.Pid)) == 0 {
			_ = s.cmd.Process.Kill()
		}
	}
}

// killFromFile kills a process that a PID file names, if it is in the group.
func killFromFile(e *environment, file, group string) {
	pid := readPid(file)
	p, err := proc.Open(pid)
	if err != nil {
		return
	}
	defer p.Close()
	if e.groups.Contains(group, pid) {
		_ = p.Signal(proc.Kill)
	}
}

// await waits for the command; it kills it when ctx ends or failed says that nobody reads its output.
func (s *session) await(ctx context.Context, e *environment, failed <-chan error) error {
	select {
	case <-s.done:
		return nil
	case err := <-failed:
		s.kill(e)
		return err
	case <-ctx.Done():
		s.kill(e)
		return ctx.Err()
	}
}

// execPipes runs the command on pipes.
func (r *Runtime) execPipes(ctx context.Context, e *environment, id string, s *session) error {
	var child, ours []*os.File
	defer func() { closeAll(ours) }()
	pipe := func(wanted, toChild bool) (*os.File, *os.File, error) {
		if !wanted {
			return nil, nil, nil
		}
		rd, wr, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		if toChild {
			child, ours = append(child, rd), append(ours, wr)
			return rd, wr, nil
		}
		child, ours = append(child, wr), append(ours, rd)
		return wr, rd, nil
	}
	in, inW, err1 := pipe(s.req.Stdin && s.st.In != nil, true)
	out, outR, err2 := pipe(s.st.Out != nil, false)
	shared := s.st.Err != nil && same(s.st.Out, s.st.Err)
	errw, errR, err3 := pipe(s.st.Err != nil && !shared, false)
	if shared { // one writer is never written from two goroutines
		errw = out
	}
	err := errors.Join(err1, err2, err3)
	if err == nil {
		err = r.start(e, id, s, in, out, errw)
	}
	closeAll(child)
	if err != nil {
		return err
	}
	if inW != nil {
		go func() { // ends with the next Read of st.In at the latest
			_, _ = io.Copy(inW, s.st.In)
			_ = inW.Close()
		}()
	}
	failed := make(chan error, 2)
	var wg sync.WaitGroup
	for _, c := range []struct {
		to   io.Writer
		from *os.File
	}{{s.st.Out, outR}, {s.st.Err, errR}} {
		if c.from != nil {
			wg.Go(func() {
				if _, err := io.Copy(c.to, c.from); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					failed <- fmt.Errorf("output: %w", err)
				}
			})
		}
	}
	err = s.await(ctx, e, failed)
	late := time.AfterFunc(drain, func() { expire(outR, errR) })
	wg.Wait()
	late.Stop()
	if err == nil {
		select {
		case err = <-failed:
		default:
		}
	}
	return err
}

// same reports whether two writers are one; those of types that cannot be compared are not.
func same(a, b io.Writer) bool {
	return a != nil && b != nil && reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

func expire(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// terminal starts the command on a terminal of its own; nil without error when the runtime
// ended before it made one. crun hands over the instance's; runc does so only when it is not waited
// for, and otherwise copies between that one and its own: it gets one.
func (r *Runtime) terminal(ctx context.Context, e *environment, id string, s *session) (*os.File, error) {
	if !e.isCrun {
		ours, theirs, err := proc.OpenTerminal()
		if err != nil {
			return nil, err
		}
		defer theirs.Close()
		s.leads = true
		if err := r.start(e, id, s, theirs, theirs, nil, "--tty"); err != nil {
			_ = ours.Close()
			return nil, err
		}
		return ours, nil
	}
	sock, err := proc.ListenFD(r.run("x"), "t"+strconv.FormatInt(r.serial.Add(1), 36))
	if err != nil {
		return nil, err
	}
	defer sock.Close()
	if err := r.start(e, id, s, nil, nil, nil, "--tty", "--console-socket", sock.Path); err != nil {
		return nil, err
	}
	return s.console(ctx, e, sock)
}

// execTTY runs the command on a terminal.
func (r *Runtime) execTTY(ctx context.Context, e *environment, id string, s *session) error {
	tty, err := r.terminal(ctx, e, id, s)
	if err != nil || tty == nil {
		return err
	}
	defer tty.Close()
	if s.req.Size.Cols > 0 {
		_ = proc.SetWinsize(tty, s.req.Size.Cols, s.req.Size.Rows)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	over := make(chan struct{})
	defer close(over)
	wg.Go(func() { resize(s.st.Resize, over, tty) })
	if s.req.Stdin && s.st.In != nil {
		go func() { _, _ = io.Copy(tty, s.st.In) }() // ends with the next Read of st.In at the latest
	}
	failed := make(chan error, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		if err := copyTTY(s.st.Out, tty); err != nil {
			failed <- fmt.Errorf("output: %w", err)
		}
	}()
	err = s.await(ctx, e, failed)
	late := time.AfterFunc(drain, func() { expire(tty) })
	<-read
	late.Stop()
	return err
}

// console receives the terminal; nil without error when the runtime ended before it made one.
func (s *session) console(ctx context.Context, e *environment, sock *proc.FDSocket) (*os.File, error) {
	for {
		tty, err := sock.Receive(20 * time.Millisecond)
		if err == nil {
			return tty, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			s.kill(e)
			return nil, err
		}
		select {
		case <-s.done:
			return nil, nil
		case <-ctx.Done():
			s.kill(e)
			return nil, ctx.Err()
		default:
		}
	}
}

// resize forwards sizes until over is closed.
func resize(sizes <-chan api.TermSize, over <-chan struct{}, tty *os.File) {
	for {
		select {
		case z, ok := <-sizes:
			if !ok {
				return
			}
			_ = proc.SetWinsize(tty, z.Cols, z.Rows)
		case <-over:
			return
		}
	}
}

// copyTTY copies until the terminal's other side is closed, which reads as EIO.
func copyTTY(w io.Writer, tty *os.File) error {
	if w == nil {
		w = io.Discard
	}
	buf := make([]byte, 32<<10)
	for {
		n, rerr := tty.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if rerr != nil {
			return nil //nolint:nilerr // the end, however it is called
		}
	}
}

// runtimeMessage is what the OCI runtime itself complained of; "" when it did not.
func (s *session) runtimeMessage() string {
	f, err := os.Open(filepath.Join(s.dir, "log"))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 16<<10))
	if err != nil {
		return ""
	}
	return cleanMessage(strings.TrimSpace(string(b)))
}

// killOrphanExecs ends commands of an earlier life of the daemon: their callers are gone.
func (r *Runtime) killOrphanExecs(e *environment, rec *record) {
	dirs, err := filepath.Glob(r.run("i", rec.ID, "exec", "*"))
	if err != nil {
		return
	}
	for _, d := range dirs {
		r.mu.Lock()
		ours := r.sessions[d]
		r.mu.Unlock()
		if ours {
			continue
		}
		killFromFile(e, filepath.Join(d, "pid"), rec.Cgroup)
		if err := os.RemoveAll(d); err != nil {
			r.log.Warn("files of an orphaned command stay", "instance", rec.ID, "error", err)
		}
	}
}
