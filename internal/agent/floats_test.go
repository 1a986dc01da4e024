package agent

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"atoll/internal/driver"
)

type guards struct{ told []string }

func (g *guards) GuardAll(context.Context, map[string][]string) error { return nil }
func (g *guards) Guard(_ context.Context, id string, groups []string) error {
	g.told = append(g.told, id+" "+groups[0])
	return nil
}
func (g *guards) Unguard(string) {}

// An address is guarded once under each lease: with the one before, the watchdog has forgotten it.
func TestAddressesAreGuardedUnderEveryLease(t *testing.T) {
	g := &guards{}
	c := &floats{Agent: &Agent{Deps: Deps{Guard: g, Root: "atoll"}}}
	all := []driver.Floating{{Addr: netip.MustParseAddr("192.0.2.9")}}
	for _, rev := range []int64{3, 3, 7} {
		c.LeaseResumed(rev)
		if _, err := c.guardFloats(t.Context(), all); err != nil {
			t.Fatal(err)
		}
	}
	if one := "address-192.0.2.9 atoll/.address/192.0.2.9"; !slices.Equal(g.told, []string{one, one}) {
		t.Errorf("%q", g.told)
	}
}
