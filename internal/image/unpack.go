package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdfs "io/fs"
	"os"
	"slices"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/image/disk"
	"atoll/internal/image/layer"
	"atoll/internal/image/oci"
	"atoll/internal/sys/fs"
)

// Root is an image made ready to be mounted. The slices are the caller's to read, not to write.
type Root struct {
	Digest string
	// Layers are directories, lowest first; never empty, shared, never to be written.
	Layers []string
	Config oci.Config
}

// layerMeta stands beside each unpacked layer.
type layerMeta struct {
	DiffID string `json:"diffId"`
	Bytes  int64  `json:"bytes"` // of its files
	Files  int    `json:"files"`
	Opaque bool   `json:"opaque,omitempty"` // hides all layers below
}

const emptyLayer = "empty" // of images without any layer

// loadLayers learns which layers are unpacked. A directory is there only when it is complete.
func (s *Store) loadLayers() error {
	list, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	for _, e := range list {
		var m layerMeta
		raw, err := os.ReadFile(s.path("layers", e.Name(), "meta.json"))
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil {
			s.log.Warn("unpacked layer is damaged and is removed", "layer", e.Name(), "error", err)
			if err := os.RemoveAll(s.path("layers", e.Name())); err != nil {
				return fmt.Errorf("image store: %w", err)
			}
			continue
		}
		s.layers[e.Name()] = m
	}
	return nil
}

// Unpack makes an image's layers ready, by the digest of its manifest. When they
// are, it only looks into memory. It does not ask who may use the image: digests
// come from Resolve. A layer whose content is not what the image says is refused
// with errs.Invalid. Content just unpacked is safe from GC for Options.Grace; who
// needs it longer uses Hold or tells GC.
func (s *Store) Unpack(ctx context.Context, digest string) (Root, error) {
	s.mu.Lock()
	s.touch(digest)
	root, ok := s.roots[digest]
	s.mu.Unlock()
	if ok {
		return root, nil
	}
	return s.unpackImage(ctx, digest, nil)
}

func (s *Store) unpackImage(ctx context.Context, digest string, tell func(api.Progress)) (Root, error) {
	defer s.Hold(digest)()
	img, err := s.image(digest)
	if err != nil {
		return Root{}, err
	}
	l := s.newLease()
	defer l.end()
	l.add(img.Chains...)
	root := Root{Digest: digest, Config: img.Config.Config}
	for i, chain := range img.Chains {
		meta, err := s.unpack.Do(ctx, chain, tell, func(ctx context.Context, tell func(api.Progress)) (layerMeta, error) {
			return s.unpackLayer(ctx, img, i, tell)
		})
		if err != nil {
			return Root{}, fmt.Errorf("unpack image %s, layer %d of %d: %w", oci.Short(digest), i+1, len(img.Chains), err)
		}
		if meta.Opaque {
			root.Layers = nil
		}
		root.Layers = append(root.Layers, s.layerDir(chain))
	}
	if len(root.Layers) == 0 {
		dir := s.layerDir(emptyLayer)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return Root{}, fmt.Errorf("image store: %w", err)
		}
		root.Layers = []string{dir}
		if err := os.WriteFile(s.path("layers", emptyLayer, "meta.json"), []byte("{}"), 0o600); err != nil {
			return Root{}, fmt.Errorf("image store: %w", err)
		}
	}
	root.Layers = slices.Clip(root.Layers)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots[digest] = root
	s.touch(digest)
	return root, nil
}

func (s *Store) layerDir(chain string) string { return s.path("layers", chain, "fs") }

// unpackLayer makes one layer; all below it are there.
func (s *Store) unpackLayer(ctx context.Context, img oci.Image, i int, tell func(api.Progress)) (layerMeta, error) {
	s.mu.Lock()
	meta, ok := s.layers[img.Chains[i]]
	s.mu.Unlock()
	if ok {
		return meta, nil
	}
	d := img.Manifest.Layers[i]
	tmp, err := os.MkdirTemp(s.path("tmp"), "layer-")
	if err != nil {
		return layerMeta{}, fmt.Errorf("image store: %w", disk.NoSpace(err))
	}
	defer os.RemoveAll(tmp)
	tell(api.Progress{ID: oci.Short(d.Digest), Phase: "unpacking", Total: d.Size})
	lower, err := s.openLayers(img.Chains[:i])
	defer closeAll(lower)
	if err != nil {
		return layerMeta{}, err
	}
	meta, err = s.applyBlob(ctx, d, tmp, lower, tell)
	if err != nil {
		return layerMeta{}, s.blame(err, d.Digest)
	}
	if meta.DiffID != img.Config.DiffIDs[i] {
		err := errs.New(errs.Invalid, "layer %s unpacks to %s, but the image says %s", d.Digest, meta.DiffID, img.Config.DiffIDs[i]).
			WithHint("the image is broken; build or push it again")
		return layerMeta{}, s.blame(err, d.Digest)
	}
	if err := s.showLayer(tmp, img.Chains[i], meta); err != nil {
		return layerMeta{}, err
	}
	tell(api.Progress{ID: oci.Short(d.Digest), Phase: "done", Current: d.Size, Total: d.Size})
	return meta, nil
}

// blame finds out whether a layer that cannot be unpacked was damaged on the disk.
func (s *Store) blame(err error, digest string) error {
	if errs.KindOf(err) != errs.Invalid {
		return err
	}
	if got, _, herr := disk.Hash(s.blobPath(digest)); herr == nil && got != digest {
		return errors.Join(s.corrupt(digest), err)
	}
	return err
}

// applyBlob unpacks a blob into tmp/fs and tells what it was.
func (s *Store) applyBlob(ctx context.Context, d oci.Descriptor, tmp string, lower []*fs.Dir, tell func(api.Progress)) (layerMeta, error) {
	f, err := os.Open(s.blobPath(d.Digest))
	if errors.Is(err, stdfs.ErrNotExist) {
		hint := "pull the image again"
		if d.Foreign() {
			hint = "it is a layer its maker does not let others distribute; pull the image where its source can be reached"
		}
		return layerMeta{}, errs.New(errs.NotFound, "layer %s is not on this node", d.Digest).WithHint("%s", hint)
	}
	if err != nil {
		return layerMeta{}, fmt.Errorf("image store: %w", err)
	}
	defer f.Close()
	if err := os.Mkdir(tmp+"/fs", 0o755); err != nil {
		return layerMeta{}, fmt.Errorf("image store: %w", disk.NoSpace(err))
	}
	if err := os.Chmod(tmp+"/fs", 0o755); err != nil {
		return layerMeta{}, fmt.Errorf("image store: %w", err)
	}
	root, err := fs.OpenDir(tmp + "/fs")
	if err != nil {
		return layerMeta{}, fmt.Errorf("image store: %w", err)
	}
	defer root.Close()
	raw := &counter{r: f, tell: func(n int64) {
		tell(api.Progress{ID: oci.Short(d.Digest), Phase: "unpacking", Current: n, Total: d.Size})
	}}
	z, _, err := layer.Decompress(raw)
	if err != nil {
		return layerMeta{}, err
	}
	defer z.Close()
	h := sha256.New()
	a := &layer.Applier{Ctx: ctx, Root: root, Lower: lower, Lim: s.opt.Limits, Room: func() error { return s.room(layer.RoomEvery) }}
	// The stream has more than the files: headers and padding.
	stream := layer.NewBounded(ctx, z, 2*s.opt.Limits.Unpacked+64<<20, "the layer")
	if err := a.Apply(io.TeeReader(stream, h)); err != nil {
		return layerMeta{}, fmt.Errorf("layer %s: %w", oci.Short(d.Digest), err)
	}
	if a.Skipped > 0 {
		s.log.Info("devices in an image layer were left out", "layer", d.Digest, "devices", a.Skipped)
	}
	return layerMeta{DiffID: "sha256:" + hex.EncodeToString(h.Sum(nil)), Bytes: a.Bytes, Files: a.Entries, Opaque: a.Opaque}, nil
}

// showLayer makes a finished layer durable, then visible.
func (s *Store) showLayer(tmp, chain string, meta layerMeta) error {
	raw, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	if err := os.WriteFile(tmp+"/meta.json", raw, 0o600); err != nil {
		return fmt.Errorf("image store: %w", disk.NoSpace(err))
	}
	// One sync of the file system instead of one for each of thousands of files.
	if err := fs.SyncFS(tmp); err != nil {
		return fmt.Errorf("image store: %w", disk.NoSpace(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(tmp, s.path("layers", chain)); err != nil {
		return fmt.Errorf("image store: %w", disk.NoSpace(err))
	}
	s.layers[chain] = meta
	return disk.SyncDir(s.path("layers"))
}

// openLayers opens unpacked layers, highest first.
func (s *Store) openLayers(chains []string) ([]*fs.Dir, error) {
	var out []*fs.Dir
	for _, c := range slices.Backward(chains) {
		d, err := fs.OpenDir(s.layerDir(c))
		if err != nil {
			return out, fmt.Errorf("image store: %w", err)
		}
		out = append(out, d)
	}
	return out, nil
}

func closeAll(dirs []*fs.Dir) {
	for _, d := range dirs {
		d.Close()
	}
}

// counter reports how far a reader is, every 256 KiB.
type counter struct {
	r       io.Reader
	n, told int64
	tell    func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n += int64(n); c.n-c.told >= 256<<10 {
		c.told = c.n
		c.tell(c.n)
	}
	return n, err
}
