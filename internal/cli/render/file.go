package render

import (
	"io"
	"os"
	"path/filepath"

	"atoll/internal/errs"
)

// File makes a file whole or not at all: written beside its place, synced, and
// moved there. It gives the number of bytes. A file that is there is replaced
// only by force. Its owner alone may read it.
func File(path string, force bool, write func(io.Writer) error) (int64, error) {
	if _, err := os.Lstat(path); err == nil && !force {
		return 0, errs.New(errs.Exists, "%s exists already", path).WithHint("choose another name, or --force")
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".atoll-new-*")
	if err != nil {
		return 0, errs.New(errs.Invalid, "%w", err)
	}
	defer os.Remove(tmp.Name()) // nothing is there any more when all went well
	n := &counter{w: tmp}
	err = write(n)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return 0, err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return 0, errs.New(errs.Invalid, "%w", err)
	}
	return n.n, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
