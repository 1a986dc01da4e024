package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"atoll/internal/driver/network/overlay/bpf"
	"atoll/internal/encrypt"
	"atoll/internal/sys/netlink"
	"atoll/internal/sys/wg"
	"atoll/test/lab"
)

// TestEncryption has the instances of two hosts talk while somebody listens on the cable between them.
func TestEncryption(t *testing.T) {
	if err := bpf.Probe(); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	l := labOf(t, 2)
	e := &encrypted{networks: networks{several: several{l}}}
	t.Cleanup(func() {
		if e.tap != nil {
			e.tap.end()
		}
	})
	inTurn(t, []part{
		{"Grow", e.grow2}, {"InTheClear", e.clear}, {"On", e.on}, {"DaemonsAndProcessesAreKilled", e.killed2}, {"Off", e.off}, {"NothingIsLeft", e.gone2},
	})
}

type encrypted struct {
	networks
	tap *tap
}

func (e *encrypted) grow2(t *testing.T) {
	if err := e.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both hosts take part in networks of tenants", func() (bool, string) {
		out, err := e.Do("get", "nodes", "-o", "json")
		return err == nil && strings.Count(out, `"name": "overlay"`) == 2, fmt.Sprint(out, err)
	})
	e.addr = map[string]string{}
	e.do(t, "tenant", "create", "red")
	e.apply(t, "kind: Network\nmetadata: {name: main, tenant: red}\nspec: {cidr: 10.1.0.0/16}\n")
	e.serve(t, "red", "web", "isle1")
	e.serve(t, "red", "db", "isle2")
}

func (e *encrypted) clear(t *testing.T) {
	e.tap = tapOf(t, e.Hosts[1])
	e.reaches(t, "red", "web", "db")
	if plain, vxlan := e.tap.counts(); plain == 0 || vxlan == 0 {
		t.Fatalf("the tap sees nothing: %d answers, %d tunnel packets", plain, vxlan)
	}
}

// quiet has instances talk and nothing of it be on the cable.
func (e *encrypted) quiet(t *testing.T, from, to string) {
	t.Helper()
	plain, vxlan := e.tap.counts()
	e.reaches(t, "red", from, to)
	time.Sleep(200 * time.Millisecond) // what comes late comes
	if p, v := e.tap.counts(); p != plain || v != vxlan {
		t.Errorf("on the cable: %d answers and %d tunnel packets in the clear", p-plain, v-vxlan)
	}
}

func (e *encrypted) on(t *testing.T) {
	t.Log(strings.TrimSpace(e.do(t, "encryption", "on")))
	plain, vxlan := e.tap.counts()
	e.quiet(t, "web", "db")
	e.quiet(t, "db", "web")
	if p, v := e.tap.counts(); p != plain || v != vxlan {
		t.Errorf("after it was complete: %d answers and %d tunnel packets in the clear", p-plain, v-vxlan)
	}
	out := e.do(t, "encryption", "status")
	if strings.Count(out, "wireguard ") < 2 {
		t.Errorf("status:\n%s", out)
	}
	t.Log("\n" + out)
	// The private key is in nothing but its file.
	for _, h := range e.Hosts {
		b, err := os.ReadFile(filepath.Join(h.State, encrypt.Verb, "keys.json"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := bytes.Cut(b, []byte(`"key":"`))
		key, _, _ := strings.Cut(string(rest), `"`)
		if len(key) != 44 {
			t.Fatalf("the key of %s is not where it is looked for", h.Name)
		}
		nodes := e.do(t, "get", "nodes", "-o", "json") + e.do(t, "get", "hostkeys", "-o", "json")
		if strings.Contains(nodes, key) || strings.Contains(h.Tail(1<<20), key) {
			t.Errorf("the private key of %s is told", h.Name)
		}
	}
	e.serve(t, "red", "late", "isle2")
	e.quiet(t, "web", "late")
}

func (e *encrypted) killed2(t *testing.T) {
	plain, vxlan := e.tap.counts()
	for _, h := range e.Hosts {
		if err := h.Kill(); err != nil {
			t.Fatal(err)
		}
		pid, err := wg.Process(filepath.Join(h.Run, encrypt.Verb), encrypt.DeviceName)
		if err != nil {
			t.Fatal(err)
		}
		if pid != 0 { // 0: it is the kernel's
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, h := range e.Hosts {
		if err := h.Begin(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range e.Hosts {
		if err := h.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	e.reaches(t, "red", "web", "db")
	e.reaches(t, "red", "web", "late")
	if p, v := e.tap.counts(); p != plain || v != vxlan {
		t.Errorf("over the kills: %d answers and %d tunnel packets in the clear", p-plain, v-vxlan)
	}
}

func (e *encrypted) off(t *testing.T) {
	e.do(t, "encryption", "off")
	e.reaches(t, "red", "web", "db")
	for _, h := range e.Hosts {
		if out, err := h.Exec("ip", "link", "show", encrypt.DeviceName).CombinedOutput(); err == nil {
			t.Errorf("%s has the device yet: %s", h.Name, out)
		}
	}
	// On again, for what is left at the end must be nothing in any case.
	e.do(t, "encryption", "on")
	e.reaches(t, "red", "db", "web")
}

func (e *encrypted) gone2(t *testing.T) {
	e.do(t, "delete", "--tenant", "red", "instance", "web", "db", "late")
}

// tap counts what is on a host's cable.
type tap struct {
	plain, vxlan atomic.Int64
	end          func()
}

func tapOf(t *testing.T, h *lab.Host) *tap {
	t.Helper()
	p := &tap{}
	ns, err := netlink.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", h.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	const all = 0x0300 // ETH_P_ALL as it is on the wire
	var fd int
	err = ns.Do(func() error {
		links, err := netlink.Open()
		if err != nil {
			return err
		}
		defer links.Close()
		l, err := links.LinkWith(netip.MustParseAddr(h.Address))
		if err != nil {
			return err
		}
		if fd, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, all); err != nil {
			return err
		}
		if err := syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: all, Ifindex: l.Index}); err != nil {
			return err
		}
		return syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Usec: 100_000})
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		buf := make([]byte, 1<<16)
		for ctx.Err() == nil {
			n, _, err := syscall.Recvfrom(fd, buf, 0)
			if err != nil {
				continue
			}
			if bytes.Contains(buf[:n], []byte("I am red/")) {
				p.plain.Add(1)
			}
			if n > 38 && buf[12] == 8 && buf[13] == 0 && buf[23] == syscall.IPPROTO_UDP && binary.BigEndian.Uint16(buf[36:]) == 4798 {
				p.vxlan.Add(1)
			}
		}
	})
	p.end = func() { cancel(); wait.Wait(); syscall.Close(fd) }
	return p
}

func (p *tap) counts() (plain, vxlan int64) { return p.plain.Load(), p.vxlan.Load() }
