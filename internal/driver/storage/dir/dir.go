// Package dir keeps volumes as plain directories on the node's own disk, one per
// tenant and name, owned by the tenant's root. A volume outlives the instances that
// use it and can be used by several at once.
//
// The driver starts no goroutine. It must never follow a link out of its directory
// and never remove what it did not make.
package dir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Config is the node's section for this driver.
type Config struct {
	// Path is where volumes are kept; default: the driver's own state directory. It must
	// be a file system with Unix permissions.
	Path string `json:"path,omitempty"`
}

// Driver keeps volumes.
type Driver struct{ root string }

// New makes the driver; no I/O.
func New(d driver.Deps, c Config) (*Driver, error) {
	root := c.Path
	if root == "" {
		root = d.State
	}
	if !filepath.IsAbs(root) {
		return nil, errs.InvalidFields("driver dir", []errs.Field{{Field: "path", Value: root, Rule: "must be absolute", Example: "/srv/volumes"}})
	}
	return &Driver{root: root}, nil
}

// Probe makes the directory and says what it can do. Sizes are not enforced: that
// takes project quota, which few hosts have switched on.
func (d *Driver) Probe(context.Context) (api.Capability, error) {
	// Only root of the host may walk here; instances get their volume by a mount.
	if err := os.MkdirAll(d.root, 0o711); err != nil {
		return api.Capability{}, errs.New(errs.Unsupported, "volumes cannot be kept in %s: %w", d.root, err)
	}
	return api.Capability{Type: "storage", Name: "dir", Features: map[string]string{"size": "not enforced"}}, nil
}

// path is <root>/<tenant with / as .>/<name>. Names are checked: they become paths.
func (d *Driver) path(tenant, name string) (string, error) {
	if !api.ValidTenantPath(tenant) || !api.ValidName(name) {
		return "", errs.New(errs.Invalid, "volume %q of tenant %q: not a valid name", name, tenant)
	}
	return filepath.Join(d.root, strings.ReplaceAll(tenant, "/", "."), name), nil
}

// Ensure makes the directory, owned by root inside the tenant.
func (d *Driver) Ensure(_ context.Context, tenant, name string, size int64, ids driver.IDRange) (driver.Mount, error) {
	p, err := d.path(tenant, name)
	if err != nil {
		return driver.Mount{}, err
	}
	if size < 0 || ids.Count == 0 {
		return driver.Mount{}, errs.New(errs.Invalid, "volume %s: size %d, %d user IDs", name, size, ids.Count)
	}
	m := driver.Mount{Source: p}
	if size > 0 {
		m.Warning = "the size of volume " + name + " is not enforced: this host's file system has no project quota"
	}
	if st, err := os.Lstat(p); err == nil {
		if !st.IsDir() {
			return m, errs.New(errs.Conflict, "volume %s/%s: %s is not a directory", tenant, name, p)
		}
		return m, nil
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o711); err != nil {
		return m, errs.New(errs.Unavailable, "make volume %s: %w", name, err)
	}
	// Made under another name, so that it is never there without its owner.
	tmp, err := os.MkdirTemp(filepath.Dir(p), ".new-")
	if err != nil {
		return m, errs.New(errs.Unavailable, "make volume %s: %w", name, err)
	}
	err = errors.Join(os.Chmod(tmp, 0o755), os.Chown(tmp, int(ids.Base), int(ids.Base)))
	if err == nil {
		err = os.Rename(tmp, p)
	}
	if err != nil {
		rerr := os.Remove(tmp)
		if st, serr := os.Lstat(p); serr == nil && st.IsDir() {
			return m, nil // somebody made it at the same time
		}
		return m, errs.New(errs.Unavailable, "make volume %s: %w", name, errors.Join(err, rerr))
	}
	return m, nil
}

// Observe lists the volumes as tenant/name.
func (d *Driver) Observe(context.Context) ([]string, error) {
	tenants, err := os.ReadDir(d.root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.New(errs.Unavailable, "list volumes: %w", err)
	}
	var out []string
	for _, t := range tenants {
		tenant := strings.ReplaceAll(t.Name(), ".", "/")
		if !t.IsDir() || !api.ValidTenantPath(tenant) {
			continue
		}
		list, err := os.ReadDir(filepath.Join(d.root, t.Name()))
		if err != nil {
			return nil, errs.New(errs.Unavailable, "list volumes of %s: %w", tenant, err)
		}
		for _, v := range list {
			if v.IsDir() && api.ValidName(v.Name()) {
				out = append(out, tenant+"/"+v.Name())
			}
		}
	}
	sort.Strings(out)
	return out, nil
}

// Remove deletes a volume and its content. It is renamed first, so that a kill in
// between leaves nothing that looks like a volume.
func (d *Driver) Remove(_ context.Context, tenant, name string) error {
	p, err := d.path(tenant, name)
	if err != nil {
		return err
	}
	gone := filepath.Join(filepath.Dir(p), ".gone-"+name)
	if err := os.RemoveAll(gone); err != nil {
		return errs.New(errs.Unavailable, "remove volume %s: %w", name, err)
	}
	if err := os.Rename(p, gone); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.Unavailable, "remove volume %s: %w", name, err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return errs.New(errs.Unavailable, "remove volume %s: %w", name, err)
	}
	return nil
}
