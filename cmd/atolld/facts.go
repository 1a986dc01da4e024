package main

import (
	"context"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/policy"
	"atoll/internal/release"
	"atoll/internal/sys/host"
)

// facts tells the agent what the host is. What changes seldom is asked seldom.
type facts struct {
	state string
	up    func() *api.NodeUpgrade
	bgp   func(context.Context) ([]api.BGPSession, error)

	mu     sync.Mutex
	info   host.Info
	checks []host.Check
	until  time.Time
}

const (
	factsLife    = 5 * time.Minute
	maxInstances = 4000 // per node; what one bridge and one agent are tested with, with room
)

func newFacts(c config, up func() *api.NodeUpgrade, bgp func(context.Context) ([]api.BGPSession, error)) *facts {
	return &facts{state: c.State, up: up, bgp: bgp}
}

// read gives the node's status as far as the host decides it.
func (f *facts) read(ctx context.Context) (api.NodeStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.After(f.until) {
		info, err := host.Facts(ctx, f.state)
		if err != nil {
			return api.NodeStatus{}, err
		}
		f.info, f.until = info, now.Add(factsLife)
		// The probes take a tenth of a second; the start does not wait for them.
		if f.checks == nil {
			f.checks, f.until = []host.Check{}, now.Add(2*time.Second)
		} else {
			f.checks = host.Probe(ctx, host.Options{State: f.state})
		}
	}
	st := api.NodeStatus{
		Capacity: api.Resources{api.CPU: int64(f.info.CPUs) * 1000, api.Memory: f.info.Memory, api.Disk: f.info.Disk.Total, api.Instances: maxInstances},
		OS:       f.info.OS, Kernel: f.info.Kernel, Arch: f.info.Arch, Version: version, Release: release.Number(), Upgrade: f.up(), BootID: f.info.BootID,
	}
	if list, err := f.bgp(ctx); err == nil { // what it cannot say of routers is no reason not to say the rest
		st.BGP = list
	}
	for _, a := range f.info.Addresses {
		st.Addresses = append(st.Addresses, a.String())
	}
	for _, n := range f.info.NUMA {
		st.Cells = append(st.Cells, api.Cell{ID: n.ID, CPUs: policy.FormatCPUs(n.CPUs), Memory: n.Memory, Hugepages: n.Huge})
	}
	for _, c := range f.checks {
		if !c.OK && c.Severity != host.Note {
			st.Conditions = append(st.Conditions, api.Condition{Type: "Host/" + c.Name, Status: false, Reason: string(c.Severity), Message: c.Detail})
		}
	}
	return st, nil
}
