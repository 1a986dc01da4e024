// Package stream lives through a live stream: a terminal at one end and a process at
// the other, or a file that goes one way and progress that comes back.
//
// What it starts it waits for, with one exception: a read of standard input cannot be
// taken back. It must never take half of what was sent for the whole.
package stream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/term"
	"atoll/internal/errs"
)

// Session is a person or program at one end of a live stream, and a process at the other.
type Session struct {
	IO     term.Streams
	Stream conn.Stream
	Stdin  bool
	TTY    bool
	Detach []byte // keys that end the session and leave the process alone; nil: none
	// Signals forwards Ctrl-C and its like; the third one forces an end.
	Signals bool
	// Interrupted may end the session at a signal instead of forwarding it: the error, or nil.
	Interrupted func() error
	Progress    *term.Progress
	// Heard is closed at the first sign of life from the other side.
	Heard     chan struct{}
	heardOnce sync.Once
	Ended     bool // the other side said how it ended
}

var (
	ErrDetached = errors.New("detached")
	ErrForced   = errors.New("forced to end")
)

// Run moves bytes until the stream ends, and returns the exit code it ended with.
func (s *Session) Run(ctx context.Context) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.Stream.Close()
	defer cancel(nil)
	if s.TTY && s.IO.Term.InIs() && s.Stdin {
		restore, err := s.IO.Term.Raw()
		if err != nil {
			return 0, errs.New(errs.Unsupported, "take over the terminal: %w", err)
		}
		defer restore()
	}
	wg.Go(func() { // a blocked read ends when the stream is closed
		<-ctx.Done()
		_ = s.Stream.Close()
	})
	wg.Go(func() { s.forwardSignals(ctx, cancel) })
	if s.Stdin {
		// Not waited for: a read of a terminal cannot be taken back. It ends with the process.
		go s.feed(cancel)
	}
	code, err = s.receive()
	if cause := context.Cause(ctx); cause != nil {
		return 0, cause
	}
	return code, err
}

// receive writes what comes until the exit frame.
func (s *Session) receive() (int, error) {
	defer s.Progress.End()
	for {
		ch, p, err := s.Stream.Read()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, errs.New(errs.Unavailable, "the connection broke: %w", err).WithHint("the instance runs on: atoll attach NAME, atoll logs NAME")
		}
		switch ch {
		case api.ChanStdout, api.ChanStderr:
			s.Progress.End()
			s.alive()
			w := s.IO.Out
			if ch == api.ChanStderr {
				w = s.IO.Err
			}
			if _, err := w.Write(p); err != nil {
				return 0, err
			}
		case api.ChanMessage:
			var m api.Progress
			if json.Unmarshal(p, &m) == nil {
				s.Progress.Update(m)
			}
		case api.ChanExit:
			var e api.StreamExit
			if err := json.Unmarshal(p, &e); err != nil {
				return 0, errs.New(errs.Internal, "exit of the stream: %w", err)
			}
			s.Ended = true
			return e.Code, ExitError(e)
		}
	}
}

func (s *Session) alive() {
	s.heardOnce.Do(func() {
		if s.Heard != nil {
			close(s.Heard)
		}
	})
}

// ExitError is the error a stream ended with, if it ended with one.
func ExitError(e api.StreamExit) error {
	if e.Kind == "" {
		return nil
	}
	return &errs.Error{Kind: errs.Kind(e.Kind), Msg: cmp.Or(e.Message, errs.Kind(e.Kind).Title()), Hint: e.Hint}
}

// feed sends standard input, watching for the detach keys.
func (s *Session) feed(cancel context.CancelCauseFunc) {
	buf := make([]byte, 32<<10)
	d := detacher{keys: s.Detach}
	for {
		n, err := s.IO.In.Read(buf)
		if n > 0 {
			out, hit := d.filter(buf[:n])
			if len(out) > 0 && s.Stream.Write(api.ChanStdin, out) != nil {
				return // the reader of the stream tells why
			}
			if hit {
				cancel(ErrDetached)
				return
			}
		}
		if err != nil {
			if rest := d.flush(); len(rest) > 0 {
				_ = s.Stream.Write(api.ChanStdin, rest)
			}
			_ = s.Stream.Write(api.ChanStdin, nil) // as above
			return
		}
	}
}

// detacher finds a sequence of keys in what is typed. Keys that may be the
// beginning of it are held back until it is clear that they are not.
type detacher struct {
	keys []byte
	held int
}

func (d *detacher) filter(p []byte) (out []byte, hit bool) {
	if len(d.keys) == 0 {
		return p, false
	}
	out = make([]byte, 0, len(p)+d.held)
	for _, b := range p {
		for d.held > 0 && b != d.keys[d.held] {
			// What was held may still end in a shorter beginning of the sequence.
			out = append(out, d.keys[0])
			d.held = border(d.keys[1:d.held], d.keys, &out)
		}
		if b != d.keys[d.held] {
			out = append(out, b)
			continue
		}
		if d.held++; d.held == len(d.keys) {
			d.held = 0
			return out, true
		}
	}
	return out, false
}

// border keeps the longest end of held that begins keys and gives the rest out.
func border(held, keys []byte, out *[]byte) int {
	for n := len(held); n > 0; n-- {
		if string(held[len(held)-n:]) == string(keys[:n]) {
			*out = append(*out, held[:len(held)-n]...)
			return n
		}
	}
	*out = append(*out, held...)
	return 0
}

func (d *detacher) flush() []byte {
	rest := d.keys[:d.held]
	d.held = 0
	return rest
}

const forceAfter = 3 // signals; the first two are the process's to act on

// forwardSignals sends signals and the size of the terminal until ctx ends.
func (s *Session) forwardSignals(ctx context.Context, cancel context.CancelCauseFunc) {
	var want []os.Signal
	if s.TTY {
		want = append(want, syscall.SIGWINCH)
	}
	if s.Signals {
		want = append(want, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	}
	if len(want) == 0 {
		return
	}
	ch, stop := s.IO.Signals(want...)
	defer stop()
	names := map[os.Signal]string{syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGQUIT: "QUIT", syscall.SIGHUP: "HUP"}
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case sig := <-ch:
			if sig == syscall.SIGWINCH {
				_ = writeJSON(s.Stream, api.ChanResize, s.IO.Term.Size()) // a broken stream shows at its reader
				continue
			}
			if s.Interrupted != nil {
				if err := s.Interrupted(); err != nil {
					cancel(err)
					return
				}
			}
			if n++; n >= forceAfter {
				cancel(ErrForced)
				return
			}
			if n == forceAfter-1 {
				s.IO.Note("once more ends atoll without waiting for the process")
			}
			_ = s.Stream.Write(api.ChanSignal, []byte(names[sig]))
		}
	}
}

func writeJSON(s conn.Stream, ch byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.Write(ch, b)
}
