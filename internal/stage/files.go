package stage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sys/fs"
)

const (
	// MaxFile bounds one program.
	MaxFile = 512 << 20
	// spare is what stays free on the disk beside what a version takes.
	spare = 64 << 20
	// probeTime is how long a program may take to say which version it is.
	probeTime = 10 * time.Second
	manifest  = "manifest.json"
	elsewhere = "other" // programs for other processors: <version>/other/<arch>/
)

func valid(v string) bool { return api.ValidVersion(v) }

// Path is where a program of a version is for this host's processor.
func (d Dir) Path(version, binary string) string { return filepath.Join(d.Root, version, binary) }

// at is where a file is, whatever processor it is for.
func at(dir string, f api.UpgradeFile) string {
	if f.OS == runtime.GOOS && f.Arch == runtime.GOARCH {
		return filepath.Join(dir, f.Binary)
	}
	return filepath.Join(dir, elsewhere, f.Arch, f.Binary)
}

// Versions lists what is here, whole.
func (d Dir) Versions() []string {
	list, err := os.ReadDir(d.Root)
	if err != nil {
		return nil // nothing was ever kept
	}
	var out []string
	for _, e := range list {
		if e.IsDir() && valid(e.Name()) {
			out = append(out, e.Name())
		}
	}
	sort.Strings(out)
	return out
}

// Files lists the programs of a version; errs.NotFound.
func (d Dir) Files(version string) ([]api.UpgradeFile, error) {
	missing := errs.New(errs.NotFound, "version %s is not on this host", clip(version))
	if !valid(version) {
		return nil, missing
	}
	b, err := os.ReadFile(filepath.Join(d.Root, version, manifest))
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, missing
	}
	if err != nil {
		return nil, errs.New(errs.Unavailable, "read version %s: %w", version, err)
	}
	var out []api.UpgradeFile
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, errs.New(errs.Internal, "version %s: %s cannot be read: %w", version, manifest, err)
	}
	return out, nil
}

// Open opens a program of a version, to be sent on.
func (d Dir) Open(version, goos, arch, binary string) (*os.File, api.UpgradeFile, error) {
	files, err := d.Files(version)
	if err != nil {
		return nil, api.UpgradeFile{}, err
	}
	for _, f := range files {
		if f.OS == goos && f.Arch == arch && f.Binary == binary {
			h, err := os.Open(at(filepath.Join(d.Root, version), f))
			if err != nil {
				return nil, f, errs.New(errs.Unavailable, "open %s of version %s: %w", binary, version, err)
			}
			return h, f, nil
		}
	}
	return nil, api.UpgradeFile{}, errs.New(errs.NotFound, "version %s has no %s for %s/%s here", version, clip(binary), clip(goos), clip(arch))
}

// Put keeps a version: fetch gives the content of each file. What is there already and is
// the same stays; half a version is never there. The sums are checked.
func (d Dir) Put(ctx context.Context, version string, files []api.UpgradeFile, fetch func(f api.UpgradeFile, w io.Writer) error) error {
	if !valid(version) {
		return errs.InvalidFields("version", api.VersionFields("version", version))
	}
	if have, err := d.Files(version); err == nil && d.holds(version, have, files) {
		return nil
	}
	if err := d.room(files); err != nil {
		return err
	}
	tmp, err := d.temporary()
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := put(tmp, f, func(w io.Writer) error { return fetch(f, w) }); err != nil {
			return fmt.Errorf("keep %s of version %s: %w", f.Binary, version, err)
		}
	}
	return d.keep(tmp, version, files)
}

// holds reports whether the wanted files are here, as they should be.
func (d Dir) holds(version string, have, want []api.UpgradeFile) bool {
	for _, f := range want {
		if !slices.Contains(have, f) {
			return false
		}
		sum, n, err := sumOf(at(filepath.Join(d.Root, version), f))
		if err != nil || sum != f.SHA256 || n != f.Size {
			return false
		}
	}
	return len(want) > 0
}

// room refuses before anything is written.
func (d Dir) room(files []api.UpgradeFile) error {
	need := int64(spare)
	for _, f := range files {
		need += f.Size
	}
	if err := os.MkdirAll(d.Root, 0o755); err != nil {
		return errs.New(errs.Unavailable, "make %s: %w", d.Root, err)
	}
	free, err := fs.Free(d.Root)
	if err != nil {
		return errs.New(errs.Unavailable, "free space of %s: %w", d.Root, err)
	}
	if free < need {
		return errs.New(errs.NoCapacity, "%s has %s free; a version needs %s", d.Root, api.HumanQuantity(api.Disk, free), api.HumanQuantity(api.Disk, need)).
			WithHint("make room on that disk: atoll image prune, old logs")
	}
	return nil
}

func (d Dir) temporary() (string, error) {
	if err := os.MkdirAll(d.Root, 0o755); err != nil {
		return "", errs.New(errs.Unavailable, "make %s: %w", d.Root, err)
	}
	tmp, err := os.MkdirTemp(d.Root, ".in-")
	if err != nil {
		return "", errs.New(errs.Unavailable, "keep a version: %w", err)
	}
	return tmp, os.Chmod(tmp, 0o755)
}

// put writes one file and checks what it became.
func put(dir string, f api.UpgradeFile, write func(io.Writer) error) error {
	if !slices.Contains(api.UpgradeBinaries(), f.Binary) || !api.ValidVersion(f.Arch) { // they become parts of a path
		return errs.New(errs.Invalid, "%q for %q is no program of a version", clip(f.Binary), clip(f.Arch))
	}
	to := at(dir, f)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return errs.New(errs.Unavailable, "%w", err)
	}
	h, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return errs.New(errs.Unavailable, "%w", err)
	}
	sum := sha256.New()
	n := &count{w: io.MultiWriter(h, sum), left: f.Size}
	err = write(n)
	if err = errors.Join(err, h.Sync(), h.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 || n.left != 0 {
		return errs.New(errs.Invalid, "%s has the sum %s; %s was expected", f.Binary, got, f.SHA256).WithHint("it was damaged on its way, or is another one: send the version again")
	}
	return nil
}

// count refuses more than was promised.
type count struct {
	w    io.Writer
	left int64
}

// Write passes on what was promised.
func (c *count) Write(p []byte) (int, error) {
	if c.left -= int64(len(p)); c.left < 0 {
		return 0, errs.New(errs.Invalid, "it is longer than it should be")
	}
	return c.w.Write(p)
}

// keep gives a directory its name: from then on the version is there.
func (d Dir) keep(tmp, version string, files []api.UpgradeFile) error {
	b, err := json.MarshalIndent(files, "", "  ")
	if err != nil {
		return errs.New(errs.Internal, "write %s: %w", manifest, err)
	}
	if err := replace(filepath.Join(tmp, manifest), b); err != nil {
		return errs.New(errs.Unavailable, "keep version %s: %w", version, err)
	}
	to := filepath.Join(d.Root, version)
	if err := os.RemoveAll(to); err != nil { // of another content; what runs from there keeps its file
		return errs.New(errs.Unavailable, "replace version %s: %w", version, err)
	}
	if err := errors.Join(os.Rename(tmp, to), syncDir(d.Root)); err != nil {
		return errs.New(errs.Unavailable, "keep version %s: %w", version, err)
	}
	return nil
}

// Save keeps the programs of dir, which run now, as a version: the way back. running is
// the daemon's own program, which may have lost its name.
func (d Dir) Save(ctx context.Context, version, dir, running string) error {
	if _, err := d.Files(version); err == nil {
		return nil
	}
	from := map[string]string{"atolld": running}
	for _, b := range api.UpgradeBinaries() {
		if p := filepath.Join(dir, b); b != "atolld" {
			if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() {
				from[b] = p
			}
		}
	}
	var files []api.UpgradeFile
	for b, p := range from {
		sum, n, err := sumOf(p)
		if err != nil {
			return errs.New(errs.Unavailable, "keep the present version: %w", err)
		}
		files = append(files, api.UpgradeFile{OS: runtime.GOOS, Arch: runtime.GOARCH, Binary: b, SHA256: sum, Size: n})
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Binary < files[j].Binary })
	return d.Put(ctx, version, files, func(f api.UpgradeFile, w io.Writer) error {
		h, err := os.Open(from[f.Binary])
		if err != nil {
			return err
		}
		defer h.Close()
		_, err = io.Copy(w, h)
		return err
	})
}

func sumOf(path string) (string, int64, error) {
	h, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer h.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, h)
	return hex.EncodeToString(sum.Sum(nil)), n, err
}

// Prune removes all versions but these, and what was never finished.
func (d Dir) Prune(keep ...string) error {
	list, err := os.ReadDir(d.Root)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.New(errs.Unavailable, "look for old versions: %w", err)
	}
	var all error
	for _, e := range list {
		old := e.IsDir() && valid(e.Name()) && !slices.Contains(keep, e.Name())
		if old || strings.HasPrefix(e.Name(), ".in-") {
			all = errors.Join(all, os.RemoveAll(filepath.Join(d.Root, e.Name())))
		}
	}
	return all
}

// Told is what a program says of itself: atolld version -o json.
type Told struct {
	Version string `json:"version"`
	Release int    `json:"release"`
}

// Probe asks a program which version it is: one that cannot even say that is not started.
func Probe(ctx context.Context, program string) (Told, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "version", "-o", "json")
	cmd.Env, cmd.Dir, cmd.WaitDelay = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, "/", time.Second
	out, err := cmd.Output()
	if err != nil {
		return Told{}, errs.New(errs.Unsupported, "it does not run on this host: %w", err).WithHint("was it built for this processor, and linked statically? CGO_ENABLED=0 make build")
	}
	return parseTold(out)
}

func parseTold(out []byte) (Told, error) {
	var t Told
	if len(out) > 4096 || json.Unmarshal(out, &t) != nil || !valid(t.Version) || t.Release < 1 || t.Release > 1<<20 {
		return Told{}, errs.New(errs.Unsupported, "it does not tell its version and release").WithHint("it is older than upgrades are, or no atolld: install it by hand")
	}
	return t, nil
}
