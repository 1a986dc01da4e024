package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/explain"
	"atoll/internal/join"
	"atoll/internal/server"
	"atoll/internal/store"
)

func joinDeps() join.Deps { return join.Deps{Clock: clock.Real{}, Rand: rand.Reader} }

const joinLong = `  atolld join https://10.0.0.1:7443 --token TOKEN       as atoll node token printed it
  atolld join https://10.0.0.1:7443 --token TOKEN --adopt acme --dry-run
  atolld join https://10.0.0.1:7443 --token TOKEN --adopt acme

A host that has a pool of its own brings what it runs along with --adopt: its tenants
become tenants inside the one named (research becomes acme/research), and nothing is
started anew. The token must allow it: atoll node token --adopt acme. Stop atolld on this
host first (systemctl stop atolld); instances run on. What is in the way is told before
anything changes; --dry-run tells what becomes of everything and changes nothing.
Ended anywhere, the same command goes on.
`

// joining is how this host is to join.
type joining struct {
	urls, token, tokenFile, address string
	adopt, output                   string
	dryRun, yes                     bool
}

func (o *joining) flags(fs *flag.FlagSet) {
	fs.StringVar(&o.token, "token", "", "what atoll node token printed; in ATOLLD_TOKEN nobody on this host sees it")
	fs.StringVar(&o.tokenFile, "token-file", "", "`file` that holds it")
	fs.StringVar(&o.address, "address", "", "where the pool reaches this host (default: the address it calls from)")
	fs.StringVar(&o.adopt, "adopt", "", "bring along what this host runs in a pool of its own, into this `tenant` of the pool")
	fs.BoolVar(&o.dryRun, "dry-run", false, "with --adopt: say what would become of everything, and what is in the way; change nothing")
	fs.BoolVar(&o.yes, "yes", false, "with --adopt: do not ask")
	fs.StringVar(&o.output, "o", "", "with --adopt: json prints the plan for programs")
}

// complete reads the token, and refuses what does not go together.
func (o *joining) complete() error {
	if o.token == "" && o.tokenFile != "" {
		b, err := os.ReadFile(o.tokenFile)
		if err != nil {
			return errs.New(errs.Invalid, "token-file: %w", err)
		}
		o.token = string(b)
	}
	switch {
	case o.urls == "" || o.token == "":
		return errs.New(errs.Invalid, "which pool? a server and a token are needed").WithHint("on a host of the pool: atoll node token; here: atolld join https://isle1:7443 --token TOKEN")
	case o.adopt == "" && (o.dryRun || o.yes || o.output != ""):
		return errs.New(errs.Invalid, "--dry-run, --yes and -o go with --adopt only").WithHint("atolld join --help")
	case o.output != "" && o.output != "json":
		return errs.InvalidFields("join", []errs.Field{{Field: "o", Value: o.output, Rule: "must be json, or left out", Example: "-o json"}})
	}
	return nil
}

// runJoin makes this host one of a pool. Repeated it changes nothing.
func runJoin(ctx context.Context, args []string) error {
	var o joining
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		o.urls, args = args[0], args[1:]
	}
	c, err := load("join", args, o.flags)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(os.Stderr, "\n"+joinLong)
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 { // a witness or a server needs no more than a directory of its own
		if err := os.MkdirAll(c.State, 0o711); err != nil || unwritable(c.State) {
			return errs.New(errs.Denied, "this account may not write %s", c.State).WithHint("sudo atolld join …; a witness or a server can do without root: --state DIR --run DIR")
		}
	}
	if err := o.complete(); err != nil {
		return err
	}
	if o.adopt != "" {
		return adoptHost(ctx, c, o)
	}
	if err := join.Blocked(c.State); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	id, joined, err := join.Do(ctx, joinDeps(), join.Request{Dir: c.State, URLs: list(o.urls), Token: o.token, Node: c.Node, Address: o.address, Version: version})
	if err != nil {
		return err
	}
	what := "is in the pool already"
	if joined {
		what = "joined the pool"
	}
	fmt.Printf("%s %s as %s; servers: %s\n", id.Node(), what, id.Role(), strings.Join(id.Endpoints(), " "))
	fmt.Println(map[api.JoinRole]string{api.RoleNode: "it takes part with: atolld up", api.RoleServer: "it takes part with: atolld server (or atolld up)",
		api.RoleWitness: "it takes part with: atolld witness (or atolld up); root is not needed"}[id.Role()])
	if text := bears(ctx, id); text != "" {
		fmt.Println("\n" + text)
	}
	return nil
}

func unwritable(dir string) bool {
	f, err := os.CreateTemp(dir, ".probe*")
	if err != nil {
		return true
	}
	return errors.Join(f.Close(), os.Remove(f.Name())) != nil
}

// bears says what the pool can bear as it is now, where there is anything to say; only a
// node may see that.
func bears(ctx context.Context, id *join.Identity) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rs, err := remoteStore(id)
	if err != nil || id.Role() != api.RoleNode {
		return ""
	}
	defer rs.Close()
	nodes, _, err := store.List[*api.Node](ctx, rs, api.Selector{Kind: api.KindNode})
	if err != nil {
		return ""
	}
	members, _, err := store.List[*api.Member](ctx, rs, api.Selector{Kind: api.KindMember})
	if err != nil {
		return ""
	}
	return explain.TwoHosts(nodes, members)
}

// knowSelf makes the identity of the host that the pool begins on: nobody may join
// under its name, and it has a key by which it can be known to others.
func knowSelf(ctx context.Context, s store.Store, clk clock.Clock, c config, role api.JoinRole) error {
	ref := api.Ref{Kind: api.KindNodeIdentity, Name: c.Node}
	if _, err := s.Get(ctx, ref); err == nil || !errors.Is(err, errs.NotFound) {
		return err
	}
	key, err := join.KeyHash(c.State, rand.Reader)
	if err != nil {
		return err
	}
	now := clk.Now().UTC()
	id := &api.NodeIdentity{Head: api.Head{K: api.KindNodeIdentity, Meta: api.Meta{Name: c.Node, UID: newUID(), CreatedAt: &now, Generation: 1}},
		Spec: api.NodeIdentitySpec{KeyHash: key, Role: role, JoinedAt: now}}
	if _, err := s.Commit(ctx, store.Create(id)); err != nil && !errors.Is(err, errs.Exists) {
		return fmt.Errorf("make %s: %w", ref, err)
	}
	return nil
}

func serverConfig(c config) server.Config {
	ends, err := advertised(c)
	if err != nil {
		ends = nil // load has refused this
	}
	hosts := []string{c.Node}
	for _, e := range ends {
		if h, _, err := net.SplitHostPort(strings.TrimPrefix(e, "https://")); err == nil {
			hosts = append(hosts, h)
		}
	}
	sc := server.Config{Socket: c.Socket, TLSAddr: c.Listen, Hosts: hosts, Node: c.Node, Advertise: ends, Pool: api.PoolSettings{Subnet: c.Subnet}}
	if self, err := os.Executable(); err == nil {
		sc.Binaries = filepath.Dir(self)
	}
	return sc
}

// advertised is where other hosts reach the API: as the settings say, or where it
// listens; nowhere when that is this host only.
func advertised(c config) ([]string, error) {
	if c.Listen == "" {
		return nil, nil
	}
	at, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, nil // listening says what is wrong
	}
	var hosts []string
	switch ip := net.ParseIP(at); {
	case c.Advertise != "":
		var out []string
		for _, a := range list(c.Advertise) {
			h, p, err := net.SplitHostPort(strings.TrimPrefix(a, "https://"))
			if err != nil || h == "" || p == "" || strings.ContainsAny(h, "/ '\"\\$`") || strings.Trim(p, "0123456789") != "" {
				return nil, errs.New(errs.Invalid, "%q is not host:port", a)
			}
			out = append(out, "https://"+net.JoinHostPort(h, p))
		}
		return out, nil
	case at == "" || ip != nil && ip.IsUnspecified():
		hosts = ownAddresses(c.Subnet)
	case at == "localhost" || ip != nil && ip.IsLoopback():
	default:
		hosts = []string{at}
	}
	var out []string
	for _, h := range hosts {
		out = append(out, "https://"+net.JoinHostPort(h, port))
	}
	return out, nil
}

// ownAddresses are those by which this host calls others: the addresses of its
// bridges mean other hosts nothing.
func ownAddresses(subnet string) []string {
	inside, _ := netip.ParsePrefix(subnet) // a wrong one holds nothing
	var out []string
	for _, to := range [][2]string{{"udp4", "192.0.2.1:9"}, {"udp6", "[2001:db8::1]:9"}} { // only routes are looked up; nothing is sent
		conn, err := net.Dial(to[0], to[1])
		if err != nil {
			continue
		}
		a, err := netip.ParseAddrPort(conn.LocalAddr().String())
		conn.Close()
		if ip := a.Addr().Unmap(); err == nil && ip.IsGlobalUnicast() && !inside.Contains(ip) {
			out = append(out, ip.String())
		}
	}
	return out
}
