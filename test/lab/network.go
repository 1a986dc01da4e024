package lab

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"atoll/internal/errs"
	"atoll/test/rig"
)

// The network of a lab: everybody else's addresses do not matter, as it is in namespaces of its own.
const (
	network = "10.99.0."
	gateway = network + "254" // the bridge, which is also where users of the pool are
	bridge  = "lab"
)

// ownHub is this process's namespace as the switch. The machine's own must not be used.
func ownHub() (*rig.Space, error) {
	if !rig.IsAlone() {
		return nil, errs.New(errs.Conflict, "this process is in the machine's network namespace; a lab must not touch it").WithHint("call rig.Alone first, or leave Options.Here out")
	}
	return rig.OwnSpace(), nil
}

// run does some commands, one a line, in a namespace.
func run(s *rig.Space, script string) error {
	out, err := s.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.ReplaceAll(strings.TrimSpace(script), "\n", "; "), err, out)
	}
	return nil
}

func (l *Lab) makeBridge() error {
	return run(l.hub, `ip link set lo up
ip link add `+bridge+` type bridge
ip addr add `+gateway+`/24 dev `+bridge+`
ip link set `+bridge+` up`)
}

// dropBridge matters where the namespace is not the lab's own.
func (l *Lab) dropBridge() {
	_ = run(l.hub, "ip link del "+bridge) // it goes with the namespace otherwise
}

// Command is a command where users of the pool are: every host is reached by its address.
func (l *Lab) Command(name string, args ...string) *exec.Cmd { return l.hub.Command(name, args...) }

// wire is the name of a host's end at the switch.
func (h *Host) wire() string { return "isle" + strconv.Itoa(h.number) }

// plug gives the host a fresh network namespace and a cable to the switch.
func (h *Host) plug() (err error) {
	if h.space, err = rig.NewSpace(h.Group, h.lab.kept); err != nil {
		return err
	}
	if err := run(h.lab.hub, fmt.Sprintf(`ip link add %s type veth peer name eth0 netns %d
ip link set %s master %s up`, h.wire(), h.space.Pid(), h.wire(), bridge)); err != nil {
		return err
	}
	return run(h.space, `ip addr add `+h.Address+`/24 dev eth0
ip link set eth0 up
ip route add default via `+gateway)
}

// Cut pulls the host's cable.
func (h *Host) Cut() error { return run(h.lab.hub, "ip link set "+h.wire()+" down") }

// Mend plugs it in again, and lets everybody through whom CutFrom kept off.
func (h *Host) Mend() error {
	if err := run(h.lab.hub, "ip link set "+h.wire()+" up"); err != nil {
		return err
	}
	if h.space == nil {
		return nil // it is off
	}
	return run(h.space, "nft delete table inet lab 2>/dev/null || true")
}

// CutFrom drops what comes from another host; both: also what goes there. The other way goes on, as happens with
// broken switches and firewalls.
func (h *Host) CutFrom(other *Host, both bool) error {
	script := `nft add table inet lab
nft add chain inet lab in '{ type filter hook prerouting priority -300; }'
nft add chain inet lab out '{ type filter hook postrouting priority 300; }'
nft add rule inet lab in ip saddr ` + other.Address + ` drop`
	if both {
		script += "\nnft add rule inet lab out ip daddr " + other.Address + " drop"
	}
	return run(h.space, script)
}

// Unplugged reports whether its cable is pulled.
func (h *Host) Unplugged() bool {
	out, err := h.lab.Command("ip", "-br", "link", "show", h.wire()).Output()
	f := strings.Fields(string(out))
	if err != nil || len(f) < 4 {
		return true
	}
	return !slices.Contains(strings.Split(strings.Trim(f[3], "<>"), ","), "UP")
}
