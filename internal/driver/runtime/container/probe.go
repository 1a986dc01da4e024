package container

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/mount"
)

// probePatience bounds the whole probe.
const probePatience = 30 * time.Second

// probed is what is kept of a probe until the next boot.
type probed struct {
	Boot, Version, Runtime string
	Capability             api.Capability
}

// Probe runs a container once per boot, and tells what this node can do.
func (r *Runtime) Probe(ctx context.Context) (api.Capability, error) {
	e, err := r.setup()
	if err != nil {
		return api.Capability{Type: "runtime", Name: "container"}, err
	}
	var p probed
	if b, err := os.ReadFile(r.run("probe.json")); err == nil && json.Unmarshal(b, &p) == nil && p.Boot == e.boot && p.Runtime == e.runtime && p.Version == e.runtimeVersion {
		return p.Capability, nil
	}
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	c := api.Capability{Type: "runtime", Name: "container", Version: e.runtimeVersion, Features: r.features(e)}
	if err := r.tryContainer(ctx, e); err != nil {
		return c, errs.New(errs.Unsupported, "a container cannot run on this node: %w", err).WithHint("see `atoll doctor`; it must be possible to run crun as root here")
	}
	if err := writeJSON(r.run("probe.json"), probed{Boot: e.boot, Version: e.runtimeVersion, Runtime: e.runtime, Capability: c}); err != nil {
		return c, err
	}
	return c, nil
}

func (r *Runtime) features(e *environment) map[string]string {
	f := map[string]string{"userns": "shifted", "cgroup": string(e.groups.Mode), "seccomp": "default", "quota": "none", "runtime": filepath.Base(e.runtime)}
	if e.idmapped {
		f["userns"] = "idmapped"
	}
	if mount.CanLoop() {
		f["quota"] = "loop"
	}
	if w := e.groups.Missing(); len(w) > 0 {
		f["unenforced"] = strings.Join(w, "; ")
	}
	return f
}

// probeID is the instance of the probe; it is not a runtime ID of the pool, which begin with x.
const probeID = "probe"

// tryContainer runs busybox's "true" as an image of one program.
func (r *Runtime) tryContainer(ctx context.Context, e *environment) error {
	prog, argv, err := probeProgram()
	if err != nil {
		r.log.Warn("no static program for the probe; the runtime is tried with the first instance", "error", err)
		return nil
	}
	sum := sha256.Sum256([]byte(r.deps.Run)) // several daemons on one host do not meet
	group := "atoll-probe-" + hex.EncodeToString(sum[:4])
	layer := r.state("probe-layer")
	defer os.RemoveAll(layer)
	if err := os.MkdirAll(filepath.Join(layer, "bin"), 0o755); err != nil {
		return err
	}
	if err := copyFile(prog, filepath.Join(layer, "bin", "true")); err != nil {
		return err
	}
	in := &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Name: probeID, Tenant: probeID}}}
	in.Spec.Entry, in.Spec.AutoRm = argv, true
	s := driver.Spec{ID: probeID, Instance: in, Cgroup: driver.Cgroup{Path: group + "/" + probeID}, IDs: driver.IDRange{Base: 1<<31 - 1<<20, Count: 65536},
		Image: driver.Image{Digest: probeID, Layers: []string{layer}}, Network: driver.NetworkSpec{Mode: "none"}}
	err = r.runOnce(ctx, s)
	err = errors.Join(err, r.Remove(context.WithoutCancel(ctx), probeID))
	return errors.Join(err, e.groups.Remove(ctx, group))
}

func (r *Runtime) runOnce(ctx context.Context, s driver.Spec) error {
	if err := r.Remove(ctx, s.ID); err != nil {
		return err
	}
	if _, err := r.Ensure(ctx, s); err != nil {
		return err
	}
	if err := r.Start(ctx, s.ID); err != nil {
		return err
	}
	for {
		o, _, found := r.look(r.env, s.ID)
		if found && o.Phase == driver.PhaseExited {
			if o.ExitCode != 0 {
				return fmt.Errorf("the probe ended with code %d", o.ExitCode)
			}
			return nil
		}
		if err := r.clk.Sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// probeProgram finds a static program that ends at once with 0.
func probeProgram() (path string, argv []string, err error) {
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox", "/bin/busybox-static"} {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && isStatic(p) {
			return p, []string{"/bin/true"}, nil
		}
	}
	return "", nil, errors.New("install busybox-static")
}

// runtimeVersion asks the OCI runtime for its version.
func runtimeVersion(runtime string) string {
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, runtime, "--version").Output()
	if err != nil {
		return filepath.Base(runtime)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.Replace(strings.TrimSpace(line), " version", "", 1)
}
