package host

import (
	"context"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// tool is a program we call or that helps people look.
type tool struct {
	name     string
	args     []string
	deb, rpm string
	severity Severity
	without  string
}

var toolbox = []tool{
	{"crun", []string{"--version"}, "crun", "crun", Failure, "containers cannot start"},
	{"runc", []string{"--version"}, "runc", "runc", Note, "not needed while crun is there"},
	{"conmon", []string{"--version"}, "conmon", "conmon", Failure, "containers cannot start"},
	{"nft", []string{"--version"}, "nftables", "nftables", Note, "only needed to look at rules: nft list table inet atoll"},
	{"ip", []string{"-V"}, "iproute2", "iproute", Note, "only needed to look at links: ip link"},
	{"busybox", nil, "busybox-static", "busybox", Note, "the built-in demo image cannot be made"},
}

// toolPatience bounds one program; all run at the same time.
const toolPatience = 2 * time.Second

func (p *probe) tools(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeout(ctx, toolPatience)
	defer cancel()
	out := make([]Check, len(toolbox))
	var wg sync.WaitGroup
	for i, t := range toolbox {
		wg.Go(func() { out[i] = p.tool(ctx, t) })
	}
	wg.Wait()
	return p.oneRuntime(out)
}

// oneRuntime: either of crun and runc will do.
func (p *probe) oneRuntime(cs []Check) []Check {
	if !cs[0].OK && cs[1].OK {
		cs[0].Severity, cs[0].Detail = Note, "not installed; runc is used instead, which starts slower"
	}
	if cs[0].OK && !cs[1].OK {
		cs[1].Fix = ""
	}
	return cs
}

func (p *probe) tool(ctx context.Context, t tool) Check {
	path, err := lookPath(t.name)
	if err != nil {
		return bad(t.name, t.severity, "not installed: "+t.without, p.install(t.deb, t.rpm))
	}
	cmd := exec.CommandContext(ctx, path, t.args...)
	cmd.WaitDelay = 100 * time.Millisecond
	b, err := cmd.Output()
	if err != nil && len(b) == 0 { // busybox without arguments may exit as it likes
		return bad(t.name, t.severity, path+" does not run: "+err.Error(), p.install(t.deb, t.rpm))
	}
	return good(t.name, strings.TrimSpace(parseVersion(string(b))+" "+path))
}

// lookPath also looks where root's tools are when PATH is a user's.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	return path, err
}

var versionRE = regexp.MustCompile(`\bv?(\d+\.\d+(?:\.\d+)*(?:[-~+][0-9A-Za-z.+~-]*)?)`)

// parseVersion finds the version in what a program says of itself; "" when there is none.
func parseVersion(s string) string {
	if len(s) > 4096 {
		s = s[:4096]
	}
	first, _, _ := strings.Cut(s, "\n")
	m := versionRE.FindStringSubmatch(first)
	if m == nil {
		if m = versionRE.FindStringSubmatch(s); m == nil {
			return ""
		}
	}
	return printable(m[1], 64)
}
