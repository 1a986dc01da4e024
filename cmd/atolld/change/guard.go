package change

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/stage"
	"atoll/internal/sys/fs"
	"atoll/internal/sys/proc"
)

// The guard is the old version, in a process of its own, for as long as a new one is on
// trial. A new program may end at once, or hang before its own watch has begun; where
// nobody starts daemons that ended, the guard becomes the daemon again.

const (
	guardLook = 100 * time.Millisecond
	// guardPatience is more than a version on trial gives itself: the guard is for when
	// that does not work.
	guardPatience = stage.Patience + 15*time.Second
	// superviseTime is how long a service manager may take to start the daemon again.
	superviseTime = 20 * time.Second
)

// startGuard starts it and gives its number.
func (u *Changer) startGuard() (int, error) {
	program := u.dir.Path(u.Version, "atolld")
	args := []string{"guard", "--config", "/dev/null", "--state", u.State, "--run", u.Run, "--log-level", u.LogLevel, "--log-format", u.LogFormat,
		"--pid", strconv.Itoa(os.Getpid()), "--supervised=" + strconv.FormatBool(supervised()), "--args", strconv.Itoa(len(os.Args) - 1)}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), argsVar+"="+joinArgs(os.Args[1:]))
	cmd.Stdout, cmd.Stderr, cmd.Dir = os.Stdout, os.Stderr, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, errs.New(errs.Unavailable, "start the guard of the change: %w", err)
	}
	return cmd.Process.Pid, nil
}

// argsVar carries the daemon's arguments to its guard.
const argsVar = "ATOLLD_GUARD_ARGS"

// joinArgs and splitArgs carry words that hold no zero bytes, as arguments cannot; in an
// environment there can be none either, so they are separated by another that is escaped.
func joinArgs(args []string) string {
	var b []byte
	for _, a := range args {
		b = append(strconv.AppendQuoteToASCII(b, a), ' ')
	}
	return string(b)
}

func splitArgs(s string) ([]string, error) {
	var out []string
	for s != "" {
		q, err := strconv.QuotedPrefix(s)
		if err != nil {
			return nil, errs.New(errs.Invalid, "the daemon's arguments cannot be read: %w", err)
		}
		a, err := strconv.Unquote(q)
		if err != nil {
			return nil, errs.New(errs.Invalid, "the daemon's arguments cannot be read: %w", err)
		}
		out = append(out, a)
		if s = s[len(q):]; s != "" {
			s = s[1:]
		}
	}
	return out, nil
}

// supervised reports whether somebody starts this process again when it ends.
func supervised() bool {
	pid := os.Getpid()
	return pid == 1 || os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(pid)
}

// Trial is what a guard is told.
type Trial struct {
	PID        int  // of the daemon
	Supervised bool // a service manager starts the daemon again
	Args       int  // how many arguments the daemon had
}

// Guard looks after the daemon until its version has proved itself or was given up.
func Guard(ctx context.Context, c Config, t Trial) error {
	words, err := splitArgs(os.Getenv(argsVar))
	if err != nil || len(words) != t.Args || t.Args == 0 {
		return errs.New(errs.Invalid, "guard is started by the daemon while it changes versions, not by hand")
	}
	dir := stage.Of(c.State)
	why := watchTrial(ctx, dir, t.PID)
	if why == "" {
		return nil
	}
	wait := guardLook
	if t.Supervised {
		wait = superviseTime
	}
	for began := time.Now(); time.Since(began) < wait; {
		if running(c.Run) { // somebody started it again: that one counts
			return nil
		}
		if (clock.Real{}).Sleep(ctx, guardLook) != nil {
			return nil
		}
	}
	rec, err := dir.Change(func(r stage.Record) stage.Record { return r.Fell(why, time.Now()) })
	if err != nil {
		return err
	}
	c.Log.Error("the new version is given up: the one before runs again", "why", why)
	program := dir.Path(rec.Current, "atolld")
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		return len(e) > len(argsVar) && e[:len(argsVar)+1] == argsVar+"=" || len(e) > len(launchedVar) && e[:len(launchedVar)+1] == launchedVar+"="
	})
	return errs.New(errs.Internal, "start %s: %w", program, syscall.Exec(program, append([]string{program}, words...), append(env, launchedVar+"="+program)))
}

// watchTrial gives "" when there is nothing to do any more, or why the version on trial has
// to be given up.
func watchTrial(ctx context.Context, dir stage.Dir, pid int) string {
	p, err := proc.Open(pid)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return ""
	}
	defer p.Close()
	began := time.Now()
	for seen := false; ; {
		rec, err := dir.Read()
		switch {
		case err == nil && rec.Activating != nil && rec.Activating.Halted:
			return ""
		case err == nil && rec.Activating != nil:
			seen = true
		case err == nil && (seen || time.Since(began) > guardPatience): // it is written just after this began
			return ""
		}
		if p == nil || p.Ended() {
			if !seen {
				return ""
			}
			return "it ended before it was up"
		}
		if time.Since(began) > guardPatience {
			_ = p.Signal(proc.Kill) // then it has ended, or cannot be ended
			for i := 0; i < 50 && !p.Ended(); i++ {
				time.Sleep(guardLook)
			}
			return "it hung before it was up"
		}
		if (clock.Real{}).Sleep(ctx, guardLook) != nil {
			return ""
		}
	}
}

// running reports whether a daemon runs with these directories.
func running(run string) bool {
	f, err := os.Open(filepath.Join(run, "atolld.lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	free, err := fs.TryLock(f)
	return err == nil && !free
}
