// Command hostile is what a tenant's root might try on a network: it sends frames of every kind that an instance
// has no business to send, or watches for them. Each frame has its name in it.
//
//	hostile watch 20s                      says the names of what arrives
//	hostile as MARK ADDRESS:PORT           connects with a packet mark, as if it were somebody else
//	hostile send VICTIM4 VICTIM6 VICTIMMAC OTHER4 OTHER6 OTHERMAC HOST
//
// OTHER is whom it pretends to be, HOST an address of the host. It is built and run by the tests, inside instances.
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

const device = "eth0"

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "watch":
		err = watch(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "as":
		err = as(os.Args[2], os.Args[3])
	case len(os.Args) == 9 && os.Args[1] == "send":
		err = send(os.Args[2:])
	default:
		err = fmt.Errorf("usage: hostile watch DURATION | hostile send VICTIM4 VICTIM6 VICTIMMAC OTHER4 OTHER6 OTHERMAC HOST")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func open() (fd, index int, err error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return 0, 0, err
	}
	fd, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, int(htons(syscall.ETH_P_ALL)))
	if err != nil {
		return 0, 0, fmt.Errorf("packet socket: %w", err)
	}
	return fd, i.Index, syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: htons(syscall.ETH_P_ALL), Ifindex: i.Index})
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

var marked = regexp.MustCompile(`HOSTILE:([a-z0-9 -]+);`)

// watch prints the name of everything marked that comes in, once.
func watch(long string) error {
	d, err := time.ParseDuration(long)
	if err != nil {
		return err
	}
	fd, _, err := open()
	if err != nil {
		return err
	}
	end := time.Now().Add(d)
	tv := syscall.NsecToTimeval(int64(100 * time.Millisecond))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	fmt.Println("watching")
	seen := map[string]bool{}
	buf := make([]byte, 1<<16)
	for time.Now().Before(end) {
		n, from, err := syscall.Recvfrom(fd, buf, 0)
		if err != nil {
			continue // the time is over, or it was interrupted
		}
		if l, ok := from.(*syscall.SockaddrLinklayer); ok && l.Pkttype == syscall.PACKET_OUTGOING {
			continue
		}
		if m := marked.FindSubmatch(buf[:n]); m != nil && !seen[string(m[1])] {
			seen[string(m[1])] = true
			fmt.Println("came", string(m[1]))
		}
	}
	return nil
}

type party struct {
	four, six netip.Addr
	mac       net.HardwareAddr
}

func parse(four, six, mac string) (p party, err error) {
	if p.four, err = netip.ParseAddr(four); err != nil {
		return p, err
	}
	if p.six, err = netip.ParseAddr(six); err != nil {
		return p, err
	}
	p.mac, err = net.ParseMAC(mac)
	return p, err
}

// send sends everything, and says so by name.
func send(args []string) error {
	victim, err := parse(args[0], args[1], args[2])
	if err != nil {
		return err
	}
	other, err := parse(args[3], args[4], args[5])
	if err != nil {
		return err
	}
	host, err := netip.ParseAddr(args[6])
	if err != nil {
		return err
	}
	me, err := self()
	if err != nil {
		return err
	}
	fd, index, err := open()
	if err != nil {
		return err
	}
	to := &syscall.SockaddrLinklayer{Ifindex: index, Halen: 6}
	for _, a := range attacks(me, victim, other, host) {
		for range 3 {
			if err := syscall.Sendto(fd, a.frame, 0, to); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			time.Sleep(2 * time.Millisecond)
		}
		fmt.Println("sent", a.name)
	}
	return nil
}

func self() (p party, err error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return p, err
	}
	p.mac = i.HardwareAddr
	all, err := i.Addrs()
	for _, a := range all {
		x, perr := netip.ParsePrefix(a.String())
		switch {
		case perr != nil || x.Addr().IsLinkLocalUnicast():
		case x.Addr().Is4():
			p.four = x.Addr()
		default:
			p.six = x.Addr()
		}
	}
	if !p.four.IsValid() || !p.six.IsValid() {
		return p, fmt.Errorf("%s has not both kinds of addresses", device)
	}
	return p, err
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func cat(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// as connects with a mark, and says whether somebody answered.
func as(number, addr string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	var refused error
	d := net.Dialer{Timeout: time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { refused = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, n) })
	}}
	c, err := d.Dial("tcp", addr)
	if refused != nil {
		fmt.Println("no mark:", refused)
	}
	if err != nil {
		fmt.Println("nobody")
		return nil
	}
	fmt.Println("connected")
	return c.Close()
}
