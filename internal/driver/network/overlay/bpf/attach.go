package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

// Role is what an interface is in its network.
type Role uint8

// The roles.
const (
	RoleInstance Role = iota // the host's end of an instance's cable
	RoleBridge               // the network's bridge
	RoleVXLAN                // the network's VXLAN device
)

func (r Role) String() string { return [...]string{"instance", "bridge", "vxlan"}[r%3] }

// place is one hook of an interface and whose it is.
type place struct {
	prog   string
	egress bool
}

func (r Role) places() []place {
	switch r {
	case RoleBridge:
		return []place{{progHost, true}}
	case RoleVXLAN:
		return []place{{progVXLAN, false}}
	}
	return []place{{progFrom, false}, {progTo, true}}
}

func (p place) hook() ebpf.AttachType {
	if p.egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// Attach puts the programs of a role on an interface of a namespace, for good: they stay when
// this process ends, and go with the interface. One of an earlier life is replaced by the kernel in one
// step, under the hook's own lock, so there is never a packet that none of both sees. Where
// the kernel has tcx, ours is the first program there; on older kernels it is a classifier. On a
// kernel that was updated below us, a classifier of an earlier life goes only after tcx is in place.
func (w *Wall) Attach(ns *netlink.Namespace, ifindex int, r Role) error {
	for _, p := range r.places() {
		err := w.attachTCX(ns, ifindex, p)
		if errors.Is(err, ebpf.ErrNotSupported) {
			err = w.attachClassifier(ns, ifindex, p)
		} else if err == nil {
			err = netlink.UnsetClassifier(ns, ifindex, p.egress, p.prog)
		}
		if err != nil {
			return fmt.Errorf("attach %s to interface %d: %w", p.prog, ifindex, err)
		}
	}
	return nil
}

func (w *Wall) attachTCX(ns *netlink.Namespace, ifindex int, p place) error {
	if w.noTCX {
		return ebpf.ErrNotSupported
	}
	prog := w.progs[p.prog]
	want, err := programID(prog)
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		for range 8 {
			old, err := attached(ifindex, p)
			if err != nil || old.id == want {
				return err
			}
			// The revision says that nobody changed the hook since it was looked at.
			opts := link.RawAttachProgramOptions{Target: ifindex, Program: prog, Attach: p.hook(), Anchor: link.Head(), ExpectedRevision: old.revision}
			if old.id != 0 {
				// The kernel wants a file here, not a number.
				before, err := ebpf.NewProgramFromID(old.id)
				if errors.Is(err, os.ErrNotExist) {
					continue // it went away meanwhile
				}
				if err != nil {
					return fmt.Errorf("open program %d: %w", old.id, err)
				}
				defer before.Close()
				opts.Anchor = link.ReplaceProgram(before)
			}
			err = link.RawAttachProgram(opts)
			if !errors.Is(err, errStale) {
				return kernelError(err)
			}
		}
		return errs.New(errs.Unavailable, "the programs of interface %d change all the time", ifindex).WithHint("something else attaches programs there in a loop: bpftool net")
	})
}

// found is what is at a hook.
type found struct {
	id       ebpf.ProgramID // ours; 0: none
	revision uint64
}

// attached looks for a program of ours. It is known by its name, which a program of another
// life of this daemon has too.
func attached(ifindex int, p place) (found, error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: p.hook()})
	if errors.Is(err, errUnknown) {
		return found{}, ebpf.ErrNotSupported // a kernel before tcx does not know this kind of hook
	}
	if err != nil {
		return found{}, kernelError(err)
	}
	f := found{revision: res.Revision}
	for _, a := range res.Programs {
		prog, err := ebpf.NewProgramFromID(a.ID)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return found{}, fmt.Errorf("look at program %d: %w", a.ID, err)
		}
		info, err := prog.Info()
		prog.Close()
		if err != nil {
			return found{}, fmt.Errorf("look at program %d: %w", a.ID, err)
		}
		if info.Name == p.prog {
			f.id = a.ID
		}
	}
	return f, nil
}

func kernelError(err error) error {
	switch {
	case err == nil, errors.Is(err, ebpf.ErrNotSupported):
		return err
	case errors.Is(err, errNoDevice):
		return errs.New(errs.NotFound, "no such interface: %w", err)
	}
	return err
}

func (w *Wall) attachClassifier(ns *netlink.Namespace, ifindex int, p place) error {
	prog := w.progs[p.prog]
	want, err := programID(prog)
	if err != nil {
		return err
	}
	if id, err := netlink.ClassifierOf(ns, ifindex, p.egress, p.prog); err != nil || id == int(want) {
		return err
	}
	return netlink.SetClassifier(ns, ifindex, p.egress, netlink.Classifier{FD: prog.FD(), Name: p.prog})
}

// Attached reports whether an interface has this life's programs on all places of the role.
func (w *Wall) Attached(ns *netlink.Namespace, ifindex int, r Role) (bool, error) {
	for _, p := range r.places() {
		want, err := programID(w.progs[p.prog])
		if err != nil {
			return false, err
		}
		var f found
		err = ebpf.ErrNotSupported
		if !w.noTCX {
			err = ns.Do(func() error { f, err = attached(ifindex, p); return err })
		}
		if errors.Is(err, ebpf.ErrNotSupported) {
			var id int
			id, err = netlink.ClassifierOf(ns, ifindex, p.egress, p.prog)
			f.id = ebpf.ProgramID(id)
		}
		if err != nil || f.id != want {
			return false, err
		}
	}
	return true, nil
}

// Detach takes the programs of any life of ours off an interface. Nil when there are none, nor the interface.
// An interface without its programs is open: delete it instead, or take it down first.
func (w *Wall) Detach(ns *netlink.Namespace, ifindex int, r Role) error {
	for _, p := range r.places() {
		err := ns.Do(func() error {
			f, err := attached(ifindex, p)
			if err != nil || f.id == 0 {
				return err
			}
			prog, err := ebpf.NewProgramFromID(f.id)
			if err != nil {
				return err
			}
			defer prog.Close()
			return link.RawDetachProgram(link.RawDetachProgramOptions{Target: ifindex, Program: prog, Attach: p.hook()})
		})
		if errors.Is(err, errs.NotFound) || errors.Is(err, os.ErrNotExist) || errors.Is(err, ebpf.ErrNotSupported) {
			err = nil
		}
		if err == nil {
			err = netlink.UnsetClassifier(ns, ifindex, p.egress, p.prog)
		}
		if err != nil {
			return fmt.Errorf("detach %s from interface %d: %w", p.prog, ifindex, err)
		}
	}
	return nil
}
