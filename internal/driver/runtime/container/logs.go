package container

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/sys/proc"
)

// maxLine bounds a line of the log: conmon reads pieces of 8 KiB.
const maxLine = 64 << 10

// Logs writes the output of the first process. A rotation waits for followers, so that it takes nothing
// from them that they have not read; only one that is further behind than conmon's own bound
// (see hardLog) loses the oldest lines.
func (r *Runtime) Logs(ctx context.Context, id string, req api.LogRequest, st driver.Stream) error {
	e, err := r.setup()
	if err != nil {
		return err
	}
	if _, err := r.load(id); err != nil {
		return notHere(id)
	}
	t := &tailer{r: r, e: e, id: id, req: req, out: st}
	if req.Follow {
		if t.watch, err = proc.NewWatch(proc.Moved|proc.Modified|proc.Created|proc.Deleted, r.state("i", id, "log"), r.run("exit")); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return notHere(id)
			}
			return err
		}
		defer t.watch.Close()
	}
	defer t.close()
	if err := t.past(); err != nil {
		return fmt.Errorf("logs of %s: %w", id, err)
	}
	if err := t.follow(ctx); err != nil {
		return fmt.Errorf("logs of %s: %w", id, err)
	}
	return nil
}

// tailer reads one instance's log.
type tailer struct {
	r     *Runtime
	e     *environment
	id    string
	req   api.LogRequest
	out   driver.Stream
	watch *proc.Watch
	cur   *os.File // the file conmon writes, or wrote last; nil: none yet
	rest  []byte   // of cur: the beginning of a line that is not complete
	open  [2]bool  // stdout, stderr: the last piece did not end a line
}

func (t *tailer) close() {
	t.at(nil)
	if t.cur != nil {
		_ = t.cur.Close()
	}
}

// at notes which file a follower reads, for rotate; nil: it reads no more.
func (t *tailer) at(f *os.File) {
	if !t.req.Follow {
		return
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	if f == nil {
		delete(t.r.tailers, t)
		return
	}
	if st, err := f.Stat(); err == nil {
		t.r.tailers[t] = st
	}
}

// behind reports whether a follower of the log reads an older file than st. It would
// lose lines if the files moved on once more.
func (r *Runtime) behind(id string, st os.FileInfo) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t, at := range r.tailers {
		if t.id == id && !os.SameFile(at, st) {
			return true
		}
	}
	return false
}

// rotated lists older files, oldest first.
func (r *Runtime) rotated(id string) []string {
	var out []string
	for n := 1; n <= 100; n++ {
		p := r.logFile(id) + "." + strconv.Itoa(n)
		if !exists(p) {
			break
		}
		out = append([]string{p}, out...)
	}
	return out
}

// past writes what is there already, of all files, as the request chooses.
func (t *tailer) past() error {
	cur, err := openLog(t.r.logFile(t.id))
	if err != nil {
		return err
	}
	t.cur = cur
	if cur != nil {
		t.at(cur)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, p := range t.r.rotated(t.id) {
		f, err := openLog(p)
		if err != nil {
			return err
		}
		if f != nil {
			files = append(files, f)
		}
	}
	all := files
	if cur != nil {
		all = append(all[:len(all):len(all)], cur)
	}
	if t.req.Tail < 0 {
		if cur != nil {
			_, err = cur.Seek(0, io.SeekEnd)
		}
		return err
	}
	if t.req.Tail > 0 {
		if all, err = seekTail(all, t.req.Tail); err != nil {
			return err
		}
	}
	for _, f := range all {
		if err := t.read(f); err != nil {
			return err
		}
		if f != cur {
			t.rest = nil
		}
	}
	return nil
}

// openLog opens a log; nil when there is none.
func openLog(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// read writes all complete lines from f's position to its end, as of now.
func (t *tailer) read(f *os.File) error {
	br := bufio.NewReaderSize(f, maxLine)
	for {
		l, err := br.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			t.rest = append(t.rest, l...)
			if len(t.rest) > maxLine {
				t.rest = nil
			}
			return nil
		}
		if errors.Is(err, bufio.ErrBufferFull) { // nothing conmon wrote; skip to the next line
			t.rest = t.rest[:0]
			continue
		}
		if err != nil {
			return err
		}
		if len(t.rest) > 0 {
			l = append(t.rest, l...)
			t.rest = nil
		}
		if err := t.write(l); err != nil {
			return err
		}
	}
}

// write sends one line on.
func (t *tailer) write(raw []byte) error {
	l, ok := parseLine(raw)
	if !ok || l.at.Before(t.req.Since) {
		return nil
	}
	w, i := t.out.Out, 0
	if l.stderr {
		i = 1
		if t.out.Err != nil {
			w = t.out.Err
		}
	}
	if w == nil {
		return nil
	}
	if t.req.Timestamps && !t.open[i] {
		l.text = append([]byte(l.at.UTC().Format(time.RFC3339Nano)+" "), l.text...)
	}
	t.open[i] = !bytes.HasSuffix(l.text, []byte("\n"))
	_, err := w.Write(l.text)
	return err
}

// follow writes what comes until the instance has ended and all was read.
func (t *tailer) follow(ctx context.Context) error {
	for t.req.Follow {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		over := t.over() // looked at first: conmon writes the exit after the last output
		if err := t.catchUp(); err != nil {
			return err
		}
		if over {
			break
		}
		if _, err := t.watch.Next(ctx, time.Second); err != nil {
			return err
		}
	}
	return t.endLine()
}

// over reports whether nothing more will be written.
func (t *tailer) over() bool {
	if exists(t.r.run("exit", t.id)) {
		return true
	}
	rec, err := t.r.load(t.id)
	return err != nil || rec.Boot != t.e.boot || !exists(t.r.state("i", t.id, "log"))
}

// catchUp reads to the end, through rotations.
func (t *tailer) catchUp() error {
	for {
		if t.cur != nil {
			if err := t.read(t.cur); err != nil {
				return err
			}
		}
		next, err := openLog(t.r.logFile(t.id))
		if err != nil || next == nil {
			return err
		}
		if t.cur != nil && sameFile(t.cur, next) {
			return next.Close()
		}
		missed, err := t.between(next)
		if err != nil {
			_ = next.Close()
			return err
		}
		if t.cur != nil {
			// The old file may have grown between our last read and its replacement.
			err = t.read(t.cur)
			_ = t.cur.Close()
		}
		for _, f := range missed {
			t.rest = nil
			err = errors.Join(err, t.read(f), f.Close())
		}
		t.rest, t.cur = nil, next
		t.at(next)
		if err != nil {
			return err
		}
	}
}

// between opens the rotated files that came after the one being read.
func (t *tailer) between(next *os.File) ([]*os.File, error) {
	var out []*os.File
	if t.cur == nil {
		return nil, nil
	}
	for n := 1; n <= 100; n++ {
		f, err := openLog(t.r.logFile(t.id) + "." + strconv.Itoa(n))
		if err != nil {
			return out, err
		}
		if f == nil || sameFile(f, t.cur) {
			if f == nil {
				closeAll(out) // the file being read is gone: which came after it is not known
				return nil, nil
			}
			_ = f.Close()
			break
		}
		if sameFile(f, next) {
			_ = f.Close()
			continue
		}
		out = append([]*os.File{f}, out...)
	}
	return out, nil
}

// endLine completes a last line for people; Raw keeps the bytes as they were.
func (t *tailer) endLine() error {
	if t.req.Raw {
		return nil
	}
	for i, w := range []io.Writer{t.out.Out, t.out.Err} {
		if t.open[i] && w != nil {
			if _, err := io.WriteString(w, "\n"); err != nil {
				return err
			}
		}
	}
	return nil
}

func sameFile(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// seekTail positions the files so that the last n lines are ahead; pieces of a line that
// was cut count as lines. It reads from the end backwards.
func seekTail(files []*os.File, n int) ([]*os.File, error) {
	left := n
	for i := len(files) - 1; i >= 0; i-- {
		found, err := seekLines(files[i], &left)
		if err != nil {
			return nil, err
		}
		if found {
			return files[i:], nil
		}
	}
	return files, nil
}

// seekLines goes back *left lines from the end of f, or counts those it has.
func seekLines(f *os.File, left *int) (found bool, err error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	buf := make([]byte, 32<<10)
	for end := size; end > 0; {
		n := min(end, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], end-n); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] != '\n' || end-n+i == size-1 {
				continue
			}
			if *left--; *left == 0 {
				_, err := f.Seek(end-n+i+1, io.SeekStart)
				return true, err
			}
		}
		end -= n
	}
	if size > 0 {
		*left-- // the first line has no newline before it
	}
	_, err = f.Seek(0, io.SeekStart)
	return *left <= 0, err
}

// rotate starts a new log file when the current one is full: conmon is told to
// open it anew after the old one has its next name.
func (r *Runtime) rotate(rec *record) error {
	path := r.logFile(rec.ID)
	st, err := os.Stat(path)
	if err != nil || st.Size() < rec.LogSize || exists(r.run("exit", rec.ID)) {
		return nil //nolint:nilerr // no log, nothing to do
	}
	if r.behind(rec.ID, st) {
		return nil // the next time; conmon's own bound holds meanwhile
	}
	if err := os.Remove(path + "." + strconv.Itoa(max(rec.LogFiles-1, 1))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for n := rec.LogFiles - 2; n >= 1; n-- {
		err := os.Rename(path+"."+strconv.Itoa(n), path+"."+strconv.Itoa(n+1))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(path, path+".1"); err != nil {
		return err
	}
	if err := proc.WriteFIFO(filepath.Join(r.run("i", rec.ID), "ctl"), []byte("2 0 0\n")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if rec.LogFiles == 1 { // only the current file is kept
		return os.Remove(path + ".1")
	}
	return nil
}
