package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/mount"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// diskLimit is how large the writable layer may get; 0: no limit.
func diskLimit(s driver.Spec) int64 { return s.Instance.Spec.Limits[api.Disk] }

// mountDisk mounts the instance's own small file system for its writable layer. It
// returns a warning when this host cannot limit the layer's size.
func (r *Runtime) mountDisk(s driver.Spec, limit int64) (warning string, err error) {
	return r.mountImage(s, "disk.img", limit, r.run("m", strconv.Itoa(maxMounts-1)), "the limit of the writable layer")
}

// mountImage mounts a file system of the instance's own at a directory, making it when it is not
// there. It returns a warning when this host cannot.
func (r *Runtime) mountImage(s driver.Spec, name string, size int64, at, what string) (warning string, err error) {
	path := r.state("i", s.ID, name)
	err = mount.MakeImage(path, size, s.IDs.Base)
	if errors.Is(err, errors.ErrUnsupported) {
		return what + " is not enforced: " + err.Error(), nil
	}
	if err == nil {
		err = mount.Image(path, at)
	}
	if err != nil {
		return "", fmt.Errorf("file system for %s: %w", what, err)
	}
	return "", nil
}

// mountVolumes makes every volume's source available below <Run>/m of the calling
// thread's namespace, where the OCI runtime may walk, and lists them for it.
func (r *Runtime) mountVolumes(e *environment, s driver.Spec) (list []specs.Mount, warnings []string, err error) {
	if n := len(s.Mounts) + len(s.Instance.Spec.Volumes); n > maxMounts-1 {
		return nil, nil, errs.New(errs.Invalid, "instance %s: too many volumes; at most %d are possible", s.ID, maxMounts-1)
	}
	add := func(target string, readOnly bool, mountAt func(at string) (string, string, error)) error {
		if !filepath.IsAbs(target) || filepath.Clean(target) == "/" {
			return errs.New(errs.Invalid, "volume target %q must be an absolute path other than /", target)
		}
		at, w, err := mountAt(r.run("m", strconv.Itoa(len(list))))
		if err != nil {
			return fmt.Errorf("volume at %s: %w", target, err)
		}
		if w != "" {
			warnings = append(warnings, w)
		}
		opts := []string{"rbind", "nosuid", "nodev"}
		if readOnly {
			opts = append(opts, "ro")
		}
		list = append(list, specs.Mount{Destination: filepath.Clean(target), Type: "bind", Source: at, Options: opts})
		return nil
	}
	for _, m := range s.Mounts {
		if err := add(m.Target, m.ReadOnly, func(at string) (string, string, error) { return at, m.Warning, mountNamed(m, at) }); err != nil {
			return nil, nil, err
		}
	}
	for i, v := range s.Instance.Spec.Volumes {
		size, err := volumeSize(v)
		switch {
		case err != nil:
			return nil, nil, err
		case v.Name != "": // among s.Mounts
		case v.Tmpfs:
			list = append(list, tmpfsMount(v, size))
		case v.HostPath != "":
			err = add(v.Path, v.ReadOnly, func(at string) (string, string, error) { return r.mountHostPath(e, s, v.HostPath, at) })
		default:
			err = add(v.Path, v.ReadOnly, func(at string) (string, string, error) { return r.mountEphemeral(s, i, size, at) })
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return list, warnings, nil
}

func volumeSize(v api.Mount) (int64, error) {
	if v.Size == "" {
		return 0, nil
	}
	n, err := api.ParseQuantity(api.Disk, v.Size)
	if err != nil {
		return 0, errs.New(errs.Invalid, "volume at %s: %w", v.Path, err)
	}
	return n, nil
}

func tmpfsMount(v api.Mount, size int64) specs.Mount {
	opts := []string{"nosuid", "nodev", "mode=1777"}
	if size > 0 {
		opts = append(opts, "size="+strconv.FormatInt(size, 10))
	}
	if v.ReadOnly {
		opts = append(opts, "ro")
	}
	return specs.Mount{Destination: filepath.Clean(v.Path), Type: "tmpfs", Source: "tmpfs", Options: opts}
}

// mountNamed attaches a volume that the storage driver resolved.
func mountNamed(m driver.Mount, at string) error {
	if m.FSType != "" {
		if m.FSType != "ext4" {
			return errs.New(errs.Unsupported, "file system %q cannot be mounted; only ext4 can", m.FSType)
		}
		return mount.Image(m.Source, at)
	}
	return attach(m.Source, at, nil)
}

// attach binds a directory or file, without devices and set-ID programs.
func attach(source, at string, ns *os.File) error {
	f, err := mount.Clone(source, ns)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := mount.Restrict(f, mount.NoSuid|mount.NoDev); err != nil {
		return err
	}
	return mount.Attach(f, at)
}

// mountEphemeral makes a directory that goes with the instance; with a size it is a
// file system of its own.
func (r *Runtime) mountEphemeral(s driver.Spec, i int, size int64, at string) (string, string, error) {
	name, warning := fmt.Sprintf("volume%d", i), ""
	if size > 0 {
		var err error
		warning, err = r.mountImage(s, name+".img", size, at, "the size of the volume at "+s.Instance.Spec.Volumes[i].Path)
		if err != nil {
			return "", "", err
		}
		if warning == "" {
			return at, "", nil
		}
	}
	dir := r.state("i", s.ID, name)
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = os.Chown(dir, int(s.IDs.Base), int(s.IDs.Base))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", "", err
	}
	return at, warning, attach(dir, at, nil)
}

// mountHostPath binds a path of the host. Where its file system can shift IDs, root inside acts
// on it as the host's root does, as people expect who were given the right to
// the path; elsewhere the host's IDs are nobody inside.
func (r *Runtime) mountHostPath(e *environment, s driver.Spec, path, at string) (string, string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", "", errs.New(errs.Invalid, "host path %s: %w", path, err).WithHint("make it on the host first")
	}
	for _, own := range []string{r.deps.State, r.deps.Run} {
		if within(real, own) || within(own, real) {
			return "", "", errs.New(errs.Denied, "host path %s holds the node's own state", path).WithHint("bind another directory")
		}
	}
	st, err := os.Stat(real)
	if err != nil {
		return "", "", err
	}
	if !st.IsDir() {
		if !st.Mode().IsRegular() {
			return "", "", errs.New(errs.Denied, "host path %s is neither a directory nor a regular file", path)
		}
		at = filepath.Join(filepath.Dir(at), "f"+filepath.Base(at))
	}
	ns, err := e.userNS(s.IDs)
	if err != nil {
		return "", "", err
	}
	if attach(real, at, ns) == nil {
		return at, "", nil
	}
	return at, fmt.Sprintf("host path %s: its file system cannot shift IDs, so files of the host's users belong to nobody inside", path), attach(real, at, nil)
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
