package fabric

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// The pcap format, with times in nanoseconds: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html.
const (
	pcapMagic    = 0xa1b23c4d
	pcapEthernet = 1
	pcapHeader   = 24
	pcapRecord   = 16
)

func pcapBegin(snaplen int) []byte {
	b := make([]byte, 0, pcapHeader)
	b = binary.LittleEndian.AppendUint32(b, pcapMagic)
	b = binary.LittleEndian.AppendUint16(b, 2) // version 2.4
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(snaplen))
	return binary.LittleEndian.AppendUint32(b, pcapEthernet)
}

func pcapFrame(b []byte, f driver.Frame) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(f.At.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(f.At.Nanosecond()))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Data)))
	b = binary.LittleEndian.AppendUint32(b, uint32(f.Size))
	return append(b, f.Data...)
}

// Phases of the progress of a capture.
const (
	captureOn   = "capturing"
	captureLost = "lost"
)

// flushEvery is how long packets wait for company on their way to the caller.
const flushEvery = 200 * time.Millisecond

// capture is one that is under way.
type capture struct {
	req  api.CaptureRequest
	want filter
	out  io.Writer

	mu   sync.Mutex // guards all below
	buf  []byte
	seen int
}

var errEnough = errors.New("that was all that was asked for")

// Capture writes the packets of an instance's wire to out as pcap, until so many were seen or the time is over.
// netns is the instance's: there it is done when it is on none of its tenant's networks. Who asks was authorized by the
// API already.
func (f *Fabric) Capture(ctx context.Context, instance api.Ref, netns string, req api.CaptureRequest, out io.Writer, progress func(api.Progress)) error {
	req.Defaults()
	if err := errs.InvalidFields("capture", req.Validate()); err != nil {
		return err
	}
	t, ok := f.Driver.(driver.Tapper)
	if !ok {
		return errs.New(errs.Unsupported, "the network driver of this host cannot capture packets")
	}
	vni, addr, err := f.wireOf(instance, req.Network)
	if err != nil {
		return err
	}
	if !addr.IsValid() && netns == "" {
		return errs.New(errs.Conflict, "%s has no network of its own", instance.Name)
	}
	c := &capture{req: req, want: filterOf(req), out: out, buf: pcapBegin(req.Snaplen)}
	if err := c.flush(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, req.For)
	defer cancel()
	var wg sync.WaitGroup
	var sent error
	wg.Go(func() {
		for f.Clock.Sleep(ctx, flushEvery) == nil {
			if sent = c.flush(); sent != nil { // the caller is gone
				cancel()
				return
			}
			progress(api.Progress{ID: instance.Name, Phase: captureOn, Current: int64(c.count()), Total: int64(req.Count)})
		}
	})
	var lost uint64
	if addr.IsValid() {
		lost, err = t.Tap(ctx, vni, addr, req.Snaplen, c.take)
	} else {
		lost, err = t.TapInside(ctx, netns, req.Snaplen, c.take)
	}
	cancel()
	wg.Wait()
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err := errors.Join(sent, err, c.flush()); err != nil {
		return fmt.Errorf("capture on %s: %w", instance.Name, err)
	}
	progress(api.Progress{ID: instance.Name, Phase: captureOn, Current: int64(c.count()), Total: int64(req.Count)})
	if lost > 0 {
		progress(api.Progress{ID: instance.Name, Phase: captureLost, Current: int64(lost)})
	}
	return nil
}

// wireOf is the network and address of an instance here; none when it is on no network of its tenant.
func (f *Fabric) wireOf(instance api.Ref, network string) (uint32, netip.Addr, error) {
	ref := api.Ref{Kind: api.KindEndpoint, Tenant: instance.Tenant, Name: instance.Name}
	f.mu.Lock()
	defer f.mu.Unlock()
	on, here := f.here[ref]
	for _, r := range on {
		n := f.nets[r]
		if n == nil || network != "" && r.Name != network {
			continue
		}
		if ms := n.members[ref]; len(ms) > 0 {
			return n.net.VNI, ms[0].Addr, nil
		}
	}
	if network != "" || here && len(on) > 0 {
		e := errs.InvalidFields("capture", []errs.Field{{Field: "network", Value: network, Rule: instance.Name + " must be on it, and it must be here", Example: "main"}})
		return 0, netip.Addr{}, e
	}
	return 0, netip.Addr{}, nil
}

func (c *capture) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// captureRoom is how much waits at most for a caller who reads slowly; then the kernel's buffer fills, and it counts what is lost.
const captureRoom = 1 << 20

func (c *capture) take(f driver.Frame) error {
	if !c.want.has(f.Data) {
		return nil
	}
	c.mu.Lock()
	c.buf = pcapFrame(c.buf, f)
	c.seen++
	full, enough := len(c.buf) >= captureRoom, c.seen >= c.req.Count
	c.mu.Unlock()
	if full {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if enough {
		return errEnough
	}
	return nil
}

// flush sends what has come. It holds the lock, so that parts stay in order.
func (c *capture) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.out.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

// filter is which packets are wanted.
type filter struct {
	host  netip.Addr
	port  uint16
	proto string
}

func filterOf(r api.CaptureRequest) filter {
	a, _ := netip.ParseAddr(r.Host) // checked before; without one, any
	return filter{a.Unmap(), r.Port, r.Proto}
}

// has reports whether an Ethernet frame is wanted. What cannot be read is not, unless everything is.
func (f filter) has(b []byte) bool {
	if f == (filter{}) {
		return true
	}
	if len(b) < 14 {
		return false
	}
	typ, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	switch typ {
	case 0x0806:
		return f.arp(b)
	case 0x0800:
		if len(b) < 20 || int(b[0]&15)*4 < 20 || len(b) < int(b[0]&15)*4 {
			return false
		}
		first := binary.BigEndian.Uint16(b[6:])&0x1fff == 0 // later fragments have no ports
		return f.ip(netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9], first, b[int(b[0]&15)*4:])
	case 0x86dd:
		if len(b) < 40 {
			return false
		}
		return f.ip(netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6], true, b[40:])
	}
	return false
}

func (f filter) arp(b []byte) bool {
	if f.port != 0 || f.proto != "" && f.proto != "arp" || len(b) < 28 {
		return false
	}
	return !f.host.IsValid() || netip.AddrFrom4([4]byte(b[14:])) == f.host || netip.AddrFrom4([4]byte(b[24:])) == f.host
}

func (f filter) ip(src, dst netip.Addr, proto uint8, first bool, rest []byte) bool {
	if f.host.IsValid() && src != f.host && dst != f.host || f.proto != "" && api.ProtocolWord(proto) != f.proto {
		return false
	}
	if f.port == 0 {
		return true
	}
	if !first || proto != 6 && proto != 17 || len(rest) < 4 {
		return false
	}
	return binary.BigEndian.Uint16(rest) == f.port || binary.BigEndian.Uint16(rest[2:]) == f.port
}
