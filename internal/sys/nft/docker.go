package nft

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Docker's chain for other people's rules, in the table that iptables-nft calls "filter".
const (
	dockerTable = "filter"
	dockerChain = "DOCKER-USER"
	dockerMark  = "atoll" // the comment of our rules there
)

// Docker tells whether Docker's chain for others' rules is here.
func (t *Table) Docker() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return false, err
	}
	c, err := t.dockerUser()
	return c != nil, err
}

// AllowBesideDocker lets what our own tables allow for the bridge also pass Docker's
// forwarding rules, whose policy is to drop: two accept rules, marked as ours, at the
// head of DOCKER-USER. Where that chain is not, nothing is done. Safe to call again.
//
// The rules are made of what iptables itself would write, because iptables (and with it
// Docker) refuses to work with a table that holds anything it does not know.
func (t *Table) AllowBesideDocker(bridge string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	c, ours, err := t.dockerRules()
	if err != nil || c == nil {
		return err
	}
	want := [][]expr.Any{dockerAccept(expr.MetaKeyIIFNAME, bridge), dockerAccept(expr.MetaKeyOIFNAME, bridge)}
	if len(ours) == len(want) && slices.EqualFunc(ours, want, sameRule) {
		return nil
	}
	for _, r := range ours {
		if err := t.conn.DelRule(r); err != nil {
			return errs.New(errs.Internal, "rule in %s: %w", dockerChain, err)
		}
	}
	for _, e := range slices.Backward(want) { // each goes to the head
		t.conn.InsertRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: e, UserData: comment(dockerMark)})
	}
	t.gen = 0
	return t.flush("add our rules to " + dockerChain)
}

// ForgetDocker removes our rules from Docker's chain. Nil when there are none.
func (t *Table) ForgetDocker() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	_, ours, err := t.dockerRules()
	if err != nil || len(ours) == 0 {
		return err
	}
	for _, r := range ours {
		if err := t.conn.DelRule(r); err != nil {
			return errs.New(errs.Internal, "rule in %s: %w", dockerChain, err)
		}
	}
	t.gen = 0
	return t.flush("remove our rules from " + dockerChain)
}

func (t *Table) dockerUser() (*nftables.Chain, error) {
	chains, err := t.conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		t.drop()
		return nil, kernelError("list chains", err)
	}
	for _, c := range chains {
		if c.Name == dockerChain && c.Table.Name == dockerTable {
			return c, nil
		}
	}
	return nil, nil
}

func (t *Table) dockerRules() (*nftables.Chain, []*nftables.Rule, error) {
	c, err := t.dockerUser()
	if err != nil || c == nil {
		return nil, nil, err
	}
	rules, err := t.conn.GetRules(c.Table, c)
	if err != nil {
		t.drop()
		return nil, nil, kernelError("list rules of "+dockerChain, err)
	}
	var ours []*nftables.Rule
	for _, r := range rules {
		if string(r.UserData) == string(comment(dockerMark)) {
			ours = append(ours, r)
		}
	}
	return c, ours, nil
}

// dockerAccept is "-i bridge -j ACCEPT" (or -o) as iptables-nft writes it.
func dockerAccept(key expr.MetaKey, bridge string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: append([]byte(bridge), 0)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// sameRule compares direction and interface; counters have moved on.
func sameRule(r *nftables.Rule, want []expr.Any) bool {
	if len(r.Exprs) != len(want) {
		return false
	}
	m, ok1 := r.Exprs[0].(*expr.Meta)
	c, ok2 := r.Exprs[1].(*expr.Cmp)
	wm, wc := want[0].(*expr.Meta), want[1].(*expr.Cmp)
	return ok1 && ok2 && m.Key == wm.Key && string(c.Data) == string(wc.Data)
}
