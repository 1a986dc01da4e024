// Package container runs instances as OCI containers: crun (or runc) under conmon,
// each in a mount namespace of its own that vanishes with it, in the tenant's own
// range of user IDs, under the default seccomp profile, without new privileges.
//
// Everything it knows stands on disk, so that a killed daemon loses nothing:
//
//	<State>/i/<id>/   record.json, upper and work of the overlay, log files; survives a boot
//	<State>/seccomp/  compiled seccomp filters
//	<Run>/i/<id>/     OCI bundle, PID files, conmon's sockets and FIFOs
//	<Run>/exit/<id>   exit code, written by conmon
//	<Run>/c/          the OCI runtime's own state
//	<Run>/rootfs, l, m  mount points; empty on the host, used in the private namespaces
//
// It owns no goroutine beyond those of a call in progress. conmon and what it runs
// never depend on the daemon. It must never mount in the host's namespace, follow
// a link out of an instance's root, or signal a process it has not identified.
package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/cgroup"
	"atoll/internal/sys/mount"
	"atoll/internal/sys/proc"
	"log/slog"
)

// Config says which programs do the work.
type Config struct {
	// Runtime is the OCI runtime. Default: crun, or runc where there is no crun.
	Runtime string `json:"runtime,omitempty"`
	// Conmon supervises it. Default: conmon from PATH or /usr/libexec/podman.
	Conmon string `json:"conmon,omitempty"`
	// MaxProcesses limits the processes of an instance that sets no limit of its own, because
	// a host has a finite number of them. Default 4096.
	MaxProcesses int64 `json:"maxProcesses,omitempty"`
}

// Runtime is the driver.
type Runtime struct {
	deps driver.Deps
	cfg  Config
	clk  clock.Clock
	log  *slog.Logger
	keys keys

	once     sync.Once
	setupErr error
	env      *environment // set by setup, read-only afterwards

	serial atomic.Int64 // names sockets

	mu       sync.Mutex
	records  map[string]*record
	reported map[string]string // exits told already: ID -> identity of the exit file
	conmons  map[string]int    // our children: ID -> PID
	filters  map[string]string // seccomp: hash -> base64
	sessions map[string]bool   // commands in progress, by directory
	tailers  map[*tailer]os.FileInfo
	changed  chan struct{} // closed when an exit was made up or an instance removed
}

// environment is what the host offers, found once.
type environment struct {
	runtime, conmon string
	program         string // the runtime as seen in our mount namespaces
	isCrun          bool
	runtimeVersion  string
	boot            string
	groups          *cgroup.Host
	base            *proc.Base
	idmapped        bool
	device          string // of the State directory, "major:minor"
	nofile          uint64 // highest number of open files we may allow
	oomMin          int    // lowest oom_score_adj we may set

	mu     sync.Mutex
	usernS map[driver.IDRange]*os.File
}

// New prepares the driver; the first call that needs the host looks at it.
func New(d driver.Deps, c Config) (*Runtime, error) {
	if !filepath.IsAbs(d.State) || !filepath.IsAbs(d.Run) {
		return nil, errs.New(errs.Invalid, "state and run directories must be absolute")
	}
	if c.MaxProcesses <= 0 {
		c.MaxProcesses = 4096
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Runtime{deps: d, cfg: c, clk: d.Clock, log: d.Log, keys: keys{m: map[string]*key{}}, records: map[string]*record{},
		reported: map[string]string{}, conmons: map[string]int{}, filters: map[string]string{}, sessions: map[string]bool{}, tailers: map[*tailer]os.FileInfo{}, changed: make(chan struct{})}, nil
}

// maxLayers is how many layers an image may have: the overlay's own bound is 500.
const maxLayers = 128

// maxMounts is how many volumes an instance may have.
const maxMounts = 64

// setup finds programs and hierarchies and makes our directories, once.
func (r *Runtime) setup() (*environment, error) {
	r.once.Do(func() { r.env, r.setupErr = r.findEnvironment() })
	return r.env, r.setupErr
}

func (r *Runtime) findEnvironment() (*environment, error) {
	e := &environment{usernS: map[driver.IDRange]*os.File{}}
	var err error
	if e.runtime, err = find(r.cfg.Runtime, "crun", "runc"); err != nil {
		return nil, errs.New(errs.Unsupported, "no OCI runtime: %w", err).WithHint("install crun (Debian: apt-get install crun)")
	}
	e.runtimeVersion = runtimeVersion(e.runtime)
	e.isCrun = strings.Contains(filepath.Base(e.runtime), "crun")
	if e.conmon, err = find(r.cfg.Conmon, "conmon", "/usr/libexec/podman/conmon", "/usr/lib/podman/conmon"); err != nil {
		return nil, errs.New(errs.Unsupported, "no conmon: %w", err).WithHint("install conmon (Debian: apt-get install conmon)")
	}
	if e.groups, err = cgroup.Detect(); err != nil {
		return nil, errs.New(errs.Unsupported, "cgroups: %w", err).WithHint("mount cgroup v2 at /sys/fs/cgroup")
	}
	if e.boot, err = bootID(); err != nil {
		return nil, err
	}
	if err := r.makeDirs(); err != nil {
		return nil, err
	}
	e.program = e.runtime
	e.base, err = proc.NewBase(func() error {
		if e.isCrun {
			// On a read-only mount crun need not copy and execute itself anew to be safe from what it runs.
			if err := mount.ReadOnlyFile(e.runtime, r.run("runtime")); err != nil {
				return err
			}
			e.program = r.run("runtime")
		}
		if e.groups.Mode == cgroup.Hybrid && e.isCrun {
			return mount.HideUnified(e.groups.Unified, r.run("rootfs"))
		}
		return nil
	})
	if err != nil {
		return nil, errs.New(errs.Unsupported, "mount namespaces: %w", err).WithHint("atolld must run as root with CAP_SYS_ADMIN")
	}
	e.device, e.nofile, e.oomMin = deviceOf(r.deps.State), maxOpenFiles(), ownOOMScore()
	e.idmapped = r.tryIdmap(e)
	return e, nil
}

// makeDirs makes our directories. Those below Run are passable for the tenants' IDs,
// because the OCI runtime walks them inside the user namespace; the files in them
// are not readable unless meant to be. State is closed.
func (r *Runtime) makeDirs() error {
	for dir, mode := range map[string]os.FileMode{
		r.deps.State: 0o711, filepath.Join(r.deps.State, "i"): 0o700, filepath.Join(r.deps.State, "seccomp"): 0o700,
		r.deps.Run: 0o711, r.run("i"): 0o711, r.run("exit"): 0o700, r.run("c"): 0o700, r.run("rootfs"): 0o711, r.run("l"): 0o711, r.run("m"): 0o711, r.run("x"): 0o700,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	for name, n := range map[string]int{"l": maxLayers, "m": maxMounts} {
		for i := range n {
			if err := os.Mkdir(r.run(name, fmt.Sprint(i)), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("make directory: %w", err)
			}
		}
	}
	for i := range maxMounts { // to mount single files on
		if err := os.WriteFile(r.run("m", fmt.Sprintf("f%d", i)), nil, 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(r.run("runtime"), nil, 0o700); err != nil { // to mount the runtime on
		return err
	}
	return passable(r.deps.Run)
}

func (r *Runtime) run(parts ...string) string {
	return filepath.Join(append([]string{r.deps.Run}, parts...)...)
}

func (r *Runtime) state(parts ...string) string {
	return filepath.Join(append([]string{r.deps.State}, parts...)...)
}

// passable checks that other users can walk to dir.
func passable(dir string) error {
	for d := dir; ; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o001 == 0 {
			return errs.New(errs.Unsupported, "directory %s is closed to other users, but the tenants' IDs must walk through it", d).WithHint("chmod o+x %s", d)
		}
		if d == "/" {
			return nil
		}
	}
}

func find(configured string, names ...string) (string, error) {
	if configured != "" {
		names = []string{configured}
	}
	var err error
	for _, n := range names {
		var p string
		if p, err = exec.LookPath(n); err == nil {
			return filepath.Abs(p)
		}
	}
	return "", err
}

// userNS is the user namespace of a range, made once.
func (e *environment) userNS(ids driver.IDRange) (*os.File, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.usernS[ids]; f != nil {
		return f, nil
	}
	f, err := proc.UserNS(ids.Base, ids.Count)
	if err == nil {
		e.usernS[ids] = f
	}
	return f, err
}

// keys is a lock per instance.
type keys struct {
	mu sync.Mutex
	m  map[string]*key
}

type key struct {
	ch   chan struct{} // holds one token while free
	uses int
}

// lock waits for the instance or ctx.
func (k *keys) lock(ctx context.Context, id string) (unlock func(), err error) {
	k.mu.Lock()
	e := k.m[id]
	if e == nil {
		e = &key{ch: make(chan struct{}, 1)}
		k.m[id] = e
	}
	e.uses++
	k.mu.Unlock()
	release := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if e.uses--; e.uses == 0 {
			delete(k.m, id)
		}
	}
	select {
	case e.ch <- struct{}{}:
		return func() { <-e.ch; release() }, nil
	case <-ctx.Done():
		release()
		return nil, fmt.Errorf("wait for instance %s: %w", id, ctx.Err())
	}
}

// writeFile writes by rename, so that a reader sees all or nothing.
func writeFile(path string, data []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, b, 0o600)
}
