package overlay

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/shape"
)

// turnName is the device on which what comes in by a wire waits; the wire has the same number.
func turnName(w *wire) string { return "as" + wireName(w)[2:] }

func (w *wire) port() shape.Port {
	return shape.Port{Index: w.Index, Turn: turnName(w), ID: w.key()}
}

// shape bounds what passes a wire, behind the wall. One that is not there is bounded when it is attached anew.
func (n *network) shape(w *wire) error {
	band := func(b api.Band) shape.Band { return shape.Band{Rate: b.Limit, Burst: b.Burst} }
	err := n.shaper.Set(w.port(), band(w.To), band(w.From))
	if err == nil {
		return nil
	}
	ns, perr := netlink.NewNamespace()
	if perr != nil {
		return errors.Join(err, perr)
	}
	defer ns.Close()
	if perr = shape.Probe(ns.FD()); errors.Is(perr, errs.Unsupported) {
		err = perr // the host cannot have limits at all
	}
	return fmt.Errorf("limits of %s: %w", w.ID, err)
}

// Shape bounds what passes a wire from now on.
func (d *Driver) Shape(_ context.Context, c driver.Cable, to, from api.Band) error {
	all, err := d.all()
	if err != nil {
		return err
	}
	for _, n := range all {
		if found, err := n.reshape(c, to, from); found || err != nil {
			return err
		}
	}
	return errs.New(errs.NotFound, "limits of %s: it has no interface %s on a network of its tenant here", c.ID, c.Name)
}

func (n *network) reshape(c driver.Cable, to, from api.Band) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.record.Wires, func(w *wire) bool { return w.ID == c.ID && w.Name == c.Name && w.Up })
	if i < 0 || !n.known {
		return false, nil
	}
	w := n.record.Wires[i]
	w.To, w.From = to, from // written down with whatever is written next: it is moved all the time
	if _, err := n.link.Link(wireName(w)); err != nil {
		return true, fmt.Errorf("limits of %s: %w", c.ID, err)
	}
	return true, n.shape(w)
}

// Traffic reads what passed the wires that are bounded.
func (d *Driver) Traffic(context.Context) (map[driver.Cable]driver.Traffic, error) {
	all, err := d.all()
	if err != nil {
		return nil, err
	}
	out := map[driver.Cable]driver.Traffic{}
	for _, n := range all {
		if err := n.traffic(out); err != nil {
			return nil, fmt.Errorf("network %s: %w", n.record.Net.Ref, err)
		}
	}
	return out, nil
}

func (n *network) traffic(out map[driver.Cable]driver.Traffic) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return nil
	}
	for _, w := range n.record.Wires {
		if w.To.Limit == 0 && w.From.Limit == 0 {
			continue
		}
		to, from, u, err := n.shaper.Bounds(w.port())
		if errors.Is(err, errs.NotFound) {
			continue // its instance has ended
		}
		if err != nil {
			return err
		}
		flow := func(b shape.Band, u shape.Use) driver.Passed {
			return driver.Passed{Limit: b.Rate, Bytes: u.Bytes, Dropped: u.Dropped, Waiting: int64(u.Waiting)}
		}
		out[driver.Cable{ID: w.ID, Name: w.Name}] = driver.Traffic{To: flow(to, u[0]), From: flow(from, u[1])}
	}
	return nil
}

// Uplink is the host's bridge's to know.
func (d *Driver) Uplink() int64 { return 0 }
