package setup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

const upgradeLong = `An upgrade never stops the pool and can be undone until it is finalised:

  prepare    checks, a backup, and the programs on every host; nothing runs them yet
  activate   host by host: its daemon changes over, what runs there runs on
  finalise   the end: from here on, what only the new version understands is written
  abort      the way back, host by host, at any time before that

A host that is away is passed over and follows when it returns. A host on which the
new version does not become well goes back by itself, and the walk stops and says why.`

// upgradeOptions are those of all its verbs.
type upgradeOptions struct {
	render.Output
	file, dir, version string
	url, sum           string
	pause, timeout     time.Duration
	hosts, absent      []string
	noWait, yes        bool
}

// Upgrade is the group of verbs that bring the pool to another version.
func Upgrade() verb.Def {
	o := &upgradeOptions{}
	wait := func(fs *pflag.FlagSet) {
		fs.BoolVar(&o.noWait, "no-wait", false, "do not watch until it is done")
		fs.DurationVar(&o.timeout, "timeout", time.Hour, "how long to watch at most; the work goes on")
		o.Output.Flags(fs)
	}
	step := func(name, short, example string, flags func(*pflag.FlagSet), req func(c *verb.Call) api.UpgradeRequest) verb.Def {
		return verb.Def{Use: name, Short: short, Example: example, Flags: func(fs *pflag.FlagSet) {
			if flags != nil {
				flags(fs)
			}
			wait(fs)
		}, Run: func(ctx context.Context, c *verb.Call) error { return o.ask(ctx, c, req(c)) }}
	}
	plain := func(action string) func(*verb.Call) api.UpgradeRequest {
		return func(*verb.Call) api.UpgradeRequest { return api.UpgradeRequest{Action: action} }
	}
	return verb.Def{
		Use: "upgrade", Group: verb.GroupSetup, Short: "Bring the pool to another version, host by host, and back", Long: upgradeLong,
		Example: "  atoll upgrade prepare --file atoll.tar.gz\n  atoll upgrade activate --pause 10s\n  atoll upgrade\n  atoll upgrade finalise",
		Flags:   o.Output.Flags, Run: o.status,
		Sub: []verb.Def{
			{Use: "status", Short: "Show how far the upgrade is", Example: "  atoll upgrade status\n  atoll upgrade status -o json", Flags: o.Output.Flags, Run: o.status},
			{Use: "prepare", Short: "Check, keep a backup, and bring the programs to every host", Example: "  atoll upgrade prepare --file atoll.tar.gz\n  atoll upgrade prepare --url https://example.org/atoll.tar.gz --sha256 9f86d0…\n  atoll upgrade prepare --dir bin --version v1.3.0",
				Flags: func(fs *pflag.FlagSet) {
					fs.StringVar(&o.file, "file", "", "`archive` (tar, or tar.gz) with atolld and its companions")
					fs.StringVar(&o.url, "url", "", "download the archive from this `URL`; needs --sha256")
					fs.StringVar(&o.sum, "sha256", "", "`hash` that the downloaded archive must have, as its maker tells it")
					fs.StringVar(&o.dir, "dir", "", "`directory` with atolld and its companions")
					fs.StringVar(&o.version, "version", "", "refuse programs of another version; alone: a version that was sent before")
					wait(fs)
				}, Run: o.prepare},
			step("activate", "Have the hosts change over, one after the other", "  atoll upgrade activate\n  atoll upgrade activate --pause 30s\n  atoll upgrade activate --host isle2 --host isle3", func(fs *pflag.FlagSet) {
				fs.DurationVar(&o.pause, "pause", 0, "between one host and the next")
				fs.StringArrayVar(&o.hosts, "host", nil, "only this `host`; several, in this order")
			}, func(c *verb.Call) api.UpgradeRequest {
				req := api.UpgradeRequest{Action: "activate", Hosts: o.hosts}
				if c.Flags.Changed("pause") {
					d := api.Duration(o.pause)
					req.Pause = &d
				}
				return req
			}),
			{Use: "pause", Short: "Let no further host begin", Example: "  atoll upgrade pause", Flags: o.Output.Flags, Run: func(ctx context.Context, c *verb.Call) error {
				o.noWait = true
				return o.ask(ctx, c, api.UpgradeRequest{Action: "pause"})
			}},
			step("resume", "Go on after a pause", "  atoll upgrade resume", nil, plain("resume")),
			step("finalise", "End the upgrade: after this there is no way back", "  atoll upgrade finalise\n  atoll upgrade finalise --absent isle3", func(fs *pflag.FlagSet) {
				fs.StringArrayVar(&o.absent, "absent", nil, "`host` that is away and may be left behind; it follows when it returns")
				fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
			}, func(*verb.Call) api.UpgradeRequest { return api.UpgradeRequest{Action: "finalise", Absent: o.absent} }),
			step("abort", "Go back to the version before, host by host", "  atoll upgrade abort", nil, plain("abort")),
		},
	}
}

func (o *upgradeOptions) read(ctx context.Context, c *verb.Call) (*api.Upgrade, error) {
	cl, err := c.Server()
	if err != nil {
		return nil, err
	}
	obj, err := cl.Get(ctx, api.UpgradeRef())
	if errors.Is(err, errs.NotFound) {
		return nil, errs.New(errs.NotFound, "no upgrade is under way").WithHint("begin one: atoll upgrade prepare --file atoll.tar.gz")
	}
	if err != nil {
		return nil, err
	}
	up, ok := obj.(*api.Upgrade)
	if !ok {
		return nil, errs.New(errs.Internal, "%s is a %T", api.UpgradeRef(), obj)
	}
	return up, nil
}

func (o *upgradeOptions) status(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	up, err := o.read(ctx, c)
	if err != nil {
		return err
	}
	return o.show(c, up)
}

func (o *upgradeOptions) show(c *verb.Call, up *api.Upgrade) error {
	if !o.Tabular() {
		return o.Objects(c.Out, c.Clock.Now(), []api.Object{up}, true)
	}
	fmt.Fprintf(c.Out, "VERSION  %s (release %d)\nSTATE    %s\n", up.Spec.Version, up.Spec.Release, stateWord(up))
	if up.Status.Message != "" {
		fmt.Fprintf(c.Out, "         %s\n", up.Status.Message)
	}
	if up.Spec.Backup != "" {
		fmt.Fprintf(c.Out, "BACKUP   %s on %s\n", up.Spec.Backup, up.Spec.Source)
	}
	var rows [][]string
	for _, h := range up.Status.Hosts {
		rows = append(rows, []string{h.Name, h.State, render.Dash(h.Version), render.Dash(h.From), api.Age(&h.Since, c.Clock.Now()), render.Dash(h.Error)})
	}
	fmt.Fprintln(c.Out)
	return o.Rows(c.Out, []string{"HOST", "STATE", "VERSION", "BEFORE", "SINCE", "ERROR"}, rows)
}

func stateWord(up *api.Upgrade) string {
	s := string(up.Status.State)
	if up.Spec.Paused {
		s += ", paused"
	}
	return s
}

func (o *upgradeOptions) prepare(ctx context.Context, c *verb.Call) error {
	if err := o.Check(); err != nil {
		return err
	}
	sources := 0
	for _, s := range []string{o.file, o.dir, o.url} {
		if s != "" {
			sources++
		}
	}
	if sources > 1 || sources == 0 && o.version == "" {
		return errs.New(errs.Invalid, "which version? give one of --file, --url and --dir").WithHint("atoll upgrade prepare --file atoll.tar.gz")
	}
	if o.url != "" || o.sum != "" {
		if err := checkDownload(o.url, o.sum); err != nil {
			return err
		}
	}
	if o.version != "" {
		if err := errs.InvalidFields("upgrade", api.VersionFields("version", o.version)); err != nil {
			return err
		}
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	version := o.version
	if sources > 0 {
		r, err := o.archive(ctx, c)
		if err != nil {
			return err
		}
		up, err := cl.SendVersion(ctx, o.version, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		version = up.Version
		if o.Tabular() {
			c.Note("sent %s (release %d): %s", up.Version, up.Release, render.Plural(len(up.Files), "program"))
		}
	}
	return o.ask(ctx, c, api.UpgradeRequest{Action: "prepare", Version: version})
}

// archive opens the tar that is sent.
func (o *upgradeOptions) archive(ctx context.Context, c *verb.Call) (io.ReadCloser, error) {
	if o.url != "" {
		bar := c.Progress(!o.Tabular())
		defer bar.End()
		return download(ctx, o.url, o.sum, bar)
	}
	if o.file != "" {
		f, err := os.Open(o.file)
		if err != nil {
			return nil, errs.New(errs.NotFound, "%w", err)
		}
		return f, nil
	}
	if _, err := os.Stat(filepath.Join(o.dir, "atolld")); err != nil {
		return nil, errs.New(errs.NotFound, "there is no atolld in %s: %w", o.dir, err).WithHint("make build puts the programs into bin")
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(pack(ctx, w, o.dir))
	}()
	return &packed{r, done}, nil
}

// packed is a tar that is being made.
type packed struct {
	*io.PipeReader
	done chan struct{}
}

// Close waits for who makes it.
func (p *packed) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// pack writes the programs of dir as a tar.
func pack(ctx context.Context, w io.Writer, dir string) error {
	t := tar.NewWriter(w)
	for _, b := range api.UpgradeBinaries() {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(dir, b))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return errs.New(errs.Invalid, "%w", err)
		}
		err = packOne(t, f, b)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("pack %s: %w", b, err)
		}
	}
	return t.Close()
}

func packOne(t *tar.Writer, f *os.File, name string) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: fi.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// ask asks for a step, and watches it.
func (o *upgradeOptions) ask(ctx context.Context, c *verb.Call, req api.UpgradeRequest) error {
	if err := o.Check(); err != nil {
		return err
	}
	cl, err := c.Server()
	if err != nil {
		return err
	}
	if req.Action == "finalise" {
		up, err := o.read(ctx, c)
		if err != nil {
			return err
		}
		if err := c.Confirm(o.yes, "finalise %s? After that there is no way back to the version before.", up.Spec.Version); err != nil {
			return err
		}
	}
	up, err := cl.Upgrade(ctx, req)
	if err != nil {
		return err
	}
	if !o.noWait {
		if up, err = o.follow(ctx, c, up); up == nil {
			return err
		}
	}
	return errors.Join(o.show(c, up), err)
}

// ends are the states at which a phase has come to its end.
var ends = map[api.UpgradePhase][]api.UpgradeState{ //nolint:gochecknoglobals // a table
	api.UpgradePrepare:  {api.UpgradePrepared},
	api.UpgradeActivate: {api.UpgradeActivated, api.UpgradeStopped},
	api.UpgradeAbort:    {api.UpgradeAborted, api.UpgradeStopped},
	api.UpgradeFinalise: {api.UpgradeFinalised},
}

const (
	upgradeLook = 300 * time.Millisecond
	// awayFor is how long no server may answer: the one that is asked restarts, too.
	awayFor = 90 * time.Second
)

// follow shows every change until the phase has ended. It asks again and again: the
// server it speaks to is restarted on the way.
func (o *upgradeOptions) follow(ctx context.Context, c *verb.Call, up *api.Upgrade) (*api.Upgrade, error) {
	began := c.Clock.Now()
	seen := began
	bar := c.Bar(!o.Tabular())
	defer bar.End()
	asked := up.Generation
	said := map[string]string{}
	for first := true; ; first = false {
		if !first || up.Status.State != "" {
			o.tell(up, said, bar.Line, bar.Show)
		}
		switch {
		case up.Generation > asked && up.Spec.Phase != "" && !first && o.replaced(up, asked):
			return up, errs.New(errs.Conflict, "somebody asked for something else meanwhile: %s", up.Spec.Phase).WithHint("atoll upgrade shows it")
		case up.Spec.Paused && !slices.ContainsFunc(up.Status.Hosts, func(h api.UpgradeHost) bool { return h.State == "activating" || h.State == "returning" }):
			return up, nil
		case !first && up.Status.State == api.UpgradeStopped:
			return up, errs.New(errs.Conflict, "the upgrade stopped at %s", up.Status.Message).
				WithHint("look why, then go on: atoll upgrade activate; or go back: atoll upgrade abort")
		case !first && slices.Contains(ends[up.Spec.Phase], up.Status.State):
			return up, nil
		case c.Clock.Now().Sub(began) > o.timeout:
			return up, errs.New(errs.Timeout, "not done within %s; the work goes on", o.timeout).WithHint("atoll upgrade shows it")
		}
		if err := c.Clock.Sleep(ctx, upgradeLook); err != nil {
			return nil, err
		}
		next, err := o.read(ctx, c)
		switch {
		case err == nil:
			up, seen = next, c.Clock.Now()
		case errs.KindOf(err) != errs.Unavailable && errs.KindOf(err) != errs.Timeout && errs.KindOf(err) != errs.Unauthenticated || c.Clock.Now().Sub(seen) > awayFor:
			return nil, err
		}
	}
}

// replaced reports whether another request came after ours.
func (o *upgradeOptions) replaced(up *api.Upgrade, asked int64) bool {
	return up.Generation > asked && !up.Spec.Paused
}

// tell writes a line for every host that came further.
func (o *upgradeOptions) tell(up *api.Upgrade, said map[string]string, line func(string, ...any), show func(done, total int, text string)) {
	done := 0
	for _, h := range up.Status.Hosts {
		switch h.State {
		case "staged", "active", "back":
			done++
		}
		text := h.State
		if h.Error != "" {
			text += ": " + h.Error
		}
		if said[h.Name] != text {
			said[h.Name] = text
			line("%-12s %s", h.Name, text)
		}
	}
	show(done, len(up.Status.Hosts), up.Status.Message)
}
