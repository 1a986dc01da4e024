package host

import (
	"context"
	"runtime"
	"sync"

	"atoll/internal/clock"
)

// Severity says how much a failed check matters.
type Severity string

// The severities.
const (
	Note    Severity = "info"    // good to know
	Warning Severity = "warning" // works, but something promised is weaker
	Failure Severity = "error"   // something will not work
)

// Check is one finding.
type Check struct {
	Name     string   `json:"name"` // such as "cgroup"; unique
	OK       bool     `json:"ok"`
	Severity Severity `json:"severity"`      // if not OK
	Detail   string   `json:"detail"`        // what is, and what it means
	Fix      string   `json:"fix,omitempty"` // commands, one a line, to be run as root
}

func good(name, detail string) Check {
	return Check{Name: name, OK: true, Severity: Note, Detail: detail}
}

func bad(name string, s Severity, detail, fix string) Check {
	return Check{Name: name, Severity: s, Detail: detail, Fix: fix}
}

// Options say what the probes are about.
type Options struct {
	State  string      // directory for state; default /var/lib/atoll
	Bridge string      // name of our bridge; default atoll0
	Clock  clock.Clock // nil: the machine's
}

// probe is one question and what all questions share.
type probe struct {
	Options
	os     map[string]string
	mounts []mount
}

// Probe asks everything at once and answers in a fixed order.
func Probe(ctx context.Context, o Options) []Check {
	if o.State == "" {
		o.State = "/var/lib/atoll"
	}
	if o.Bridge == "" {
		o.Bridge = "atoll0"
	}
	if o.Clock == nil {
		o.Clock = clock.Real{}
	}
	p := &probe{Options: o, os: osRelease()}
	if s, err := readFile("/proc/self/mountinfo"); err == nil {
		p.mounts = parseMountinfo(s)
	}
	questions := []func(context.Context) []Check{
		p.cgroups, p.overlay, p.idmap, p.userns, p.seccomp, p.psi, p.nftables, p.bridgeVeth,
		p.tools, p.firewalls, p.brNetfilter, p.forwarding, p.quota, p.disk, p.clockSane, p.systemd, p.kvm, p.swap, p.lsm,
	}
	answers := make([][]Check, len(questions))
	var wg sync.WaitGroup
	for i, q := range questions {
		wg.Go(func() { answers[i] = q(ctx) })
	}
	wg.Wait()
	var out []Check
	for _, a := range answers {
		out = append(out, a...)
	}
	return out
}

// install is the command that installs a package on this distribution.
func (p *probe) install(deb, rpm string) string {
	switch id := p.os["ID"] + " " + p.os["ID_LIKE"]; {
	case containsWord(id, "debian"), containsWord(id, "ubuntu"):
		return "apt-get install -y " + deb
	case containsWord(id, "rhel"), containsWord(id, "fedora"), containsWord(id, "centos"):
		return "dnf install -y " + rpm
	case containsWord(id, "suse"):
		return "zypper install -y " + rpm
	case containsWord(id, "arch"):
		return "pacman -S --noconfirm " + rpm
	case containsWord(id, "alpine"):
		return "apk add " + rpm
	}
	return "install the package " + deb
}

// onThread runs fn on a thread that ends afterwards, for what changes the thread itself.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread goes with the goroutine
		done <- fn()
	}()
	return <-done
}
