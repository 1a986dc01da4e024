// Package peer tells which process is at the other end of a unix socket, as the
// kernel recorded it when the connection was made. It owns no goroutines and
// must never trust anything the peer says about itself.
package peer

import (
	"net"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Cred is the peer at the time it connected.
type Cred struct {
	UID uint32
	GID uint32
	PID int32
}

// Of asks the kernel (SO_PEERCRED). errs.Unsupported when c is not a unix socket.
func Of(c net.Conn) (Cred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Cred{}, errs.New(errs.Unsupported, "peer credentials: %T is not a unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Cred{}, errs.New(errs.Unavailable, "peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = sockErr
	}
	if err != nil {
		return Cred{}, errs.New(errs.Unavailable, "peer credentials: %w", err)
	}
	return Cred{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
}
