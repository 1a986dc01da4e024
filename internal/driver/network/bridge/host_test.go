package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

// world is a host with an uplink to another machine.
type world struct {
	t       testing.TB
	d       *Driver
	cfg     Config
	deps    driver.Deps
	outside *netlink.Namespace // 192.0.2.9, routes everything to the host
	made    []io.Closer

	web, peer *netlink.Namespace // of furnish
	service   string             // what one outside gets from a service of the host
}

const (
	hostIP, outIP, gwIP = "192.0.2.1", "192.0.2.9", "10.88.0.1"
)

func newWorld(t testing.TB, cfg Config) *world {
	t.Helper()
	w := &world{t: t, cfg: cfg, deps: driver.Deps{Node: "isle1", State: t.TempDir(), Run: t.TempDir(), Clock: clock.Real{}, Log: slog.New(slog.DiscardHandler)}}
	w.reopen()
	if _, err := w.d.Probe(context.Background()); err != nil {
		if errors.Is(err, errs.Unsupported) && !kernelHasAll() {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	h, err := netlink.Open()
	w.must(err)
	defer h.Close()
	w.must(h.LoopbackUp())
	w.outside = w.namespace()
	up, err := h.EnsureBridge(netlink.Bridge{Name: "up0", ID: "test-uplink", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 1}, MTU: 1400, Addr: netip.MustParsePrefix(hostIP + "/24")})
	w.must(err)
	w.must(h.EnsurePort(w.outside, netlink.Port{Name: "upv0", ID: "test-uplink", Bridge: up, MTU: 1400, Peer: "eth0", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 9},
		Addr: netip.MustParsePrefix(outIP + "/24"), GW: netip.MustParseAddr(hostIP)}))
	w.must(h.AddDefaultRoute(up, netip.MustParseAddr(outIP)))
	t.Cleanup(func() {
		w.d.Close()
		for _, c := range w.made {
			c.Close()
		}
	})
	return w
}

// kernelHasAll asks the system's own tools, so that a fault of ours is never taken for
// a kernel that cannot.
func kernelHasAll() bool {
	for _, c := range []string{"ip link add t0 type bridge", "ip link add t1 type veth peer name t2", "nft add table inet t", "nft add table bridge t",
		"nft add chain inet t n { type nat hook output priority -100 ; }", "nft add rule inet t n fib daddr type local dnat ip to 10.0.0.1"} {
		f := strings.Fields(c)
		if exec.Command(f[0], f[1:]...).Run() != nil {
			return false
		}
	}
	return true
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reopen() *Driver {
	if w.d != nil {
		w.d.Close()
	}
	d, err := New(w.deps, w.cfg)
	w.must(err)
	w.d = d
	return d
}

func (w *world) namespace() *netlink.Namespace {
	w.t.Helper()
	ns, err := netlink.NewNamespace()
	w.must(err)
	w.made = append(w.made, ns)
	return ns
}

func spec(id, tenant string, addr string, ports ...api.Port) driver.Spec {
	in := &api.Instance{Head: api.Head{K: api.KindInstance}}
	in.Tenant, in.Name = tenant, id
	in.Spec.Ports = ports
	return driver.Spec{ID: id, Instance: in, Network: driver.NetworkSpec{Mode: "bridge", Address: addr}}
}

// start attaches an instance and answers on the given ports of it with "<id> <client's address>".
func (w *world) start(s driver.Spec, ports ...uint16) *netlink.Namespace {
	w.t.Helper()
	ns := w.namespace()
	w.must(w.d.Attach(context.Background(), ns.Path(), s))
	for _, p := range ports {
		w.serve(ns, s.ID, fmt.Sprintf("0.0.0.0:%d", p))
	}
	return ns
}

// in runs fn in a namespace; nil is the host.
func in(ns *netlink.Namespace, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return ns.Do(fn)
}

// serve answers on TCP and UDP.
func (w *world) serve(ns *netlink.Namespace, name, addr string) {
	w.t.Helper()
	w.must(in(ns, func() error {
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp4", addr)
		if err != nil {
			return err
		}
		w.made = append(w.made, l, u)
		go func() { // ends when the listener is closed
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %s", name, host)
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(from.String())
				u.WriteTo([]byte(name+" "+host), from)
			}
		}()
		return nil
	}))
}

const (
	wait    = 100 * time.Millisecond // for what must not happen
	patient = 3 * time.Second        // for what must
)

// ask connects and returns the answer; every failure to get one is the empty string.
func (w *world) ask(ns *netlink.Namespace, network, addr string, wait time.Duration) string {
	w.t.Helper()
	var answer string
	w.must(in(ns, func() error {
		c, err := net.DialTimeout(network, addr, wait)
		if err != nil {
			return nil
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait))
		if network == "udp4" {
			c.Write([]byte("?"))
		}
		buf := make([]byte, 128)
		n, _ := c.Read(buf)
		answer = string(buf[:n])
		return nil
	}))
	return answer
}

// reach asks by TCP and UDP and wants the same answer from both; "" means not reachable.
func (w *world) reach(from *netlink.Namespace, addr, want string) {
	w.t.Helper()
	d := patient
	if want == "" {
		d = wait
	}
	for _, network := range []string{"tcp4", "udp4"} {
		if got := w.ask(from, network, addr, d); got != want {
			w.t.Errorf("%s %s: got %q, want %q", network, addr, got, want)
		}
	}
}

// ping sends one echo request and reports whether it was answered.
func (w *world) ping(from *netlink.Namespace, addr string) bool {
	w.t.Helper()
	ok := false
	w.must(in(from, func() error {
		c, err := net.Dial("ip4:icmp", addr)
		if err != nil {
			return nil
		}
		defer c.Close()
		msg := []byte{8, 0, 0, 0, 0x41, 0x54, 0, 1}
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
		c.Write(msg)
		c.SetDeadline(time.Now().Add(2 * wait))
		buf := make([]byte, 128)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return nil
			}
			if n >= 28 && buf[0] == 0x45 && buf[20] == 0 && buf[24] == 0x41 {
				ok = true
				return nil
			}
		}
	}))
	return ok
}

func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// frame is a UDP packet with everything chosen by the sender.
type frame struct {
	srcMAC, dstMAC net.HardwareAddr
	src, dst       string
	port           uint16
}

// inject puts a frame on eth0 of the namespace, as a hostile root inside could.
func (w *world) inject(from *netlink.Namespace, f frame) {
	w.t.Helper()
	payload := []byte("forged")
	ip := make([]byte, 20, 64)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	copy(ip[12:], net.ParseIP(f.src).To4())
	copy(ip[16:], net.ParseIP(f.dst).To4())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	ip = binary.BigEndian.AppendUint16(ip, 4242)
	ip = binary.BigEndian.AppendUint16(ip, f.port)
	ip = binary.BigEndian.AppendUint16(ip, uint16(8+len(payload)))
	ip = append(append(ip, 0, 0), payload...)
	w.must(from.Do(func() error {
		iface, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		b := append(append(append([]byte{}, f.dstMAC...), f.srcMAC...), 8, 0)
		return syscall.Sendto(fd, append(b, ip...), 0, &syscall.SockaddrLinklayer{Ifindex: iface.Index, Halen: 6})
	}))
}

// listen returns a function that tells whether a datagram came to the address.
func (w *world) listen(ns *netlink.Namespace, addr string) func() string {
	w.t.Helper()
	var c net.PacketConn
	w.must(in(ns, func() (err error) { c, err = net.ListenPacket("udp", addr); return err }))
	w.made = append(w.made, c)
	return func() string {
		c.SetReadDeadline(time.Now().Add(wait))
		buf := make([]byte, 64)
		n, _, _ := c.ReadFrom(buf)
		return string(buf[:n])
	}
}

func sh(t testing.TB, stdin string, argv ...string) string {
	t.Helper()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		t.Skipf("no %s command", argv[0])
	}
	cmd := exec.Command(path, argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}
