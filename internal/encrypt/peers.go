package encrypt

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/sys/wg"
)

// want is a peer that the device is to have.
type want struct {
	node     string
	endpoint netip.AddrPort
	allowed  []netip.Prefix // none: its key is not in use yet, or not any more
}

// wanted are the peers of a host: those of the pool's hosts, and nobody else. have is what the device tells. A host
// that takes its next key is followed as soon as it was heard with it.
func wanted(self string, keys []*api.HostKey, have []wg.Peer) map[wg.Key]want {
	heard := map[wg.Key]bool{}
	for _, p := range have {
		heard[p.Key] = !p.Handshake.IsZero()
	}
	out := map[wg.Key]want{}
	for _, k := range keys {
		addr, err := netip.ParseAddr(k.Spec.Address)
		if k.Name == self || err != nil || addr != api.InnerAddress(k.Name) {
			continue
		}
		end, err := netip.ParseAddrPort(k.Spec.Endpoint)
		if err != nil {
			continue
		}
		cur, err := wg.ParseKey(k.Spec.Key)
		if err != nil {
			continue
		}
		in := []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
		now := want{k.Name, end, in}
		if next, err := wg.ParseKey(k.Spec.Next); err == nil && next != cur {
			ahead := want{node: k.Name, endpoint: end}
			if heard[next] {
				now.allowed, ahead.allowed = nil, in
			}
			out[next] = ahead
		}
		out[cur] = now
	}
	return out
}

// change is what makes the device's peers those that are wanted.
func change(have []wg.Peer, want map[wg.Key]want) wg.Change {
	var c wg.Change
	known := map[wg.Key]bool{}
	var give []wg.Peer
	for _, p := range have {
		w, ok := want[p.Key]
		known[p.Key] = true
		switch {
		case !ok:
			c.Drop = append(c.Drop, p.Key)
		case w.endpoint != p.Endpoint || !slices.Equal(w.allowed, p.Allowed):
			give = append(give, wg.Peer{Key: p.Key, Endpoint: w.endpoint, Allowed: w.allowed})
		}
	}
	for k, w := range want {
		if !known[k] {
			give = append(give, wg.Peer{Key: k, Endpoint: w.endpoint, Allowed: w.allowed})
		}
	}
	// What is taken from one key is given to another in the same change, after it.
	slices.SortFunc(give, func(a, b wg.Peer) int {
		if d := len(a.Allowed) - len(b.Allowed); d != 0 {
			return d
		}
		return slices.Compare(a.Key[:], b.Key[:])
	})
	c.Put = give
	return c
}

// silence is how old a handshake may be while something is sent: WireGuard makes one every two minutes then.
const silence = 3 * time.Minute

// ear notes which hosts do not answer.
type ear struct {
	sent  map[wg.Key]int64
	since map[wg.Key]time.Time // since when something is sent for which there is no fresh handshake
}

// listen names the hosts to which something is sent and of which nothing is heard for so long.
func (e *ear) listen(peers []wg.Peer, want map[wg.Key]want, now time.Time) []string {
	var out []string
	sent, since := map[wg.Key]int64{}, map[wg.Key]time.Time{}
	for _, p := range peers {
		w := want[p.Key]
		if len(w.allowed) == 0 {
			continue
		}
		before, known := e.sent[p.Key]
		sent[p.Key] = p.Tx
		if !known || p.Tx <= before || now.Sub(p.Handshake) < silence {
			continue
		}
		began, waiting := e.since[p.Key]
		if !waiting {
			began = now
		}
		since[p.Key] = began
		age := "never"
		if !p.Handshake.IsZero() {
			age = now.Sub(p.Handshake).Round(time.Second).String() + " ago"
		} else if now.Sub(began) < silence {
			continue // it had no time to answer yet
		}
		out = append(out, fmt.Sprintf("%s (heard %s)", w.node, age))
	}
	e.sent, e.since = sent, since
	slices.Sort(out)
	return out
}

// silent is what a condition says of them.
func silent(names []string) string {
	if len(names) > 5 {
		return strings.Join(names[:5], ", ") + fmt.Sprintf(" and %d more", len(names)-5)
	}
	return strings.Join(names, ", ")
}
