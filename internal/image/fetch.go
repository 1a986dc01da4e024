package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

// fetch brings one blob. Callers of the same scope that need the same blob share
// one download. What was received is kept in partial/ until it is whole, so a
// broken connection, or a killed daemon, costs nothing that was there already.
func (s *Store) fetch(ctx context.Context, from []*source, scope string, d descriptor, tell func(api.Progress)) error {
	id := shortDigest(d.Digest)
	if s.claimed(scope, d.Digest) {
		tell(api.Progress{ID: id, Phase: "exists", Current: d.Size, Total: d.Size})
		return nil
	}
	tell(api.Progress{ID: id, Phase: "waiting", Total: d.Size})
	_, err := s.fetchs.do(ctx, scope+"\x00"+d.Digest, tell, func(ctx context.Context, tell func(api.Progress)) (string, error) {
		if s.claimed(scope, d.Digest) {
			return "", nil
		}
		return "", s.download(ctx, from, scope, d, tell)
	})
	if err != nil {
		return fmt.Errorf("fetch %s: %w", id, err)
	}
	tell(api.Progress{ID: id, Phase: "done", Current: d.Size, Total: d.Size})
	return nil
}

// transfer is a download under way.
type transfer struct {
	f    *os.File
	h    hash.Hash
	n    int64
	old  bool // begun by an earlier attempt, whose last bytes may never have reached the disk
	desc descriptor
	tell func(api.Progress)
}

func (s *Store) openPartial(scope string, d descriptor, tell func(api.Progress)) (*transfer, error) {
	name := filepath.Base(filepath.Dir(s.claimPath(scope, d.Digest))) + "-" + strings.TrimPrefix(d.Digest, "sha256:")
	f, err := os.OpenFile(s.path("partial", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", noSpace(err))
	}
	now := s.opt.Clock.Now() // GC goes by the age
	if err := os.Chtimes(f.Name(), now, now); err != nil {
		f.Close()
		return nil, fmt.Errorf("image store: %w", err)
	}
	p := &transfer{f: f, h: sha256.New(), desc: d, tell: tell}
	if p.n, err = io.Copy(p.h, f); err == nil && p.n > d.Size {
		err = p.restart()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("image store: %w", err)
	}
	p.old = p.n > 0
	return p, nil
}

func (p *transfer) restart() error {
	p.h.Reset()
	p.n, p.old = 0, false
	if _, err := p.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return p.f.Truncate(0)
}

func (p *transfer) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	p.h.Write(b[:n])
	p.n += int64(n)
	return n, noSpace(err)
}

func (p *transfer) digest() string { return "sha256:" + hex.EncodeToString(p.h.Sum(nil)) }

func (s *Store) download(ctx context.Context, from []*source, scope string, d descriptor, tell func(api.Progress)) error {
	if err := s.room(d.Size); err != nil {
		return err
	}
	p, err := s.openPartial(scope, d, tell)
	if err != nil {
		return err
	}
	defer p.f.Close()
	var first error
	for _, open := range s.openers(from, d) {
		err = s.downloadFrom(ctx, open, p)
		if err == nil {
			if err := s.publish(p.f, s.blobPath(d.Digest)); err != nil {
				return err
			}
			return s.claim(scope, d.Digest)
		}
		if done(ctx) != nil || errors.Is(err, errs.NoCapacity) {
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

func (s *Store) openers(from []*source, d descriptor) []opener {
	header := func(offset int64) map[string]string {
		h := map[string]string{"Accept-Encoding": "identity"}
		if offset > 0 {
			h["Range"] = fmt.Sprintf("bytes=%d-%d", offset, d.Size-1)
		}
		return h
	}
	codes := []int{http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable}
	var out []opener
	for _, c := range from {
		out = append(out, func(ctx context.Context, offset int64) (*http.Response, error) {
			return c.do(ctx, "blobs/"+d.Digest, header(offset), codes...)
		})
	}
	for _, u := range d.URLs { // of layers that registries may not hold
		parsed, err := url.Parse(u)
		if err != nil || parsed.Scheme != "https" || parsed.User != nil {
			continue
		}
		out = append(out, func(ctx context.Context, offset int64) (*http.Response, error) {
			base, err := s.newTransport(parsed.Host)
			if err != nil {
				return nil, err
			}
			c := &source{s: s, host: parsed.Host, repo: "(" + clip(parsed.Path) + ")"}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, parsed.String(), nil)
			if err != nil {
				return nil, errs.New(errs.Invalid, "layer address: %w", err)
			}
			base.DisableKeepAlives = true
			return send(&http.Client{Transport: &guard{base: base, origin: from[len(from)-1].host, s: s}}, req, header(offset), codes, c.describe)
		})
	}
	return out
}

// downloadFrom completes p from one place.
func (s *Store) downloadFrom(ctx context.Context, open opener, p *transfer) error {
	return s.retry(ctx, func() (bool, error) {
		before := p.n
		if p.n < p.desc.Size || p.n == 0 {
			if err := s.stream(ctx, open, p); err != nil {
				return p.n > before, err
			}
		}
		got := p.digest()
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
func (s *Store) stream(ctx context.Context, open opener, p *transfer) error {
	id := shortDigest(p.desc.Digest)
	ctx, touch, stop := s.watch(ctx)
	defer stop()
	phase := "pulling"
	if p.n > 0 {
		phase = "resuming"
	}
	p.tell(api.Progress{ID: id, Phase: phase, Current: p.n, Total: p.desc.Size})
	resp, err := open(ctx, p.n)
	if err != nil {
		return s.idle(ctx, err)
	}
	defer resp.Body.Close()
	if p.n > 0 && !continues(resp, p.n) {
		if err := p.restart(); err != nil {
			return fmt.Errorf("image store: %w", err)
		}
		if resp.StatusCode != http.StatusOK {
			return &transient{err: errs.New(errs.Unavailable, "registry cannot resume %s; it is fetched from the start", id)}
		}
	}
	if p.n == 0 && resp.StatusCode != http.StatusOK {
		return errs.New(errs.Unavailable, "registry answers %d to a request for all of %s", resp.StatusCode, id)
	}
	told := p.n
	body := &counter{r: resp.Body, tell: func(int64) {}}
	buf := make([]byte, 64<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			touch()
			if p.n+int64(n) > p.desc.Size {
				if err := p.restart(); err != nil {
					return fmt.Errorf("image store: %w", err)
				}
				return errs.New(errs.Invalid, "blob %s is refused: it is longer than the %d bytes announced", p.desc.Digest, p.desc.Size)
			}
			if _, werr := p.Write(buf[:n]); werr != nil {
				return fmt.Errorf("image store: %w", werr)
			}
			if p.n-told >= 256<<10 {
				told = p.n
				p.tell(api.Progress{ID: id, Phase: "pulling", Current: p.n, Total: p.desc.Size})
			}
		}
		if errors.Is(err, io.EOF) && p.n == p.desc.Size {
			return nil
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return s.idle(ctx, describeLink("of "+id, err))
		}
	}
}

// idle makes an end by the watchdog an error that is tried again.
func (s *Store) idle(ctx context.Context, err error) error {
	if isCanceled(err) && ctx.Err() != nil {
		return &transient{err: errs.New(errs.Unavailable, "registry sent nothing for %s", s.opt.IdleTimeout)}
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
