package builtin

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/driver/network/overlay"
	"atoll/internal/driver/network/uplink"
)

// Host is what the drivers of a host depend on.
type Host struct {
	Node     string
	State    string                     // directory, survives reboots
	Run      string                     // directory, gone at boot
	Subnet   string                     // of the host's own bridge
	Tunnel   string                     // address by which other hosts reach this one
	Sections map[string]json.RawMessage // settings by driver
}

// Set is the drivers a host works with.
type Set struct {
	Runtimes map[string]driver.Runtime
	Network  driver.Network // all of them
	Fabric   driver.Fabric  // of those, the one of tenants' networks
	Storage  driver.Storage
	Barrier  driver.Barrier   // at the uplink
	Routers  driver.Announcer // speaks with them
}

// Build makes every driver of this build, each with directories of its own. It does no other I/O.
func Build(h Host, clk clock.Clock, log *slog.Logger) (Set, error) {
	reg := Drivers()
	set := Set{Runtimes: map[string]driver.Runtime{}, Barrier: uplink.New()}
	deps := func(name string) (driver.Deps, error) {
		d := driver.Deps{Node: h.Node, State: filepath.Join(h.State, name), Run: filepath.Join(h.Run, name), Clock: clk, Log: log.With("driver", name)}
		return d, errors.Join(os.MkdirAll(d.State, 0o711), os.MkdirAll(d.Run, 0o711))
	}
	for _, name := range reg.Runtimes() {
		d, err := deps(name)
		if err != nil {
			return set, err
		}
		if set.Runtimes[name], err = reg.Runtime(name, d, h.Sections[name]); err != nil {
			return set, err
		}
	}
	d, err := deps("bridge")
	if err != nil {
		return set, err
	}
	bridge, err := reg.Network("bridge", d, h.section("bridge", map[string]any{"subnet": h.Subnet, "untracked": []int{h.tunnelPort()}}))
	if err != nil {
		return set, err
	}
	if d, err = deps(api.DriverOverlay); err != nil {
		return set, err
	}
	fabric, err := reg.Network(api.DriverOverlay, d, h.section(api.DriverOverlay, map[string]any{"tunnel": h.Tunnel, "outside": outside(h.Subnet)}))
	if err != nil {
		return set, err
	}
	set.Fabric = fabric.(driver.Fabric) // what the line above names is one
	set.Network = driver.Beside(bridge, set.Fabric)
	if d, err = deps("volumes"); err != nil {
		return set, err
	}
	if set.Storage, err = reg.Storage("dir", d, h.Sections["dir"]); err != nil {
		return set, err
	}
	set.Routers, err = reg.Announcer("gobgp", driver.Deps{Node: h.Node, Clock: clk, Log: log.With("driver", "gobgp")}, h.Sections["gobgp"])
	return set, err
}

// tunnelPort is the UDP port of tunnels between hosts.
func (h Host) tunnelPort() int {
	c := overlay.Config{TunnelPort: overlay.DefaultPort}
	if raw := h.Sections[api.DriverOverlay]; len(raw) > 0 && json.Unmarshal(raw, &c) != nil {
		return overlay.DefaultPort // the driver says what is wrong
	}
	return c.TunnelPort
}

// section is a driver's part of the settings file, with what the daemon knows where the file does not say it.
func (h Host) section(name string, known map[string]any) json.RawMessage {
	m := map[string]any{}
	if raw := h.Sections[name]; len(raw) > 0 && json.Unmarshal(raw, &m) != nil {
		return raw // not an object: the driver says so
	}
	for k, v := range known {
		if _, ok := m[k]; !ok && v != "" {
			m[k] = v
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil // maps of JSON values always encode
	}
	return b
}

// outside is the part of the bridge's subnet in which networks of tenants have their ways out;
// "" for a subnet that is too small for such a part.
func outside(subnet string) string {
	p, err := netip.ParsePrefix(subnet)
	if err != nil {
		return "" // the driver of the bridge says so
	}
	if x := api.NetworkWays(p); x.IsValid() {
		return x.String()
	}
	return ""
}
