package netlink

import (
	"errors"
	"net/netip"
	"testing"

	"atoll/internal/errs"
	"atoll/internal/sys/systest"
)

// TestKernelWireguard makes a device of the kernel's, where there is one.
func TestKernelWireguard(t *testing.T) {
	if !systest.Apart(t) {
		return
	}
	if err := ProbeWireguard(); errors.Is(err, errs.Unsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.CreateWireguard("wgtest0"); err != nil {
		t.Fatal(err)
	}
	if err := h.CreateWireguard("wgtest0"); !errors.Is(err, errs.Exists) {
		t.Errorf("a second one: %v", err)
	}
	l, err := h.Link("wgtest0")
	if err != nil || l.Kind != KindWireguard {
		t.Fatalf("%+v, %v", l, err)
	}
	addr := netip.MustParsePrefix("fd61:746f:6c6c::7/64")
	if err := h.Dress(l, "test", 1420, addr); err != nil {
		t.Fatal(err)
	}
	if l, err = h.Link("wgtest0"); err != nil || l.ID() != "test" || l.MTU != 1420 || !l.Up {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err = h.LinkWith(addr.Addr()); err != nil || l.Name != "wgtest0" {
		t.Errorf("%+v, %v", l, err)
	}
}
