package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/proc"
)

// conmonPatience is how long conmon may take to end after the first process has.
const conmonPatience = 5 * time.Second

// record is what must be known of an instance when the daemon comes back. It is
// written before anything else is made.
type record struct {
	ID         string         `json:"id"`
	Ref        api.Ref        `json:"ref"`
	UID        string         `json:"uid"`
	Generation int64          `json:"generation"`
	Digest     string         `json:"digest"`
	Boot       string         `json:"boot"`
	Cgroup     string         `json:"cgroup"`
	IDs        driver.IDRange `json:"ids"`
	HostNet    bool           `json:"hostNet,omitempty"`
	TTY        bool           `json:"tty,omitempty"`
	Stdin      bool           `json:"stdin,omitempty"`
	LogSize    int64          `json:"logSize"`
	LogFiles   int            `json:"logFiles"`
	Warnings   []string       `json:"warnings,omitempty"`
	// MountWarnings are those among Warnings that a change of limits does not alter.
	MountWarnings []string `json:"mountWarnings,omitempty"`
}

// load finds a record, in memory or on disk; os.ErrNotExist when there is none.
func (r *Runtime) load(id string) (*record, error) {
	r.mu.Lock()
	rec := r.records[id]
	r.mu.Unlock()
	if rec != nil {
		return rec, nil
	}
	b, err := os.ReadFile(r.state("i", id, "record.json"))
	if err != nil {
		return nil, err
	}
	rec = &record{}
	if err := json.Unmarshal(b, rec); err != nil || rec.ID != id {
		return nil, fmt.Errorf("record of %s is damaged: %w", id, errors.Join(err, os.ErrInvalid))
	}
	r.mu.Lock()
	r.records[id] = rec
	r.mu.Unlock()
	return rec, nil
}

// save writes a record; nobody changes it afterwards.
func (r *Runtime) save(rec *record) error {
	if err := writeJSON(r.state("i", rec.ID, "record.json"), rec); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	r.mu.Lock()
	r.records[rec.ID] = rec
	r.mu.Unlock()
	return nil
}

// Rename notes new names of tenants; processes stay in the resource groups that records name.
func (r *Runtime) Rename(_ context.Context, tenants map[string]string) error {
	return driver.RenameRecords(r.state("i", "*", "record.json"), tenants)
}

// look finds out what there is of an instance. found is false when nothing is.
func (r *Runtime) look(e *environment, id string) (o driver.Observed, rec *record, found bool) {
	rec, err := r.load(id)
	if err != nil {
		if _, serr := os.Lstat(r.state("i", id)); serr == nil {
			return driver.Observed{ID: id, Phase: driver.PhaseBroken}, nil, true
		}
		if _, serr := os.Lstat(r.run("i", id)); serr == nil {
			return driver.Observed{ID: id, Phase: driver.PhaseBroken}, nil, true
		}
		return driver.Observed{}, nil, false
	}
	o = driver.Observed{ID: id, Ref: rec.Ref, UID: rec.UID, Generation: rec.Generation, ImageDigest: rec.Digest, Warnings: rec.Warnings, Phase: driver.PhaseBroken}
	if rec.Boot != e.boot { // the host was started anew: whatever it was has ended
		o.Phase, o.ExitCode = driver.PhaseExited, 137
		return o, rec, true
	}
	if st, err := os.Stat(r.run("i", id, "started")); err == nil {
		o.StartedAt = st.ModTime()
	}
	if r.exited(e, rec, &o) {
		return o, rec, true
	}
	pid := readPid(r.run("i", id, "pid"))
	if pid == 0 {
		return o, rec, true
	}
	if r.lives(e, rec, pid) {
		o.Pid, o.Phase = pid, driver.PhaseRunning
		if o.StartedAt.IsZero() {
			o.Phase = driver.PhasePrepared
		}
		if !rec.HostNet {
			o.NetNS = fmt.Sprintf("/proc/%d/ns/net", pid)
		}
		return o, rec, true
	}
	// It ended; conmon writes the code when it has copied all output.
	if r.awaitExitFile(e, rec) && r.exited(e, rec, &o) {
		return o, rec, true
	}
	return o, rec, true
}

// exited fills in how the instance ended, if it did.
func (r *Runtime) exited(e *environment, rec *record, o *driver.Observed) bool {
	path := r.run("exit", rec.ID)
	b, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	o.Phase, o.FinishedAt = driver.PhaseExited, st.ModTime()
	if o.StartedAt.IsZero() { // killed between prepare and start
		o.StartedAt = o.FinishedAt
	}
	o.ExitCode, err = strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || o.ExitCode < 0 {
		o.ExitCode = 137
	}
	o.OOMKilled = o.ExitCode != 0 && e.groups.OOMKills(rec.Cgroup) > 0
	r.reap(rec.ID)
	return true
}

// lives reports whether pid is (still) the instance's first process.
func (r *Runtime) lives(e *environment, rec *record, pid int) bool {
	return proc.Alive(pid) && e.groups.Contains(rec.Cgroup, pid)
}

// awaitExitFile gives conmon the time it needs after the first process has ended;
// when conmon is gone it writes the file in its place.
func (r *Runtime) awaitExitFile(e *environment, rec *record) bool {
	path := r.run("exit", rec.ID)
	p, err := proc.Open(r.conmonPid(rec.ID))
	if err == nil {
		defer p.Close()
		ctx, cancel := context.WithTimeout(context.Background(), conmonPatience)
		defer cancel()
		if p.Wait(ctx) != nil {
			if _, err := os.Stat(path); err == nil {
				return true
			}
			_ = p.Signal(proc.Kill) // it hangs; whatever it had to say is lost
		}
	}
	if _, err := os.Stat(path); err == nil {
		return true
	}
	return writeFile(path, []byte("137"), 0o600) == nil
}

func (r *Runtime) conmonPid(id string) int {
	r.mu.Lock()
	pid := r.conmons[id]
	r.mu.Unlock()
	if pid == 0 {
		pid = readPid(r.run("i", id, "conmon.pid"))
		if pid != 0 && !isConmon(pid, id) {
			return 0
		}
	}
	return pid
}

// isConmon tells our conmon from another process that was given its number.
func isConmon(pid int, id string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(b), "\x00--cid\x00"+id+"\x00")
}

// reap collects conmon when it is a child of ours that has ended.
func (r *Runtime) reap(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pid := r.conmons[id]; pid != 0 && proc.Reap(pid) {
		delete(r.conmons, id)
	}
}

func readPid(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n <= 1 {
		return 0
	}
	return n
}

func notHere(id string) error { return errs.New(errs.NotFound, "instance %s is not on this node", id) }
