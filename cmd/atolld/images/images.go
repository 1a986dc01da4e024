// Package images gives the agent what it needs of the node's image store, and makes the
// image that comes with Atoll.
package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"atoll/api"
	"atoll/internal/agent"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/image"
	"atoll/internal/image/busybox"
	"atoll/internal/image/oci"
	"atoll/internal/image/registry"
)

// Images implements agent.Images.
type Images struct {
	store *image.Store
	clock clock.Clock
	log   *slog.Logger
	node  string
	uid   func() string
}

// scopeShared is where images for every tenant live in the image store.
const scopeShared = ""

// builtinName is the image every node makes of its own static busybox.
const builtinName = "busybox"

// Config says where the images are and what they come from.
type Config struct {
	Node     string
	State    string // the host's state directory
	Busybox  string // the static busybox the built-in image is made of; "": there is none
	Registry registry.Options
	UID      func() string // of new objects
}

// Open opens the store, which the caller closes.
func Open(ctx context.Context, c Config, clk clock.Clock, log *slog.Logger) (*Images, error) {
	st, err := image.Open(filepath.Join(c.State, "images"), image.Options{Clock: clk, Log: log, Registry: c.Registry})
	if err != nil {
		return nil, err
	}
	i := &Images{store: st, clock: clk, log: log, node: c.Node, uid: c.UID}
	if c.Busybox == "" {
		return i, nil
	}
	if err := i.builtin(ctx, c.Busybox, filepath.Join(c.State, "busybox.sum")); err != nil {
		log.Warn("no built-in image", "busybox", c.Busybox, "error", err)
	}
	return i, nil
}

// Close gives the store back.
func (i *Images) Close() error { return i.store.Close() }

// Store is what is below, for who works on it in the place of the daemon.
func (i *Images) Store() *image.Store { return i.store }

// builtin makes the image "busybox" from the host's static busybox, again when that changed.
func (i *Images) builtin(ctx context.Context, path, sumFile string) error {
	bin, err := os.ReadFile(path)
	if err != nil {
		return errs.New(errs.Unsupported, "read busybox: %w", err).WithHint("apt-get install busybox-static")
	}
	sum := sha256.Sum256(bin)
	want := hex.EncodeToString(sum[:])
	have, err := os.ReadFile(sumFile)
	if _, rerr := i.store.Resolve(ctx, scopeShared, builtinName); err == nil && rerr == nil && string(have) == want {
		return nil
	}
	var tar bytes.Buffer
	if err := busybox.Rootfs(ctx, path, &tar); err != nil {
		return err
	}
	_, err = i.store.Import(ctx, scopeShared, builtinName, &tar, image.ImportOptions{Format: "rootfs", Config: busybox.Config()})
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	return os.WriteFile(sumFile, []byte(want), 0o600)
}

// Root implements agent.Images.
func (i *Images) Root(ctx context.Context, tenant, ref, pull string, progress func(api.Progress)) (driver.Image, *api.Image, error) {
	info, err := i.store.Resolve(ctx, tenant, ref)
	var fetched *api.Image
	switch {
	case pull == "always", pull != "never" && errors.Is(err, errs.NotFound):
		if info, err = i.store.Pull(ctx, tenant, ref, image.PullOptions{Progress: progress}); err != nil {
			return driver.Image{}, nil, fmt.Errorf("image %s: %w", ref, err)
		}
		fetched = i.object(info)
	case err != nil:
		return driver.Image{}, nil, err
	}
	root, err := i.store.Unpack(ctx, info.Digest)
	if err != nil {
		return driver.Image{}, nil, fmt.Errorf("image %s: %w", ref, err)
	}
	c := root.Config
	return driver.Image{Digest: root.Digest, Layers: root.Layers, Config: driver.ImageConfig{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env,
		WorkingDir: c.WorkingDir, User: c.User, StopSignal: c.StopSignal, Volumes: c.Volumes, ExposedPorts: c.ExposedPorts}}, fetched, nil
}

// Here implements agent.Images.
func (i *Images) Here() []string {
	var out []string
	seen := map[string]bool{}
	for _, info := range i.store.All() {
		key := info.Scope + "|" + info.Name()
		if info.Scope == scopeShared {
			key = info.Name()
		}
		// People leave ":latest" out.
		for _, k := range []string{key, strings.TrimSuffix(key, ":latest"), info.Digest} {
			if !seen[k] {
				seen[k] = true
				out = append(out, k)
			}
		}
	}
	return out
}

// Collect implements agent.Images.
func (i *Images) Collect(ctx context.Context, inUse map[string]bool) error {
	freed, gone, err := i.store.GC(ctx, func() map[string]bool { return inUse })
	if len(gone) > 0 {
		i.log.Info("removed content nobody needs", "parts", len(gone), "bytes", freed)
	}
	return err
}

// Handle implements agent.Images.
func (i *Images) Handle(ctx context.Context, req api.ImageRequest, st agent.ImageStream) error {
	scope := req.Tenant
	if req.Shared {
		scope = scopeShared
	}
	switch req.Verb {
	case "pull":
		info, err := i.store.Pull(ctx, scope, req.Reference, image.PullOptions{Platform: req.Platform, Auth: req.Auth, Progress: st.Progress})
		if err != nil {
			return err
		}
		return st.Commit(ctx, i.object(info))
	case "import":
		info, err := i.store.Import(ctx, scope, req.Reference, &pieces{next: st.In}, image.ImportOptions{Format: req.Format,
			Config: oci.Config{Cmd: req.Cmd, Env: req.Env}, Progress: st.Progress})
		if err != nil {
			return err
		}
		return st.Commit(ctx, i.object(info))
	case "export":
		return i.store.Export(ctx, scope, req.Reference, req.Format, writer(st.Out))
	case "push":
		return i.store.Push(ctx, scope, req.Reference, req.Destination, req.Auth, st.Progress)
	}
	return errs.New(errs.Unsupported, "image %s is not something this node does", req.Verb)
}

// object is the Image that a name on this node should be in the pool. The built-in
// one is not pinned: every node's may differ.
func (i *Images) object(info image.Info) *api.Image {
	now := i.clock.Now().UTC()
	o := &api.Image{
		Head:   api.Head{K: api.KindImage, Meta: api.Meta{Name: api.ImageName(info.Name()), Tenant: info.Scope, UID: i.uid(), CreatedAt: &now, Generation: 1}},
		Spec:   api.ImageSpec{Reference: info.Name(), Digest: info.Digest, Platform: info.Platform},
		Status: api.ImageStatus{Digest: info.Digest, Size: info.Size, Layers: info.Layers, Nodes: []string{i.node}},
	}
	if info.Scope == scopeShared {
		o.Tenant, o.Spec.Shared = api.SharedTenant, true
		if api.PlainReference(o.Spec.Reference) == builtinName {
			o.Spec.Digest = ""
		}
	}
	return o
}

// scope is where the names of a tenant's images are in the image store.
func scope(tenant string) string {
	if tenant == api.SharedTenant {
		return scopeShared
	}
	return tenant
}

// Known implements agent.Images.
func (i *Images) Known() []*api.Image {
	var out []*api.Image
	for _, info := range i.store.All() {
		out = append(out, i.object(info))
	}
	return out
}

// Adopt implements agent.Images. A digest is looked up among the tenant's own images
// and everybody's only: to know a digest is no right to its content.
func (i *Images) Adopt(ctx context.Context, img *api.Image) (*api.ImageStatus, error) {
	info, err := i.named(scope(img.Tenant), img.Spec.Reference)
	if want := img.Spec.Digest; want != "" && (err != nil || info.Digest != want) {
		info, err = i.store.Tag(ctx, scope(img.Tenant), want, img.Spec.Reference)
	}
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Invalid) { // a reference only some registry understands
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &i.object(info).Status, nil
}

// named finds a name in exactly this scope.
func (i *Images) named(scope, ref string) (image.Info, error) {
	r, err := oci.Parse(ref)
	if err != nil {
		return image.Info{}, err
	}
	for _, info := range i.store.List(scope) {
		if info.Reference == r.String() {
			return info, nil
		}
	}
	return image.Info{}, errs.New(errs.NotFound, "image %s is not on this node", ref)
}

// Forget implements agent.Images.
func (i *Images) Forget(ctx context.Context, ref api.Ref) error {
	for _, info := range i.store.List(scope(ref.Tenant)) {
		if api.ImageName(info.Name()) != ref.Name {
			continue
		}
		if err := i.store.Remove(ctx, info.Scope, info.Reference); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	return nil
}

// pieces reads an import that arrives in parts.
type pieces struct {
	next func() ([]byte, error)
	mu   sync.Mutex
	rest []byte
}

func (p *pieces) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.rest) == 0 {
		part, err := p.next()
		if err != nil {
			return 0, err
		}
		p.rest = part
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

type writer func([]byte) error

func (w writer) Write(b []byte) (int, error) {
	if err := w(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

var _ io.Reader = (*pieces)(nil)
