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
	_ driver.Grouper  = (*Runtime)(nil)
)

// Groups is the group the instance was made in; its supervisor is in it only where the
// tenant pays for it, and ends by itself otherwise.
func (r *Runtime) Groups(id string) []string {
	rec, err := r.load(id)
	if err != nil || rec.Cgroup == "" {
		return nil
	}
	return []string{rec.Cgroup}
}
