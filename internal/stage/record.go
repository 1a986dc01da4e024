// Package stage keeps versions of the programs on a host, in STATE/versions, and decides
// which of them runs:
//
//	<version>/{atolld,atoll,…}   the programs of a version, whole or not there
//	current                      link to the version that was chosen; for people
//	record.json                  which one is to run, which ran before, what is being tried
//
// A version is tried before it is kept. The record says so from before the first start
// of the new program until that has proved itself (holds its lease, answers the API):
//
//	installed ── Begin ──▶ activating ── Proved ──▶ kept
//	    ▲                      │
//	    └────── Failed ────────┘   it ended twice at its start, or did not prove itself in
//	                               time, or its guard saw it end with nobody to start it
//
// The record is replaced as a whole; killed anywhere, a host finds it as before or after.
// The package starts no goroutine. It must never run a file whose sum it did not check.
package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"atoll/internal/errs"
)

// Record is what a host knows of its versions.
type Record struct {
	Current  string `json:"current,omitempty"`  // the version that is to run; "": the one that is installed
	Previous string `json:"previous,omitempty"` // that ran before it
	// Installed is the version of the installed program when Current was chosen. Another
	// one there now means that somebody installed it by hand, and wants that.
	Installed  string      `json:"installed,omitempty"`
	Activating *Activating `json:"activating,omitempty"`
	Failed     *Failed     `json:"failed,omitempty"`
	Try        int64       `json:"try,omitempty"` // the last task that was done
}

// Activating is a version on trial.
type Activating struct {
	From   string    `json:"from"`
	To     string    `json:"to"`
	Try    int64     `json:"try"`
	Starts int       `json:"starts"`           // how often To was started
	Halted bool      `json:"halted,omitempty"` // somebody stopped the daemon meanwhile: that is no failure
	Guard  int       `json:"guard,omitempty"`  // process that looks after it
	Since  time.Time `json:"since"`
}

// Failed is the last version that did not prove itself.
type Failed struct {
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	Try     int64     `json:"try"`
	At      time.Time `json:"at"`
}

// MaxStarts is how often a version on trial is started before it is given up.
const MaxStarts = 2

// Patience is how long a version on trial may take to prove itself.
const Patience = 60 * time.Second

// Begin notes that a version is on trial; its first start is counted.
func (r Record) Begin(a Activating, installed string) Record {
	a.Starts = 1
	r.Activating, r.Current, r.Failed = &a, a.To, nil
	if r.Installed == "" {
		r.Installed = installed
	}
	return r
}

// Proved ends a trial well.
func (r Record) Proved() Record {
	if a := r.Activating; a != nil {
		r.Current, r.Previous, r.Try, r.Activating, r.Failed = a.To, a.From, a.Try, nil, nil
	}
	return r
}

// Fell ends a trial: what ran before runs again.
func (r Record) Fell(reason string, at time.Time) Record {
	if a := r.Activating; a != nil {
		r.Failed = &Failed{Version: a.To, Reason: reason, Try: a.Try, At: at}
		r.Current, r.Activating = a.From, nil
	}
	return r
}

// Halt notes that the daemon was told to end.
func (r Record) Halt() Record {
	if r.Activating != nil {
		a := *r.Activating
		a.Halted = true
		r.Activating = &a
	}
	return r
}

// Self is the program that asks what it should do.
type Self struct {
	Version   string
	Installed bool // it is not one of the versions here
	Chosen    bool // whoever started it had decided already
}

// Next decides at the start of the daemon: the record as it is from now on, and the
// version that is to run instead of the caller; "": the caller. It is pure.
func Next(r Record, self Self, now time.Time) (Record, string) {
	if self.Chosen {
		return r, ""
	}
	if self.Installed && r.Installed != "" && self.Version != r.Installed && self.Version != r.Current {
		return Record{Try: r.Try, Failed: r.Failed}, ""
	}
	if a := r.Activating; a != nil {
		next := *a
		switch {
		case a.Halted:
			next.Halted = false
			r.Activating = &next
		case a.Starts >= MaxStarts:
			r = r.Fell(fmt.Sprintf("it ended %d times before it was up", a.Starts), now)
		default:
			next.Starts++
			r.Activating = &next
		}
	}
	if r.Current == "" || r.Current == self.Version {
		return r, ""
	}
	return r, r.Current
}

// Dir is where versions are kept.
type Dir struct{ Root string }

// Of is the versions' directory of a host.
func Of(state string) Dir { return Dir{Root: filepath.Join(state, "versions")} }

func (d Dir) recordFile() string { return filepath.Join(d.Root, "record.json") }

// Read reads the record; there need be none.
func (d Dir) Read() (Record, error) {
	var r Record
	b, err := os.ReadFile(d.recordFile())
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, errs.New(errs.Unavailable, "read which version is to run: %w", err)
	}
	return parseRecord(b)
}

func parseRecord(b []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, errs.New(errs.Invalid, "record.json of the versions cannot be read: %w", err).WithHint("remove it: the installed program runs then")
	}
	names := []string{r.Current, r.Previous}
	if a := r.Activating; a != nil {
		if a.From == "" || a.To == "" {
			return Record{}, errs.New(errs.Invalid, "record.json of the versions names no version to try")
		}
		names = append(names, a.From, a.To)
	}
	for _, v := range names {
		if v != "" && !valid(v) { // it becomes part of a path
			return Record{}, errs.New(errs.Invalid, "record.json of the versions names %q, which is no version", clip(v))
		}
	}
	return r, nil
}

// Write replaces the record, and brings the link in line.
func (d Dir) Write(r Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return errs.New(errs.Internal, "write record.json: %w", err)
	}
	if err := os.MkdirAll(d.Root, 0o755); err != nil {
		return errs.New(errs.Unavailable, "make %s: %w", d.Root, err)
	}
	if err := replace(d.recordFile(), append(b, '\n')); err != nil {
		return errs.New(errs.Unavailable, "note which version is to run: %w", err)
	}
	d.link(r.Current)
	return nil
}

// Change reads, changes and writes the record.
func (d Dir) Change(fn func(Record) Record) (Record, error) {
	r, err := d.Read()
	if err != nil {
		return r, err
	}
	r = fn(r)
	return r, d.Write(r)
}

// link shows people which version was chosen; nothing follows from it.
func (d Dir) link(version string) {
	at := filepath.Join(d.Root, "current")
	if have, err := os.Readlink(at); err == nil && have == version {
		return
	}
	if version == "" {
		_ = os.Remove(at)
		return
	}
	tmp := at + ".new"
	_ = os.Remove(tmp)
	if os.Symlink(version, tmp) == nil {
		_ = os.Rename(tmp, at)
	}
}

// replace writes a file as a whole, onto the disk.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func clip(s string) string { return s[:min(len(s), 80)] }
