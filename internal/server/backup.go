package server

import (
	"io"
	"net/http"
	"time"

	"atoll/internal/errs"
)

// maxBackup bounds what a restore reads: etcd holds 8 GiB at most.
const maxBackup = 8 << 30

// rolling lifts the deadlines of one request and sets a new one with every piece,
// so that a long transfer may take its time but not stand still.
type rolling struct {
	c  *call
	rc *http.ResponseController
}

func (c *call) rolling() rolling {
	r := rolling{c: c, rc: http.NewResponseController(c.w)}
	_ = r.rc.SetReadDeadline(time.Time{}) // not every writer knows deadlines; then there is none to lift
	_ = r.rc.SetWriteDeadline(time.Time{})
	return r
}

// Write sends a piece.
func (r rolling) Write(p []byte) (int, error) {
	_ = r.rc.SetWriteDeadline(r.c.Clock.Now().Add(r.c.cfg.WriteTimeout)) // as in rolling
	return r.c.w.Write(p)
}

// Read takes a piece.
func (r rolling) Read(p []byte) (int, error) {
	_ = r.rc.SetReadDeadline(r.c.Clock.Now().Add(r.c.cfg.BodyTimeout)) // as in rolling
	return r.c.r.Body.Read(p)
}

// backup streams the whole state. An error on the way breaks the connection off, so
// that half a backup is never taken for a whole one.
func (c *call) backup() error {
	if c.Dump == nil {
		return errs.New(errs.Unsupported, "this server cannot make backups of its store")
	}
	w := c.rolling()
	c.w.Header().Set("Content-Type", typeBinary)
	c.w.Header().Set("Content-Disposition", `attachment; filename="atoll.backup"`)
	err := c.Dump(c.r.Context(), w)
	if err != nil && c.w.status != 0 {
		c.Log.Error("backup broke off", "error", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

// restore replaces the whole state.
func (c *call) restore() error {
	if c.Restore == nil {
		return errs.New(errs.Unsupported, "this server cannot restore its store").WithHint("stop it and restore into its directory")
	}
	r := c.rolling()
	rev, err := c.Restore(c.r.Context(), io.LimitReader(r, maxBackup))
	if err != nil {
		return err
	}
	if err := c.LoadAuth(c.r.Context()); err != nil {
		return err
	}
	return c.json(http.StatusOK, Committed{Revision: rev})
}
