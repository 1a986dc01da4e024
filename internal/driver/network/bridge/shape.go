package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/shape"
)

// turnName is the device on which what an instance sends waits; its cable has the same number.
func turnName(id string) string { return "as" + portName(id)[len(portPrefix):] }

// tryShaping tries the limits out in a namespace that is thrown away.
func (d *Driver) tryShaping() error {
	ns, err := netlink.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	return shape.Probe(ns.FD())
}

// withShaper calls fn, one at a time. The socket is the host's, as the others are.
func (d *Driver) withShaper(fn func(*shape.Shaper) error) error {
	d.shaping.Lock()
	defer d.shaping.Unlock()
	if d.shaper == nil {
		s, err := shape.Open(-1)
		if err != nil {
			return err
		}
		d.shaper = s
	}
	return fn(d.shaper)
}

// Shape bounds what passes an instance's cable from now on.
func (d *Driver) Shape(_ context.Context, c driver.Cable, to, from api.Band) error {
	h, err := d.handle()
	if err != nil {
		return err
	}
	l, err := h.Link(portName(c.ID))
	if err != nil {
		return fmt.Errorf("limits of %s: %w", c.ID, err)
	}
	if l.ID() != c.ID || c.Name != guestName {
		return errs.New(errs.NotFound, "limits of %s: it has no interface %s on the host's bridge", c.ID, c.Name)
	}
	err = d.withShaper(func(s *shape.Shaper) error {
		return s.Set(shape.Port{Index: l.Index, Turn: turnName(c.ID), ID: c.ID}, shape.Band{Rate: to.Limit, Burst: to.Burst}, shape.Band{Rate: from.Limit, Burst: from.Burst})
	})
	if err != nil {
		return d.refused(c.ID, err)
	}
	return nil
}

// refused says of an error whether the host cannot have limits at all.
func (d *Driver) refused(id string, err error) error {
	if probe := d.tryShaping(); errors.Is(probe, errs.Unsupported) {
		err = probe
	}
	return fmt.Errorf("limits of %s: %w", id, err)
}

// Traffic reads what passed the cables that are bounded.
func (d *Driver) Traffic(context.Context) (map[driver.Cable]driver.Traffic, error) {
	h, err := d.handle()
	if err != nil {
		return nil, err
	}
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	out := map[driver.Cable]driver.Traffic{}
	err = d.withShaper(func(s *shape.Shaper) error {
		for _, l := range links {
			id := l.ID()
			if id == "" || l.Name != portName(id) {
				continue
			}
			t, ok, err := traffic(s, shape.Port{Index: l.Index, Turn: turnName(id), ID: id})
			if err != nil {
				return err
			}
			if ok {
				out[driver.Cable{ID: id, Name: guestName}] = t
			}
		}
		return nil
	})
	return out, err
}

func traffic(s *shape.Shaper, p shape.Port) (driver.Traffic, bool, error) {
	to, from, u, err := s.Bounds(p)
	if errors.Is(err, errs.NotFound) {
		return driver.Traffic{}, false, nil // it went meanwhile
	}
	flow := func(b shape.Band, u shape.Use) driver.Passed {
		return driver.Passed{Limit: b.Rate, Bytes: u.Bytes, Dropped: u.Dropped, Waiting: int64(u.Waiting)}
	}
	return driver.Traffic{To: flow(to, u[0]), From: flow(from, u[1])}, to.Rate != 0 || from.Rate != 0, err
}

// Uplink is what the host's way to others carries.
func (d *Driver) Uplink() int64 {
	if d.plan.uplink != 0 {
		return d.plan.uplink
	}
	return d.uplink.Load()
}

// speed is what an interface says it carries, in bits per second; 0: nothing.
func speed(name string) int64 {
	b, err := os.ReadFile(filepath.Join("/sys/class/net", name, "speed"))
	if err != nil {
		return 0 // such as a bridge without ports, which has no speed
	}
	mbits, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || mbits <= 0 {
		return 0
	}
	return mbits * 1e6
}
