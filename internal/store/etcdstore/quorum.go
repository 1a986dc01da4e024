package etcdstore

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"

	"atoll/internal/errs"
)

const (
	// quorumLook is between looks whether there is a leader.
	quorumLook = 500 * time.Millisecond
	// quorumPatience is how long a group may have no leader, as at every election, until
	// calls are told so at once instead of waiting.
	quorumPatience = 3 * time.Second
	// quorumAsk is between questions to the other members while there is no leader, and
	// knockTimeout how long one may take to answer.
	quorumAsk    = 3 * time.Second
	knockTimeout = 1500 * time.Millisecond
)

// peerSeen is a member as this one sees it while there is no majority.
type peerSeen struct {
	name, host string
	learner    bool
	answers    bool
	heard      time.Time // when it answered last, as far as this process knows
}

// followQuorum keeps what calls are told while the group has no majority. It returns with ctx.
func (s *Store) followQuorum(ctx context.Context) {
	var since, asked time.Time
	heard := map[string]time.Time{}
	for s.cfg.Clock.Sleep(ctx, quorumLook) == nil {
		now := s.cfg.Clock.Now()
		if !s.leaderless() {
			since, asked = time.Time{}, time.Time{}
			s.lost.Store(nil)
			continue
		}
		if since.IsZero() {
			since = now
		}
		if now.Sub(since) < quorumPatience || now.Sub(asked) < quorumAsk {
			continue
		}
		seen := s.knock(ctx)
		asked = s.cfg.Clock.Now()
		for i, p := range seen {
			if p.answers {
				heard[p.host] = asked
			}
			seen[i].heard = heard[p.host]
		}
		if s.leaderless() && ctx.Err() == nil {
			s.lost.Store(noMajority(seen, since, asked))
		}
	}
}

// leaderless reports whether this member belongs to a group that nobody leads.
func (s *Store) leaderless() bool {
	if !s.grouped.Load() {
		return false
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	return s.member != nil && s.member.server != nil && !s.member.stopped() && s.member.server.Server.Leader() == 0
}

// knock asks every other member whether it answers, all at once: a TLS handshake, which
// a process that stands still does not make.
func (s *Store) knock(ctx context.Context) []peerSeen {
	s.gate.RLock()
	var seen []peerSeen
	if s.member != nil && s.member.server != nil {
		self := s.member.server.Server.MemberID()
		for _, m := range s.member.server.Server.Cluster().Members() {
			p := peerSeen{name: m.Name, learner: m.IsLearner, answers: m.ID == self}
			if len(m.PeerURLs) > 0 {
				p.host = HostPort(m.PeerURLs[0])
			}
			seen = append(seen, p)
		}
	}
	peers := s.peers
	s.gate.RUnlock()
	conf, err := Handshake(peers)
	var wg sync.WaitGroup
	for i := range seen {
		if p := &seen[i]; !p.answers && err == nil {
			wg.Go(func() { p.answers = Answers(ctx, p.host, conf) })
		}
	}
	wg.Wait()
	slices.SortFunc(seen, func(a, b peerSeen) int { return strings.Compare(a.name, b.name) })
	return seen
}

// Handshake is how one member greets another.
func Handshake(p Peers) (*tls.Config, error) {
	info := transport.TLSInfo{CertFile: p.CertFile, KeyFile: p.KeyFile, TrustedCAFile: p.CAFile}
	return info.ClientConfig()
}

// HostPort is the address in a member's URL; "" when there is none.
func HostPort(peer string) string {
	u, err := url.Parse(peer)
	if err != nil {
		return ""
	}
	return u.Host
}

// Answers reports whether a member answers at host:port, to one that shows conf's certificate.
func Answers(ctx context.Context, host string, conf *tls.Config) bool {
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	d := tls.Dialer{Config: conf}
	c, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return false
	}
	_ = c.Close() // nothing was sent
	return true
}

// noMajority says which members answer, which do not, and what can be done.
func noMajority(seen []peerSeen, since, now time.Time) *errs.Error {
	votes, up := 0, 0
	var there, away []string
	for _, p := range seen {
		name := p.name
		if name == "" {
			name = "one that never began"
		}
		if !p.learner {
			votes++
			if p.answers {
				up++
			}
		}
		switch {
		case p.answers:
			there = append(there, name)
		case p.heard.IsZero():
			away = append(away, fmt.Sprintf("%s (%s)", name, p.host))
		default:
			away = append(away, fmt.Sprintf("%s (%s, last heard %s ago)", name, p.host, now.Sub(p.heard).Round(time.Second)))
		}
	}
	what := fmt.Sprintf("all %d servers that keep it answer, but have not agreed on a leader", votes)
	if len(away) > 0 {
		what = fmt.Sprintf("%d of the %d servers that keep it answer (%s), %d are needed; no answer from %s",
			up, votes, strings.Join(there, ", "), votes/2+1, strings.Join(away, ", "))
	}
	return errs.New(errs.Unavailable, "the pool's state can be neither read nor changed, since %s: %s", since.UTC().Format(time.DateTime+" MST"), what).
		WithHint("instances run on, but what must not run twice is stopped. Start those that are down, or mend the network between them; if they are gone for good: atoll recover")
}
