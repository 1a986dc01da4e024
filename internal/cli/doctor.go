package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"atoll/internal/errs"
)

// Version is what this program says it is.
const Version = "0.1.0"

func versionVerb() Verb {
	o := &output{}
	local := false
	return Verb{
		Use: "version", Group: groupSetup, Short: "Tell the versions of this program and of the server",
		Example: "  atoll version\n  atoll version --client -o json",
		Flags: func(fs *pflag.FlagSet) {
			o.flags(fs)
			fs.BoolVar(&local, "client", false, "only of this program")
		},
		Run: func(ctx context.Context, c *call) error { return runVersion(ctx, c, *o, local) },
	}
}

func runVersion(ctx context.Context, c *call, o output, local bool) error {
	if err := o.check(); err != nil {
		return err
	}
	v := struct {
		Client string `json:"client"`
		Server string `json:"server,omitempty"`
	}{Client: Version}
	why := ""
	if !local {
		cl, err := c.server()
		if err == nil {
			v.Server, err = cl.ServerVersion(ctx)
		}
		if err != nil {
			why = c.explain(err).Error()
		}
	}
	switch o.format {
	case "name":
		c.say("%s", v.Client)
		return nil
	case "json", "yaml":
		return c.printValue(v, o.format)
	}
	c.say("client  %s", v.Client)
	switch {
	case v.Server != "":
		c.say("server  %s", v.Server)
	case why != "":
		c.say("server  not reached: %s", why)
	}
	return nil
}

func doctorVerb() Verb {
	o := &output{}
	return Verb{
		Use: "doctor", Group: groupSetup, Short: "Check this host, and say what to do",
		Long: `Doctor checks the host and its kernel: what Atoll needs, what it can enforce here, and
what else runs that may get in the way. It works without a running daemon. It ends
with 7 when something that is needed is missing.`,
		Example: "  sudo atoll doctor\n  atoll doctor -o json",
		Flags:   o.flags,
		Run:     func(ctx context.Context, c *call) error { return runDoctor(ctx, c, *o) },
	}
}

// check is one line of 'atolld doctor -o json'.
type check struct {
	Name    string `json:"name"`
	Status  string `json:"status"` // ok, warn, fail
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

const maxDoctor = 4 << 20

// runDoctor asks the daemon's program, which holds the checks: they need parts of
// the kernel this small program does not link.
func runDoctor(ctx context.Context, c *call, o output) error {
	if err := o.check(); err != nil {
		return err
	}
	path, err := daemonPath()
	if err != nil {
		return err
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "doctor", "-o", "json")
	cmd.Stdout, cmd.Stderr = &out, &errOut
	runErr := cmd.Run()
	if out.Len() > maxDoctor {
		return errs.New(errs.Internal, "%s doctor said too much", path)
	}
	checks, err := readChecks(out.Bytes())
	if err != nil {
		if runErr != nil {
			return errs.New(errs.Internal, "%s doctor: %w: %s", path, runErr, strings.TrimSpace(errOut.String()))
		}
		return errs.New(errs.Internal, "%s doctor: %w", path, err)
	}
	if err := c.tellChecks(checks, o); err != nil {
		return err
	}
	for _, ch := range checks {
		if ch.Status == "fail" {
			return exitCode(errs.ExitCode(errs.Unsupported))
		}
	}
	return nil
}

// daemonPath looks beside this program first, so that a fresh build checks with its own.
func daemonPath() (string, error) {
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		p := filepath.Join(filepath.Dir(self), "atolld")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	p, err := exec.LookPath("atolld")
	if err != nil {
		return "", errs.New(errs.NotFound, "atolld is not beside atoll and not in the PATH").WithHint("make build, or install it")
	}
	return p, nil
}

// readChecks takes a list of checks, or an object that holds one.
func readChecks(b []byte) ([]check, error) {
	var list []check
	if err := json.Unmarshal(b, &list); err == nil {
		return list, nil
	}
	var obj struct {
		Checks []check `json:"checks"`
	}
	if err := json.Unmarshal(b, &obj); err != nil {
		return nil, fmt.Errorf("its answer is no JSON: %w", err)
	}
	if obj.Checks == nil {
		return nil, errors.New("its answer holds no checks")
	}
	return obj.Checks, nil
}

func (c *call) tellChecks(checks []check, o output) error {
	if !o.table() {
		if o.format == "name" {
			for _, ch := range checks {
				c.say("%s", ch.Name)
			}
			return nil
		}
		return c.printValue(checks, o.format)
	}
	t := &table{}
	counts := map[string]int{}
	paint := c.colour(c.Term.OutIs())
	for _, ch := range checks {
		counts[ch.Status]++
		status := ch.Status
		if code := map[string]string{"ok": "32", "warn": "33", "fail": "31"}[status]; paint && code != "" {
			status = "\x1b[" + code + "m" + status + "\x1b[0m"
		}
		t.row(status, ch.Name, ch.Message)
		if ch.Hint != "" && ch.Status != "ok" {
			t.row(strings.Repeat(" ", len(status)), "", "what would help: "+ch.Hint)
		}
	}
	fmt.Fprint(c.Out, t.render(false))
	c.say("%d ok, %s, %s", counts["ok"], plural(counts["warn"], "warning"), plural(counts["fail"], "failure"))
	return nil
}
