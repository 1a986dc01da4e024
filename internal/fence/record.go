package fence

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Fenced is what a watchdog stopped, for the next daemon.
type Fenced struct {
	ID       string        `json:"id"`
	Groups   []string      `json:"groups"`
	At       time.Time     `json:"at"`       // when it was stopped
	Late     time.Duration `json:"lateNs"`   // how long after the watchdog's deadline its groups were empty
	Left     bool          `json:"left"`     // they were not when this was written: what was in them is killed, and the kernel had not let it go
	Deadline time.Duration `json:"deadline"` // nanoseconds since boot
}

const (
	recordName = "fenced.json"
	// maxRecord bounds what is kept when no daemon comes to read it; the newest stay.
	maxRecord = 4096
)

// addRecord adds to the record in dir; a reader sees all of it or nothing.
func addRecord(dir string, more []Fenced) error {
	all, err := readRecord(filepath.Join(dir, recordName))
	if err != nil {
		all = nil // damaged: what is known now is worth more
	}
	all = append(all, more...)
	all = all[max(0, len(all)-maxRecord):]
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+recordName)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write what was stopped: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, recordName)); err != nil {
		return fmt.Errorf("write what was stopped: %w", err)
	}
	return nil
}

func readRecord(path string) ([]Fenced, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Fenced
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return all, nil
}

// Take reads what a watchdog stopped since the last time, oldest first. done removes the
// record; a daemon that is killed before that reads it again.
func Take(run string) (all []Fenced, done func() error, err error) {
	taken := filepath.Join(run, recordName+".taken")
	all, err = readRecord(taken)
	if err == nil && len(all) == 0 { // otherwise an earlier daemon did not come to an end with it
		if rerr := os.Rename(filepath.Join(run, recordName), taken); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("read what was stopped: %w", rerr)
		}
		all, err = readRecord(taken)
	}
	if err != nil {
		// Not readable: it cannot be acted on, but it must not stand in the way.
		return nil, nil, errors.Join(fmt.Errorf("read what was stopped: %w", err), os.Remove(taken))
	}
	return all, func() error {
		if err := os.Remove(taken); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}, nil
}
