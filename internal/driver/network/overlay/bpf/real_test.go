package bpf

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"atoll/internal/driver"
	"atoll/internal/errs"
	"atoll/internal/sys/netlink"
)

// A network as a host has it: a bridge with the gateway's address in the test's own
// namespace, and two instances in theirs.
type network struct {
	*world
	own      *netlink.Namespace
	ns       [2]*netlink.Namespace
	port     [2]int
	bridge   int
	switched int // how often programs were replaced
}

var (
	macs = [2][6]byte{myMAC, nbMAC}
	ips  = [2]netip.Addr{my4, nb4}
	ids  = [2]uint16{myID, nbID}
)

func newNetwork(t *testing.T, w *world) *network {
	t.Helper()
	n := &network{world: w, port: [2]int{1001, 1002}, bridge: 1000}
	var err error
	n.own, err = netlink.OpenNamespace("/proc/thread-self/ns/net")
	w.must(err)
	t.Cleanup(func() { n.own.Close() })
	quiet := func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0) } // no kernel says anything by itself
	w.must(n.own.Do(quiet))
	n.ip("link set lo up")
	n.ip("link add br0 index 1000 address 02:00:00:00:00:01 type bridge")
	n.ip("addr add 10.1.0.1/24 dev br0")
	n.ip("link set br0 up")
	for i := range n.ns {
		n.ns[i], err = netlink.NewNamespace()
		w.must(err)
		t.Cleanup(func() { n.ns[i].Close() })
		w.must(n.ns[i].Do(quiet))
		n.ip(fmt.Sprintf("link add p%d index %d type veth peer name eth0 address %s netns %s", i, n.port[i], net.HardwareAddr(macs[i][:]), n.ns[i].Path()))
		n.ip(fmt.Sprintf("link set p%d master br0 up", i))
		w.must(n.ns[i].Do(func() error {
			n.ip(fmt.Sprintf("addr add %s/24 dev eth0", ips[i]))
			n.ip("link set eth0 up")
			return nil
		}))
	}
	return n
}

func (n *network) ip(args string) {
	n.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		n.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

// wall puts it up: the first instance may open 443 of the second, and nothing else.
func (n *network) wall(w *Wall) {
	n.Helper()
	n.must(w.SetDevice(n.bridge, Device{VNI: vni, Gateways: []netip.Addr{gw4}}))
	n.must(w.Apply(vni, driver.Change{
		Put: []driver.Member{{Addr: my4, Identity: myID}, {Addr: nb4, Identity: nbID}},
		Pairs: map[driver.PairKey]driver.Pair{{Set: 71, Peer: nbID}: {List: 81, Lens: 1 << 16}, {Set: 72, Peer: myID}: {List: 81, Lens: 1 << 16},
			{Set: 73, Peer: 1}: {All: 4}},
		Lists: map[driver.ListKey]uint32{{List: 81, Proto: 6, Len: 16, Port: 443}: 3},
	}, nil))
	for i, pol := range []driver.Policy{{Egress: 71, Ingress: 73}, {Egress: 74, Ingress: 72}} {
		n.must(w.SetPort(n.port[i], Port{VNI: vni, MAC: macs[i], Addrs: []netip.Addr{ips[i]}, Identity: ids[i], Policy: pol}))
	}
	n.attach(w)
}

func (n *network) attach(w *Wall) {
	n.Helper()
	for _, p := range n.port {
		n.must(w.Attach(n.own, p, RoleInstance))
	}
	n.must(w.Attach(n.own, n.bridge, RoleBridge))
	n.switched++
}

// serve echoes on a port of an instance until the test ends.
func (n *network) serve(i int, port int) {
	n.Helper()
	var l net.Listener
	n.must(n.ns[i].Do(func() (err error) { l, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", ips[i], port)); return err }))
	done := make(chan struct{})
	n.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }() // ends with its connection, which the test closes
		}
	}()
}

func dial(ns *netlink.Namespace, to string, wait time.Duration) (c net.Conn, err error) {
	err = ns.Do(func() (err error) { c, err = net.DialTimeout("tcp4", to, wait); return err })
	return c, err
}

func (n *network) echo(c net.Conn, size int) {
	n.Helper()
	out := bytes.Repeat([]byte("atoll"), size/5)
	n.must(c.SetDeadline(time.Now().Add(10 * time.Second)))
	sent := make(chan error, 1)
	go func() { _, err := c.Write(out); sent <- err }()
	in := make([]byte, len(out))
	if _, err := io.ReadFull(c, in); err != nil || !bytes.Equal(in, out) {
		n.Fatalf("echo of %d bytes: %v", size, err)
	}
	n.must(<-sent)
}

// refuses checks that a connection is not to be had.
func (n *network) refuses(from *netlink.Namespace, to string) {
	n.Helper()
	if c, err := dial(from, to, 400*time.Millisecond); err == nil {
		c.Close()
		n.Errorf("connected to %s", to)
	} else if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		n.Errorf("%s: %v, want silence", to, err)
	}
}

// raw is a socket that sends and sees whole frames.
func (n *network) raw(i int) int {
	n.Helper()
	var fd int
	n.must(n.ns[i].Do(func() (err error) {
		fd, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0x0300)
		if err != nil {
			return err
		}
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: 0x0300, Ifindex: link.Index})
	}))
	n.Cleanup(func() { syscall.Close(fd) })
	return fd
}

// came counts frames with the mark of the test in them.
func came(fd int, mark string) int {
	c, buf := 0, make([]byte, 4096)
	for {
		m, err := syscall.Read(fd, buf)
		if err != nil {
			return c
		}
		if bytes.Contains(buf[:m], []byte(mark)) {
			c++
		}
	}
}

// Both ways of attaching carry traffic, refuse what they should, and let nothing through while one takes the place of another.
func TestTraffic(t *testing.T) {
	if !onHost(t) {
		return
	}
	w := newWorld(t, Config{})
	n := newNetwork(t, w)
	for _, noTCX := range []bool{true, false} { // in this order: as when the kernel is renewed
		w.noTCX = noTCX
		n.wall(w.Wall)
		for i, p := range n.port {
			if ok, err := w.Attached(n.own, p, RoleInstance); !ok || err != nil {
				t.Fatalf("port %d: attached %v, %v", i, ok, err)
			}
		}
		out, err := exec.Command("tc", "filter", "show", "dev", "p0", "ingress").CombinedOutput()
		w.must(err)
		if got, want := strings.Contains(string(out), progFrom), noTCX || !kernelHasTCX(t); got != want {
			t.Errorf("a classifier is there: %v, want %v\n%s", got, want, out)
		}
	}
	n.serve(1, 443)
	n.serve(1, 444)
	n.serve(0, 80)
	c, err := dial(n.ns[0], "10.1.0.6:443", 5*time.Second)
	w.must(err)
	defer c.Close()
	n.echo(c, 4<<20)
	n.refuses(n.ns[0], "10.1.0.6:444")
	n.refuses(n.ns[1], "10.1.0.5:80")
	h, err := dial(n.own, "10.1.0.5:80", 5*time.Second) // the host itself
	w.must(err)
	defer h.Close()
	n.echo(h, 1<<20)
	n.spoof()
	n.replaced(c)

	// Revoked: the very connection ends.
	w.must(w.Apply(vni, driver.Change{Ports: map[netip.Addr]driver.Policy{my4: {Egress: 75, Ingress: 73}}}, map[netip.Addr]int{my4: n.port[0]}))
	w.must(c.SetDeadline(time.Now().Add(500 * time.Millisecond)))
	fmt.Fprint(c, "still there?")
	if m, err := c.Read(make([]byte, 10)); err == nil {
		t.Errorf("%d bytes came after the rule was revoked", m)
	}
	w.must(w.Detach(n.own, n.port[0], RoleInstance))
	w.must(w.Detach(n.own, n.port[0], RoleInstance))
	w.must(w.Detach(n.own, 4711, RoleInstance))
	if err := w.Attach(n.own, 4711, RoleInstance); !errors.Is(err, errs.NotFound) {
		t.Errorf("attach to an interface that is not there: %v", err)
	}
	if ok, err := w.Attached(n.own, n.port[0], RoleInstance); ok || err != nil {
		t.Errorf("attached after Detach: %v, %v", ok, err)
	}
}

// kernelHasTCX goes by the version, so that a fault of ours is never taken for an old kernel.
func kernelHasTCX(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(b), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 6
}

// spoof sends what nobody may send, by a socket that asks no kernel.
func (n *network) spoof() {
	n.Helper()
	const mark = "spoofed-by-the-test"
	from, to := n.raw(0), n.raw(1)
	send := func(b []byte) {
		n.Helper()
		for range 100 {
			_, err := syscall.Write(from, b)
			if err == nil {
				return
			}
			if !errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.EAGAIN) {
				n.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		n.Fatal("the socket takes nothing")
	}
	load := func(h []byte) []byte { return append(h, mark...) }
	honest := frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 6}.with(load(tcp(7, 443, ack))))
	bad := map[string][]byte{
		"another's mac":      frame(nbMAC, gwMAC, v4{src: my4, dst: nb4, proto: 6}.with(load(tcp(7, 443, ack)))),
		"another's address":  frame(nbMAC, myMAC, v4{src: gw4, dst: nb4, proto: 6}.with(load(tcp(7, 443, ack)))),
		"another port":       frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 6}.with(load(tcp(7, 444, ack)))),
		"a tag":              eth(nbMAC, myMAC, 0x8100, append([]byte{0, 0, 8, 0}, v4{src: my4, dst: nb4, proto: 6}.with(load(tcp(7, 443, ack)))...)),
		"broadcast":          frame(broadcast, myMAC, v4{src: my4, dst: addr("255.255.255.255"), proto: 17}.with(load(udp(7, 7)))),
		"dhcp server":        frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 17}.with(load(udp(67, 68)))),
		"dhcp discover":      frame(broadcast, myMAC, v4{src: addr("0.0.0.0"), dst: addr("255.255.255.255"), proto: 17}.with(load(udp(68, 67)))),
		"arp of the gateway": eth(broadcast, myMAC, 0x0806, load(arp(2, myMAC, gw4, nb4))),
		"advertisement":      frame([6]byte{0x33, 0x33, 0, 0, 0, 1}, myMAC, v6{myLL, addr("ff02::1"), 58, 255}.with(load(ndmsg(134, my6)))),
		"rest of a packet":   frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 6, off: 3, id: 9}.with(load(nil))),
		"loop test":          eth(nbMAC, myMAC, 0x9000, load(make([]byte, 46))),
		"nothing":            append(nbMAC[:], append(myMAC[:], 8, 0)...),
		"half a header":      eth(nbMAC, myMAC, 0x0800, []byte{0x45, 0, 0, 20, 0, 0}),
		"half of ip6":        eth(nbMAC, myMAC, 0x86dd, append([]byte{0x60}, make([]byte, 30)...)),
	}
	came(to, mark)
	for _, b := range bad {
		send(b)
	}
	time.Sleep(50 * time.Millisecond)
	if m := came(to, mark); m > 0 {
		n.Errorf("%d frames of a liar came through", m)
	}
	send(honest)
	time.Sleep(50 * time.Millisecond)
	if m := came(to, mark); m != 1 {
		n.Errorf("%d honest frames came through, not 1: the test sees nothing", m)
		ds, _ := n.Drops()
		n.TB.Log(ds)
	}
	ds, err := n.Drops()
	n.must(err)
	got := ds[n.port[0]]
	for _, r := range []Reason{SourceMAC, Source, NoEgress, VLAN, Destination, DHCP, ARP, ND, Fragment, Ethertype, Short} {
		if got[r] == 0 {
			n.Errorf("nothing dropped as %v: %v", r, got)
		}
	}
}

// replaced changes programs again and again while somebody sends what must not pass and another connection talks.
func (n *network) replaced(c net.Conn) {
	n.Helper()
	other, err := Open(Config{Dir: n.dir, Times: Times{OneWay: 61 * time.Second}})
	n.must(err)
	defer other.Close()
	if same, err := other.Attached(n.own, n.port[0], RoleInstance); same || err != nil {
		n.Fatalf("other constants, but the same programs: %v, %v", same, err)
	}
	const mark = "in-between"
	from, to := n.raw(0), n.raw(1)
	var stop atomic.Bool
	sent := make(chan int, 1)
	go func() {
		b, k := frame(nbMAC, myMAC, v4{src: my4, dst: nb4, proto: 17}.with(append(udp(5, 5), mark...))), 0
		for !stop.Load() {
			if _, err := syscall.Write(from, b); err == nil {
				k++
			}
		}
		sent <- k
	}()
	through := 0
	for i := range 20 {
		n.attach([]*Wall{other, n.Wall}[i%2])
		through += came(to, mark)
	}
	stop.Store(true)
	k := <-sent
	time.Sleep(20 * time.Millisecond)
	through += came(to, mark)
	if through > 0 || k < 1000 {
		n.Errorf("%d of %d packets passed between two programs", through, k)
	}
	n.echo(c, 1<<20)
	older := n.dir + "/v0" // as if a daemon with other tables had been here
	n.must(os.Mkdir(older, 0o700))
	twin, err := n.Wall.wallMaps.Dries.Clone() // its own pin stays where it is
	n.must(err)
	defer twin.Close()
	n.must(twin.Pin(older + "/dries"))
	n.must(n.Settle())
	if _, err := os.Stat(older); !errors.Is(err, os.ErrNotExist) {
		n.Errorf("pins of another layout after Settle: %v", err)
	}
	es, err := os.ReadDir(n.Wall.dir)
	n.must(err)
	dirs := 0
	for _, e := range es {
		if e.IsDir() {
			dirs++
		}
	}
	if dirs != 1 {
		n.Errorf("%d versions of programs are pinned after Settle", dirs)
	}
}

const attachIn = "ATOLL_TEST_ATTACH_IN"

// TestAttachAndWait is no test: it is the process that TestSurvives kills.
func TestAttachAndWait(t *testing.T) {
	dir := os.Getenv(attachIn)
	if dir == "" {
		t.Skip("only as a part of TestSurvives")
	}
	w, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	own, err := netlink.OpenNamespace("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n := &network{world: &world{t, w, dir}, own: own, port: [2]int{1001, 1002}, bridge: 1000}
	n.wall(w)
	fmt.Println("attached")
	select {}
}

// What a process attached stays in force when it is killed, is found again, and can be removed to the last map.
func TestSurvives(t *testing.T) {
	if !onHost(t) {
		return
	}
	dir := t.TempDir() + "/bpf"
	w := &world{TB: t, dir: dir}
	n := newNetwork(t, w)
	cmd := exec.Command(os.Args[0], "-test.run=^TestAttachAndWait$")
	cmd.Env = append(os.Environ(), attachIn+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	w.must(err)
	w.must(cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "attached" {
		t.Fatalf("%q, %v", line, err)
	}
	n.serve(1, 443)
	n.serve(1, 444)
	c, err := dial(n.ns[0], "10.1.0.6:443", 5*time.Second)
	w.must(err)
	defer c.Close()
	n.echo(c, 1<<20)
	w.must(cmd.Process.Kill())
	cmd.Wait()
	n.echo(c, 1<<20)
	n.refuses(n.ns[0], "10.1.0.6:444")
	c2, err := dial(n.ns[0], "10.1.0.6:443", 5*time.Second)
	w.must(err)
	c2.Close()

	w.Wall, err = Open(Config{Dir: dir, Sizes: Sizes{Flows4: 1000}})
	w.must(err)
	ps, err := w.Ports()
	w.must(err)
	if len(ps) != 2 || ps[1001].Identity != myID || ps[1002].Addrs[0] != nb4 {
		t.Errorf("ports after the kill: %+v", ps)
	}
	if w.wallMaps.Flows4.MaxEntries() == 1000 {
		t.Error("the table of flows was made anew")
	}
	for _, p := range n.port {
		if ok, err := w.Attached(n.own, p, RoleInstance); !ok || err != nil {
			t.Errorf("its programs are not those of the earlier life: %v, %v", ok, err)
		}
	}
	n.wall(w.Wall) // says what is already so
	flows := 0
	w.must(w.Flows(0, func(f Flow) bool {
		if f.Stale {
			t.Errorf("stale: %+v", f)
		}
		flows++
		return true
	}))
	if flows < 4 {
		t.Errorf("%d flows are left", flows)
	}
	n.echo(c, 1<<20)
	for _, p := range n.port {
		w.must(w.Detach(n.own, p, RoleInstance))
	}
	w.must(w.Detach(n.own, n.bridge, RoleBridge))
	maps, progs := w.numbers()
	w.must(w.Remove())
	w.must(Remove(dir))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	for try := range 50 { // the kernel frees in its own time
		left := remains(maps, progs)
		if left == "" {
			break
		}
		if time.Sleep(100 * time.Millisecond); try == 49 {
			t.Error("left behind:", left)
		}
	}
}

// numbers are those of the wall's maps and programs in the kernel, which holds those of other walls, too.
func (w *world) numbers() (maps []ebpf.MapID, progs []ebpf.ProgramID) {
	w.Helper()
	v := reflect.ValueOf(w.wallMaps)
	for i := range v.NumField() {
		m, ok := v.Field(i).Interface().(*ebpf.Map)
		if !ok {
			continue
		}
		info, err := m.Info()
		w.must(err)
		id, _ := info.ID()
		maps = append(maps, id)
	}
	for _, p := range w.progs {
		id, err := programID(p)
		w.must(err)
		progs = append(progs, id)
	}
	if len(maps) < 15 || len(progs) != 4 {
		w.Fatalf("%d maps, %d programs", len(maps), len(progs))
	}
	return maps, progs
}

// remains names one of those that is still there; "" when none is.
func remains(maps []ebpf.MapID, progs []ebpf.ProgramID) string {
	for _, id := range maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			return fmt.Sprintf("%s (map %d)", m, id)
		}
	}
	for _, id := range progs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			p.Close()
			return fmt.Sprintf("program %d", id)
		}
	}
	return ""
}
