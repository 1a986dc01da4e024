package driver

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
)

// UplinkPrefix begins the IDs of tenants' networks on the host's own bridge: no instance has such a one.
const UplinkPrefix = "net-"

// WayPrefix begins the names of the host's ends of cables by which networks of tenants go out without the bridge.
const WayPrefix = "atollw"

// Beside makes the host's own bridge and the networks of tenants one Network: an instance is
// on the one or on the others. The bridge is also how those reach what is outside.
func Beside(bridge Network, fabric Fabric) Network {
	if u, ok := fabric.(Upstream); ok {
		u.Through(bridge)
	}
	return &beside{bridge: bridge, fabric: fabric}
}

type beside struct {
	bridge Network
	fabric Fabric

	mu      sync.Mutex
	bridged map[string]bool // instances on the bridge; nil: not asked yet
}

// Probe is the bridge's: a host without networks of tenants is one all the same.
func (b *beside) Probe(ctx context.Context) (api.Capability, error) { return b.bridge.Probe(ctx) }

// Attach takes an instance off the one before it is put on the other.
func (b *beside) Attach(ctx context.Context, netns string, s Spec) error {
	if s.Network.Mode != ModeOverlay {
		if err := b.fabric.Detach(ctx, s.ID); err != nil {
			return err
		}
		if err := b.bridge.Attach(ctx, netns, s); err != nil {
			return err
		}
		return b.note(ctx, s.ID, true)
	}
	on, err := b.on(ctx, s.ID)
	if err != nil {
		return err
	}
	if on {
		if err := b.bridge.Detach(ctx, s.ID); err != nil {
			return err
		}
		if err := b.note(ctx, s.ID, false); err != nil {
			return err
		}
	}
	return b.fabric.Attach(ctx, netns, s)
}

// on tells whether an instance is on the bridge, without asking the kernel each time.
func (b *beside) on(ctx context.Context, id string) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.look(ctx); err != nil {
		return false, err
	}
	return b.bridged[id], nil
}

func (b *beside) note(ctx context.Context, id string, on bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.look(ctx); err != nil {
		return err
	}
	if b.bridged[id] = on; !on {
		delete(b.bridged, id)
	}
	return nil
}

func (b *beside) look(ctx context.Context) error {
	if b.bridged != nil {
		return nil
	}
	ids, err := b.bridge.Observe(ctx)
	if err != nil {
		return err
	}
	b.bridged = map[string]bool{}
	for _, id := range ids {
		b.bridged[id] = true
	}
	return nil
}

// Observe lists instances; the ways out of networks are none.
func (b *beside) Observe(ctx context.Context) ([]string, error) {
	one, err := b.bridge.Observe(ctx)
	if err != nil {
		return nil, err
	}
	two, err := b.fabric.Observe(ctx)
	if err != nil {
		return nil, err
	}
	all := append(slices.DeleteFunc(one, func(id string) bool { return strings.HasPrefix(id, UplinkPrefix) }), two...)
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Detach removes an instance from both.
func (b *beside) Detach(ctx context.Context, id string) error {
	if err := errors.Join(b.fabric.Detach(ctx, id), b.bridge.Detach(ctx, id)); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.bridged, id)
	return nil
}

// Teardown removes both, networks of tenants first: they have cables on the bridge.
func (b *beside) Teardown(ctx context.Context) error {
	if err := b.fabric.Teardown(ctx); err != nil {
		return err
	}
	return b.bridge.Teardown(ctx)
}

// Reconcile puts back what others removed of both.
func (b *beside) Reconcile(ctx context.Context) error {
	for _, n := range []Network{b.bridge, b.fabric} {
		if r, ok := n.(Reconciler); ok {
			if err := r.Reconcile(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// Shape bounds a cable of the one or the other.
func (b *beside) Shape(ctx context.Context, c Cable, to, from api.Band) error {
	for _, n := range []Network{b.bridge, b.fabric} {
		s, ok := n.(Shaper)
		if !ok {
			continue
		}
		if err := s.Shape(ctx, c, to, from); !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	return errs.New(errs.NotFound, "limits of %s: it has no interface %s here", c.ID, c.Name)
}

// Traffic is that of both.
func (b *beside) Traffic(ctx context.Context) (map[Cable]Traffic, error) {
	all := map[Cable]Traffic{}
	for _, n := range []Network{b.bridge, b.fabric} {
		s, ok := n.(Shaper)
		if !ok {
			continue
		}
		t, err := s.Traffic(ctx)
		if err != nil {
			return nil, err
		}
		maps.Copy(all, t)
	}
	return all, nil
}

// Uplink is what the host's bridge knows: tunnels go by the same one.
func (b *beside) Uplink() int64 {
	if s, ok := b.bridge.(Shaper); ok {
		return s.Uplink()
	}
	return 0
}
