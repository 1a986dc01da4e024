package store

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/release"
)

// A backup is a tar compressed with zstd, of two files: manifest.json and then
// objects.jsonl, one object a line, in the order of a list of every kind. Both are
// readable with ordinary tools.
const (
	backupFormat   = 1
	manifestName   = "manifest.json"
	objectsName    = "objects.jsonl"
	maxManifest    = 1 << 20
	maxObjectBytes = 4 << 20   // one line
	maxBackupBytes = 4 << 30   // objects.jsonl
	maxWindow      = 128 << 20 // memory zstd may ask for
	batchOps       = 100       // an etcd of the distribution accepts 128 in one commit
	batchBytes     = 1 << 20   // and 1.5 MiB
)

// Manifest says what is in a backup.
type Manifest struct {
	Format    int              `json:"format"`
	CreatedAt time.Time        `json:"createdAt"`
	Revision  int64            `json:"revision"` // of the store it was taken from
	Objects   int              `json:"objects"`
	Kinds     map[api.Kind]int `json:"kinds"`
	Bytes     int64            `json:"bytes"`  // of objects.jsonl
	SHA256    string           `json:"sha256"` // of objects.jsonl, in hex
}

// Dump writes all objects of s, as they are at one revision, to w. createdAt is noted in the manifest.
func Dump(ctx context.Context, s Store, w io.Writer, createdAt time.Time) error {
	objs, rev, err := s.List(ctx, api.Selector{})
	if err != nil {
		return fmt.Errorf("backup: read the store: %w", err)
	}
	level := levelIn(objs)
	m := Manifest{Format: backupFormat, CreatedAt: createdAt.UTC(), Revision: rev, Objects: len(objs), Kinds: map[api.Kind]int{}}
	sum := sha256.New()
	count := &counter{w: sum}
	for _, o := range objs {
		m.Kinds[o.ObjectKind()]++
	}
	// Written twice, so that the manifest can come first and nothing is held in memory.
	if err := writeObjects(ctx, count, objs, level); err != nil {
		return err
	}
	m.Bytes, m.SHA256 = count.n, hex.EncodeToString(sum.Sum(nil))
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return errs.New(errs.Internal, "backup: %w", err)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return errs.New(errs.Internal, "backup: %w", err)
	}
	t := tar.NewWriter(z)
	err = errors.Join(
		t.WriteHeader(&tar.Header{Name: manifestName, Mode: 0o600, Size: int64(len(head)), ModTime: m.CreatedAt}),
		second(t.Write(head)),
		t.WriteHeader(&tar.Header{Name: objectsName, Mode: 0o600, Size: m.Bytes, ModTime: m.CreatedAt}),
	)
	if err == nil {
		err = writeObjects(ctx, t, objs, level)
	}
	if err := errors.Join(err, t.Close(), z.Close()); err != nil {
		return fmt.Errorf("backup: write: %w", err)
	}
	return nil
}

func second(_ int, err error) error { return err }

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// levelIn is the level of the pool that objs are of: a backup is in the formats that the
// pool's hosts write, so that whoever could read the pool can read it.
func levelIn(objs []api.Object) int {
	for _, o := range objs {
		if p, ok := o.(*api.Pool); ok {
			return api.LevelOf(p)
		}
	}
	return release.First
}

func writeObjects(ctx context.Context, w io.Writer, objs []api.Object, level int) error {
	for _, o := range objs {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := api.EncodeStored(o, level)
		if err != nil {
			return errs.New(errs.Internal, "backup: encode %s: %w", api.RefOf(o), err)
		}
		if len(b) >= maxObjectBytes {
			return errs.New(errs.Invalid, "backup: %s is larger than %d bytes", api.RefOf(o), maxObjectBytes)
		}
		if _, err := w.Write(append(b, '\n')); err != nil {
			return fmt.Errorf("backup: write: %w", err)
		}
	}
	return nil
}

// LoadOptions says what Load may do.
type LoadOptions struct {
	// Force replaces what is in the store: afterwards it holds the backup's objects and no others.
	Force bool
}

// Load puts the objects of a backup into s and tells how many. Checksum and every
// object are verified before the first is written; an interrupted Load is finished
// by repeating it with Force. The revisions are new ones. s must be the bare store:
// a decorator would judge the objects by its own rules while they are half there.
func Load(ctx context.Context, s Store, r io.Reader, opts LoadOptions) (n int, err error) {
	f, m, err := unpack(ctx, r)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	there, _, err := s.List(ctx, api.Selector{})
	if err != nil {
		return 0, fmt.Errorf("restore: read the store: %w", err)
	}
	if len(there) > 0 && !opts.Force {
		return 0, errs.New(errs.Conflict, "restore: the store has %d objects", len(there)).
			WithHint("restore into an empty data directory, or replace everything with --force")
	}
	surplus := make(map[api.Ref]bool, len(there))
	for _, o := range there {
		surplus[api.RefOf(o)] = true
	}
	b := batch{ctx: ctx, s: s}
	err = eachObject(ctx, f, func(o api.Object, size int) error {
		delete(surplus, api.RefOf(o))
		op := Create(o)
		if opts.Force {
			op = Set(o)
		}
		return b.add(op, size)
	})
	if err == nil {
		err = b.flush()
	}
	if err != nil {
		return b.done, fmt.Errorf("restore: after %d of %d objects: %w", b.done, m.Objects, err)
	}
	n = b.done
	for ref := range surplus {
		if err := b.add(Remove(ref, Any), 0); err != nil {
			return n, fmt.Errorf("restore: remove what the backup does not have: %w", err)
		}
	}
	if err := b.flush(); err != nil {
		return n, fmt.Errorf("restore: remove what the backup does not have: %w", err)
	}
	return n, nil
}

// batch gathers ops into commits of bounded size.
type batch struct {
	ctx  context.Context // of the one call this batch lives for
	s    Store
	ops  []Op
	size int
	done int
}

func (b *batch) add(op Op, size int) error {
	if len(b.ops) > 0 && (len(b.ops) == batchOps || b.size+size > batchBytes) {
		if err := b.flush(); err != nil {
			return err
		}
	}
	b.ops, b.size = append(b.ops, op), b.size+size
	return nil
}

func (b *batch) flush() error {
	if len(b.ops) == 0 {
		return nil
	}
	if _, err := b.s.Commit(b.ctx, b.ops...); err != nil {
		return err
	}
	b.done += len(b.ops)
	b.ops, b.size = b.ops[:0], 0
	return nil
}

func bad(format string, args ...any) error {
	return errs.New(errs.Invalid, "restore: "+format, args...).WithHint("the file is damaged or not a backup of Atoll: try another one")
}

// unpack verifies a backup and gives its objects as a file that is gone when closed.
func unpack(ctx context.Context, r io.Reader) (*os.File, Manifest, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, Manifest{}, bad("%w", err)
	}
	defer z.Close()
	t := tar.NewReader(z)
	m, err := readManifest(t)
	if err != nil {
		return nil, m, err
	}
	h, err := t.Next()
	if err != nil {
		return nil, m, bad("%s is missing: %w", objectsName, err)
	}
	if h.Name != objectsName || h.Typeflag != tar.TypeReg || h.Size != m.Bytes {
		return nil, m, bad("expected %s of %d bytes, found %q of %d", objectsName, m.Bytes, clipName(h.Name), h.Size)
	}
	f, err := os.CreateTemp("", "atoll-restore-*")
	if err != nil {
		return nil, m, errs.New(errs.Unavailable, "restore: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil { // it lives as long as it is open
		return nil, m, errors.Join(errs.New(errs.Unavailable, "restore: %w", err), f.Close())
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(t, maxBackupBytes)); err != nil {
		return nil, m, errors.Join(bad("%w", err), f.Close())
	}
	if err := verify(ctx, f, m, sum); err != nil {
		return nil, m, errors.Join(err, f.Close())
	}
	return f, m, nil
}

// ReadManifest tells what is in a backup, from its beginning; Load checks whether that is so.
func ReadManifest(r io.Reader) (Manifest, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return Manifest{}, bad("%w", err)
	}
	defer z.Close()
	return readManifest(tar.NewReader(z))
}

func readManifest(t *tar.Reader) (Manifest, error) {
	var m Manifest
	h, err := t.Next()
	if err != nil {
		return m, bad("%w", err)
	}
	if h.Name != manifestName || h.Typeflag != tar.TypeReg || h.Size > maxManifest {
		return m, bad("it does not start with %s", manifestName)
	}
	data, err := io.ReadAll(io.LimitReader(t, maxManifest))
	if err != nil {
		return m, bad("%w", err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, bad("%s: %w", manifestName, err)
	}
	if m.Format != backupFormat {
		return m, errs.New(errs.Unsupported, "restore: the backup has format %d, this version reads %d", m.Format, backupFormat).WithHint("use the version of Atoll that made it, or a newer one")
	}
	if m.Bytes < 0 || m.Bytes > maxBackupBytes || m.Objects < 0 {
		return m, bad("%s promises %d bytes", manifestName, m.Bytes)
	}
	return m, nil
}

// verify reads everything once before anything is written.
func verify(ctx context.Context, f *os.File, m Manifest, sum hash.Hash) error {
	if got := hex.EncodeToString(sum.Sum(nil)); got != m.SHA256 {
		return bad("the checksum of %s does not match", objectsName)
	}
	seen := make(map[api.Ref]bool, min(m.Objects, 1<<16))
	err := eachObject(ctx, f, func(o api.Object, _ int) error {
		ref := api.RefOf(o)
		if ref.Name == "" || seen[ref] {
			return bad("%s is there twice or has no name", ref)
		}
		seen[ref] = true
		return nil
	})
	if err != nil {
		return err
	}
	if len(seen) != m.Objects {
		return bad("%d objects, %d were promised", len(seen), m.Objects)
	}
	return nil
}

func eachObject(ctx context.Context, f *os.File, fn func(o api.Object, size int) error) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return errs.New(errs.Unavailable, "restore: %w", err)
	}
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 0, 64<<10), maxObjectBytes)
	for n := 1; sc.Scan(); n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		o, err := decodeLine(sc.Bytes())
		if errors.Is(err, errs.Unsupported) {
			return fmt.Errorf("restore: line %d: %w", n, err) // the file is good, this build is not
		}
		if err != nil {
			return bad("line %d: %w", n, err)
		}
		o.Metadata().Revision = 0
		if err := fn(o, len(sc.Bytes())); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return bad("%w", err)
	}
	return nil
}

// decodeLine reads an object of whatever format.
func decodeLine(b []byte) (api.Object, error) {
	var head struct {
		K api.Kind `json:"kind"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, errs.New(errs.Invalid, "decode object: %w", err)
	}
	return api.DecodeStored(head.K, b)
}

func clipName(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
