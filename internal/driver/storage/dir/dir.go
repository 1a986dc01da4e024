// Package dir keeps volumes as directories of the node, below <Path>/<tenant>/<name>: "data",
// or, when a size was asked for and the host has loop devices, "disk.img" with a file
// system of that size, which the runtime mounts for each instance. It starts no goroutine, and it
// never mounts anything or touches what is outside of its directory.
package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/mount"
)

// Config says where volumes are.
type Config struct {
	// Path is where volumes are kept, absolute. Default: the driver's State directory, below "v".
	Path string `json:"path,omitempty"`
}

// Storage is the driver.
type Storage struct {
	root string

	mu sync.Mutex // volumes are made and removed one at a time: it is rare and quick
}

// New prepares the driver; nothing is made yet.
func New(d driver.Deps, c Config) (*Storage, error) {
	root := c.Path
	if root == "" {
		root = filepath.Join(d.State, "v")
	}
	if !filepath.IsAbs(root) {
		return nil, errs.InvalidFields("driver dir", []errs.Field{{Field: "path", Value: root, Rule: "must be absolute", Example: "/srv/volumes"}})
	}
	return &Storage{root: root}, nil
}

// Probe makes the directory and tells how sizes are enforced.
func (s *Storage) Probe(context.Context) (api.Capability, error) {
	c := api.Capability{Type: "storage", Name: "dir", Version: "1", Features: map[string]string{"quota": "none"}}
	if mount.CanLoop() {
		c.Features["quota"] = "loop"
	}
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return c, errs.New(errs.Unsupported, "volumes cannot be kept: %w", err).WithHint("the state directory must be writable")
	}
	return c, nil
}

// path is a volume's directory; "+" stands for the "/" of nested tenants and occurs in no name.
func (s *Storage) path(tenant, name string) (string, error) {
	if !api.ValidTenantPath(tenant) || !api.ValidName(name) {
		return "", errs.New(errs.Invalid, "volume %q of tenant %q: not a valid name", name, tenant)
	}
	return filepath.Join(s.root, dirOf(tenant), name), nil
}

func dirOf(tenant string) string { return strings.ReplaceAll(tenant, "/", "+") }

// Ensure makes the volume. One that exists keeps its kind and content.
func (s *Storage) Ensure(ctx context.Context, tenant, name string, size int64, ids driver.IDRange) (driver.Mount, error) {
	p, err := s.path(tenant, name)
	if err != nil {
		return driver.Mount{}, err
	}
	if ids.Count == 0 || size < 0 {
		return driver.Mount{}, errs.New(errs.Invalid, "volume %s/%s: it needs a range of IDs and a size of zero or more", tenant, name)
	}
	if err := ctx.Err(); err != nil {
		return driver.Mount{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := ensure(p, size, ids)
	if err != nil {
		return m, fmt.Errorf("volume %s/%s: %w", tenant, name, err)
	}
	return m, nil
}

func ensure(p string, size int64, ids driver.IDRange) (driver.Mount, error) {
	data, image := filepath.Join(p, "data"), filepath.Join(p, "disk.img")
	if st, err := os.Stat(image); err == nil {
		m := driver.Mount{Source: image, FSType: "ext4"}
		if size > st.Size() {
			m.Warning = fmt.Sprintf("the volume keeps its size of %s: it cannot grow", api.FormatQuantity(api.Disk, st.Size()))
		}
		return m, nil
	}
	_, err := os.Stat(data)
	there := err == nil
	if err := os.MkdirAll(p, 0o700); err != nil {
		return driver.Mount{}, err
	}
	warning := ""
	if size > 0 && there {
		warning = "the volume's size is not enforced: it was made without one"
	}
	if size > 0 && !there {
		err := mount.MakeImage(image, size, ids.Base)
		if err == nil {
			return driver.Mount{Source: image, FSType: "ext4"}, nil
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return driver.Mount{}, err
		}
		warning = "the volume's size is not enforced: " + err.Error()
	}
	return driver.Mount{Source: data, Warning: warning}, makeData(data, ids)
}

// makeData makes the directory under another name first: what is called data has its owner.
func makeData(data string, ids driver.IDRange) error {
	if _, err := os.Stat(data); err == nil {
		return nil
	}
	tmp := data + ".tmp"
	if err := os.Mkdir(tmp, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Chown(tmp, int(ids.Base), int(ids.Base)); err != nil {
		return err
	}
	return os.Rename(tmp, data)
}

// Observe lists tenant/name.
func (s *Storage) Observe(context.Context) ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(s.root, "*", "*"))
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(dirs))
	for _, d := range dirs {
		tenant, name := strings.ReplaceAll(filepath.Base(filepath.Dir(d)), "+", "/"), filepath.Base(d)
		if api.ValidTenantPath(tenant) && (api.ValidName(name)) {
			out = append(out, tenant+"/"+name)
		}
	}
	sort.Strings(out)
	return out, nil
}

// Remove deletes the volume. It gets another name first, so that a removal that is
// interrupted leaves nothing that looks like a volume; the next one of that name finishes it.
func (s *Storage) Remove(_ context.Context, tenant, name string) error {
	p, err := s.path(tenant, name)
	if err != nil {
		return nil //nolint:nilerr // a name that cannot be was never there
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := filepath.Join(filepath.Dir(p), ".gone-"+name)
	err = os.RemoveAll(gone)
	if err == nil {
		err = os.Rename(p, gone)
	}
	if err == nil {
		err = os.RemoveAll(gone)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.Unavailable, "remove volume %s/%s: %w", tenant, name, err)
	}
	_ = os.Remove(filepath.Dir(p)) // the tenant's directory, when it is empty
	return nil
}

// Rename gives the tenants' directories their new names. Where volumes are mounted, they stay.
func (s *Storage) Rename(_ context.Context, tenants map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for from, to := range tenants {
		if !api.ValidTenantPath(from) || !api.ValidTenantPath(to) {
			return errs.New(errs.Invalid, "tenant %q as %q: not a valid name", from, to)
		}
		was, is := filepath.Join(s.root, dirOf(from)), filepath.Join(s.root, dirOf(to))
		if _, err := os.Lstat(was); errors.Is(err, os.ErrNotExist) {
			continue // it has no volumes, or was done already
		}
		if err := os.Rename(was, is); err != nil {
			return errs.New(errs.Unavailable, "volumes of tenant %s, %s from now on: %w", from, to, err)
		}
	}
	return nil
}

var (
	_ driver.Storage = (*Storage)(nil)
	_ driver.Renamer = (*Storage)(nil)
)
