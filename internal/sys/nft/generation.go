package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// genSocket asks for the number that grows with every change of the packet filter in
// its namespace, whoever makes it. It is how we know that nobody touched our rules
// since we looked, without looking.
//
// It is kept open for a reason: closing a socket of this family makes the caller wait
// until the kernel has freed what earlier transactions removed, 5-10 ms.
type genSocket struct{ fd int }

func openGenSocket() (*genSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, kernelError("open nftables socket", err)
	}
	return &genSocket{fd}, nil
}

func (g *genSocket) close() { _ = unix.Close(g.fd) } // nothing was written that could be lost

func (g *genSocket) generation() (uint32, error) {
	ne := binary.NativeEndian
	req := make([]byte, 20)
	ne.PutUint32(req, 20)
	ne.PutUint16(req[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(g.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, kernelError("ask for the ruleset's generation", err)
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(g.fd, buf, 0)
	if err != nil {
		return 0, kernelError("ask for the ruleset's generation", err)
	}
	return decodeGeneration(buf[:n])
}

func decodeGeneration(b []byte) (uint32, error) {
	ne := binary.NativeEndian
	if len(b) < 20 {
		return 0, errs.New(errs.Internal, "generation answer of %d bytes is too short", len(b))
	}
	if ne.Uint16(b[4:]) == unix.NLMSG_ERROR {
		return 0, kernelError("ask for the ruleset's generation", unix.Errno(-int32(ne.Uint32(b[16:]))))
	}
	for a := b[20:]; len(a) >= 4; {
		n := int(ne.Uint16(a))
		if n < 4 || n > len(a) {
			break
		}
		if ne.Uint16(a[2:])&0x3fff == unix.NFTA_GEN_ID && n >= 8 {
			return binary.BigEndian.Uint32(a[4:]), nil
		}
		a = a[min(len(a), (n+3)&^3):]
	}
	return 0, errs.New(errs.Internal, "generation answer without a generation")
}
