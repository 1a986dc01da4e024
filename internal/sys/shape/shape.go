// Package shape is the door to the kernel's traffic control: it bounds what passes the host's end of an
// instance's cable, in each direction by a token bucket (HTB) with a queue of its own.
//
// What goes to the instance is held back where it leaves the host's end. What the instance sends comes in there,
// where nothing can wait, so it makes a turn by an ifb device of the same namespace, on which it waits, and
// then goes on as if it had just come in. Both are the host's: what is inside the instance is not asked. A
// program at the hook before (tcx, or a classifier of a lower number) sees a packet first, and once.
//
// Everything is in the kernel and stays there when this process ends. It starts no goroutines. It must
// never change a device that the caller did not name, nor another's classifier.
package shape

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

const (
	turnPriority = 2 // behind a classifier of the wall's, which is at 1
	aliasPrefix  = "atoll "
	leastBurst   = 32 << 10
	// Queues hold what the rate lets pass in that time, within bounds: shorter ones starve TCP, longer ones
	// make everything wait.
	queueMillis = 50
	leastQueue  = 128 << 10
	mostQueue   = 8 << 20
)

var (
	root   = netlink.MakeHandle(1, 0)
	class  = netlink.MakeHandle(1, 1)
	leaf   = netlink.MakeHandle(10, 0)
	clsact = netlink.MakeHandle(0xffff, 0)
)

// Band is what one direction lets pass.
type Band struct {
	Rate  int64 // bits per second, of frames with their Ethernet header; 0: all
	Burst int64 // bytes that pass at once after a pause; 0: what the rate lets pass in 10 ms, at least 32 KiB
}

func (b Band) burst() int64 {
	if b.Burst > 0 {
		return b.Burst
	}
	return max(b.Rate/8/100, leastBurst)
}

func (b Band) queue() int64 {
	return min(max(b.Rate/8*queueMillis/1000, leastQueue, b.burst()), mostQueue)
}

// Port is the host's end of a cable.
type Port struct {
	Index int    // of the device
	Turn  string // name of the ifb device, up to 15 bytes
	ID    string // in its alias: whose it is
}

// Use is what passed since the bucket was made.
type Use struct {
	Bytes   uint64
	Dropped uint64 // packets that the queue had no room for
	Waiting uint32 // bytes in the queue
}

// Shaper works in one network namespace. It may be used by one goroutine at a time.
type Shaper struct {
	h   *netlink.Handle
	raw map[int]*nl.SocketHandle // for what the handle has no words for
}

// Open opens the namespace of a file; a negative number means the one the process runs in.
func Open(fd int) (*Shaper, error) {
	ns := netns.None()
	if fd >= 0 {
		ns = netns.NsHandle(fd)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, kernelError("open netlink socket", err)
	}
	sock, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, kernelError("open netlink socket", err)
	}
	return &Shaper{h: h, raw: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: sock}}}, nil
}

// Close releases the sockets.
func (s *Shaper) Close() {
	s.h.Close()
	for _, r := range s.raw {
		r.Close()
	}
}

// Set makes both directions be as said. Called again it changes what differs and loses no packet.
func (s *Shaper) Set(p Port, to, from Band) error {
	if err := s.bucket(p.Index, to); err != nil {
		return fmt.Errorf("limit of what comes: %w", err)
	}
	if from.Rate == 0 {
		return s.straight(p)
	}
	if err := s.turn(p, from); err != nil {
		return fmt.Errorf("limit of what is sent: %w", err)
	}
	return nil
}

// Clear removes what a port has beside the device itself, which takes its own with it. Nil when there is nothing.
func (s *Shaper) Clear(turn string) error {
	l, err := s.link(turn)
	if err != nil || l == nil {
		return err
	}
	if l.Type() != "ifb" {
		return errs.New(errs.Conflict, "interface %s exists and is not ours", turn).WithHint("rename or remove it")
	}
	if err := s.h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return kernelError("remove "+turn, err)
	}
	return nil
}

// Bounds reads what a port is bounded to and what passed, to it and from it; a direction without a limit has zero Bands.
func (s *Shaper) Bounds(p Port) (to, from Band, uses [2]Use, err error) {
	if to, uses[0], err = s.read(p.Index); err != nil {
		return to, from, uses, err
	}
	l, err := s.link(p.Turn)
	if err != nil || l == nil {
		return to, from, uses, err
	}
	from, uses[1], err = s.read(l.Attrs().Index)
	return to, from, uses, err
}

func (s *Shaper) read(index int) (Band, Use, error) {
	cs, err := s.h.ClassList(device(index), 0)
	if err != nil {
		return Band{}, Use{}, kernelError("read limits", err)
	}
	for _, c := range cs {
		h, ok := c.(*netlink.HtbClass)
		if !ok || h.Handle != class {
			continue
		}
		b := Band{Rate: int64(h.Rate) * 8} //nolint:gosec // a rate we gave
		b.Burst = int64(h.Buffer) * 64 * int64(h.Rate) / 1e9
		u := Use{}
		if st := h.Statistics; st != nil {
			u = Use{Bytes: st.Basic.Bytes, Dropped: uint64(st.Queue.Drops), Waiting: st.Queue.Backlog}
		}
		return b, u, nil
	}
	return Band{}, Use{}, nil
}

// device names one by its index where only that is asked for.
func device(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// link finds a device; nil when there is none.
func (s *Shaper) link(name string) (netlink.Link, error) {
	l, err := s.h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, kernelError("look up "+name, err)
	}
	return l, nil
}

// bucket puts one on what leaves a device, changes it, or takes it away.
func (s *Shaper) bucket(index int, b Band) error {
	have, err := s.rooted(index)
	if err != nil {
		return err
	}
	if b.Rate == 0 {
		if !have {
			return nil
		}
		q := &netlink.GenericQdisc{QdiscType: "htb", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: root, Parent: netlink.HANDLE_ROOT}}
		if err := s.h.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return kernelError("remove limit", err)
		}
		return nil
	}
	if !have {
		// What fits no class passes unbounded: the only class is the default one, and it is there at once.
		q := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: root, Parent: netlink.HANDLE_ROOT})
		q.Defcls = 1
		if err := s.h.QdiscReplace(q); err != nil {
			return kernelError("add limit", err)
		}
	}
	bytes := max(b.Rate/8, 1)
	ticks := min(b.burst()*1e9/64/bytes, 1<<31) // the kernel counts bursts in time, by 64 ns
	c := &netlink.HtbClass{ClassAttrs: netlink.ClassAttrs{LinkIndex: index, Handle: class, Parent: root},
		Rate: uint64(bytes), Ceil: uint64(bytes), Buffer: uint32(ticks), Cbuffer: uint32(ticks), Quantum: 60000} //nolint:gosec // positive
	if err := s.h.ClassReplace(c); err != nil {
		return kernelError("set limit", err)
	}
	return s.queue(index, b.queue())
}

// rooted reports whether our bucket is on a device. It asks for just that: a list would be of all devices.
func (s *Shaper) rooted(index int) (bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETQDISC, unix.NLM_F_ACK)
	req.Sockets = s.raw
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: root}) //nolint:gosec // an index
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("htb")))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // none, or of another kind
		return false, nil
	}
	if err != nil {
		return false, kernelError("look for a limit", err)
	}
	return true, nil
}

// queue bounds what waits, in bytes: with large segments the kernel's own bound, in packets, would be minutes.
func (s *Shaper) queue(index int, bytes int64) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.Sockets = s.raw
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: leaf, Parent: class}) //nolint:gosec // an index
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bfifo")))
	req.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, nl.Uint32Attr(uint32(bytes)))) //nolint:gosec // mostQueue
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return kernelError("set queue", err)
	}
	return nil
}
