// Package uplink drops what comes from listed prefixes where it enters the host: an XDP program on the interfaces
// with a default route, there only while the list is not empty. Natively where the interface's driver can, and
// otherwise in the kernel's generic way.
//
// The list is kept by the kernel, in the program's own table, and works on when the daemon dies; a later life finds
// it by the program on the interface. It starts no goroutines. It must never replace a program that is not ours.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

//go:generate ./generate.sh

const (
	progName = "atoll_drop"
	anyMap   = "drops_"
	mapName  = anyMap + "1" // of this build
	mostList = 1 << 16
)

// List is a driver.Barrier.
type List struct {
	mu sync.Mutex
	// Interfaces names the uplinks; nil: those with a default route.
	Interfaces func() ([]netlink.Link, error)
}

var _ driver.Barrier = (*List)(nil)

// New makes it; it does no I/O.
func New() *List { return &List{} }

type key struct {
	Bits uint32
	Addr [16]byte
}

type count struct{ Packets, Bytes uint64 }

func keyOf(p netip.Prefix) key {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return key{Bits: uint32(bits), Addr: p.Masked().Addr().As16()} //nolint:gosec // 0 to 128
}

func (k key) prefix() netip.Prefix {
	a := netip.AddrFrom16(k.Addr)
	if a.Is4In6() && k.Bits >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(k.Bits)-96)
	}
	return netip.PrefixFrom(a, int(k.Bits))
}

// Drop makes these the prefixes whose packets are dropped; none: the program goes.
func (l *List) Drop(_ context.Context, prefixes []netip.Prefix) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(prefixes) > mostList {
		return errs.New(errs.Invalid, "%d prefixes to drop: at most %d fit", len(prefixes), mostList)
	}
	h, err := netlink.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := l.links(h)
	if err != nil {
		return err
	}
	var all error
	for _, x := range links {
		if err := l.set(h, x, prefixes); err != nil {
			all = errors.Join(all, fmt.Errorf("drop list at %s: %w", x.Name, err))
		}
	}
	return all
}

// links are the uplinks, and whatever else has the program from when it was one.
func (l *List) links(h *netlink.Handle) ([]netlink.Link, error) {
	if l.Interfaces != nil {
		return l.Interfaces()
	}
	return h.Uplinks()
}

func (l *List) set(h *netlink.Handle, x netlink.Link, prefixes []netip.Prefix) error {
	have, err := ours(h, x.Index)
	if err != nil {
		return err
	}
	if have != nil {
		defer have.close()
	}
	if len(prefixes) == 0 {
		if have == nil {
			return nil
		}
		return h.UnsetXDP(x.Index, have.native)
	}
	if have != nil && have.current {
		return have.fill(prefixes)
	}
	// The new program begins with the whole list, and takes the place of the old one in one step.
	next, err := loadNew()
	if err != nil {
		return err
	}
	defer next.close()
	if err := next.fill(prefixes); err != nil {
		return err
	}
	if have != nil {
		return h.SetXDP(x.Index, next.prog.FD(), have.native, true)
	}
	err = h.SetXDP(x.Index, next.prog.FD(), true, false)
	if err != nil && errs.KindOf(err) != errs.Exists {
		err = h.SetXDP(x.Index, next.prog.FD(), false, false)
	}
	if errs.KindOf(err) == errs.Exists {
		return errs.New(errs.Conflict, "a program of another owner is there").WithHint("remove it: ip link set dev %s xdp off", x.Name)
	}
	return err
}

// loaded is a program with its table.
type loaded struct {
	prog    *ebpf.Program
	table   *ebpf.Map
	native  bool
	current bool // of this build
}

func (p *loaded) close() {
	p.prog.Close()
	p.table.Close()
}

func spec() (*ebpf.CollectionSpec, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, unsupported(err)
	}
	s, err := loadDrop()
	if err != nil {
		return nil, errs.New(errs.Internal, "the embedded eBPF object: %w", err)
	}
	s.Maps[mapName].MaxEntries = mostList
	return s, nil
}

func loadNew() (*loaded, error) {
	s, err := spec()
	if err != nil {
		return nil, err
	}
	c, err := ebpf.NewCollection(s)
	if err != nil {
		return nil, unsupported(err)
	}
	return &loaded{prog: c.Programs[progName], table: c.Maps[mapName]}, nil
}

func unsupported(err error) error {
	return errs.New(errs.Unsupported, "drop list at the uplink: %w", err).WithHint("it needs root and a kernel with XDP and LPM tables")
}

// ours finds the program on an interface; nil when there is none. errs.Conflict when it is another's.
func ours(h *netlink.Handle, index int) (*loaded, error) {
	id, native, err := h.XDP(index)
	if err != nil || id == 0 {
		return nil, err
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return nil, fmt.Errorf("open program %d: %w", id, err)
	}
	info, err := p.Info()
	if err != nil || info.Name != progName {
		p.Close()
		if err == nil {
			err = errs.New(errs.Conflict, "a program %q of another owner is there", info.Name).WithHint("remove it: ip link set dev … xdp off")
		}
		return nil, err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue // it is looked for below
		}
		if mi, err := m.Info(); err == nil && strings.HasPrefix(mi.Name, anyMap) {
			return &loaded{prog: p, table: m, native: native, current: mi.Name == mapName}, nil
		}
		m.Close()
	}
	p.Close()
	return nil, errs.New(errs.Internal, "program %d has no table", id)
}

// fill makes the table hold just these; counters of those that stay go on.
func (p *loaded) fill(prefixes []netip.Prefix) error {
	want := map[key]bool{}
	for _, x := range prefixes {
		want[keyOf(x)] = true
	}
	have, err := p.counts()
	if err != nil {
		return err
	}
	for k := range want {
		if _, ok := have[k]; ok {
			continue
		}
		if err := p.table.Put(k, count{}); err != nil {
			return fmt.Errorf("drop %s: %w", k.prefix(), err)
		}
	}
	for k := range have {
		if !want[k] {
			if err := p.table.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("let %s pass again: %w", k.prefix(), err)
			}
		}
	}
	return nil
}

func (p *loaded) counts() (map[key]count, error) {
	out := map[key]count{}
	it := p.table.Iterate()
	var k key
	var c count
	for it.Next(&k, &c) {
		out[k] = c
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read the drop list: %w", err)
	}
	return out, nil
}

// Dropped is what was dropped on all uplinks since a prefix is on the list.
func (l *List) Dropped(context.Context) (map[netip.Prefix]uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, err := netlink.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := l.links(h)
	if err != nil {
		return nil, err
	}
	out := map[netip.Prefix]uint64{}
	for _, x := range links {
		p, err := ours(h, x.Index)
		if errs.KindOf(err) == errs.Conflict {
			continue
		}
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		cs, err := p.counts()
		p.close()
		if err != nil {
			return nil, err
		}
		for k, c := range cs {
			out[k.prefix()] += c.Packets
		}
	}
	return out, nil
}

// Own are addresses that must not be dropped: the host's, and its gateways.
func (l *List) Own(context.Context) ([]netip.Addr, error) {
	h, err := netlink.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	ps, err := h.Addrs(0)
	if err != nil {
		return nil, err
	}
	gws, err := h.Gateways()
	if err != nil {
		return nil, err
	}
	for _, p := range ps {
		gws = append(gws, p.Addr().Unmap())
	}
	slices.SortFunc(gws, netip.Addr.Compare)
	return slices.Compact(gws), nil
}
