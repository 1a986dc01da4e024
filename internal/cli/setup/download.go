package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"time"

	"atoll/api"
	"atoll/internal/cli/term"
	"atoll/internal/errs"
)

const (
	// maxDownload is what a server takes in at most.
	maxDownload = 2 << 30
	// downloadSilence is how long a download may stand still.
	downloadSilence = 30 * time.Second
)

var sha256RE = regexp.MustCompile(`^[0-9a-f]{64}$`)

// checkDownload reports whether an archive can be got from a URL: what comes from
// somewhere else is only as good as the hash that its maker told.
func checkDownload(from, sum string) error {
	u, err := url.Parse(from)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		return errs.InvalidFields("upgrade", []errs.Field{{Field: "--url", Value: from, Rule: "must be the address of an archive", Example: "https://example.org/atoll.tar.gz"}})
	}
	if !sha256RE.MatchString(sum) {
		return errs.InvalidFields("upgrade", []errs.Field{{Field: "--sha256", Value: sum, Rule: "must be the SHA-256 of what is at --url, 64 digits in small letters, as its maker tells it"}})
	}
	return nil
}

// download gets what is at a URL into a file without a name, and gives it only if it has
// the hash sum. The caller closes the file.
func download(ctx context.Context, from, sum string, bar *term.Progress) (f *os.File, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(downloadSilence, func() {
		cancel(errs.New(errs.Timeout, "nothing came for %s", downloadSilence))
	})
	defer silent.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, errs.New(errs.Invalid, "--url: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, broken(ctx, from, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errs.New(errs.NotFound, "%s answers %s", from, resp.Status)
	}
	if f, err = os.CreateTemp("", "atoll-*.tar"); err != nil {
		return nil, errs.New(errs.Unavailable, "download: %w", err)
	}
	defer func() {
		_ = os.Remove(f.Name()) // it lasts as long as it is open
		if err != nil {
			_ = f.Close()
			f = nil
		}
	}()
	h := sha256.New()
	told := api.Progress{ID: path.Base(req.URL.Path), Phase: "downloading", Total: max(resp.ContentLength, 0)}
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(&counted{resp.Body, func(n int) {
		silent.Reset(downloadSilence)
		told.Current += int64(n)
		bar.Update(told)
	}}, maxDownload+1))
	if err != nil {
		return f, broken(ctx, from, err)
	}
	if n > maxDownload {
		return f, errs.New(errs.Invalid, "%s is over %s", from, api.HumanQuantity(api.Memory, maxDownload))
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return f, errs.New(errs.Invalid, "%s has the SHA-256 %s, and %s was told", from, got, sum).WithHint("it is not what its maker made, or was changed on the way: nothing was sent to the pool")
	}
	told.Phase = "done"
	bar.Update(told)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return f, errs.New(errs.Unavailable, "download: %w", err)
	}
	return f, nil
}

func broken(ctx context.Context, from string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	// Its cause is told, not kept: a refused connection would be taken for the pool's.
	return errs.New(errs.Unavailable, "download %s: %v", from, err).WithHint("try again, or get it in another way and give --file")
}

// counted tells of what is read.
type counted struct {
	io.Reader
	saw func(n int)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.saw(n)
	return n, err
}
