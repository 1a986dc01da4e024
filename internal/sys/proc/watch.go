package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What Watch reports.
const (
	Moved    = unix.IN_MOVED_TO
	Created  = unix.IN_CREATE
	Deleted  = unix.IN_DELETE
	Modified = unix.IN_MODIFY
)

// Watch reports changes of files by inotify.
type Watch struct {
	f   *os.File
	buf [16 << 10]byte
}

// Event is one change. Overflow: some were lost, look at everything.
type Event struct {
	Mask     uint32
	Name     string // inside the watched directory; "" for a watched file
	Overflow bool
}

// NewWatch watches the paths for events of mask.
func NewWatch(mask uint32, paths ...string) (*Watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &Watch{f: os.NewFile(uintptr(fd), "inotify")}
	for _, p := range paths {
		if err := w.Add(p, mask); err != nil {
			_ = w.Close()
			return nil, err
		}
	}
	return w, nil
}

// Add watches one more path.
func (w *Watch) Add(path string, mask uint32) error {
	rc, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	var aerr error
	if err := rc.Control(func(fd uintptr) { _, aerr = unix.InotifyAddWatch(int(fd), path, mask) }); err != nil {
		return err
	}
	if aerr != nil {
		return fmt.Errorf("watch %s: %w", path, aerr)
	}
	return nil
}

// Close ends the watch; a Next that waits returns.
func (w *Watch) Close() error { return w.f.Close() }

// Next waits for changes until ctx ends or, when d > 0, d has passed: then it returns none.
func (w *Watch) Next(ctx context.Context, d time.Duration) ([]Event, error) {
	_ = w.f.SetReadDeadline(time.Time{})
	wait, cancel := ctx, context.CancelFunc(func() {})
	if d > 0 {
		wait, cancel = context.WithTimeout(ctx, d)
	}
	defer cancel()
	stop := context.AfterFunc(wait, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := w.f.Read(w.buf[:])
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	return parseEvents(w.buf[:n]), nil
}

func parseEvents(b []byte) []Event {
	var out []Event
	for len(b) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(b[4:])
		l := int(binary.NativeEndian.Uint32(b[12:]))
		b = b[unix.SizeofInotifyEvent:]
		if l > len(b) {
			break
		}
		name := b[:l]
		for len(name) > 0 && name[len(name)-1] == 0 {
			name = name[:len(name)-1]
		}
		out = append(out, Event{Mask: mask, Name: string(name), Overflow: mask&unix.IN_Q_OVERFLOW != 0})
		b = b[l:]
	}
	return out
}
