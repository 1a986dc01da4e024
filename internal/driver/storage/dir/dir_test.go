package dir

import (
	"os"
	"testing"

	"atoll/internal/driver"
	"atoll/internal/driver/drivertest"
)

func TestConformance(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give directories away")
	}
	drivertest.Storage(t, func(t *testing.T) (driver.Storage, func() driver.Storage) {
		d := driver.Deps{State: t.TempDir()}
		open := func() driver.Storage {
			s, err := New(d, Config{})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := open()
		if _, err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s, open
	})
}
