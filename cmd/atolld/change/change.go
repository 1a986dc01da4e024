// Package change is a host's part in upgrades of the pool: it has the programs of
// versions, changes from one to another, and goes back from one that does not prove
// itself. See docs/upgrade.md.
package change

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/release"
	"atoll/internal/stage"
	"atoll/internal/store"
	"atoll/internal/sys/proc"
)

// errChanged ends a watch that has told what it is there for.
var errChanged = errors.New("something changed")

// errChange ends what runs so that another version of this program takes its place.
var errChange = errors.New("another version takes over")

// launchedVar is set by whoever decided which version runs: the path of its program.
const launchedVar = "ATOLLD_LAUNCHED"

const (
	// ClosePatience is how long this version may take to stop in good order. What is
	// acknowledged is on the disk anyway, and the host's lease does not wait.
	ClosePatience = 2 * time.Second
	// wellFor is how long all must be well before a version has proved itself.
	wellFor     = time.Second
	wellLook    = 200 * time.Millisecond
	followAgain = 2 * time.Second
	// fetchPatience bounds getting one version.
	fetchPatience = 10 * time.Minute
)

// Config says what this program is and where the host keeps its versions.
type Config struct {
	Version             string // of this build
	State, Run          string // directories
	LogLevel, LogFormat string
	Node                string // the host's name, until it has an identity
	Log                 *slog.Logger
	Clock               clock.Clock
}

// Host is the daemon that runs now, as far as changing its version goes.
type Host interface {
	// Identity is nil while nobody else knows the host.
	Identity() *join.Identity
	// Well reports whether the daemon does its work.
	Well(ctx context.Context) error
	// HandOver makes another server lead, where this one does.
	HandOver(ctx context.Context) error
	// Publish has the pool told soon what Status says.
	Publish()
}

// Choose is the first thing the daemon does: where another version was chosen on
// this host, that takes the place of this process. It must stay small: it is what brings
// a host back on which a new version ends at its start.
func Choose(c Config) error {
	exe, err := os.Executable()
	if err != nil {
		return errs.New(errs.Internal, "which program is this: %w", err)
	}
	exe = strings.TrimSuffix(exe, " (deleted)") // it was replaced while it ran
	dir := stage.Of(c.State)
	was, err := dir.Read()
	if err != nil {
		c.Log.Warn("the versions on this host", "error", err)
		return nil
	}
	self := stage.Self{Version: c.Version, Installed: filepath.Dir(filepath.Dir(exe)) != dir.Root, Chosen: os.Getenv(launchedVar) == exe}
	rec, target := stage.Next(was, self, time.Now())
	if f := rec.Failed; f != nil && was.Activating != nil && rec.Activating == nil {
		c.Log.Error("the new version is given up", "version", f.Version, "why", f.Reason)
	}
	if err := writeChanged(dir, was, rec); err != nil {
		return err
	}
	if target == "" {
		return nil
	}
	c.Log.Info("another version was chosen for this host", "version", target, "installed", c.Version)
	err = become(dir.Path(target, "atolld"))
	c.Log.Error("the chosen version cannot be started: the installed one runs", "version", target, "error", err)
	_, err = dir.Change(func(r stage.Record) stage.Record {
		r = r.Fell("it cannot be started: "+err.Error(), time.Now())
		if r.Current == target {
			r.Current, r.Installed = "", ""
		}
		return r
	})
	return err
}

func writeChanged(dir stage.Dir, was, is stage.Record) error {
	if was == is || is == (stage.Record{}) && was == (stage.Record{}) {
		return nil
	}
	return dir.Write(is)
}

// become makes this process another program: the same number, arguments and environment.
func become(program string) error {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, launchedVar+"=") })
	return syscall.Exec(program, append([]string{program}, os.Args[1:]...), append(env, launchedVar+"="+program))
}

// Changer is this host's part in upgrades.
type Changer struct {
	Config
	dir  stage.Dir
	host atomic.Pointer[Host] // what runs now

	mu     sync.Mutex
	end    context.CancelCauseFunc // of what runs now
	target string                  // program that takes over
	told   api.NodeUpgrade         // Try and Error of a task that failed before anything was changed
}

// New makes the Changer of this process.
func New(c Config) *Changer { return &Changer{Config: c, dir: stage.Of(c.State)} }

// Runs tells what runs from now on.
func (u *Changer) Runs(h Host) { u.host.Store(&h) }

// Begin gives the context of one run of the daemon.
func (u *Changer) Begin(ctx context.Context) context.Context {
	ctx, end := context.WithCancelCause(ctx)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.end, u.target = end, ""
	return ctx
}

// Ended tells what to do when a run has ended: nothing is nil; otherwise this process
// becomes another program, and an error says that it could not.
func (u *Changer) Ended() error {
	u.mu.Lock()
	target := u.target
	u.mu.Unlock()
	if target == "" {
		return nil
	}
	return u.failed(become(target))
}

// failed notes that a program could not be started at all: this version goes on.
func (u *Changer) failed(why error) error {
	_, err := u.dir.Change(func(r stage.Record) stage.Record { return r.Fell("it cannot be started: "+why.Error(), time.Now()) })
	return errors.Join(errs.New(errs.Unsupported, "change the version: %w", why), err)
}

// Halt notes that the daemon was told to end, which is no failure of a version on trial.
func (u *Changer) Halt() {
	if r, err := u.dir.Read(); err != nil || r.Activating == nil {
		return
	}
	if _, err := u.dir.Change(stage.Record.Halt); err != nil {
		u.Log.Warn("the versions on this host", "error", err)
	}
}

// leave ends what runs in good order, and then becomes the program; in time also when
// something hangs.
func (u *Changer) leave(ctx context.Context, program string) {
	if h := u.host.Load(); h != nil {
		hand, cancel := context.WithTimeout(ctx, ClosePatience)
		if err := (*h).HandOver(hand); err != nil {
			u.Log.Warn("another server has to find out that this one ends", "error", err)
		}
		cancel()
	}
	u.mu.Lock()
	u.target = program
	end := u.end
	u.mu.Unlock()
	time.AfterFunc(ClosePatience, func() {
		u.Log.Warn("does not stop in time: the other version takes over all the same")
		_ = become(program) // where it cannot, ended says so
	})
	end(errChange)
}

// Trial waits until this version, if it is on trial, has proved itself; otherwise the one
// before takes over again.
func (u *Changer) Trial(ctx context.Context) {
	rec, err := u.dir.Read()
	if err != nil || rec.Activating == nil || rec.Activating.To != u.Version {
		return
	}
	a := *rec.Activating
	u.Log.Info("this version is on trial", "version", u.Version, "before", a.From)
	why := u.prove(ctx)
	if ctx.Err() != nil {
		return
	}
	if why == "" {
		if _, err := u.dir.Change(stage.Record.Proved); err != nil {
			u.Log.Error("the versions on this host", "error", err)
		}
		u.Log.Info("this version has proved itself", "version", u.Version)
		u.publish()
		reap(ctx, a.Guard)
		return
	}
	u.Log.Error("this version did not prove itself: the one before takes over", "why", why, "before", a.From)
	if _, err := u.dir.Change(func(r stage.Record) stage.Record { return r.Fell(why, time.Now()) }); err != nil {
		u.Log.Error("the versions on this host", "error", err)
	}
	u.leave(ctx, u.dir.Path(a.From, "atolld"))
}

// prove gives "" when all has been well for a while, or what was not in time.
func (u *Changer) prove(ctx context.Context) string {
	deadline := u.Clock.Now().Add(stage.Patience)
	why := "it did not start"
	var since time.Time
	for {
		if err := u.well(ctx); err == nil {
			if since.IsZero() {
				since = u.Clock.Now()
			}
			if u.Clock.Now().Sub(since) >= wellFor {
				return ""
			}
		} else {
			why, since = err.Error(), time.Time{}
		}
		if u.Clock.Now().After(deadline) {
			return "not well within " + stage.Patience.String() + ": " + why
		}
		if u.Clock.Sleep(ctx, wellLook) != nil {
			return why
		}
	}
}

// well reports whether this version does its work.
func (u *Changer) well(ctx context.Context) error {
	h := u.host.Load()
	if h == nil {
		return errs.New(errs.Unavailable, "the daemon has not started")
	}
	return (*h).Well(ctx)
}

// reap collects the guard, which is a child of this process from before it changed.
func reap(ctx context.Context, pid int) {
	for i := 0; pid > 0 && i < 100 && !proc.Reap(pid); i++ {
		if (clock.Real{}).Sleep(ctx, wellLook) != nil {
			return
		}
	}
}

// Status is what this host tells of its versions.
func (u *Changer) Status() *api.NodeUpgrade {
	st := &api.NodeUpgrade{Active: u.Version, Staged: u.dir.Versions()}
	rec, err := u.dir.Read()
	if err != nil {
		st.Error = err.Error()
		return st
	}
	if rec.Activating != nil {
		st.Active = ""
	}
	st.Try = rec.Try
	if f := rec.Failed; f != nil && f.Try >= st.Try {
		st.Try, st.Error = f.Try, f.Version+": "+f.Reason
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.told.Try > st.Try || u.told.Try == st.Try && u.told.Error != "" {
		st.Try, st.Error = u.told.Try, u.told.Error
	}
	return st
}

func (u *Changer) publish() {
	if h := u.host.Load(); h != nil {
		(*h).Publish()
	}
}

// tell notes how a task went that changed nothing; "" is well.
func (u *Changer) tell(try int64, why string) {
	u.mu.Lock()
	was := u.told
	u.told = api.NodeUpgrade{Try: try, Error: why}
	u.mu.Unlock()
	if was.Try != try || was.Error != why {
		u.publish()
	}
}

// Follow does what the Upgrade tells this host, until ctx ends.
func (u *Changer) Follow(ctx context.Context, st store.Store) error {
	sel := api.Selector{Kind: api.KindUpgrade, Name: api.PoolName}
	for ctx.Err() == nil {
		list, rev, err := store.List[*api.Upgrade](ctx, st, sel)
		if err == nil {
			again := false
			for _, up := range list {
				again = u.do(ctx, up, u.identity())
			}
			wctx, cancel := ctx, context.CancelFunc(func() {})
			if again {
				wctx, cancel = context.WithTimeout(ctx, 5*followAgain)
			}
			err = st.Watch(wctx, sel, rev, func(store.Event) error { return errChanged })
			cancel()
		}
		if errors.Is(err, errChanged) || errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		_ = u.Clock.Sleep(ctx, followAgain) // ends early only with ctx
	}
	return ctx.Err()
}

// Tell does what Follow does where the Upgrade cannot be watched: by telling what this
// host has, again and again, and being told.
func (u *Changer) Tell(ctx context.Context, tell func(ctx context.Context, st api.NodeIdentityStatus) (*api.Upgrade, error)) error {
	var before string
	for {
		up, err := tell(ctx, api.NodeIdentityStatus{Version: u.Version, Release: release.Number(), Arch: runtime.GOARCH, Upgrade: u.Status()})
		switch {
		case err == nil:
			u.do(ctx, up, u.identity())
			before = ""
		case ctx.Err() == nil && err.Error() != before:
			before = err.Error()
			u.Log.Debug("cannot tell the version of this host", "error", err)
		}
		if err := u.Clock.Sleep(ctx, followAgain); err != nil {
			return err
		}
	}
}

func (u *Changer) identity() *join.Identity {
	if h := u.host.Load(); h != nil {
		return (*h).Identity()
	}
	return nil
}

// do does one task; again: it is tried once more later.
func (u *Changer) do(ctx context.Context, up *api.Upgrade, id *join.Identity) (again bool) {
	l := up.Status.Host(u.Node)
	if id != nil {
		l = up.Status.Host(id.Node())
	}
	if l == nil {
		return false
	}
	if l.Task == api.TaskNone {
		u.tidy(up)
		return false
	}
	var err error
	switch l.Task {
	case api.TaskStage:
		if err = u.stage(ctx, &up.Spec, id); err == nil {
			u.tell(l.Try, "")
		}
		u.publish()
	case api.TaskActivate:
		if err = u.stage(ctx, &up.Spec, id); err == nil {
			err = u.change(ctx, up.Spec.Version, l.Try)
		}
	case api.TaskBack:
		err = u.change(ctx, l.From, l.Try)
	}
	if err != nil && ctx.Err() == nil {
		u.Log.Error("upgrade", "task", string(l.Task), "version", up.Spec.Version, "error", err)
		u.tell(l.Try, err.Error())
	}
	return err != nil && l.Task == api.TaskStage
}

// tidy removes versions that nobody goes back to any more.
func (u *Changer) tidy(up *api.Upgrade) {
	if up.Status.State != api.UpgradeFinalised {
		return
	}
	if rec, err := u.dir.Read(); err == nil && rec.Activating == nil && len(u.dir.Versions()) > 2 {
		if err := u.dir.Prune(rec.Current, rec.Previous, u.Version, up.Spec.Version); err != nil {
			u.Log.Warn("old versions", "error", err)
		}
	}
}

// stage has the programs of a version here, and those that run now, as the way back.
func (u *Changer) stage(ctx context.Context, to *api.UpgradeSpec, id *join.Identity) error {
	files := to.For(runtime.GOOS, runtime.GOARCH)
	if len(files) == 0 {
		return errs.New(errs.Unsupported, "version %s has no programs for %s/%s", to.Version, runtime.GOOS, runtime.GOARCH)
	}
	if err := api.ReadableAt(release.Number(), to.Release-release.Reach); err != nil {
		return err
	}
	if err := u.save(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchPatience)
	defer cancel()
	return u.dir.Put(ctx, to.Version, files, func(f api.UpgradeFile, w io.Writer) error {
		if id == nil {
			return errs.New(errs.Unavailable, "the programs of version %s are not on this host any more", to.Version).WithHint("send them again: atoll upgrade prepare --file FILE")
		}
		t := &http.Transport{TLSClientConfig: id.TLS(), TLSHandshakeTimeout: 5 * time.Second, ResponseHeaderTimeout: 10 * time.Second, ForceAttemptHTTP2: true}
		defer t.CloseIdleConnections()
		return stage.Fetch(ctx, &http.Client{Transport: t}, id.Endpoints(), to.Version, f, w)
	})
}

// save keeps the programs that run now.
func (u *Changer) save(ctx context.Context) error {
	if !api.ValidVersion(u.Version) {
		return errs.New(errs.Unsupported, "this build has the version %q, which cannot be kept: it can only be replaced by hand", u.Version)
	}
	exe, err := os.Executable()
	if err != nil {
		return errs.New(errs.Internal, "which program is this: %w", err)
	}
	return u.dir.Save(ctx, u.Version, filepath.Dir(exe), "/proc/self/exe")
}

// change has another version take over. It returns nil when that is under way, or is so.
func (u *Changer) change(ctx context.Context, to string, try int64) error {
	rec, err := u.dir.Read()
	if err != nil {
		return err
	}
	if to == u.Version && rec.Activating == nil {
		if rec.Try < try {
			if _, err := u.dir.Change(func(r stage.Record) stage.Record { r.Try = try; return r }); err != nil {
				return err
			}
			u.publish()
		}
		return nil
	}
	if rec.Activating != nil || rec.Failed != nil && rec.Failed.Try == try {
		return nil // on trial, or this try has failed
	}
	if err := u.save(ctx); err != nil {
		return err
	}
	program := u.dir.Path(to, "atolld")
	if told, err := stage.Probe(ctx, program); err != nil {
		return fmt.Errorf("version %s: %w", to, err)
	} else if told.Version != to {
		return errs.New(errs.Conflict, "what is kept as version %s says that it is %s", to, told.Version)
	}
	guard, err := u.startGuard()
	if err != nil {
		return err
	}
	a := stage.Activating{From: u.Version, To: to, Try: try, Guard: guard, Since: time.Now().UTC()}
	if _, err := u.dir.Change(func(r stage.Record) stage.Record { return r.Begin(a, u.installed()) }); err != nil {
		return err
	}
	u.Log.Info("changes the version; instances run on", "from", u.Version, "to", to)
	u.leave(ctx, program)
	return nil
}

// installed is the version of the installed program: this one's, unless it is one of
// those that are kept.
func (u *Changer) installed() string {
	if exe, err := os.Executable(); err == nil && filepath.Dir(filepath.Dir(exe)) == u.dir.Root {
		return ""
	}
	return u.Version
}
