package nft

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The few phrases our rules are made of. Each returns expressions that either let the
// rule go on or end it; join puts them in a row.

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func verdict(k expr.VerdictKind, chain string) []expr.Any {
	return one(&expr.Verdict{Kind: k, Chain: chain})
}

func count() []expr.Any      { return one(&expr.Counter{}) }
func masquerade() []expr.Any { return one(&expr.Masq{}) }

// meta, net and dport load a part of the packet into a register.
func meta(key expr.MetaKey, reg uint32) []expr.Any {
	return one(&expr.Meta{Key: key, Register: reg})
}

func net(offset, length, reg uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length})
}

func etherSource(reg uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6})
}

func dport(reg uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
}

func l4proto(reg uint32) []expr.Any               { return meta(expr.MetaKeyL4PROTO, reg) }
func iface(key expr.MetaKey, r uint32) []expr.Any { return meta(key, r) }

func equal(load []expr.Any, reg uint32, data []byte) []expr.Any {
	return append(load, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data})
}

func notEqual(load []expr.Any, reg uint32, data []byte) []expr.Any {
	return append(load, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data})
}

func setMark(reg uint32) []expr.Any {
	return one(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg})
}

func zeroMark() []expr.Any {
	return append(one(&expr.Immediate{Register: reg1, Data: make([]byte, 4)}), setMark(reg1)...)
}

// published is the mark of packets whose port is published. Marks do not cross
// namespaces, so no instance can set one.
const published = 0x61746f6c

func markPublished() []expr.Any {
	return append(one(&expr.Immediate{Register: reg1, Data: binaryutil.NativeEndian.PutUint32(published)}), setMark(reg1)...)
}

func isPublished() []expr.Any {
	return equal(meta(expr.MetaKeyMARK, reg1), reg1, binaryutil.NativeEndian.PutUint32(published))
}

// in goes on when the key that starts at reg is in the set.
func in(s *nftables.Set, reg uint32) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID})
}

// get goes on when the map has the key that starts at reg, with the value at dst.
func get(s *nftables.Set, reg, dst uint32) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg, DestRegister: dst, IsDestRegSet: true, SetName: s.Name, SetID: s.ID})
}

// dnat sends the packet to what the map says for the key, if it says anything.
func dnat(s *nftables.Set, key ...[]expr.Any) []expr.Any {
	return append(append(join(key...), get(s, reg1, reg1)...),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1, RegProtoMin: w(1)})
}

// dnat6 is dnat for IPv6 addresses, which take four registers.
func dnat6(s *nftables.Set, key ...[]expr.Any) []expr.Any {
	return append(append(join(key...), get(s, reg1, reg1)...),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV6, RegAddrMin: reg1, RegProtoMin: w(4)})
}

func ip4() []expr.Any {
	return equal(meta(expr.MetaKeyNFPROTO, reg1), reg1, []byte{unix.NFPROTO_IPV4})
}

func notIP4() []expr.Any {
	return notEqual(meta(expr.MetaKeyNFPROTO, reg1), reg1, []byte{unix.NFPROTO_IPV4})
}

// etherType compares the frame's own type, so that a tagged frame never passes for a plain one.
func etherType(t uint16) []expr.Any {
	return equal(one(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2}), reg1, binaryutil.BigEndian.PutUint16(t))
}

// within goes on when the address at the offset of the IP header (12 source, 16 destination) is in p.
func within(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, 4)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(net(offset, 4, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: p.Masked().Addr().AsSlice()})
}

// sourceIn and destinationIn go on when the packet, of either family, is from or to an address in p.
func sourceIn(p netip.Prefix) []expr.Any      { return addressIn(p, 12, 8) }
func destinationIn(p netip.Prefix) []expr.Any { return addressIn(p, 16, 24) }

func addressIn(p netip.Prefix, four, six uint32) []expr.Any {
	if p.Addr().Is4() {
		return join(ip4(), within(four, p))
	}
	mask := make([]byte, 16)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return join(ip6(), append(net(six, 16, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 16, Mask: mask, Xor: make([]byte, 16)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: p.Masked().Addr().AsSlice()}))
}

func ip6() []expr.Any {
	return equal(meta(expr.MetaKeyNFPROTO, reg1), reg1, []byte{unix.NFPROTO_IPV6})
}

func mark(m uint32) []expr.Any {
	return append(one(&expr.Immediate{Register: reg1, Data: binaryutil.NativeEndian.PutUint32(m)}), setMark(reg1)...)
}

func isMarked(m uint32) []expr.Any {
	return equal(meta(expr.MetaKeyMARK, reg1), reg1, binaryutil.NativeEndian.PutUint32(m))
}

// localAddr goes on when the destination is an address of this host.
func localAddr() []expr.Any {
	return equal(one(&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true}), reg1, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))
}

func icmpType(t byte) []expr.Any {
	return join(equal(l4proto(reg1), reg1, []byte{unix.IPPROTO_ICMP}),
		equal(one(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}), reg1, []byte{t}))
}

func ctEstablished() []expr.Any {
	return ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// ctStatusDNAT goes on for connections whose destination was translated (IPS_DST_NAT).
func ctStatusDNAT() []expr.Any { return ctBits(expr.CtKeySTATUS, 1<<5) }

func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

// ifname is a name as the kernel compares it: 16 bytes, padded with zeroes.
func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

func ifName(key expr.MetaKey, name string) []expr.Any {
	return equal(iface(key, reg1), reg1, ifname(name))
}

func ifNotName(key expr.MetaKey, name string) []expr.Any {
	return notEqual(iface(key, reg1), reg1, ifname(name))
}

func ifPrefix(key expr.MetaKey, prefix string) []expr.Any {
	return equal(iface(key, reg1), reg1, []byte(prefix))
}
