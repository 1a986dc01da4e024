package cli

import (
	"encoding/json"
	"errors"
	"io"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
)

// transfer sends in, writes what comes back to out, and shows progress, until the stream ends.
func transfer(s Stream, in io.Reader, out io.Writer, p *progress) error {
	var wg sync.WaitGroup
	var sent error
	defer wg.Wait()
	defer s.Close()
	defer p.end()
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
				p.update(m)
			}
		case api.ChanExit:
			var e api.StreamExit
			if err := json.Unmarshal(b, &e); err != nil {
				return errs.New(errs.Internal, "exit of the stream: %w", err)
			}
			return exitError(e)
		}
	}
}

// send writes all of r and then the empty payload that ends it. An error of r
// closes the stream, so that the other side does not take half for the whole.
func send(s Stream, r io.Reader) error {
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
