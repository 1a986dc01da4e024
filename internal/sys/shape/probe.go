package shape

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Probe tries everything out on a device of a namespace that is thrown away; fd is that namespace's. It removes
// nothing again: the kernel takes its time for that.
func Probe(fd int) error {
	s, err := Open(fd)
	if err != nil {
		return err
	}
	defer s.Close()
	const name = "atprobe0"
	if err := s.h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: 1000}, PeerName: "atprobe1"}); err != nil {
		return kernelError("create a veth", err)
	}
	l, err := s.link(name)
	if err != nil {
		return err
	}
	if l == nil {
		return errs.New(errs.Unavailable, "interface %s is gone as soon as it is there", name)
	}
	p := Port{Index: l.Attrs().Index, Turn: "atprobe2", ID: "probe"}
	if err := s.Set(p, Band{Rate: 1e6}, Band{Rate: 1e6}); err != nil {
		return errs.New(errs.Unsupported, "limits of the network: %w", err).
			WithHint("the kernel needs sch_htb, sch_ingress, cls_u32, act_mirred and ifb: modprobe sch_htb ifb cls_u32 act_mirred")
	}
	return nil
}

// kernelError gives an errno its kind.
func kernelError(step string, err error) error {
	var no syscall.Errno
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, os.ErrNotExist):
		// Of a qdisc, a filter or a kind of device that the kernel does not know it says the same.
		return errs.New(errs.NotFound, "%s: %w", step, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return errs.New(errs.Denied, "%s: %w", step, err).WithHint("this needs root with CAP_NET_ADMIN")
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return errs.New(errs.Unsupported, "%s: %w", step, err).WithHint("the kernel lacks it: modprobe sch_htb ifb cls_u32 act_mirred")
	case errors.As(err, &no) && no.Temporary():
		return errs.New(errs.Unavailable, "%s: %w", step, err)
	}
	return fmt.Errorf("%s: %w", step, err)
}
