package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/image/disk"
	"atoll/internal/image/flight"
	"atoll/internal/image/oci"
)

// Transfer is a download under way.
type Transfer struct {
	*disk.Writer
	old  bool // begun by an earlier attempt, whose last bytes may never have reached the disk
	desc oci.Descriptor
	tell func(api.Progress)
}

// Resume goes on with what f holds already.
func Resume(f *os.File, d oci.Descriptor, tell func(api.Progress)) (*Transfer, error) {
	w, err := disk.Resume(f)
	p := &Transfer{Writer: w, desc: d, tell: tell}
	if err == nil && p.N > d.Size {
		err = p.restart()
	}
	p.old = p.N > 0
	return p, err
}

func (p *Transfer) restart() error {
	p.old = false
	return p.Restart()
}

// Download completes a transfer from the first of the places that can.
func (c *Client) Download(ctx context.Context, from []*Source, p *Transfer) error {
	var first error
	for _, open := range c.openers(from, p.desc) {
		err := c.downloadFrom(ctx, open, p)
		if err == nil || flight.CalledOff(ctx) != nil || errors.Is(err, errs.NoCapacity) {
			return err
		}
		// The registry itself comes last, but what the image's own place said matters most.
		if first == nil || errs.KindOf(first) == errs.NotFound {
			first = err
		}
	}
	return first
}

// opener asks one place for the bytes of a blob from an offset on.
type opener func(ctx context.Context, offset int64) (*http.Response, error)

func (c *Client) openers(from []*Source, d oci.Descriptor) []opener {
	header := func(offset int64) map[string]string {
		h := map[string]string{"Accept-Encoding": "identity"}
		if offset > 0 {
			h["Range"] = fmt.Sprintf("bytes=%d-%d", offset, d.Size-1)
		}
		return h
	}
	codes := []int{http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable}
	var out []opener
	for _, s := range from {
		out = append(out, func(ctx context.Context, offset int64) (*http.Response, error) {
			return s.do(ctx, "blobs/"+d.Digest, header(offset), codes...)
		})
	}
	for _, u := range d.URLs { // of layers that registries may not hold
		parsed, err := url.Parse(u)
		if err != nil || parsed.Scheme != "https" || parsed.User != nil {
			continue
		}
		out = append(out, func(ctx context.Context, offset int64) (*http.Response, error) {
			base, err := c.newTransport(parsed.Host)
			if err != nil {
				return nil, err
			}
			s := &Source{c: c, Host: parsed.Host, repo: "(" + oci.Clip(parsed.Path) + ")"}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, parsed.String(), nil)
			if err != nil {
				return nil, errs.New(errs.Invalid, "layer address: %w", err)
			}
			base.DisableKeepAlives = true
			return send(&http.Client{Transport: &guard{base: base, origin: from[len(from)-1].Host, c: c}}, req, header(offset), codes, s.describe)
		})
	}
	return out
}

// downloadFrom completes p from one place.
func (c *Client) downloadFrom(ctx context.Context, open opener, p *Transfer) error {
	return c.retry(ctx, func() (bool, error) {
		before := p.N
		if p.N < p.desc.Size || p.N == 0 {
			if err := c.stream(ctx, open, p); err != nil {
				return p.N > before, err
			}
		}
		got := p.Digest()
		if got == p.desc.Digest {
			return true, nil
		}
		old := p.old
		if err := p.restart(); err != nil {
			return false, fmt.Errorf("image store: %w", err)
		}
		err := errs.New(errs.Invalid, "blob %s is refused: its bytes are %s", p.desc.Digest, got).
			WithHint("the registry's copy is damaged or forged; push the image again or use another mirror")
		if old { // the rest from an earlier life may have been what was wrong
			return true, &transient{err: err}
		}
		return false, err
	})
}

// stream receives until the blob is whole or the connection breaks.
func (c *Client) stream(ctx context.Context, open opener, p *Transfer) error {
	id := oci.Short(p.desc.Digest)
	ctx, touch, stop := c.watch(ctx)
	defer stop()
	phase := "pulling"
	if p.N > 0 {
		phase = "resuming"
	}
	p.tell(api.Progress{ID: id, Phase: phase, Current: p.N, Total: p.desc.Size})
	resp, err := open(ctx, p.N)
	if err != nil {
		return c.idle(ctx, err)
	}
	defer resp.Body.Close()
	if p.N > 0 && !continues(resp, p.N) {
		if err := p.restart(); err != nil {
			return fmt.Errorf("image store: %w", err)
		}
		if resp.StatusCode != http.StatusOK {
			return &transient{err: errs.New(errs.Unavailable, "registry cannot resume %s; it is fetched from the start", id)}
		}
	}
	if p.N == 0 && resp.StatusCode != http.StatusOK {
		return errs.New(errs.Unavailable, "registry answers %d to a request for all of %s", resp.StatusCode, id)
	}
	told := p.N
	buf := make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			touch()
			if p.N+int64(n) > p.desc.Size {
				if err := p.restart(); err != nil {
					return fmt.Errorf("image store: %w", err)
				}
				return errs.New(errs.Invalid, "blob %s is refused: it is longer than the %d bytes announced", p.desc.Digest, p.desc.Size)
			}
			if _, werr := p.Write(buf[:n]); werr != nil {
				return fmt.Errorf("image store: %w", werr)
			}
			if p.N-told >= 256<<10 {
				told = p.N
				p.tell(api.Progress{ID: id, Phase: "pulling", Current: p.N, Total: p.desc.Size})
			}
		}
		if errors.Is(err, io.EOF) && p.N == p.desc.Size {
			return nil
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return c.idle(ctx, describeLink("of "+id, err))
		}
	}
}

// idle makes an end by the watchdog an error that is tried again.
func (c *Client) idle(ctx context.Context, err error) error {
	if flight.Canceled(err) && ctx.Err() != nil {
		return &transient{err: errs.New(errs.Unavailable, "registry sent nothing for %s", c.IdleTimeout)}
	}
	return err
}

// continues tells whether an answer goes on where we stopped.
func continues(resp *http.Response, from int64) bool {
	if resp.StatusCode != http.StatusPartialContent {
		return false
	}
	return strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", from))
}
