package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/cgroup"
)

// Ensure prepares the instance, or applies changed limits to a living one.
func (r *Runtime) Ensure(ctx context.Context, s driver.Spec) (driver.Observed, error) {
	e, err := r.setup()
	if err != nil {
		return driver.Observed{}, err
	}
	if err := r.check(e, s); err != nil {
		return driver.Observed{}, err
	}
	unlock, err := r.keys.lock(ctx, s.ID)
	if err != nil {
		return driver.Observed{}, err
	}
	defer unlock()
	o, rec, found := r.look(e, s.ID)
	if rec != nil && s.Generation < rec.Generation {
		return driver.Observed{}, errs.New(errs.Conflict, "instance %s: generation %d is older than %d", s.ID, s.Generation, rec.Generation)
	}
	if found && (o.Phase == driver.PhasePrepared || o.Phase == driver.PhaseRunning) {
		return r.converge(e, s, o, rec)
	}
	if found {
		group := s.Cgroup.Path
		if rec != nil {
			group = rec.Cgroup // the tenant may have been called otherwise
		}
		if err := r.clear(ctx, e, s.ID, group); err != nil {
			return driver.Observed{}, fmt.Errorf("clear the last run of %s: %w", s.ID, err)
		}
	}
	o, err = r.prepare(ctx, e, s)
	if err != nil {
		if cerr := r.undo(e, s, found); cerr != nil {
			err = errors.Join(err, cerr)
		}
		return driver.Observed{}, fmt.Errorf("prepare %s: %w", s.ID, err)
	}
	return o, nil
}

// undo cleans up after a preparation that failed; what an earlier run wrote stays.
func (r *Runtime) undo(e *environment, s driver.Spec, keepFiles bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), removePatience)
	defer cancel()
	if keepFiles {
		return r.clear(ctx, e, s.ID, s.Cgroup.Path)
	}
	return r.destroy(ctx, e, s.ID, s.Cgroup.Path)
}

// check refuses what cannot be run, before anything is made.
func (r *Runtime) check(e *environment, s driver.Spec) error {
	switch {
	case !driver.ValidID(s.ID):
		return errs.New(errs.Invalid, "instance ID %q must be 1 to 64 of a-z, 0-9 and -", s.ID)
	case s.Instance == nil:
		return errs.New(errs.Invalid, "instance %s: no spec", s.ID)
	case !cgroup.Valid(s.Cgroup.Path):
		return errs.New(errs.Invalid, "instance %s: cgroup path %q must be relative and clean", s.ID, s.Cgroup.Path)
	case s.IDs.Count < 65536 || s.IDs.Base < 65536 || uint64(s.IDs.Base)+uint64(s.IDs.Count) > 1<<32-2:
		return errs.New(errs.Invalid, "instance %s: range of IDs %d+%d must begin at 65536 or higher and have at least 65536", s.ID, s.IDs.Base, s.IDs.Count)
	case len(s.Image.Layers) == 0 || len(s.Image.Layers) > maxLayers:
		return errs.New(errs.Invalid, "instance %s: image has %d layers; 1 to %d are possible", s.ID, len(s.Image.Layers), maxLayers)
	}
	for _, l := range s.Image.Layers {
		if !filepath.IsAbs(l) {
			return errs.New(errs.Invalid, "instance %s: layer %q is not an absolute path", s.ID, l)
		}
	}
	for _, d := range s.Network.DNS {
		if strings.ContainsAny(d, "\n\r") {
			return errs.New(errs.Invalid, "instance %s: DNS server %q is not an address", s.ID, d)
		}
	}
	for _, d := range s.Network.Search {
		if d == "" || strings.ContainsAny(d, "\n\r\t ") {
			return errs.New(errs.Invalid, "instance %s: DNS domain %q is not one", s.ID, d)
		}
	}
	if strings.ContainsAny(hostname(s), "\n\r\x00\t ") || len(hostname(s)) > 64 {
		return errs.New(errs.Invalid, "instance %s: hostname must be at most 64 characters without blanks", s.ID)
	}
	if _, err := argv(s); err != nil {
		return err
	}
	_, err := capabilities(s.Instance.Spec.Capabilities)
	return err
}

// converge applies the spec to an instance that lives already.
func (r *Runtime) converge(e *environment, s driver.Spec, o driver.Observed, rec *record) (driver.Observed, error) {
	warnings, err := e.groups.Ensure(rec.Cgroup, r.limits(e, s))
	if err != nil {
		return driver.Observed{}, fmt.Errorf("limits of %s: %w", s.ID, err)
	}
	changed := *rec
	changed.Generation, changed.Warnings = s.Generation, append(warnings, rec.MountWarnings...)
	changed.LogSize, changed.LogFiles = logPolicy(s.Instance.Spec.Logs)
	if err := r.save(&changed); err != nil {
		return driver.Observed{}, err
	}
	o.Generation, o.Warnings = changed.Generation, changed.Warnings
	return o, nil
}

// prepare makes everything and returns when the first process waits for its start.
func (r *Runtime) prepare(ctx context.Context, e *environment, s driver.Spec) (driver.Observed, error) {
	size, files := logPolicy(s.Instance.Spec.Logs)
	rec := &record{ID: s.ID, Ref: api.RefOf(s.Instance), UID: s.Instance.UID, Generation: s.Generation, Digest: s.Image.Digest, Boot: e.boot,
		Cgroup: s.Cgroup.Path, IDs: s.IDs, HostNet: s.Network.Mode == "host", TTY: s.Instance.Spec.TTY, Stdin: s.Instance.Spec.Stdin, LogSize: size, LogFiles: files}
	if err := r.makeInstanceDirs(s); err != nil {
		return driver.Observed{}, err
	}
	if err := r.save(rec); err != nil {
		return driver.Observed{}, err
	}
	if err := e.groups.Create(s.Cgroup.Path); err != nil {
		return driver.Observed{}, err
	}
	if err := e.groups.RestrictDevices(s.Cgroup.Path); err != nil {
		return driver.Observed{}, err
	}
	pid, more, err := r.launch(ctx, e, s)
	if err != nil {
		return driver.Observed{}, err
	}
	// After the launch: the OCI runtime needs more than the smallest instances may have, and on v1
	// it takes all memory limits away when it joins a group.
	warnings, err := e.groups.Set(s.Cgroup.Path, r.limits(e, s))
	if err != nil {
		return driver.Observed{}, fmt.Errorf("limits: %w", err)
	}
	if len(warnings)+len(more) > 0 {
		changed := *rec
		changed.MountWarnings, changed.Warnings = more, append(warnings, more...)
		if err := r.save(&changed); err != nil {
			return driver.Observed{}, err
		}
		rec = &changed
	}
	o := driver.Observed{ID: s.ID, Ref: rec.Ref, UID: rec.UID, Generation: rec.Generation, Phase: driver.PhasePrepared, Pid: pid, ImageDigest: rec.Digest, Warnings: rec.Warnings}
	if !rec.HostNet {
		o.NetNS = fmt.Sprintf("/proc/%d/ns/net", pid)
	}
	return o, nil
}

// makeInstanceDirs makes the instance's directories; what the upper layer holds stays.
func (r *Runtime) makeInstanceDirs(s driver.Spec) error {
	st := r.state("i", s.ID)
	for _, d := range []string{st, filepath.Join(st, "log")} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	bundle := r.run("i", s.ID)
	if err := os.Mkdir(bundle, 0o711); err != nil {
		return err
	}
	for _, f := range etcFiles {
		if err := os.WriteFile(filepath.Join(bundle, f), []byte(etc(s, f)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

const (
	defaultLogSize  = 10 << 20
	defaultLogFiles = 3
)

// logPolicy bounds the log: size of a file and number of files.
func logPolicy(p *api.LogPolicy) (size int64, files int) {
	size, files = defaultLogSize, defaultLogFiles
	if p == nil {
		return size, files
	}
	if n, err := api.ParseQuantity(api.Disk, p.MaxSize); err == nil && n > 0 {
		size = max(n, 4096)
	}
	if p.Files > 0 {
		files = min(p.Files, 100)
	}
	return size, files
}

// removePatience bounds how long dying processes may keep a cgroup busy.
const removePatience = 30 * time.Second
