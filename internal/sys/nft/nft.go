// Package nft is the door to the kernel's packet filter: two nftables tables of
// our own, inet atoll and bridge atoll, in which every chain, rule and element is
// ours, and the one place where we put rules beside someone else's (Docker's).
//
// The rules depend on the configuration alone. What belongs to one instance is a
// handful of set and map elements, each carrying the instance's ID as its comment,
// so adding or removing an instance is one small transaction whatever runs already,
// and what is there can be read back after a crash.
//
// It starts no goroutines. It must never change a table, chain or rule it did not make.
package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"

	"atoll/internal/errs"
)

// Config is what the rules depend on.
type Config struct {
	Bridge     string       // name of the bridge
	PortPrefix string       // starts the name of every port of it
	Subnet     netip.Prefix // IPv4
	Gateway    netip.Addr   // the host's address in the subnet
	DNS        bool         // instances may ask the gateway for names (port 53)
	Isolate    bool         // instances of different tenants do not reach each other
	Private    []string     // prefixes of interface names that instances must not be forwarded to
	Uplinks    []string     // interfaces that stay allowed even if a prefix matches
	Untracked  []uint16     // UDP ports of the host of which no connections are kept
}

// Port is what one instance has here.
type Port struct {
	ID        string
	Iface     string // of the bridge's port
	MAC       [6]byte
	Addr      netip.Addr
	Tenant    string
	Published []Published
}

// Published is one port of the host that leads to the instance.
type Published struct {
	Proto  uint8      // 6 TCP, 17 UDP
	HostIP netip.Addr // zero: every address of the host
	Host   uint16
	Port   uint16
}

// slot names one entry of one of our sets; entry is what is in it. Keys and values are
// as the kernel wants them.
type slot struct{ set, key string }

type entry struct {
	val  string
	id   string // instance; stands in the element's comment
	note string // of a tenants element: the tenant's label, so that its number can be told after a crash
}

// comment is how entries are marked in the kernel.
func (e entry) comment() string {
	if e.note == "" {
		return e.id
	}
	return e.id + " " + e.note
}

func parseComment(c string) (id, note string) {
	id, note, _ = strings.Cut(c, " ")
	return id, note
}

// entries spells a port out; number is its tenant's.
func (p Port) entries(number uint32) map[slot]entry {
	ip := string(p.Addr.AsSlice())
	mark := string(binary.NativeEndian.AppendUint32(nil, number))
	out := map[slot]entry{
		{setPorts, string(ifname(p.Iface)) + string(p.MAC[:]) + "\x00\x00" + ip}: {id: p.ID},
		{setTenant, ip}:        {id: p.ID, val: mark, note: label(p.Tenant)},
		{setMember, mark + ip}: {id: p.ID},
	}
	for _, pub := range p.Published {
		key := string([]byte{pub.Proto, 0, 0, 0}) + port4(pub.Host)
		e := entry{id: p.ID, val: ip + port4(pub.Port)}
		if pub.HostIP.IsValid() && !pub.HostIP.IsUnspecified() {
			out[slot{mapPubAt, string(pub.HostIP.AsSlice()) + key}] = e
		} else {
			out[slot{mapPub, key}] = e
		}
	}
	return out
}

func port4(p uint16) string { return string(binary.BigEndian.AppendUint16(nil, p)) + "\x00\x00" }

// label tells tenants apart: wide enough that no tenant can find a name that has
// another's, short enough for a comment.
func label(tenant string) string {
	h := sha256.Sum256([]byte(tenant))
	return hex.EncodeToString(h[:16])
}

// number is the tenant's 32 bits in the packet filter of this node: the start of its
// label, or the next that is free. Those in use are known from the tenants map, so two
// tenants never share one, not even with labels made to collide.
func (t *Table) number(tenant string) uint32 {
	l := label(tenant)
	used := map[uint32]bool{0: true, published: true}
	for s, e := range t.state {
		if s.set == setTenant && len(e.val) == 4 {
			n := binary.NativeEndian.Uint32([]byte(e.val))
			if e.note == l {
				return n
			}
			used[n] = true
		}
	}
	h := sha256.Sum256([]byte(tenant))
	n := binary.BigEndian.Uint32(h[:4])
	for used[n] {
		n++
	}
	return n
}

// Table is our part of the packet filter in the network namespace in which it was
// opened. It may be used by many goroutines.
type Table struct {
	mu    sync.Mutex
	conn  *nftables.Conn // nil: open it
	ask   *genSocket     // open whenever conn is
	want  Config
	rules *ruleset
	gen   uint32         // generation of the kernel's ruleset that the fields below describe; 0: unknown
	state map[slot]entry // nil: not read yet
	has   map[string][]slot
}

// New does nothing yet.
func New() *Table { return &Table{} }

// Close releases the socket; what is in the kernel stays.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop()
}

func (t *Table) drop() {
	if t.conn != nil {
		_ = t.conn.CloseLasting() // a socket that cannot be closed is of no more use either
		t.conn = nil
	}
	if t.ask != nil {
		t.ask.close()
		t.ask = nil
	}
	t.gen = 0
}

// socketBuffer holds a whole transaction: rebuilding after "nft flush ruleset" sends every element at once.
const socketBuffer = 32 << 20

func (t *Table) open() error {
	if t.conn != nil {
		return nil
	}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(
		func(c *netlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
		func(c *netlink.Conn) error { return c.SetReadBuffer(socketBuffer) }))
	if err != nil {
		return kernelError("open nftables socket", err)
	}
	ask, err := openGenSocket()
	if err != nil {
		_ = c.CloseLasting() // never used
		return err
	}
	t.conn, t.ask = c, ask
	return nil
}

// flush sends what was queued as one transaction. After an error the socket may still
// hold answers, so it is not used again.
func (t *Table) flush(step string) error {
	if err := t.conn.Flush(); err != nil {
		t.drop()
		return kernelError(step, err)
	}
	return nil
}

// Ensure makes our rules what the configuration says. It costs one question to the
// kernel when nothing in its packet filter changed since our own last change. Elements
// that instances had stay, also when someone flushed the whole ruleset.
func (t *Table) Ensure(c Config) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rules == nil || !equalConfig(t.want, c) {
		r, err := build(c)
		if err != nil {
			return err
		}
		if t.rules == nil {
			t.state = nil // what was only looked at may have changed since
		}
		t.want, t.rules, t.gen = c, r, 0
	}
	return t.sync()
}

func equalConfig(a, b Config) bool {
	return a.Bridge == b.Bridge && a.PortPrefix == b.PortPrefix && a.Subnet == b.Subnet && a.Gateway == b.Gateway &&
		a.DNS == b.DNS && a.Isolate == b.Isolate && slices.Equal(a.Private, b.Private) && slices.Equal(a.Uplinks, b.Uplinks) && slices.Equal(a.Untracked, b.Untracked)
}

// Fresh reports whether nobody, not even we, changed the packet filter of this
// namespace since the last Ensure, Set or Unset of this Table.
func (t *Table) Fresh() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gen == 0 {
		return false, nil
	}
	gen, err := t.ask.generation()
	return gen == t.gen, err
}

// blank has our names, for looking when no configuration was given yet.
func blank() (*ruleset, error) {
	return build(Config{Bridge: "x", PortPrefix: "x", Subnet: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("10.0.0.1")})
}

// look reads the kernel without changing it, for callers that come before Ensure.
func (t *Table) look() error {
	if t.rules != nil {
		return t.sync()
	}
	if err := t.open(); err != nil {
		return err
	}
	r, err := blank()
	if err != nil {
		return err
	}
	t.rules = r
	defer func() { t.rules = nil }()
	t.state, t.has = map[slot]entry{}, map[string][]slot{}
	found, err := t.load()
	if err != nil {
		return err
	}
	t.adopt(found)
	return nil
}

// sync brings the cache and the kernel together when the kernel's ruleset changed without us.
func (t *Table) sync() error {
	if t.rules == nil {
		return errs.New(errs.Internal, "nft: Ensure comes first")
	}
	if err := t.open(); err != nil {
		return err
	}
	// Twice as a rule: look, repair, look again. More often only if others change things meanwhile.
	for range 5 {
		gen, err := t.ask.generation()
		if err != nil {
			return err
		}
		if t.gen != 0 && gen == t.gen {
			return nil
		}
		same, err := t.compare()
		if err != nil {
			return err
		}
		if same {
			t.gen = gen
			return nil
		}
		if err := t.rebuild(); err != nil {
			return err
		}
	}
	return errs.New(errs.Unavailable, "nft: somebody keeps removing our rules").
		WithHint("look for what flushes nftables: nft monitor")
}

// compare looks whether the kernel has all that we want there, and takes over what else of ours it has.
func (t *Table) compare() (bool, error) {
	intact, err := t.intact()
	if err != nil {
		return false, err
	}
	found, err := t.load()
	if err != nil {
		return false, err
	}
	if t.state == nil {
		t.state, t.has = map[slot]entry{}, map[string][]slot{}
	}
	t.adopt(found)
	return intact && maps.Equal(found, t.state), nil
}

// adopt takes over what another life put into the kernel and this one has not seen,
// unless it contradicts what this one knows.
func (t *Table) adopt(found map[slot]entry) {
	for s, e := range found {
		if _, known := t.state[s]; !known && e.id != "" {
			t.state[s] = e
			t.has[e.id] = append(t.has[e.id], s)
		}
	}
}

// rebuild replaces both tables by fresh ones with all known elements, in one
// transaction: no packet ever meets half of it.
func (t *Table) rebuild() error {
	c := t.conn
	for _, tab := range t.rules.tables {
		c.AddTable(tab)
		c.DelTable(tab)
		c.AddTable(tab)
	}
	bySet := map[string][]nftables.SetElement{}
	for s, e := range t.state {
		bySet[s.set] = append(bySet[s.set], wire(s, e))
	}
	for _, name := range slices.Sorted(maps.Keys(t.rules.sets)) {
		s := t.rules.sets[name]
		if err := c.AddSet(s, nil); err != nil {
			return errs.New(errs.Internal, "set %s: %w", s.Name, err)
		}
		for part := range slices.Chunk(bySet[s.Name], 200) { // an attribute holds 64 KiB
			if err := c.SetAddElements(s, part); err != nil {
				return errs.New(errs.Internal, "set %s: %w", s.Name, err)
			}
		}
	}
	for _, ch := range t.rules.chains {
		c.AddChain(ch.Chain)
	}
	c.AddChain(&nftables.Chain{Table: t.rules.tables[0], Name: t.rules.print})
	for _, ch := range t.rules.chains {
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch.Chain, Exprs: r.exprs, UserData: comment(r.why)})
		}
	}
	return t.flush("write rules")
}

// comment is how nft stores a rule's comment (type 0 of a rule's user data).
func comment(s string) []byte { return userdata.AppendString(nil, userdata.Type(0), s) }

func wire(s slot, e entry) nftables.SetElement {
	se := nftables.SetElement{Key: []byte(s.key), Comment: e.comment()}
	if e.val != "" {
		se.Val = []byte(e.val)
	}
	return se
}

// intact tells whether our chains and rules are in the kernel as we write them.
func (t *Table) intact() (bool, error) {
	have := map[string]bool{}
	for _, tab := range t.rules.tables {
		chains, err := t.conn.ListChainsOfTableFamily(tab.Family)
		if err != nil {
			t.drop()
			return false, kernelError("list chains", err)
		}
		for _, c := range chains {
			if c.Table.Name == tab.Name {
				have[fmt.Sprint(tab.Family, c.Name)] = true
			}
		}
	}
	if !have[fmt.Sprint(t.rules.tables[0].Family, t.rules.print)] {
		return false, nil
	}
	for _, ch := range t.rules.chains {
		if !have[fmt.Sprint(ch.Table.Family, ch.Name)] {
			return false, nil
		}
		rules, err := t.conn.GetRules(ch.Table, ch.Chain)
		if err != nil {
			t.drop()
			return false, kernelError("list rules of "+ch.Name, err)
		}
		same := slices.EqualFunc(rules, ch.rules, func(k *nftables.Rule, r rule) bool { return string(k.UserData) == string(comment(r.why)) })
		if !same {
			return false, nil
		}
	}
	return true, nil
}

// load reads all elements, with the instance each belongs to.
func (t *Table) load() (map[slot]entry, error) {
	out := map[slot]entry{}
	there, err := t.present()
	if err != nil {
		return nil, err
	}
	for _, s := range t.rules.sets {
		if !there[s.Name] {
			continue
		}
		els, err := t.conn.GetSetElements(s)
		if err != nil {
			t.drop()
			return nil, kernelError("list elements of "+s.Name, err)
		}
		for _, e := range els {
			// One without a comment was not put there by us.
			id, note := parseComment(e.Comment)
			out[slot{s.Name, string(e.Key)}] = entry{val: string(e.Val), id: id, note: note}
		}
	}
	return out, nil
}

// present tells which of our sets exist. The library loses the error's number, so a set
// that is not there is found out by listing, not by failing.
func (t *Table) present() (map[string]bool, error) {
	out := map[string]bool{}
	for _, tab := range t.rules.tables {
		tables, err := t.conn.ListTablesOfFamily(tab.Family)
		if err != nil {
			t.drop()
			return nil, kernelError("list tables", err)
		}
		if !slices.ContainsFunc(tables, func(x *nftables.Table) bool { return x.Name == tab.Name }) {
			continue
		}
		have, err := t.conn.GetSets(tab)
		if err != nil {
			t.drop()
			return nil, kernelError("list sets", err)
		}
		for _, s := range have {
			out[s.Name] = true
		}
	}
	return out, nil
}

// Set makes the elements of an instance exactly those of p, in one transaction.
// errs.Conflict when its address or a published port is held by another instance.
func (t *Table) Set(p Port) error {
	if p.ID == "" {
		return errs.New(errs.Internal, "nft: port without ID")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.sync(); err != nil {
		return err
	}
	want := p.entries(t.number(p.Tenant))
	for s := range want {
		if have, taken := t.state[s]; taken && have.id != p.ID {
			return errs.New(errs.Conflict, "%s is held by instance %s on this node", describe(s), have.id).
				WithHint("remove instance %s first, or choose another address or port", have.id)
		}
	}
	return t.replace(p.ID, want)
}

func describe(e slot) string {
	ip := func(s string) string { a, _ := netip.AddrFromSlice([]byte(s)); return a.String() }
	pub := func(s string) string {
		proto := "tcp"
		if s[0] == syscall.IPPROTO_UDP {
			proto = "udp"
		}
		return fmt.Sprintf("%s port %d", proto, binary.BigEndian.Uint16([]byte(s[4:6])))
	}
	switch e.set {
	case mapPub:
		return "published " + pub(e.key)
	case mapPubAt:
		return "published " + pub(e.key[4:]) + " on " + ip(e.key[:4])
	default:
		return "address " + ip(e.key[len(e.key)-4:])
	}
}

// Unset removes every element of an instance; nil when it has none. It works before
// Ensure, too, and then makes nothing.
func (t *Table) Unset(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.look(); err != nil {
		return err
	}
	if t.rules == nil {
		r, err := blank()
		if err != nil {
			return err
		}
		t.rules = r
		defer func() { t.rules, t.state, t.gen = nil, nil, 0 }()
	}
	return t.replace(id, nil)
}

// replace swaps the elements of an instance for others. The caller holds mu and has synced.
func (t *Table) replace(id string, want map[slot]entry) error {
	var add, del []slot
	for _, s := range t.has[id] {
		if e, keep := want[s]; !keep || e != t.state[s] {
			del = append(del, s)
		}
	}
	for s, e := range want {
		if t.state[s] != e {
			add = append(add, s)
		}
	}
	if len(add)+len(del) == 0 {
		return nil
	}
	for _, s := range del { // the key alone names it
		if err := t.conn.SetDeleteElements(t.setByKeyOnly(s.set), []nftables.SetElement{{Key: []byte(s.key)}}); err != nil {
			return errs.New(errs.Internal, "element of %s: %w", s.set, err)
		}
	}
	for _, s := range add {
		if err := t.conn.SetAddElements(t.rules.sets[s.set], []nftables.SetElement{wire(s, want[s])}); err != nil {
			return errs.New(errs.Internal, "element of %s: %w", s.set, err)
		}
	}
	if err := t.flush("update instance " + id); err != nil {
		return err
	}
	for _, s := range del {
		delete(t.state, s)
	}
	maps.Copy(t.state, want)
	if t.has[id] = slices.Collect(maps.Keys(want)); len(want) == 0 {
		delete(t.has, id)
	}
	gen, err := t.ask.generation()
	if err != nil {
		return err
	}
	if gen != t.gen+1 { // someone else changed something, too: look again next time
		gen = 0
	}
	t.gen = gen
	return nil
}

// setByKeyOnly is the set as if it were no map: a deletion carries no value.
func (t *Table) setByKeyOnly(name string) *nftables.Set {
	s := *t.rules.sets[name]
	s.IsMap = false
	return &s
}

// Addr tells the address an instance has here; false when it has none.
func (t *Table) Addr(id string) (netip.Addr, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.look(); err != nil {
		return netip.Addr{}, false, err
	}
	for _, s := range t.has[id] {
		if s.set == setTenant {
			a, ok := netip.AddrFromSlice([]byte(s.key))
			return a, ok, nil
		}
	}
	return netip.Addr{}, false, nil
}

// UDP lists the ports of the host that an instance has published with UDP.
func (t *Table) UDP(id string) []uint16 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []uint16
	for _, e := range t.has[id] {
		key := e.key
		switch e.set {
		case mapPubAt:
			key = key[4:]
		case mapPub:
		default:
			continue
		}
		if key[0] == syscall.IPPROTO_UDP {
			out = append(out, binary.BigEndian.Uint16([]byte(key[4:6])))
		}
	}
	return out
}

// Observe lists the instances that have elements here, sorted. Unlike the others it
// reads the kernel whatever the configuration, and changes nothing.
func (t *Table) Observe() ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return nil, err
	}
	if t.rules == nil {
		r, err := blank()
		if err != nil {
			return nil, err
		}
		t.rules = r
		defer func() { t.rules = nil }()
	}
	found, err := t.load()
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, e := range found {
		if e.id != "" {
			ids[e.id] = true
		}
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

// Delete removes both tables with all that is in them. Nil when they are gone already.
func (t *Table) Delete() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return err
	}
	for _, f := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		tab := &nftables.Table{Name: TableName, Family: f}
		t.conn.AddTable(tab) // so that deleting one that is not there is no error
		t.conn.DelTable(tab)
	}
	t.state, t.has, t.gen = nil, nil, 0
	return t.flush("delete our tables")
}

// kernelError gives an errno its kind.
func kernelError(step string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return errs.New(errs.Denied, "%s: %w", step, err).WithHint("this needs root with CAP_NET_ADMIN")
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EAFNOSUPPORT):
		return errs.New(errs.Unsupported, "%s: %w", step, err).
			WithHint("the kernel lacks a part of nftables (inet, bridge, nat, fib, ct): modprobe nf_tables nft_fib_inet nft_masq nft_nat, or use a kernel that has them")
	case errors.Is(err, os.ErrNotExist):
		return errs.New(errs.NotFound, "%s: %w", step, err)
	case errors.Is(err, os.ErrExist):
		return errs.New(errs.Conflict, "%s: %w", step, err)
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EINTR), strings.Contains(step, "open") && errors.Is(err, syscall.EMFILE):
		return errs.New(errs.Unavailable, "%s: %w", step, err)
	}
	return fmt.Errorf("%s: %w", step, err)
}
