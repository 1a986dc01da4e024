package nft

import (
	"bytes"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"atoll/internal/errs"
)

// Chains of others in the tables that iptables-nft calls "filter": Docker's for other people's rules, and
// the one that ufw hangs its own chains into.
const (
	filterTable  = "filter"
	dockerChain  = "DOCKER-USER"
	forwardChain = "FORWARD"
	ufwPrefix    = "ufw-"
	besideMark   = "atoll" // the comment of our rules there
)

// Docker tells whether Docker's chain for others' rules is here.
func (t *Table) Docker() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return false, err
	}
	all, err := t.foreign()
	return slices.ContainsFunc(all, func(f foreign) bool { return f.chain.Name == dockerChain }), err
}

// AllowBeside lets what our own tables allow for some interfaces also pass the forwarding rules of Docker and
// ufw, whose policy is to drop: two accept rules for each and each family, marked as ours, at the head of DOCKER-USER, or, where only
// ufw is, of FORWARD, in which ufw leaves rules of others alone. Where neither is, nothing is done. Safe to call again. A name that
// ends in + stands for all that begin so.
//
// The rules are made of what iptables itself would write, because iptables (and with it
// Docker and ufw) refuses to work with a table that holds anything it does not know.
func (t *Table) AllowBeside(interfaces ...string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	all, err := t.foreign()
	if err != nil {
		return err
	}
	var want [][]expr.Any
	for _, i := range interfaces {
		want = append(want, acceptBeside(expr.MetaKeyIIFNAME, i), acceptBeside(expr.MetaKeyOIFNAME, i))
	}
	changed := false
	for _, f := range all {
		// Ours are the first, or they are not ours to rely on.
		first := f.rules[:min(len(f.rules), len(want))]
		if f.wanted && len(f.ours) == len(want) && slices.EqualFunc(first, want, sameRule) || !f.wanted && len(f.ours) == 0 {
			continue
		}
		if err := t.drops(f.ours); err != nil {
			return err
		}
		changed = true
		if !f.wanted {
			continue
		}
		for _, e := range slices.Backward(want) { // each goes to the head
			t.conn.InsertRule(&nftables.Rule{Table: f.chain.Table, Chain: f.chain, Exprs: e, UserData: comment(besideMark)})
		}
	}
	if !changed {
		return nil
	}
	t.gen = 0
	return t.flush("add our rules to those of Docker and ufw")
}

// ForgetBeside removes our rules from others' chains. Nil when there are none.
func (t *Table) ForgetBeside() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	all, err := t.foreign()
	if err != nil {
		return err
	}
	changed := false
	for _, f := range all {
		if err := t.drops(f.ours); err != nil {
			return err
		}
		changed = changed || len(f.ours) > 0
	}
	if !changed {
		return nil
	}
	t.gen = 0
	return t.flush("remove our rules from those of Docker and ufw")
}

func (t *Table) drops(rules []*nftables.Rule) error {
	for _, r := range rules {
		if err := t.conn.DelRule(r); err != nil {
			return errs.New(errs.Internal, "rule in %s: %w", r.Chain.Name, err)
		}
	}
	return nil
}

// foreign is a chain of others that our rules may be in; wanted: they are to be.
type foreign struct {
	chain  *nftables.Chain
	rules  []*nftables.Rule
	ours   []*nftables.Rule
	wanted bool
}

// foreign finds those chains of both families.
func (t *Table) foreign() ([]foreign, error) {
	var out []foreign
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		chains, err := t.conn.ListChainsOfTableFamily(family)
		if err != nil {
			t.drop()
			return nil, kernelError("list chains", err)
		}
		var docker, forward *foreign
		for _, c := range chains {
			if c.Table.Name != filterTable || c.Name != dockerChain && c.Name != forwardChain {
				continue
			}
			f := &foreign{chain: c}
			if f.rules, err = t.conn.GetRules(c.Table, c); err != nil {
				t.drop()
				return nil, kernelError("list rules of "+c.Name, err)
			}
			for _, r := range f.rules {
				if string(r.UserData) == string(comment(besideMark)) {
					f.ours = append(f.ours, r)
				}
			}
			if c.Name == dockerChain {
				docker = f
			} else {
				forward = f
			}
		}
		if docker != nil {
			docker.wanted = true
			out = append(out, *docker)
		}
		if forward != nil {
			forward.wanted = docker == nil && forward.drops()
			out = append(out, *forward)
		}
	}
	return out, nil
}

// drops reports whether a FORWARD chain refuses what nothing in it accepts, or is ufw's.
func (f *foreign) drops() bool {
	if p := f.chain.Policy; p != nil && *p == nftables.ChainPolicyDrop {
		return true
	}
	return slices.ContainsFunc(f.rules, func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			v, ok := e.(*expr.Verdict)
			return ok && strings.HasPrefix(v.Chain, ufwPrefix)
		})
	})
}

// acceptBeside is "-i NAME -j ACCEPT" (or -o) as iptables-nft writes it.
func acceptBeside(key expr.MetaKey, name string) []expr.Any {
	data, many := strings.CutSuffix(name, "+")
	if !many {
		data += "\x00"
	}
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte(data)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// sameRule compares direction and interface; counters have moved on.
func sameRule(r *nftables.Rule, want []expr.Any) bool {
	if len(r.Exprs) != len(want) || string(r.UserData) != string(comment(besideMark)) {
		return false
	}
	m, ok1 := r.Exprs[0].(*expr.Meta)
	c, ok2 := r.Exprs[1].(*expr.Cmp)
	wm, wc := want[0].(*expr.Meta), want[1].(*expr.Cmp)
	return ok1 && ok2 && m.Key == wm.Key && bytes.Equal(c.Data, wc.Data)
}
