package fabric

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"atoll/api"
	"atoll/internal/errs"
)

// record is the flows that groups have recorded: files of one JSON object a line, the newest in flows.jsonl, older
// ones numbered. A line that a kill cut short is passed over by whoever reads.
type record struct {
	dir  string
	f    *os.File
	size int64
}

// What is recorded on a host takes this much, and no more.
const (
	recordSize  = 8 << 20
	recordFiles = 4
)

func (r *record) path(n int) string {
	if n == 0 {
		return filepath.Join(r.dir, "flows.jsonl")
	}
	return filepath.Join(r.dir, fmt.Sprintf("flows.%d.jsonl", n))
}

// add appends a flow. It is called by one goroutine at a time.
func (r *record) add(fl *api.NetFlow) error {
	b, err := json.Marshal(fl)
	if err != nil {
		return errs.New(errs.Internal, "record of flows: %w", err)
	}
	if r.f == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	if r.size+int64(len(b)) >= recordSize {
		if err := r.turn(); err != nil {
			return err
		}
	}
	n, err := r.f.Write(append(b, '\n'))
	r.size += int64(n)
	if err != nil {
		r.f.Close()
		r.f = nil
		return errs.New(errs.Unavailable, "record of flows: %w", err)
	}
	return nil
}

func (r *record) open() error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return errs.New(errs.Unavailable, "record of flows: %w", err)
	}
	f, err := os.OpenFile(r.path(0), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return errs.New(errs.Unavailable, "record of flows: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() > 0 {
		last := make([]byte, 1)
		if _, err = f.ReadAt(last, st.Size()-1); err == nil && last[0] != '\n' {
			_, err = f.WriteString("\n") // an earlier life was killed while it wrote
		}
	}
	if err != nil {
		f.Close()
		return errs.New(errs.Unavailable, "record of flows: %w", err)
	}
	r.f, r.size = f, st.Size()
	return nil
}

// turn begins a new file; the oldest goes.
func (r *record) turn() error {
	r.f.Close()
	r.f = nil
	for n := recordFiles - 1; n > 0; n-- {
		if err := os.Rename(r.path(n-1), r.path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.Unavailable, "record of flows: %w", err)
		}
	}
	return r.open()
}

// recorded lists what groups have recorded, the newest last, as far as is asked for.
func (f *Fabric) recorded(ask api.NetAsk) (api.NetFlows, error) {
	out := api.NetFlows{At: f.Clock.Now().UTC(), Flows: []api.NetFlow{}}
	limit := mostFlows
	if ask.Limit > 0 && ask.Limit < limit {
		limit = ask.Limit
	}
	if f.sight.log == nil {
		return out, nil
	}
	for n := recordFiles - 1; n >= 0; n-- {
		err := read(f.sight.log.path(n), func(fl api.NetFlow) {
			if !chosen(ask, &fl) {
				return
			}
			if len(out.Flows) >= 2*limit {
				out.Flows, out.More = append(out.Flows[:0], out.Flows[len(out.Flows)-limit:]...), true
			}
			out.Flows = append(out.Flows, fl)
		})
		if err != nil {
			return out, err
		}
	}
	if len(out.Flows) > limit {
		out.Flows, out.More = out.Flows[len(out.Flows)-limit:], true
	}
	return out, nil
}

func read(path string, fn func(api.NetFlow)) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.New(errs.Unavailable, "record of flows: %w", err)
	}
	defer file.Close()
	sc := bufio.NewScanner(file)
	sc.Buffer(make([]byte, 0, 4096), 1<<20)
	for sc.Scan() {
		var fl api.NetFlow
		if len(bytes.TrimSpace(sc.Bytes())) > 0 && json.Unmarshal(sc.Bytes(), &fl) == nil {
			fn(fl)
		}
	}
	if err := sc.Err(); err != nil {
		return errs.New(errs.Internal, "record of flows %s: %w", path, err)
	}
	return nil
}
