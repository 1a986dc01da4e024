package setup

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

	"atoll/internal/cli/conn"
	"atoll/internal/cli/render"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// Version tells who is who.
func Version() verb.Def {
	o := &render.Output{}
	local := false
	return verb.Def{
		Use: "version", Group: verb.GroupSetup, Short: "Tell the versions of this program and of the server",
		Example: "  atoll version\n  atoll version --client -o json",
		Flags: func(fs *pflag.FlagSet) {
			o.Flags(fs)
			fs.BoolVar(&local, "client", false, "only of this program")
		},
		Run: func(ctx context.Context, c *verb.Call) error { return runVersion(ctx, c, *o, local) },
	}
}

func runVersion(ctx context.Context, c *verb.Call, o render.Output, local bool) error {
	if err := o.Check(); err != nil {
		return err
	}
	v := struct {
		Client string `json:"client"`
		Server string `json:"server,omitempty"`
		// Endpoints are the servers known, the one that answered first.
		Endpoints []string `json:"endpoints,omitempty"`
	}{Client: c.Version}
	why := ""
	if !local {
		cl, err := c.Server()
		if err == nil {
			v.Server, err = cl.ServerVersion(ctx)
			if l, ok := cl.(conn.Located); ok && err == nil {
				v.Endpoints = l.Endpoints()
			}
		}
		if err != nil {
			why = c.Explain(err).Error()
		}
	}
	switch o.Format {
	case "name":
		c.Say("%s", v.Client)
		return nil
	case "json", "yaml":
		return render.Value(c.Out, v, o.Format)
	}
	c.Say("client  %s", v.Client)
	switch {
	case v.Server != "":
		c.Say("server  %s", v.Server)
		for i, e := range v.Endpoints {
			c.Say("        %s  %s", e, []string{"answered", "also known"}[min(i, 1)])
		}
	case why != "":
		c.Say("server  not reached: %s", why)
	}
	return nil
}

// Doctor checks this host.
func Doctor() verb.Def {
	o := &render.Output{}
	return verb.Def{
		Use: "doctor", Group: verb.GroupSetup, Short: "Check this host, and say what to do",
		Long: `Doctor checks the host and its kernel: what Atoll needs, what it can enforce here, and
what else runs that may get in the way. It works without a running daemon. It ends
with 7 when something that is needed is missing.`,
		Example: "  sudo atoll doctor\n  atoll doctor -o json",
		Flags:   o.Flags,
		Run:     func(ctx context.Context, c *verb.Call) error { return runDoctor(ctx, c, *o) },
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
func runDoctor(ctx context.Context, c *verb.Call, o render.Output) error {
	if err := o.Check(); err != nil {
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
	if err := tellChecks(c, checks, o); err != nil {
		return err
	}
	for _, ch := range checks {
		if ch.status() == "error" {
			return verb.ExitCode(errs.ExitCode(errs.Unsupported))
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

func tellChecks(c *verb.Call, checks []check, o render.Output) error {
	if !o.Tabular() {
		if o.Format == "name" {
			for _, ch := range checks {
				c.Say("%s", ch.Name)
			}
			return nil
		}
		return render.Value(c.Out, checks, o.Format)
	}
	t := &render.Table{}
	counts := map[string]int{}
	for _, ch := range checks {
		counts[ch.status()]++
		t.Row(ch.status(), ch.Name, ch.Detail)
		if ch.Fix != "" && !ch.OK {
			for i, l := range strings.Split(strings.TrimSpace(ch.Fix), "\n") {
				t.Row("", "", map[bool]string{true: "what would help: ", false: "                 "}[i == 0]+l)
			}
		}
	}
	text := t.Text(false)
	if c.Colour(c.Term.OutIs()) {
		text = paintChecks(text)
	}
	fmt.Fprint(c.Out, text)
	c.Say("%d ok, %s, %s", counts["ok"], render.Plural(counts["warning"], "warning"), render.Plural(counts["error"], "error"))
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
