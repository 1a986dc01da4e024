package driver

import (
	"context"

	"atoll/api"
)

// Shaper is a Network that bounds what instances send and receive. An optional ability: a Network without it
// refuses an instance that has limits. Attach bounds at once; Shape moves the bounds while the instance runs.
type Shaper interface {
	// Shape bounds a cable from now on. errs.NotFound when it is not there.
	Shape(ctx context.Context, c Cable, to, from api.Band) error
	// Traffic reads what passed the cables that there are, by those that are bounded in either direction.
	Traffic(ctx context.Context) (map[Cable]Traffic, error)
	// Uplink is what the host's way to others carries in each direction, in bits per second; 0: nobody knows. It
	// does no I/O to speak of.
	Uplink() int64
}

// Cable is an interface of an instance.
type Cable struct {
	ID   string // of the instance
	Name string // inside; "eth0" on the host's own bridge
}

// Traffic is what passed a cable to the instance and from it, since it was bounded. It never falls while the
// direction stays bounded.
type Traffic struct{ To, From Passed }

// Passed is of one direction; zero where it is not bounded.
type Passed struct {
	Limit   int64  // bits per second, that is in force
	Bytes   uint64 // of frames with their Ethernet headers
	Dropped uint64 // packets that there was no room for
	Waiting int64  // bytes that wait now
}

// BandsOf are the bounds of each of an instance's cables when it is attached: until somebody moves them, an
// instance with several has an equal part of its limits on each, so that it never has more than all.
func (s Spec) BandsOf() (to, from api.Band) {
	if b := s.Network.Bands; b != nil {
		to, from = b[0], b[1]
	} else if s.Instance != nil {
		to, from = s.Instance.Spec.Bands()
	}
	n := max(int64(len(s.Network.Interfaces)), 1)
	for _, b := range []*api.Band{&to, &from} {
		if b.Limit != 0 {
			b.Limit = max(b.Limit/n, 1)
		}
	}
	return to, from
}
