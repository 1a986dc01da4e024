package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/proc"
)

// maxPacket is how much conmon takes at once from its attach socket.
const maxPacket = 8 << 10

// Attach feeds st.In to the first process through conmon and forwards sizes. When In ends,
// so does the process's standard input, except with a terminal: that stays
// open for the next who attaches. A Read of st.In that blocks is left to the caller to end.
func (r *Runtime) Attach(ctx context.Context, id string, st driver.Stream) error {
	e, err := r.setup()
	if err != nil {
		return err
	}
	o, rec, found := r.look(e, id)
	switch {
	case !found:
		return notHere(id)
	case o.Phase != driver.PhaseRunning && o.Phase != driver.PhasePrepared:
		return errs.New(errs.Conflict, "instance %s is not running", id)
	case st.In != nil && !rec.Stdin:
		return errs.New(errs.Conflict, "instance %s has no standard input", id).WithHint("create it with stdin: true (atoll run -i)")
	}
	p, err := proc.Open(o.Pid)
	if err != nil {
		return nil //nolint:nilerr // it has just ended
	}
	defer p.Close()
	conn, err := proc.DialPacket(r.run("i", id, "attach"))
	if err != nil {
		return fmt.Errorf("attach to %s: %w", id, err)
	}
	defer conn.Close()
	if err := proc.ShutdownRead(conn); err != nil { // output is read from the log
		return fmt.Errorf("attach to %s: %w", id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	fed := make(chan error, 1)
	if st.In != nil {
		go func() { fed <- feed(conn, st.In) }()
	}
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait() // before the handle is closed
	defer cancel()
	wg.Go(func() { ended <- p.Wait(ctx) })
	err = r.serveAttach(ctx, id, st, fed, ended)
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("attach to %s: %w", id, err)
	}
	return err
}

// serveAttach returns when input or the process has ended.
func (r *Runtime) serveAttach(ctx context.Context, id string, st driver.Stream, fed, ended <-chan error) error {
	sizes := st.Resize
	for {
		select {
		case err := <-fed:
			return err
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case z, ok := <-sizes:
			if !ok {
				sizes = nil
				continue
			}
			if err := proc.WriteFIFO(r.run("i", id, "ctl"), fmt.Appendf(nil, "1 %d %d\n", z.Rows, z.Cols)); err != nil && !errors.Is(err, os.ErrNotExist) {
				r.log.Warn("terminal not resized", "instance", id, "error", err)
			}
		}
	}
}

// feed sends packets until in ends. An end of the receiver is not an error: the process has closed its input.
func feed(conn *os.File, in io.Reader) error {
	buf := make([]byte, maxPacket)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, werr := conn.Write(buf[:n]); werr != nil {
				return nil //nolint:nilerr // nobody reads any more
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// dialTimeout bounds a connection attempt that has no deadline of its own.
const dialTimeout = 10 * time.Second
