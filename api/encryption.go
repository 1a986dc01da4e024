package api

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"atoll/internal/errs"
)

// KindEncryption is whether hosts encrypt what networks of tenants send between them.
const KindEncryption Kind = "Encryption"

// Encryption is a wish about the whole pool. There is at most one, named pool; without it nothing is
// encrypted. Spec is the administrator's, the encryption controller writes Status.
type Encryption struct {
	Head
	Spec   EncryptionSpec   `json:"spec"`
	Status EncryptionStatus `json:"status,omitzero"`
}

// EncryptionSpec is what is wanted.
type EncryptionSpec struct {
	Mode   string    `json:"mode" doc:"wireguard: all that networks of tenants send between hosts is encrypted, and nothing of it leaves a host otherwise; none: it is sent as it is" enum:"wireguard|none"`
	Port   int       `json:"port,omitempty" doc:"UDP port of WireGuard on every host" default:"4799" example:"4799"`
	Rotate *Duration `json:"rotate,omitempty" doc:"how often every host takes a new key; 0s: never" default:"24h" example:"24h"`
}

// EncryptionStatus is how far the hosts are.
type EncryptionStatus struct {
	Mode       string      `json:"mode,omitempty" doc:"what hosts do now: none, also while they prepare, or wireguard" enum:"wireguard|none"`
	Ready      int         `json:"ready,omitempty" doc:"hosts that encrypt, or could at once"`
	Hosts      int         `json:"hosts,omitempty" doc:"hosts that are asked to"`
	Conditions []Condition `json:"conditions,omitempty" doc:"Complete: every host does what spec.mode says; with wireguard, from then on nothing is sent in the clear"`
}

// The modes of encryption.
const (
	EncryptionNone      = "none"
	EncryptionWireguard = "wireguard"
)

// What encryption is like where nothing else is said.
const (
	DefaultWireguardPort   = 4799 // beside that of tunnels, and not WireGuard's usual one, which may be in use
	DefaultRotation        = 24 * time.Hour
	minRotation            = time.Minute
	maxRotation            = 90 * 24 * time.Hour
	ConditionEncryption    = "Encryption"    // of a node: it does what the pool wants
	ConditionEncryptedPath = "EncryptedPath" // of a node: no other host is silent to it
)

// EncryptionRef names the pool's only Encryption.
func EncryptionRef() Ref { return Ref{Kind: KindEncryption, Name: PoolName} }

// EffectivePort is the port with its default.
func (s *EncryptionSpec) EffectivePort() uint16 {
	if s.Port == 0 {
		return DefaultWireguardPort
	}
	return uint16(s.Port) //nolint:gosec // validated
}

// EffectiveRotate is how often keys change; 0: never.
func (s *EncryptionSpec) EffectiveRotate() time.Duration {
	if s.Rotate == nil {
		return DefaultRotation
	}
	return s.Rotate.D()
}

// Demanded reports whether hosts are to encrypt.
func (e *Encryption) Demanded() bool {
	return e != nil && e.DeletedAt == nil && e.Spec.Mode == EncryptionWireguard
}

// Validate checks name, mode, port and rotation.
func (e *Encryption) Validate() []errs.Field {
	var f []errs.Field
	if e.Name != PoolName {
		f = append(f, errs.Field{Field: "metadata.name", Value: clip(e.Name), Rule: "must be " + PoolName + ": it is about the whole pool", Example: PoolName})
	}
	f = append(f, oneOf("spec.mode", e.Spec.Mode, []string{EncryptionWireguard, EncryptionNone})...)
	if p := e.Spec.Port; p < 0 || p > 65535 {
		f = append(f, errs.Field{Field: "spec.port", Value: strconv.Itoa(p), Rule: "must be 1 to 65535, or 0 for the default", Example: strconv.Itoa(DefaultWireguardPort)})
	}
	if r := e.Spec.Rotate; r != nil && r.D() != 0 && (r.D() < minRotation || r.D() > maxRotation) {
		f = append(f, errs.Field{Field: "spec.rotate", Value: r.D().String(), Rule: "must be 1m to 2160h, or 0s for never", Example: "24h"})
	}
	return f
}

func encryptionDefinition() *Definition {
	enc := func(o Object) *Encryption { return o.(*Encryption) }
	return &Definition{
		Kind: KindEncryption, Plural: "encryptions",
		Doc: "Whether hosts encrypt what networks of tenants send between them.",
		New: func() Object { return &Encryption{Head: Head{K: KindEncryption}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "WANTED", Value: func(o Object, _ time.Time) string { return enc(o).Spec.Mode }},
			{Name: "HOSTS", Value: func(o Object, _ time.Time) string {
				return fmt.Sprintf("%d of %d", enc(o).Status.Ready, enc(o).Status.Hosts)
			}},
			{Name: "COMPLETE", Value: func(o Object, _ time.Time) string {
				for _, c := range enc(o).Status.Conditions {
					if c.Type == ConditionComplete && c.Status {
						return "yes"
					}
				}
				return "no"
			}},
			{Name: "MESSAGE", Wide: true, Value: func(o Object, _ time.Time) string {
				for _, c := range enc(o).Status.Conditions {
					if c.Type == ConditionComplete {
						return dash(c.Message)
					}
				}
				return "-"
			}},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{},
	}
}

// KindHostKey is by what hosts know the WireGuard of another.
const KindHostKey Kind = "HostKey"

// HostKey is what the other hosts need to encrypt to a host. It has the node's name. The encryption
// controller writes it from what the host published (NodeStatus.Encryption), while the host belongs
// to the pool, and removes it when it does not any more.
type HostKey struct {
	Head
	Spec HostKeySpec `json:"spec"`
}

// HostKeySpec is the peer.
type HostKeySpec struct {
	Key      string     `json:"key" doc:"public key, base64"`
	Next     string     `json:"next,omitempty" doc:"the public key that comes after it"`
	NextFrom *time.Time `json:"nextFrom,omitempty" doc:"when it is taken"`
	Endpoint string     `json:"endpoint" doc:"where its WireGuard listens" example:"192.0.2.7:4799"`
	Address  string     `json:"address" doc:"its address inside" example:"fd61:746f:6c6c::1"`
}

// Validate has nothing to check: users cannot write it.
func (k *HostKey) Validate() []errs.Field { return nil }

func hostKeyDefinition() *Definition {
	spec := func(o Object) *HostKeySpec { return &o.(*HostKey).Spec }
	return &Definition{
		Kind: KindHostKey, Plural: "hostkeys", ReadOnly: true,
		Doc: "What the other hosts need to encrypt to a host.",
		New: func() Object { return &HostKey{Head: Head{K: KindHostKey}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "ENDPOINT", Value: func(o Object, _ time.Time) string { return spec(o).Endpoint }},
			{Name: "ADDRESS", Value: func(o Object, _ time.Time) string { return spec(o).Address }},
			{Name: "KEY", Wide: true, Value: func(o Object, _ time.Time) string { return spec(o).Key }},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{},
	}
}

// NodeEncryption is what a host says of its WireGuard.
type NodeEncryption struct {
	Key      string     `json:"key,omitempty" doc:"public key, base64"`
	Since    time.Time  `json:"since,omitzero" doc:"since when it has this key"`
	Next     string     `json:"next,omitempty" doc:"the public key that comes after it"`
	NextFrom *time.Time `json:"nextFrom,omitempty" doc:"when it is taken"`
	Endpoint string     `json:"endpoint,omitempty" doc:"where it listens" example:"192.0.2.7:4799"`
	Address  string     `json:"address,omitempty" doc:"its address inside" example:"fd61:746f:6c6c::1"`
	Active   bool       `json:"active,omitempty" doc:"nothing is sent to other hosts in the clear"`
	By       string     `json:"by,omitempty" doc:"what does the work" enum:"kernel|process"`
}

// InnerPrefix is where hosts' addresses inside of WireGuard are: a unique local one (RFC 4193).
func InnerPrefix() netip.Prefix { return netip.MustParsePrefix("fd61:746f:6c6c::/64") }

// InnerAddress is the address of a host inside of WireGuard. It follows from the node's name, by which
// nobody else is known, so that no host can say that another's is its own.
func InnerAddress(node string) netip.Addr {
	a := InnerPrefix().Addr().As16()
	h := sha256.Sum256([]byte("atoll host " + node))
	copy(a[8:], h[:8])
	return netip.AddrFrom16(a)
}

// ValidPublicKey reports whether s is a public key as WireGuard writes it.
func ValidPublicKey(s string) bool {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == 32 && len(s) == 44 // decoding alone passes over line breaks
}
