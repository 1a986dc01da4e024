package stream

import (
	"encoding/json"
	"errors"
	"io"
	"sync"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/term"
	"atoll/internal/errs"
)

// Transfer sends in, writes what comes back to out, and shows progress, until the stream ends.
func Transfer(s conn.Stream, in io.Reader, out io.Writer, p *term.Progress) error {
	var wg sync.WaitGroup
	var sent error
	defer wg.Wait()
	defer s.Close()
	defer p.End()
	if in != nil {
		wg.Go(func() { sent = send(s, in) })
	}
	for {
		ch, b, err := s.Read()
		if err != nil {
			if in != nil && sent != nil {
				return sent
			}
			return errs.New(errs.Unavailable, "the connection broke: %w", err).WithHint("try again; what was transferred is not transferred twice")
		}
		switch ch {
		case api.ChanStdout:
			if out == nil {
				continue
			}
			if _, err := out.Write(b); err != nil {
				return err
			}
		case api.ChanMessage:
			var m api.Progress
			if json.Unmarshal(b, &m) == nil {
				p.Update(m)
			}
		case api.ChanExit:
			var e api.StreamExit
			if err := json.Unmarshal(b, &e); err != nil {
				return errs.New(errs.Internal, "exit of the stream: %w", err)
			}
			return ExitError(e)
		}
	}
}

// send writes all of r and then the empty payload that ends it. An error of r
// closes the stream, so that the other side does not take half for the whole.
func send(s conn.Stream, r io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && s.Write(api.ChanStdin, buf[:n]) != nil {
			return nil // the reader of the stream tells why
		}
		if errors.Is(err, io.EOF) {
			_ = s.Write(api.ChanStdin, nil)
			return nil
		}
		if err != nil {
			_ = s.Close()
			return err
		}
	}
}
