package shape

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// turn has what comes in at a port wait on its ifb device. The bucket is there before the first packet goes
// that way.
func (s *Shaper) turn(p Port, b Band) error {
	l, err := s.device(p)
	if err != nil {
		return err
	}
	if err := s.bucket(l.Attrs().Index, b); err != nil {
		return err
	}
	if err := s.h.LinkSetUp(l); err != nil {
		return kernelError("bring up "+p.Turn, err)
	}
	q := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: p.Index, Handle: clsact, Parent: netlink.HANDLE_CLSACT}}
	if err := s.h.QdiscAdd(q); err != nil && !errors.Is(err, unix.EEXIST) {
		return kernelError("add clsact", err)
	}
	old, to, err := s.signpost(p.Index)
	if err != nil || old != nil && to == l.Attrs().Index {
		return err
	}
	if old != nil { // it leads to a device that is gone: what came in was lost there
		if err := s.h.FilterDel(old); err != nil && !errors.Is(err, unix.ENOENT) {
			return kernelError("remove the turn of before", err)
		}
	}
	redirect := netlink.NewMirredAction(l.Attrs().Index)
	if err := s.h.FilterAdd(&netlink.U32{FilterAttrs: signpostAt(p.Index), Actions: []netlink.Action{redirect}}); err != nil {
		return kernelError("lead to "+p.Turn, err)
	}
	return nil
}

// straight takes the turn away again, the way to it first; what waits there is lost.
func (s *Shaper) straight(p Port) error {
	old, _, err := s.signpost(p.Index)
	if err != nil {
		return err
	}
	if old != nil {
		if err := s.h.FilterDel(old); err != nil && !errors.Is(err, unix.ENOENT) {
			return kernelError("remove the turn", err)
		}
	}
	return s.Clear(p.Turn)
}

// device makes the ifb device.
func (s *Shaper) device(p Port) (netlink.Link, error) {
	l, err := s.link(p.Turn)
	if err != nil {
		return nil, err
	}
	if l == nil {
		if err := s.h.LinkAdd(&netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: p.Turn, TxQLen: 1000, NumTxQueues: 1, NumRxQueues: 1}}); err != nil {
			return nil, kernelError("create "+p.Turn, err)
		}
		if l, err = s.link(p.Turn); err != nil {
			return nil, err
		}
		if l == nil {
			return nil, errs.New(errs.Unavailable, "interface %s is gone as soon as it is there", p.Turn)
		}
	}
	alias := aliasPrefix + p.ID
	if a := l.Attrs(); l.Type() != "ifb" || a.Alias != "" && a.Alias != alias { // without a name: of a life that was cut short
		return nil, errs.New(errs.Conflict, "interface %s exists and is not ours (alias %q)", p.Turn, a.Alias).WithHint("rename or remove it")
	}
	if l.Attrs().Alias == "" {
		if err := s.h.LinkSetAlias(l, alias); err != nil {
			return nil, kernelError("name "+p.Turn, err)
		}
	}
	return l, nil
}

func signpostAt(index int) netlink.FilterAttrs {
	return netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Protocol: unix.ETH_P_ALL, Priority: turnPriority}
}

// signpost finds what leads to the turn, and to which device; nil when nothing does.
func (s *Shaper) signpost(index int) (netlink.Filter, int, error) {
	fs, err := s.h.FilterList(device(index), netlink.HANDLE_MIN_INGRESS)
	if errors.Is(err, unix.EINVAL) {
		return nil, 0, nil // no clsact there
	}
	if err != nil {
		return nil, 0, kernelError("list turns", err)
	}
	var found netlink.Filter
	for _, f := range fs {
		u, ok := f.(*netlink.U32)
		if !ok || u.Priority != turnPriority {
			continue
		}
		found = f
		for _, a := range u.Actions {
			if m, ok := a.(*netlink.MirredAction); ok {
				return f, m.Ifindex, nil
			}
		}
	}
	return found, 0, nil
}
