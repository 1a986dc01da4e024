// Package fake is a network that connects nothing: it keeps the same books as a real
// one, in memory. The simulator and the tests of everything above the drivers use it.
//
// It starts no goroutine and does no I/O but for the one look at whether a namespace
// exists that CheckNetNS asks for. It must never touch the host.
package fake

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sync"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Config says how the pretended network behaves.
type Config struct {
	// Subnet that addresses must be in; default "10.88.0.0/16".
	Subnet string `json:"subnet,omitempty"`
	// CheckNetNS refuses namespaces that are not /proc/<pid>/ns/net or the like on this
	// machine. Default false: the simulator has none.
	CheckNetNS bool `json:"checkNetns,omitempty"`
}

var idRE = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// Host is what outlives the driver: the books. Drivers opened on one Host are lives of one daemon.
type Host struct {
	mu    sync.Mutex
	ports map[string][]string // instance -> what it holds: addresses and published ports
	down  error
}

// Driver is a driver.Network.
type Driver struct {
	subnet netip.Prefix
	check  bool
	host   *Host
}

// New makes a driver on a host of its own.
func New(_ driver.Deps, c Config) (*Driver, error) { return NewOn(&Host{}, c) }

// NewOn makes a driver on a host that earlier ones may have used.
func NewOn(h *Host, c Config) (*Driver, error) {
	if c.Subnet == "" {
		c.Subnet = "10.88.0.0/16"
	}
	p, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		return nil, errs.New(errs.Invalid, "network driver fake: subnet %q: %w", c.Subnet, err)
	}
	return &Driver{subnet: p.Masked(), check: c.CheckNetNS, host: h}, nil
}

// Fail makes every call fail with err until it is called with nil.
func (d *Driver) Fail(err error) {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	d.host.down = err
}

// Held lists what an instance holds, such as "10.88.0.2" and "tcp/8080".
func (d *Driver) Held(id string) []string {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	return slices.Clone(d.host.ports[id])
}

// Probe always succeeds unless Fail says otherwise.
func (d *Driver) Probe(context.Context) (api.Capability, error) {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	return api.Capability{Type: "network", Name: "fake", Features: map[string]string{"subnet": d.subnet.String()}}, d.host.down
}

// Attach enters the instance's address and published ports into the books.
func (d *Driver) Attach(_ context.Context, netns string, s driver.Spec) error {
	held, err := d.wanted(netns, s)
	if err != nil {
		return err
	}
	h := d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down != nil {
		return h.down
	}
	for other, theirs := range h.ports {
		for _, x := range held {
			if other != s.ID && slices.Contains(theirs, x) {
				return errs.New(errs.Conflict, "%s is held by instance %s on this node", x, other)
			}
		}
	}
	delete(h.ports, s.ID)
	if held != nil {
		if h.ports == nil {
			h.ports = map[string][]string{}
		}
		h.ports[s.ID] = held
	}
	return nil
}

func (d *Driver) wanted(netns string, s driver.Spec) ([]string, error) {
	if !idRE.MatchString(s.ID) {
		return nil, errs.New(errs.Invalid, "instance ID %q must be 1-64 of a-z 0-9 -", s.ID)
	}
	if d.check {
		// Namespaces show as links to "net:[number]".
		if to, err := os.Readlink(netns); err != nil || len(to) < 5 || to[:5] != "net:[" {
			return nil, errs.New(errs.NotFound, "%s is not a network namespace", netns)
		}
	}
	switch s.Network.Mode {
	case "none", "host":
		return nil, nil
	case "bridge":
	default:
		return nil, errs.New(errs.Invalid, "network mode %q must be bridge, none or host", s.Network.Mode)
	}
	a, err := netip.ParseAddr(s.Network.Address)
	if err != nil || !d.subnet.Contains(a) {
		return nil, errs.New(errs.Invalid, "address %q is not in %s", s.Network.Address, d.subnet)
	}
	held := []string{a.String()}
	if s.Instance != nil {
		for _, p := range s.Instance.Spec.Ports {
			if p.Publish != 0 {
				held = append(held, fmt.Sprintf("%s%s", p.HostIP, p.PublishKey()))
			}
		}
	}
	return held, nil
}

// Observe lists the instances in the books, sorted.
func (d *Driver) Observe(context.Context) ([]string, error) {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	return slices.Sorted(maps.Keys(d.host.ports)), d.host.down
}

// Detach strikes an instance out.
func (d *Driver) Detach(_ context.Context, id string) error {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if d.host.down == nil {
		delete(d.host.ports, id)
	}
	return d.host.down
}

// Teardown strikes everything out.
func (d *Driver) Teardown(context.Context) error {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if d.host.down == nil {
		d.host.ports = nil
	}
	return d.host.down
}
