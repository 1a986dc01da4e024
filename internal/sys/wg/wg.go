// Package wg is the one door to WireGuard: keys, and a device of the kernel or of a process that
// does the same where the kernel does not have it. A device belongs to the network namespace in which it is
// opened. Private keys go to it over a socket that only root can reach, or over netlink, and are never read back.
//
// It starts no goroutines but in Serve, which waits for them.
package wg

import (
	"crypto/ecdh"
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"time"

	"atoll/internal/errs"
)

// Key is a key, private or public.
type Key [32]byte

// NewKey makes a private key.
func NewKey(random io.Reader) (Key, error) {
	var k Key
	if _, err := io.ReadFull(random, k[:]); err != nil {
		return Key{}, errs.New(errs.Unavailable, "make a key: %w", err)
	}
	k[0] &= 248 // RFC 7748, section 5
	k[31] = k[31]&127 | 64
	return k, nil
}

// Public is the public key of a private one.
func (k Key) Public() (Key, error) {
	p, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return Key{}, errs.New(errs.Internal, "a private key: %w", err)
	}
	return Key(p.PublicKey().Bytes()), nil
}

// Text is the key as WireGuard's own tools write it. There is no String: a key is not printed by accident.
func (k Key) Text() string { return base64.StdEncoding.EncodeToString(k[:]) }

// GoString and Format keep keys out of logs.
func (k Key) GoString() string { return "a key" }

// Format keeps keys out of logs.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "a key") }

// textLen is the length of a key as text; decoding alone passes over line breaks.
const textLen = 44

// ParseKey reads what Text wrote.
func ParseKey(s string) (Key, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(Key{}) || len(s) != textLen {
		return Key{}, errs.New(errs.Invalid, "a key must be 32 bytes in base64")
	}
	return Key(b), nil
}

// Peer is another host as a device knows it.
type Peer struct {
	Key      Key
	Endpoint netip.AddrPort // the zero AddrPort: not known
	Allowed  []netip.Prefix // what is sent to it, and what it may send; an address is one peer's only
	// What the device tells; not set.
	Handshake time.Time // the last one; zero: none yet
	Rx, Tx    int64     // bytes
}

// State is what a device does.
type State struct {
	Public Key // zero: it has no key yet
	Port   uint16
	Peers  []Peer
}

// Change is what is to become of a device. It is applied in this order, and what is allowed to a peer is not to any other
// from then on.
type Change struct {
	Private *Key // nil: as it is
	Port    *uint16
	Drop    []Key
	Put     []Peer
}

// Empty reports whether it changes nothing.
func (c Change) Empty() bool {
	return c.Private == nil && c.Port == nil && len(c.Drop) == 0 && len(c.Put) == 0
}

// Device is a WireGuard. State and Apply fail with errs.Unavailable when it is gone.
type Device interface {
	State() (State, error)
	Apply(c Change) error
	Close() error
}
