package container

import "atoll/internal/driver"

var (
	_ driver.Runtime  = (*Runtime)(nil)
	_ driver.Execer   = (*Runtime)(nil)
	_ driver.Attacher = (*Runtime)(nil)
	_ driver.Logger   = (*Runtime)(nil)
	_ driver.Copier   = (*Runtime)(nil)
	_ driver.Dialer   = (*Runtime)(nil)
	_ driver.Measurer = (*Runtime)(nil)
)
