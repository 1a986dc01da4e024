package wg

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

// user is a device of a process, which is spoken to in WireGuard's own words (cross-platform userspace interface) over a
// socket in a directory of ours: the usual place is one for all namespaces of a host.
type user struct {
	socket string
	clock  clock.Clock
}

// SocketOf is where the process of a device listens.
func SocketOf(dir, name string) string { return filepath.Join(dir, name+".sock") }

// OpenProcess speaks to the process that serves the device of that name in dir. It need not be there yet.
func OpenProcess(dir, name string, clk clock.Clock) Device { return &user{SocketOf(dir, name), clk} }

func (u *user) Close() error { return nil }

// patience is how long an answer may take: the process has nothing to wait for.
const patience = 5 * time.Second

func (u *user) ask(request []byte) ([]byte, error) {
	c, err := net.DialTimeout("unix", u.socket, patience)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "the process of WireGuard does not answer: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(u.clock.Now().Add(patience)); err != nil {
		return nil, errs.New(errs.Unavailable, "the process of WireGuard: %w", err)
	}
	if _, err := c.Write(request); err != nil {
		return nil, errs.New(errs.Unavailable, "the process of WireGuard does not answer: %w", err)
	}
	var answer []byte
	r := bufio.NewReader(io.LimitReader(c, maxAnswer))
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return nil, errs.New(errs.Unavailable, "the process of WireGuard broke off: %w", err)
		}
		if len(line) == 1 {
			return answer, nil
		}
		answer = append(answer, line...)
	}
}

// maxAnswer is that of 10,000 peers with room.
const maxAnswer = 16 << 20

func (u *user) State() (State, error) {
	b, err := u.ask([]byte("get=1\n\n"))
	if err != nil {
		return State{}, err
	}
	return parse(b)
}

func (u *user) Apply(c Change) error {
	b, err := u.ask(c.words())
	if err != nil {
		return err
	}
	return errno(b)
}

func errno(b []byte) error {
	v, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "errno=")
	n, err := strconv.Atoi(v)
	if !ok || err != nil {
		return errs.New(errs.Internal, "the process of WireGuard answers in words of its own")
	}
	if n != 0 {
		return errs.New(errs.Unavailable, "WireGuard refuses its configuration: error %d", n)
	}
	return nil
}

// words is the change as the interface has it.
func (c Change) words() []byte {
	var b bytes.Buffer
	b.WriteString("set=1\n")
	if c.Private != nil {
		fmt.Fprintf(&b, "private_key=%s\n", hex.EncodeToString(c.Private[:]))
	}
	if c.Port != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *c.Port)
	}
	for _, k := range c.Drop {
		fmt.Fprintf(&b, "public_key=%s\nremove=true\n", hex.EncodeToString(k[:]))
	}
	for _, p := range c.Put {
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.Key[:]))
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		b.WriteString("replace_allowed_ips=true\n")
		for _, a := range p.Allowed {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
		}
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// words are those of an answer that are read.
var words = []string{"private_key", "listen_port", "public_key", "errno", "endpoint", "allowed_ip", "rx_bytes", "tx_bytes", "last_handshake_time_sec", "last_handshake_time_nsec"}

// parse reads a device's answer. Of its private key the public one is kept.
func parse(b []byte) (State, error) {
	var s State
	bad := func(line string) error { // what is there may be a secret, also in front of the =
		key, _, _ := strings.Cut(line, "=")
		if !slices.Contains(words, key) {
			key = "a word of its own"
		}
		return errs.New(errs.Internal, "WireGuard says of itself what is not understood: %s", key)
	}
	done := false
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		k, v, ok := strings.Cut(line, "=")
		if !ok || done {
			return State{}, bad(line)
		}
		var err error
		switch k {
		case "private_key":
			var key Key
			if key, err = unhex(v); err == nil && key != (Key{}) {
				s.Public, err = key.Public()
			}
		case "listen_port":
			var n uint64
			n, err = strconv.ParseUint(v, 10, 16)
			s.Port = uint16(n)
		case "public_key":
			var key Key
			key, err = unhex(v)
			s.Peers = append(s.Peers, Peer{Key: key})
		case "errno":
			if err = errno([]byte(line)); err != nil {
				return State{}, err
			}
			done = true
		default:
			if len(s.Peers) > 0 {
				err = s.Peers[len(s.Peers)-1].say(k, v)
			}
		}
		if err != nil {
			return State{}, bad(line)
		}
	}
	if !done {
		return State{}, errs.New(errs.Unavailable, "WireGuard broke off")
	}
	for i := range s.Peers {
		if t := s.Peers[i].Handshake; t.Equal(time.Unix(0, 0)) {
			s.Peers[i].Handshake = time.Time{}
		}
	}
	return s, nil
}

func (p *Peer) say(k, v string) (err error) {
	number := func() int64 {
		var n int64
		if n, err = strconv.ParseInt(v, 10, 64); err == nil && n < 0 {
			err = strconv.ErrRange
		}
		return n
	}
	switch k {
	case "endpoint":
		p.Endpoint, err = netip.ParseAddrPort(v)
	case "allowed_ip":
		var a netip.Prefix
		a, err = netip.ParsePrefix(v)
		p.Allowed = append(p.Allowed, a)
	case "rx_bytes":
		p.Rx = number()
	case "tx_bytes":
		p.Tx = number()
	case "last_handshake_time_sec":
		p.Handshake = time.Unix(number(), 0)
	case "last_handshake_time_nsec":
		if n := number(); err == nil && n < 1e9 {
			p.Handshake = p.Handshake.Add(time.Duration(n))
		}
	}
	return err
}

func unhex(s string) (Key, error) {
	b, err := hex.DecodeString(s)
	if err == nil && len(b) != len(Key{}) {
		err = errors.New("length")
	}
	if err != nil {
		return Key{}, err
	}
	return Key(b), nil
}

// Lives waits until the process of a device ends, or nothing answers there, or stop is closed.
func Lives(dir, name string, stop <-chan struct{}) {
	c, err := net.Dial("unix", SocketOf(dir, name))
	if err != nil {
		return
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = c.Read(make([]byte, 1)) // nothing is said: it ends with the process
	}()
	select {
	case <-ended:
	case <-stop:
	}
	c.Close()
	<-ended
}

// removeSocket takes away what an earlier process left.
func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
