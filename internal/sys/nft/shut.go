package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ShutName is the table that keeps tunnels between hosts to one interface.
const ShutName = "atoll_encryption"

// Shut refuses packets to the UDP port of tunnels that come or go by another interface than device,
// in the caller's namespace. Loopback is no way to another host. It is a table of its own, so it stands whatever
// becomes of the others, also without a daemon.
func Shut(device string, port uint16) error {
	c, err := nftables.New()
	if err != nil {
		return kernelError("open nftables socket", err)
	}
	t := &nftables.Table{Name: ShutName, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	policy := nftables.ChainPolicyAccept
	for _, way := range []struct {
		name string
		hook *nftables.ChainHook
		key  expr.MetaKey
	}{
		// Raw comes before connections are followed and addresses translated, filter after.
		{"arriving", nftables.ChainHookPrerouting, expr.MetaKeyIIFNAME},
		{"leaving", nftables.ChainHookPostrouting, expr.MetaKeyOIFNAME},
	} {
		prio := *nftables.ChainPriorityRaw
		if way.hook == nftables.ChainHookPostrouting {
			prio = *nftables.ChainPriorityLast
		}
		ch := c.AddChain(&nftables.Chain{Table: t, Name: way.name, Type: nftables.ChainTypeFilter, Hooknum: way.hook, Priority: &prio, Policy: &policy})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, UserData: comment("nothing of tenants' networks in the clear"), Exprs: join(
			equal(l4proto(reg1), reg1, []byte{unix.IPPROTO_UDP}), equal(dport(reg1), reg1, binaryutil.BigEndian.PutUint16(port)),
			ifNotName(way.key, device), ifNotName(way.key, "lo"), count(), verdict(expr.VerdictDrop, ""))})
	}
	if err := c.Flush(); err != nil {
		return kernelError("shut the host for tunnels in the clear", err)
	}
	return nil
}

// Unshut takes back what Shut did; nil when it did nothing.
func Unshut() error {
	c, err := nftables.New()
	if err != nil {
		return kernelError("open nftables socket", err)
	}
	t := &nftables.Table{Name: ShutName, Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that it is there to be removed
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return kernelError("open the host for tunnels", err)
	}
	return nil
}

// IsShut reports whether Shut is in force.
func IsShut() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, kernelError("open nftables socket", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, kernelError("list tables", err)
	}
	for _, t := range tables {
		if t.Name == ShutName {
			return true, nil
		}
	}
	return false, nil
}
