// Package builtin lists what this build has: a new driver or policy is its folder and
// its line here.
package builtin

import (
	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/driver/announce/gobgp"
	"atoll/internal/driver/network/bridge"
	"atoll/internal/driver/network/overlay"
	"atoll/internal/driver/runtime/container"
	"atoll/internal/driver/storage/dir"
	"atoll/internal/policy"
	"atoll/internal/policy/affinity"
	"atoll/internal/policy/binpack"
	"atoll/internal/policy/cost"
	"atoll/internal/policy/gpu"
	"atoll/internal/policy/host"
	"atoll/internal/policy/image"
	"atoll/internal/policy/numa"
	"atoll/internal/policy/port"
	"atoll/internal/policy/resource"
	"atoll/internal/policy/spread"
)

// Drivers lists what this build can run, connect and store with.
func Drivers() *driver.Registry {
	r := driver.NewRegistry()
	driver.AddRuntime(r, "container", container.New)
	driver.AddNetwork(r, "bridge", bridge.New)
	driver.AddNetwork(r, api.DriverOverlay, overlay.New)
	driver.AddStorage(r, "dir", dir.New)
	driver.AddAnnouncer(r, "gobgp", gobgp.New)
	return r
}

// Policies is what placement decides by, cheapest and most selective filters first.
func Policies() policy.Chain {
	gpus := gpu.New()
	return policy.Chain{
		Filters: []policy.Filter{host.New(), resource.New(), numa.New(), gpus, port.New(), spread.New(), affinity.New()},
		Scorers: []policy.Weighted{
			{Scorer: gpus, Weight: 16}, // devices are dearest
			{Scorer: host.New(), Weight: 1},
			{Scorer: binpack.New(), Weight: 1},
			{Scorer: spread.New(), Weight: 1},
			{Scorer: affinity.New(), Weight: 1},
			{Scorer: image.New(), Weight: 1},
			{Scorer: numa.New(), Weight: 1},
			{Scorer: cost.NewPrice(), Weight: 0.5},
			{Scorer: cost.NewPower(), Weight: 0.5},
		},
		Pickers: []policy.Picker{numa.New(), gpus},
	}
}
