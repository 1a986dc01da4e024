package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"time"

	"atoll/api"
	"atoll/cmd/atolld/reach"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/store"
	"atoll/internal/sys/host"
	"atoll/internal/sys/netlink"
)

// runDoctor looks the host over. It needs no running daemon.
func runDoctor(ctx context.Context, args []string) error {
	var format string
	c, err := load("doctor", args, func(fs *flag.FlagSet) { fs.StringVar(&format, "o", "text", "text or json") })
	if err != nil {
		return err
	}
	checks := host.Probe(ctx, host.Options{State: c.State})
	checks = append(checks, wireguardCheck())
	if k, ok := pooled(ctx, c); ok {
		checks = append(checks, k)
	}
	if k, ok := tunnels(ctx, c); ok {
		checks = append(checks, k)
	}
	failed := 0
	for _, k := range checks {
		if !k.OK && k.Severity == host.Failure {
			failed++
		}
	}
	if format == "json" {
		return json.NewEncoder(os.Stdout).Encode(checks)
	}
	for _, k := range checks {
		mark := "ok"
		if !k.OK {
			mark = string(k.Severity)
		}
		fmt.Printf("%-8s %-16s %s\n", mark, k.Name, k.Detail)
		if k.Fix != "" && !k.OK {
			fmt.Printf("%-8s %-16s   do: %s\n", "", "", k.Fix)
		}
	}
	if failed > 0 {
		return errs.New(errs.Unsupported, "%d things keep Atoll from working on this host", failed)
	}
	return nil
}

// wireguardCheck tries whether the kernel has WireGuard. Without, a process does its work.
func wireguardCheck() host.Check {
	if err := netlink.ProbeWireguard(); err != nil {
		return host.Check{Name: "wireguard", Severity: host.Note, Detail: "not in the kernel: where encryption between hosts is on, a process does it, at a part of the speed", Fix: "modprobe wireguard (in Linux since 5.6)"}
	}
	return host.Check{Name: "wireguard", OK: true, Detail: "in the kernel, for encryption between hosts"}
}

// pooled looks at the pool that this host belongs to, where it does and the pool answers.
func pooled(ctx context.Context, c config) (host.Check, bool) {
	id, err := join.Load(c.State, joinDeps())
	if err != nil {
		return host.Check{}, false
	}
	if text := bears(ctx, id); text != "" {
		return host.Check{Name: "members", Severity: host.Warning, Detail: text, Fix: "atoll node token --role witness"}, true
	}
	return host.Check{Name: "members", OK: true, Detail: "in its pool as " + id.Node() + ", a " + string(id.Role())}, true
}

// tunnels tries whether what networks of tenants send to other hosts gets there, where the pool answers.
func tunnels(ctx context.Context, c config) (host.Check, bool) {
	id, err := join.Load(c.State, joinDeps())
	if err != nil || id.Role() != api.RoleNode {
		return host.Check{}, false
	}
	rs, err := remoteStore(id)
	if err != nil {
		return host.Check{}, false
	}
	defer rs.Close()
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nodes, _, err := store.List[*api.Node](ask, rs, api.Selector{Kind: api.KindNode})
	if err != nil {
		return host.Check{}, false // pooled has told what is to be told of it
	}
	link := func(a netip.Addr) (int, error) {
		h, err := netlink.Open()
		if err != nil {
			return 0, err
		}
		defer h.Close()
		l, err := h.LinkWith(a)
		return l.MTU, err
	}
	return reach.Check(ctx, reach.Deps{Node: id.Node(), Nodes: nodes, Link: link, Probe: host.PathMTU})
}
