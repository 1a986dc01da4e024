// Package host holds the controllers of what happens to whole hosts, one file each.
// Package control lists them; like those, they watch the store, decide, and commit.
//
// It starts no goroutine: the engine of package reconcile runs the controllers. It must
// never place anything: it asks for instances to leave, and placement finds them a place.
package host

import (
	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/policy"
)

// Deps is what the controllers are built from.
type Deps struct {
	Clock clock.Clock
	Chain policy.Chain
	Keep  policy.Keep
	Seed  uint64
	// AtOnce bounds how many instances drains have under way in the pool. Default 10.
	AtOnce int
	// Tell is told what happens to instances, for people; nil: nobody is.
	Tell Teller
}

// Teller notes that something happened to an object; typ is "normal" or "warning".
type Teller func(about api.Ref, uid, typ, reason, message string)

func (t Teller) of(in *api.Instance, typ, reason, message string) {
	if t != nil {
		t(api.RefOf(in), in.UID, typ, reason, message)
	}
}
