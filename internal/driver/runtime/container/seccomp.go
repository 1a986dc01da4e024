package container

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Compiling the default profile costs the OCI runtime more time than everything
// else it does. So the first instance with a profile has it compiled; the filter
// that crun made is kept, and later instances get it through crun's annotation. With
// that annotation the profile itself says "kill": a runtime that did not know the
// annotation would not run anything unfiltered.

const (
	filterAnnotation = "run.oci.seccomp_bpf_data"
	maxFilter        = 64 << 10 // the kernel takes 4096 instructions of 8 bytes
)

// failClosed is the profile beside a compiled filter. SPEC_ALLOW, as runc has it by default, leaves
// speculation as the kernel's own default is instead of slowing down the whole process.
const failClosed = `{"defaultAction":"SCMP_ACT_KILL_PROCESS","flags":["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}`

// addSeccomp puts the default profile for the config's capabilities into it.
func (r *Runtime) addSeccomp(e *environment, o *oci) error {
	profile, err := seccomp.GetDefaultProfile(&o.Spec)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	if e.isCrun { // runc sets it unasked, and refuses to be asked before 1.2
		profile.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagSpecAllow}
	}
	raw, err := json.Marshal(profile)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	o.Linux.Seccomp = raw
	if !e.isCrun {
		return nil
	}
	o.seccompKey = e.filterKey(raw)
	if b64 := r.filter(o.seccompKey); b64 != "" {
		o.Annotations = map[string]string{filterAnnotation: b64}
		o.Linux.Seccomp = json.RawMessage(failClosed)
	}
	return nil
}

// filterKey names a compiled profile: it depends on the profile, the runtime and, in
// libseccomp, on what the boot's kernel offers.
func (e *environment) filterKey(profile []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n", e.runtimeVersion, e.boot, profile)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// filter is a compiled profile in base64; "" when there is none yet.
func (r *Runtime) filter(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, known := r.filters[key]; known {
		return f
	}
	b, err := os.ReadFile(r.state("seccomp", key))
	if err != nil || len(b) == 0 || len(b)%8 != 0 || len(b) > maxFilter {
		return ""
	}
	r.filters[key] = base64.StdEncoding.EncodeToString(b)
	return r.filters[key]
}

// keepFilter saves what crun compiled for an instance it has just created.
func (r *Runtime) keepFilter(key, id string) {
	if key == "" || r.filter(key) != "" {
		return
	}
	b, err := os.ReadFile(r.run("c", id, "seccomp.bpf"))
	if err != nil || len(b) < 8*50 || len(b)%8 != 0 || len(b) > maxFilter {
		return
	}
	if err := writeFile(r.state("seccomp", key), b, 0o600); err != nil {
		r.log.Warn("seccomp filter not kept; starts stay slow", "error", err)
	}
}
