package container

import (
	"cmp"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/sys/cgroup"
)

// limits translates what an instance asked for.
func (r *Runtime) limits(e *environment, s driver.Spec) cgroup.Limits {
	spec := &s.Instance.Spec
	l := cgroup.Limits{
		CPUMax: spec.Limits[api.CPU], MemoryMax: spec.Limits[api.Memory], MemoryLow: spec.Requests[api.Memory],
		Pids: spec.Limits[api.Pids], CPUs: cmp.Or(s.CPUs, spec.CPUs), Mems: s.Mems, IODevice: e.device,
		ReadIOPS: spec.Limits[api.IOPS], WriteIOPS: spec.Limits[api.IOPS],
		ReadBPS: spec.Limits[api.DiskBandwidth], WriteBPS: spec.Limits[api.DiskBandwidth],
	}
	if l.Pids == 0 {
		l.Pids = r.cfg.MaxProcesses
	}
	if e.inherits() {
		l.Pids++ // the supervisor is in the group, too
	}
	switch spec.Class() {
	case api.ClassBestEffort:
		l.CPUIdle = true
	case api.ClassGuaranteed:
		l.MemoryMin = spec.Requests[api.Memory]
		fallthrough
	default:
		l.CPUWeight = uint64(min(max(spec.Requests[api.CPU]/10, 1), 10000)) // one core is the kernel's default weight of 100
	}
	return l
}
