// Package reach finds out, for 'atolld doctor', whether packets of tunnels pass from this host to the others of its pool.
// It starts one goroutine for each of them, and waits for all.
package reach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/sys/host"
)

// Deps is what is looked at.
type Deps struct {
	Node  string // this host
	Nodes []*api.Node
	Link  func(netip.Addr) (int, error)                                              // MTU of the link that has an address
	Probe func(ctx context.Context, to netip.Addr, size int) (passes int, err error) // host.PathMTU
}

// atOnce is how many hosts are asked at the same time.
const atOnce = 16

// Check is the finding; false: there is nothing to find, as the host is the only one with tunnels.
func Check(ctx context.Context, d Deps) (host.Check, bool) {
	own, size, err := d.own()
	if err != nil {
		return host.Check{Name: "tunnels", Severity: host.Warning, Detail: err.Error(), Fix: "set tunnel in the section of driver overlay to an address of this host"}, true
	}
	if !own.IsValid() || own.IsLoopback() {
		return host.Check{}, false
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var small, silent, fine []string
	least, turns := size, make(chan struct{}, atOnce)
	for _, n := range d.Nodes {
		to, err := netip.ParseAddr(n.Tunnel())
		if n.Name == d.Node || err != nil || to.Is4() != own.Is4() {
			continue
		}
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			got, err := d.Probe(ctx, to, size)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				silent = append(silent, fmt.Sprintf("from %s to %s (%s): not known: %v", d.Node, n.Name, to, err))
			case got < size:
				least = min(least, got)
				small = append(small, fmt.Sprintf("from %s to %s (%s): packets of %d bytes pass, %d are needed", d.Node, n.Name, to, got, size))
			default:
				fine = append(fine, n.Name)
			}
		})
	}
	wg.Wait()
	if len(small)+len(silent)+len(fine) == 0 {
		return host.Check{}, false
	}
	slices.Sort(small)
	slices.Sort(silent)
	switch {
	case len(small) > 0:
		return host.Check{Name: "tunnels", Severity: host.Failure, Detail: strings.Join(append(small, silent...), "; "),
			Fix: fmt.Sprintf("raise the MTU between the hosts to %d, or on every host: mtu: %d in the section of driver overlay", size, least-header(own))}, true
	case len(silent) > 0:
		return host.Check{Name: "tunnels", Severity: host.Note, Detail: strings.Join(silent, "; "), Fix: "let echo requests (ping) pass between the hosts, and ask again"}, true
	}
	return host.Check{Name: "tunnels", OK: true, Detail: fmt.Sprintf("packets of %d bytes pass to all %d other hosts", size, len(fine))}, true
}

// own is this host's address for tunnels, and how large the largest packet of a tunnel is.
func (d Deps) own() (netip.Addr, int, error) {
	i := slices.IndexFunc(d.Nodes, func(n *api.Node) bool { return n.Name == d.Node })
	if i < 0 || d.Nodes[i].Tunnel() == "" {
		return netip.Addr{}, 0, nil
	}
	own, err := netip.ParseAddr(d.Nodes[i].Tunnel())
	if err != nil || own.IsLoopback() {
		return own, 0, nil //nolint:nilerr // it says so by the address
	}
	for _, c := range d.Nodes[i].Status.Drivers {
		if mtu, err := strconv.Atoi(c.Features["mtu"]); c.Name == api.DriverOverlay && err == nil {
			return own, mtu + header(own), nil
		}
	}
	size, err := d.Link(own)
	if err != nil {
		return own, 0, errs.New(errs.KindOf(err), "the address for tunnels is on no link of this host: %w", err)
	}
	return own, min(size, 65535), nil
}

// header is what a tunnel adds to a packet.
func header(a netip.Addr) int {
	if a.Is6() {
		return 70
	}
	return 50
}
