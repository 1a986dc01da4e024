package verb

import (
	"errors"
	"syscall"

	"atoll/internal/errs"
)

// Explain adds what to do when the daemon cannot be reached at all.
func (c *Call) Explain(err error) error {
	s, serr := c.settings()
	if serr != nil || errs.KindOf(err) != errs.Unavailable {
		return err
	}
	var cause syscall.Errno
	if !errors.As(err, &cause) {
		return err
	}
	where, local := s.Socket, s.Server == ""
	if !local {
		where = s.Server
	}
	switch {
	case errors.Is(err, syscall.EACCES) && local:
		return errs.New(errs.Denied, "no permission to use %s", where).
			WithHint("sudo atoll …, or join the group that owns the socket (ls -l %s); then an administrator gives you a role: atoll user bind $USER ROLE --in TENANT", where)
	case errors.Is(err, syscall.ENOENT) && local, errors.Is(err, syscall.ECONNREFUSED) && local:
		return errs.New(errs.Unavailable, "no Atoll daemon answers on %s", where).
			WithHint("start it: make up, or atolld up; look into /var/log/atoll/atolld.log when it should be running; atoll doctor checks this host")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return errs.New(errs.Unavailable, "no Atoll server answers on %s", where).
			WithHint("check the URL (--server, ATOLL_SERVER, atoll login) and that the server runs")
	}
	return err
}
