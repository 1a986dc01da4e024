package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"atoll/internal/errs"
)

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
	}{Client: c.Version}
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
		return printValue(c.Out, v, o.format)
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

// check is one finding of 'atolld doctor -o json'.
type check struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Severity string `json:"severity"` // if not ok: info, warning or error
	Detail   string `json:"detail"`
	Fix      string `json:"fix,omitempty"` // commands, one a line
}

func (ch check) status() string {
	if ch.OK {
		return "ok"
	}
	return ch.Severity
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
		if ch.status() == "error" {
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

func readChecks(b []byte) ([]check, error) {
	var list []check
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("its answer cannot be read: %w", err)
	}
	return list, nil
}

func (c *call) tellChecks(checks []check, o output) error {
	if !o.table() {
		if o.format == "name" {
			for _, ch := range checks {
				c.say("%s", ch.Name)
			}
			return nil
		}
		return printValue(c.Out, checks, o.format)
	}
	t := &table{}
	counts := map[string]int{}
	for _, ch := range checks {
		counts[ch.status()]++
		t.row(ch.status(), ch.Name, ch.Detail)
		if ch.Fix != "" && !ch.OK {
			for i, l := range strings.Split(strings.TrimSpace(ch.Fix), "\n") {
				t.row("", "", map[bool]string{true: "what would help: ", false: "                 "}[i == 0]+l)
			}
		}
	}
	text := t.render(false)
	if c.colour(c.Term.OutIs()) {
		text = paintChecks(text)
	}
	fmt.Fprint(c.Out, text)
	c.say("%d ok, %s, %s", counts["ok"], plural(counts["warning"], "warning"), plural(counts["error"], "error"))
	return nil
}

// paintChecks colours the first word of each line.
func paintChecks(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, l := range lines {
		for word, code := range map[string]string{"ok": "32", "warning": "33", "error": "31"} {
			if rest, ok := strings.CutPrefix(l, word+" "); ok {
				lines[i] = "\x1b[" + code + "m" + word + "\x1b[0m " + rest
			}
		}
	}
	return strings.Join(lines, "")
}
