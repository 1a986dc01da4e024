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
	"atoll/internal/join"
	"atoll/internal/server"
	"atoll/internal/store"
)

func joinDeps() join.Deps { return join.Deps{Clock: clock.Real{}, Rand: rand.Reader} }

// runJoin makes this host one of a pool. Repeated it changes nothing.
func runJoin(ctx context.Context, args []string) error {
	var urls, token, tokenFile, address string
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		urls, args = args[0], args[1:]
	}
	c, err := load("join", args, func(fs *flag.FlagSet) {
		fs.StringVar(&token, "token", "", "what atoll node token printed; in ATOLLD_TOKEN nobody on this host sees it")
		fs.StringVar(&tokenFile, "token-file", "", "`file` that holds it")
		fs.StringVar(&address, "address", "", "where the pool reaches this host (default: the address it calls from)")
	})
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errs.New(errs.Denied, "atolld join needs root").WithHint("sudo atolld join …")
	}
	if token == "" && tokenFile != "" {
		b, err := os.ReadFile(tokenFile)
		if err != nil {
			return errs.New(errs.Invalid, "token-file: %w", err)
		}
		token = string(b)
	}
	if urls == "" || token == "" {
		return errs.New(errs.Invalid, "which pool? a server and a token are needed").WithHint("on a host of the pool: atoll node token; here: atolld join https://isle1:7443 --token TOKEN")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	id, joined, err := join.Do(ctx, joinDeps(), join.Request{Dir: c.State, URLs: list(urls), Token: token, Node: c.Node, Address: address, Version: version})
	if err != nil {
		return err
	}
	what := "is in the pool already"
	if joined {
		what = "joined the pool"
	}
	fmt.Printf("%s %s as %s; servers: %s\n", id.Node(), what, id.Role(), strings.Join(id.Endpoints(), " "))
	return nil
}

// knowSelf makes the identity of the host that the pool begins on: nobody may join
// under its name, and it has a key by which it can be known to others.
func knowSelf(ctx context.Context, s store.Store, clk clock.Clock, c config) error {
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
		Spec: api.NodeIdentitySpec{KeyHash: key, Role: api.RoleNode, JoinedAt: now}}
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
