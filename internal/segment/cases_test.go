package segment

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/driver"
)

var update = flag.Bool("update", false, "write what is answered into the files")

// caseWorld is the world of a file as far as it is read.
type caseWorld struct {
	World
	ends map[string]End
}

// TestCases asks what the files of testdata ask; testdata/README.md says how to read them.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { runCase(t, file) })
	}
}

func runCase(t *testing.T, file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w := &caseWorld{World{map[Net]*Network{}, map[GroupRef]*api.SecurityGroupSpec{}, map[Name]Resolved{}}, map[string]End{}}
	var got []string
	for n, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		if strings.HasPrefix(line, "  ") {
			continue // an answer
		}
		got = append(got, line)
		answer, err := w.read(t, line)
		if err != nil {
			t.Fatalf("%s:%d: %v", file, n+1, err)
		}
		for _, a := range answer {
			got = append(got, "  "+a)
		}
	}
	text := strings.Join(got, "\n") + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if text != string(b) {
		t.Errorf("%s: the answers are\n%s", file, text)
	}
}

func (w *caseWorld) read(t *testing.T, line string) (answer []string, err error) {
	word, rest, _ := strings.Cut(line, " ")
	f := strings.Fields(rest)
	switch word {
	case "", "#":
	case "network":
		n := &Network{Net: netOf("", f[0])}
		for _, s := range f[1:] {
			if peers, ok := strings.CutPrefix(s, "peers="); ok {
				for _, p := range strings.Split(peers, ",") {
					n.Peers = append(n.Peers, netOf("", p))
				}
			} else if s == "closed" {
				n.Closed = true
			} else {
				n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(s))
			}
		}
		w.Networks[n.Net] = n
	case "instance":
		tenant, _, _ := strings.Cut(f[0], "/")
		labels := map[string]string{}
		for _, l := range strings.Split(f[3], ",") {
			k, v, _ := strings.Cut(l, "=")
			labels[k] = v
		}
		w.ends[f[0]] = End{Name: f[0], Addr: netip.MustParseAddr(f[2]), Identity: Identity{tenant, Net{tenant, f[1]}, labels}}
	case "group":
		return nil, w.readGroup(f[0], strings.TrimSpace(strings.TrimPrefix(rest, f[0])))
	case "dns":
		var r Resolved
		for _, p := range f[1:] {
			r.Prefixes = append(r.Prefixes, netip.MustParsePrefix(p))
		}
		w.Names[Name{DNS: f[0]}] = r
	case "service":
		n := netOf("", f[0])
		k, v, _ := strings.Cut(f[1], "=")
		w.Names[Name{Tenant: n.Tenant, Service: n.Name}] = Resolved{Select: map[string]string{k: v}}
	case "ask":
		return w.ask(t, f)
	case "warn":
		for _, m := range w.Warnings(GroupRef(netOf("", f[0]))) {
			answer = append(answer, m.Field+": "+m.Text)
		}
		if answer == nil {
			answer = []string{"nothing"}
		}
	default:
		err = fmt.Errorf("%q is not a word of these files", word)
	}
	return answer, err
}

func (w *caseWorld) readGroup(name, text string) error {
	ref := GroupRef(netOf("", name))
	g := &api.SecurityGroup{Head: api.Head{K: api.KindSecurityGroup, Meta: api.Meta{Name: ref.Name, Tenant: ref.Tenant}}}
	if err := yaml.UnmarshalStrict([]byte(text), &g.Spec); err != nil {
		return err
	}
	if err := api.Check(g); err != nil {
		return err
	}
	w.Groups[ref] = &g.Spec
	return nil
}

func (w *caseWorld) end(s string) (End, error) {
	if e, ok := w.ends[s]; ok {
		return e, nil
	}
	if s == "host" {
		return End{Host: true}, nil
	}
	a, err := netip.ParseAddr(s)
	return End{Addr: a}, err
}

func (w *caseWorld) ask(t *testing.T, f []string) ([]string, error) {
	from, err1 := w.end(f[0])
	to, err2 := w.end(f[2])
	p, err3 := api.ParsePorts(f[3])
	if err1 != nil || err2 != nil || err3 != nil {
		return nil, fmt.Errorf("%v %v %v", err1, err2, err3)
	}
	q := Query{From: from, To: to, Proto: p.Proto, Port: p.First}
	v := w.Explain(q)
	out := []string{v.Reason}
	for _, o := range []*Opinion{v.Egress, v.Ingress} {
		if o != nil && o.Dry != "" {
			out = append(out, "tried: "+o.Dry)
		}
	}
	if v.Egress != nil {
		w.compare(t, &q, Egress, v.Egress)
	}
	if v.Ingress != nil {
		w.compare(t, &q, Ingress, v.Ingress)
	}
	return out, nil
}

// compare asks the tables of the network of that side.
func (w *caseWorld) compare(t *testing.T, q *Query, dir Direction, want *Opinion) {
	self, other := q.From, q.To
	if dir == Ingress {
		self, other = other, self
	}
	net := w.Networks[self.Identity.Network]
	c := New(NewIDs(1), *net)
	var peered []Network
	for _, n := range net.Peers {
		peered = append(peered, *w.Networks[n])
	}
	c.SetNetwork(*net, peered)
	for ref, s := range w.Groups {
		c.SetGroup(ref, s)
	}
	for n, r := range w.Names {
		c.SetName(n, &r)
	}
	peer, next := Peer{Addr: other.Addr}, 0
	if other.Host {
		peer = Peer{Identity: driver.IdentityHost}
	}
	for name, e := range w.ends {
		number := uint32(driver.FirstIdentity + next)
		switch n := e.Identity.Network; {
		case n == net.Net:
			c.SetInstance(e.Addr, number)
		case n.Tenant == net.Net.Tenant:
			number += driver.FirstPeer
		default:
			number += driver.FirstForeign
		}
		c.SetIdentity(number, &e.Identity)
		if name == other.Name {
			peer = Peer{Identity: number}
		}
		next++
	}
	table := c.Table()
	got := Lookup(&table, self.Addr, dir, peer, Ask{Proto: q.Proto, Port: q.Port})
	r, _ := c.Rule(got.Rule)
	if got.Allowed != want.Allowed || want.Rule != nil && r.String() != want.Rule.String() {
		t.Errorf("%s -> %s: the table says %v by %s; the groups %v: %s", q.From.String(), q.To.String(), got.Allowed, r, want.Allowed, want.Why)
	}
}
