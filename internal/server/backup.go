package server

import (
	"io"
	"net/http"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
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
	w := c.rolling()
	c.w.Header().Set("Content-Type", typeBinary)
	c.w.Header().Set("Content-Disposition", `attachment; filename="atoll.backup"`)
	err := store.Dump(c.r.Context(), c.Store, w, c.Clock.Now())
	if err != nil && c.w.status != 0 {
		c.Log.Error("backup broke off", "error", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

// restore replaces the whole state. Nothing is written unless all of the backup is good.
func (c *call) restore() error {
	if c.Base == nil {
		return errs.New(errs.Unsupported, "this server cannot replace its state while it runs").WithHint("stop it and restore into an empty data directory")
	}
	if _, err := store.Load(c.r.Context(), c.Base, io.LimitReader(c.rolling(), maxBackup), store.LoadOptions{Force: true}); err != nil {
		return err
	}
	if err := c.LoadAuth(c.r.Context()); err != nil {
		return err
	}
	_, rev, err := c.Base.List(c.r.Context(), api.Selector{Kind: api.KindTenant, Limit: 1})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, Committed{Revision: rev})
}
