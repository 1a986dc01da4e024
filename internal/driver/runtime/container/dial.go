package container

import (
	"context"
	"fmt"
	"net"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/proc"
)

// Dial connects to a port on the instance's own loopback, from inside its network namespace.
func (r *Runtime) Dial(ctx context.Context, id, network, port string) (net.Conn, error) {
	e, err := r.setup()
	if err != nil {
		return nil, err
	}
	o, rec, found := r.look(e, id)
	switch {
	case !found:
		return nil, notHere(id)
	case o.Phase != driver.PhaseRunning:
		return nil, errs.New(errs.Conflict, "instance %s is not running", id)
	case network != "tcp" && network != "udp":
		return nil, errs.New(errs.Invalid, "network %q must be tcp or udp", network)
	}
	d := net.Dialer{Timeout: dialTimeout}
	var conn net.Conn
	dial := func() error {
		// An address needs no resolver and no second thread: the socket is made on this one.
		conn, err = d.DialContext(ctx, network+"4", net.JoinHostPort("127.0.0.1", port))
		if err != nil && o.NetNS != "" {
			if c6, err6 := d.DialContext(ctx, network+"6", net.JoinHostPort("::1", port)); err6 == nil {
				conn, err = c6, nil
			}
		}
		return err
	}
	if rec.HostNet {
		err = dial()
	} else {
		err = proc.InNetNS(o.NetNS, dial)
	}
	if err != nil {
		return nil, errs.New(errs.Unavailable, "port %s of %s: %w", port, id, err)
	}
	return conn, nil
}

// Usage reads what the instance's cgroup counted.
func (r *Runtime) Usage(_ context.Context, id string) (api.Usage, error) {
	e, err := r.setup()
	if err != nil {
		return api.Usage{}, err
	}
	rec, err := r.load(id)
	if err != nil {
		return api.Usage{}, notHere(id)
	}
	u := api.Usage{At: r.clk.Now(), PressureCPU: -1, PressureMemory: -1, PressureIO: -1}
	g, err := e.groups.Usage(rec.Cgroup)
	if err != nil {
		return u, nil //nolint:nilerr // it has no cgroup, so it uses nothing
	}
	u.CPU, u.Throttled, u.Memory, u.MemoryPeak = g.CPU, g.Throttled, g.Memory, g.MemoryPeak
	u.ReadBytes, u.WrittenBytes, u.ReadOps, u.WriteOps = g.ReadBytes, g.WriteBytes, g.ReadOps, g.WriteOps
	u.Pids, u.OOMKills = g.Pids, g.OOMKills
	if e.inherits() && u.Pids > 0 {
		u.Pids-- // the supervisor
	}
	u.PressureCPU, u.PressureMemory, u.PressureIO = g.PressureCPU, g.PressureMemory, g.PressureIO
	if !rec.HostNet {
		u.ReceivedBytes, u.SentBytes = netBytes(fmt.Sprintf("/proc/%d/net/dev", readPid(r.run("i", id, "pid"))))
	}
	return u, nil
}
