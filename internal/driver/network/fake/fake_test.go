package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"atoll/internal/driver"
	"atoll/internal/driver/drivertest"
	"atoll/internal/errs"
)

func TestConformance(t *testing.T) {
	drivertest.Network(t, func(t *testing.T) drivertest.NetworkHost {
		host := &Host{}
		open := func() driver.Network {
			d, err := NewOn(host, Config{CheckNetNS: true})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		return drivertest.NetworkHost{Network: open(), Reopen: open,
			NetNS:   func() string { return fmt.Sprintf("/proc/%d/ns/net", os.Getpid()) },
			Address: func(n int) string { return fmt.Sprintf("10.88.0.%d", n+1) }}
	})
}

func TestFail(t *testing.T) {
	d, err := New(driver.Deps{}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	d.Fail(errs.New(errs.Unavailable, "cable cut"))
	for what, err := range map[string]error{"detach": d.Detach(context.Background(), "a"), "teardown": d.Teardown(context.Background())} {
		if !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	d.Fail(nil)
	if err := d.Detach(context.Background(), "a"); err != nil {
		t.Error(err)
	}
	if _, err := New(driver.Deps{}, Config{Subnet: "10.0.0/8"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("bad subnet: %v", err)
	}
}
