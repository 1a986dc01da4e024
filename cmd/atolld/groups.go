package main

import (
	"errors"
	"os"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/agent"
	"atoll/internal/sys/cgroup"
)

// groups gives the agent the host's cgroups.
type groups struct{ host *cgroup.Host }

// Ensure translates a share into limits.
func (g groups) Ensure(path string, s agent.Share) ([]string, error) {
	return g.host.Ensure(path, cgroup.Limits{
		CPUWeight: uint64(s.Weight), CPUMax: s.CPUMax,
		MemoryMax: s.MemoryMax, MemoryMin: s.MemoryMin, Pids: s.PidsMax,
		IOWeight: uint64(s.IOWeight), ReadIOPS: s.IOPS, WriteIOPS: s.IOPS, ReadBPS: s.IOBytes, WriteBPS: s.IOBytes,
	})
}

// Remove removes a group that nothing is in.
func (g groups) Remove(path string) error { return g.host.RemoveEmpty(path) }

// List gives the tenants' groups below root, each before the ones inside it.
func (g groups) List(root string) ([]string, error) {
	var out []string
	for _, p := range g.host.List(root) {
		if strings.HasSuffix(p, ".t") {
			out = append(out, p)
		}
	}
	return out, nil
}

// Usage reads a group's counters.
func (g groups) Usage(path string) (api.Usage, error) {
	u, err := g.host.Usage(path)
	if errors.Is(err, os.ErrNotExist) {
		return api.Usage{}, err
	}
	return api.Usage{At: time.Now(), CPU: u.CPU, Throttled: u.Throttled, Memory: u.Memory, MemoryPeak: u.MemoryPeak,
		ReadBytes: u.ReadBytes, WrittenBytes: u.WriteBytes, ReadOps: u.ReadOps, WriteOps: u.WriteOps, Pids: u.Pids, OOMKills: u.OOMKills,
		PressureCPU: u.PressureCPU, PressureMemory: u.PressureMemory, PressureIO: u.PressureIO}, err
}
