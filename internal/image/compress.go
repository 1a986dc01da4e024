package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"atoll/internal/errs"
)

type compression string

const (
	plain   compression = "none"
	gzipped compression = "gzip"
	zstded  compression = "zstd"
)

// zstdWindow bounds the memory one stream can ask for; 128 MiB is what zstd --long makes.
const zstdWindow = 128 << 20

// sniff tells by the first bytes how a stream is compressed.
func sniff(r *bufio.Reader) (compression, error) {
	head, err := r.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzipped, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return zstded, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "", errs.New(errs.Unsupported, "the archive is compressed by xz").WithHint("decompress it first: xz -dc archive.tar.xz | atoll image import …")
	case bytes.HasPrefix(head, []byte("BZh")):
		return "", errs.New(errs.Unsupported, "the archive is compressed by bzip2").WithHint("decompress it first: bzip2 -dc archive.tar.bz2 | atoll image import …")
	}
	return plain, nil
}

// decompress gives the plain bytes of a stream, with bounded memory.
func decompress(r io.Reader) (io.ReadCloser, compression, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	c, err := sniff(br)
	if err != nil {
		return nil, "", err
	}
	switch c {
	case gzipped:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, "", errs.New(errs.Invalid, "gzip: %w", err)
		}
		return z, c, nil
	case zstded:
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, "", errs.New(errs.Invalid, "zstd: %w", err)
		}
		return z.IOReadCloser(), c, nil
	}
	return io.NopCloser(br), c, nil
}

// bounded reads at most limit bytes, and nothing after ctx has ended.
type bounded struct {
	ctx   context.Context
	r     io.Reader
	left  int64
	limit int64
	what  string
}

func newBounded(ctx context.Context, r io.Reader, limit int64, what string) *bounded {
	return &bounded{ctx, r, limit, limit, what}
}

func (b *bounded) Read(p []byte) (int, error) {
	if err := done(b.ctx); err != nil {
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
