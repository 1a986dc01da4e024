package netlink

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// classifierPriority is before whatever others may add, and ours alone.
const classifierPriority = 1

// SetClassifier puts an eBPF program, by its file, on an interface of ns where packets come
// in, or with egress where they go out, for kernels that know no tcx. An earlier one of
// ours is replaced in one step, so that no packet passes between them.
func SetClassifier(ns *Namespace, index int, egress bool, p Classifier) error {
	return ns.Do(func() error {
		q := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
		if err := netlink.QdiscAdd(q); err != nil && !errors.Is(err, unix.EEXIST) {
			return kernelError("add clsact", err)
		}
		old, err := classifier(index, egress)
		if err != nil {
			return err
		}
		if old != nil && old.Name != p.Name {
			return errs.New(errs.Conflict, "interface %d has a classifier %q of another owner at priority %d", index, old.Name, classifierPriority).
				WithHint("remove it: tc filter del dev … pref %d", classifierPriority)
		}
		f := &netlink.BpfFilter{FilterAttrs: attrsOf(index, egress), Fd: p.FD, Name: p.Name, DirectAction: true}
		if err := netlink.FilterReplace(f); err != nil {
			return kernelError("set classifier", err)
		}
		return nil
	})
}

// UnsetClassifier takes ours away again. Nil when it is not there, nor the interface.
func UnsetClassifier(ns *Namespace, index int, egress bool, name string) error {
	return ns.Do(func() error {
		old, err := classifier(index, egress)
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		if err != nil || old == nil || old.Name != name {
			return err
		}
		if err := netlink.FilterDel(old); err != nil && !errors.Is(err, unix.ENOENT) {
			return kernelError("remove classifier", err)
		}
		return nil
	})
}

// ClassifierOf is the program on an interface; 0 when it is none of that name.
func ClassifierOf(ns *Namespace, index int, egress bool, name string) (id int, err error) {
	err = ns.Do(func() error {
		old, err := classifier(index, egress)
		if err == nil && old != nil && old.Name == name {
			id = old.Id
		}
		return err
	})
	return id, err
}

// Classifier is a program to put on an interface.
type Classifier struct {
	FD   int
	Name string // by which it is known as ours
}

func attrsOf(index int, egress bool) netlink.FilterAttrs {
	parent := uint32(netlink.HANDLE_MIN_INGRESS)
	if egress {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	return netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: classifierPriority}
}

// classifier finds what is at our place; nil when nothing is.
func classifier(index int, egress bool) (*netlink.BpfFilter, error) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil, errs.New(errs.NotFound, "no interface %d", index)
		}
		return nil, kernelError("look for an interface", err)
	}
	fs, err := netlink.FilterList(link, attrsOf(index, egress).Parent)
	if errors.Is(err, unix.EINVAL) {
		return nil, nil // no clsact there
	}
	if err != nil {
		return nil, kernelError("list classifiers", err)
	}
	for _, f := range fs {
		a := f.Attrs()
		if b, ok := f.(*netlink.BpfFilter); ok && a.Priority == classifierPriority && a.Handle == 1 {
			return b, nil
		}
	}
	return nil, nil
}
