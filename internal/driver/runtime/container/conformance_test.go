package container

import (
	"context"
	"testing"

	"atoll/internal/driver"
	"atoll/internal/driver/drivertest"
)

func contextForCleanup() context.Context { return context.Background() }

func TestConformance(t *testing.T) {
	drivertest.Runtime(t, func(t *testing.T) drivertest.Host {
		f := open(t)
		return drivertest.Host{Runtime: f.Runtime, Spec: f.spec, Reopen: func() driver.Runtime { return f.reopen() }}
	})
}
