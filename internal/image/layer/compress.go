package layer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"atoll/internal/errs"
	"atoll/internal/image/flight"
)

// Compression is how a stream is compressed.
type Compression string

const (
	Plain Compression = "none"
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// zstdWindow bounds the memory one stream can ask for; 128 MiB is what zstd --long makes.
const zstdWindow = 128 << 20

// Sniff tells by the first bytes how a stream is compressed.
func Sniff(r *bufio.Reader) (Compression, error) {
	head, err := r.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return Gzip, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return Zstd, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "", errs.New(errs.Unsupported, "the archive is compressed by xz").WithHint("decompress it first: xz -dc archive.tar.xz | atoll image import …")
	case bytes.HasPrefix(head, []byte("BZh")):
		return "", errs.New(errs.Unsupported, "the archive is compressed by bzip2").WithHint("decompress it first: bzip2 -dc archive.tar.bz2 | atoll image import …")
	}
	return Plain, nil
}

// Decompress gives the plain bytes of a stream, with bounded memory.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	c, err := Sniff(br)
	if err != nil {
		return nil, "", err
	}
	switch c {
	case Gzip:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, "", errs.New(errs.Invalid, "gzip: %w", err)
		}
		return z, c, nil
	case Zstd:
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, "", errs.New(errs.Invalid, "zstd: %w", err)
		}
		return z.IOReadCloser(), c, nil
	}
	return io.NopCloser(br), c, nil
}

// Bounded reads at most limit bytes, and nothing after ctx has ended.
type Bounded struct {
	ctx   context.Context
	r     io.Reader
	left  int64
	limit int64
	what  string
}

// NewBounded bounds a reader; what names it in errors.
func NewBounded(ctx context.Context, r io.Reader, limit int64, what string) *Bounded {
	return &Bounded{ctx, r, limit, limit, what}
}

// Read fails when there is more than the limit, or the work was called off.
func (b *Bounded) Read(p []byte) (int, error) {
	if err := flight.CalledOff(b.ctx); err != nil {
		return 0, err
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errs.New(errs.Invalid, "%s is larger than the limit of %d bytes", b.what, b.limit)
	}
	return n, err
}

// Pack compresses a stream. Fast, because a disk of the size of the gain is cheap.
func Pack(w io.Writer, r io.Reader) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, r); err != nil {
		return err
	}
	return z.Close()
}
