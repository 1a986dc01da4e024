// Package gobgp is the driver that speaks BGP with routers (driver.Announcer), by the library of
// the same name. It is the only package that knows it.
//
// A speaker, with its goroutines, exists only while there are peers; Close and an Announcing
// without peers end it and wait for it. What routers tell never gets into the table of what
// this host tells, so nothing is passed on from one router to another, and nothing into the
// kernel. Passwords are read from files, and are in no error, log or answer.
package gobgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"atoll/internal/driver"
	"atoll/internal/errs"
)

// Config is the node's section for this driver.
type Config struct {
	// Port is where routers may open sessions; default: nowhere, this host opens them.
	Port int `json:"port,omitempty"`
	// Passwords is the directory with files of passwords; default /etc/atoll/bgp.
	Passwords string `json:"passwords,omitempty"`
}

const (
	defaultPasswords = "/etc/atoll/bgp"
	// A full table of the internet has no place on a host: a peer that tells more is put off.
	mostUnicast = 10000
	mostEVPN    = 50000
	// A connection that failed is tried again after retryDial; one that was refused or ended in words, after
	// retryIdle. Both are the seconds a restarted router is waited for beyond its own start.
	retryDial, retryIdle = 5, 3
	// After a start, what this host tells waits for what routers have to say, but no longer than this (RFC 4724).
	deferral = 10
)

// Driver is a driver.Announcer.
type Driver struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	speaker *speaker          // nil: there are no peers
	names   []string          // of peers, as last told
	failed  map[string]string // peers that there is no session for, and why
	spoke   bool              // a speaker was there in this life: the next one is not the daemon's restart
	changed func()
}

var _ driver.Announcer = (*Driver)(nil)

// speaker is what runs while there are peers.
type speaker struct {
	server *server.BgpServer
	served chan struct{} // closed when its loop has ended
	quiet  context.CancelFunc
	asn    uint32
	router netip.Addr
	fresh  bool // of the daemon's start: routers may have kept what an earlier one told
	peers  map[string]told
	routes map[string]driver.Announcement

	mu   sync.Mutex // guards ends
	ends map[netip.Addr]string
}

// told is a peer as the speaker was told.
type told struct {
	peer     driver.Router
	password string
}

// String keeps the password out of whatever prints it.
func (t told) String() string { return t.peer.Name }

// GoString is for %#v.
func (t told) GoString() string { return t.peer.Name }

// New checks the config; it does no I/O.
func New(d driver.Deps, c Config) (*Driver, error) {
	if c.Port < 0 || c.Port > 65535 {
		return nil, errs.InvalidFields("announce driver gobgp", []errs.Field{{Field: "port", Value: strconv.Itoa(c.Port), Rule: "must be 1 to 65535, or 0 for none", Example: "179"}})
	}
	if c.Passwords == "" {
		c.Passwords = defaultPasswords
	}
	return &Driver{cfg: c, log: d.Log, failed: map[string]string{}, changed: func() {}}, nil
}

// Changed calls fn when there may be something new.
func (d *Driver) Changed(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = fn
}

// Announce makes sessions and routes be as a says.
func (d *Driver) Announce(ctx context.Context, a driver.Announcing) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names, d.failed = nil, map[string]string{}
	for _, p := range a.Peers {
		d.names = append(d.names, p.Name)
	}
	if s := d.speaker; s != nil && (len(a.Peers) == 0 || s.asn != a.ASN || s.router != a.RouterID) {
		if err := d.stop(false); err != nil {
			return err
		}
	}
	if len(a.Peers) == 0 {
		return nil
	}
	if d.speaker == nil {
		if err := d.start(ctx, a); err != nil {
			return err
		}
	}
	// Routes first: a router that is met is told all in one go, and knows then that it is all.
	if err := d.speaker.tell(a.Routes); err != nil {
		return err
	}
	return d.meet(ctx, a.Peers)
}

func (d *Driver) start(ctx context.Context, a driver.Announcing) error {
	s := &speaker{asn: a.ASN, router: a.RouterID, fresh: !d.spoke, peers: map[string]told{}, routes: map[string]driver.Announcement{}, ends: map[netip.Addr]string{}, served: make(chan struct{})}
	s.server = server.NewBgpServer() // it logs nothing: what of it matters is in Sessions
	go func() {
		defer close(s.served)
		s.server.Serve()
	}()
	port := int32(-1)
	if d.cfg.Port > 0 {
		port = int32(d.cfg.Port) //nolint:gosec // checked by New
	}
	err := s.server.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: a.ASN, RouterId: a.RouterID.String(), ListenPort: port}})
	if err == nil {
		err = s.onlyOwn(ctx)
	}
	if err == nil {
		var watched context.Context
		watched, s.quiet = context.WithCancel(context.WithoutCancel(ctx))
		changed := d.changed
		err = s.server.WatchEvent(watched, server.WatchEventMessageCallbacks{
			OnPathUpdate: func([]*apiutil.Path, time.Time) { changed() },
			OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) { s.note(e); changed() },
		}, server.WatchPeer(), server.WatchUpdate(false, "", ""))
	}
	d.speaker = s
	if err != nil {
		_ = d.stop(false) // what matters is why it did not start
		return errs.New(errs.Unavailable, "speak BGP as %s of AS %d: %w", a.RouterID, a.ASN, err)
	}
	d.spoke = true
	return nil
}

// onlyOwn keeps what routers tell out of the table of what this host tells: it is not passed on.
func (s *speaker) onlyOwn(ctx context.Context) error {
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{Name: "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL}, Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}}}}
	if err := s.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return err
	}
	return s.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{Name: "global",
		Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, Policies: []*api.Policy{own}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT}})
}

// note keeps why a session ended.
func (s *speaker) note(e *apiutil.WatchEventMessage_PeerEvent) {
	if e.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	st := e.Peer.State
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case st.SessionState == bgp.BGP_FSM_ESTABLISHED:
		delete(s.ends, st.NeighborAddress)
	case st.DisconnectReason != api.PeerState_DISCONNECT_REASON_UNSPECIFIED && st.DisconnectReason != api.PeerState_DISCONNECT_REASON_IDLE_TIMER_EXPIRED:
		s.ends[st.NeighborAddress] = reason(st.DisconnectReason, st.DisconnectMessage)
	}
}

// stop ends the speaker. When peers may keep what they were told, it says no word.
func (d *Driver) stop(keep bool) error {
	s := d.speaker
	d.speaker = nil
	if s.quiet != nil {
		s.quiet()
	}
	if err := s.server.StopBgp(context.Background(), &api.StopBgpRequest{AllowGracefulRestart: keep}); err != nil {
		return errs.New(errs.Internal, "end the sessions: %w", err)
	}
	s.server.Stop() // ends what the library starts beside its loop
	<-s.served
	return nil
}

// Close ends all sessions; peers keep what they were told.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.speaker == nil {
		return nil
	}
	return d.stop(true)
}

// tell makes the routes that are told be these.
func (s *speaker) tell(routes []driver.Announcement) error {
	want := make(map[string]driver.Announcement, len(routes))
	var add, drop []*apiutil.Path
	for _, r := range routes {
		p, key, err := path(r, s.router)
		if err != nil {
			return fmt.Errorf("announce %v: %w", r, err)
		}
		want[key] = r
		if have, ok := s.routes[key]; !ok || have != r {
			add = append(add, p)
		}
	}
	for key, r := range s.routes {
		if _, ok := want[key]; !ok {
			p, _, err := path(r, s.router)
			if err != nil {
				return fmt.Errorf("withdraw %v: %w", r, err)
			}
			drop = append(drop, p)
		}
	}
	if len(add) > 0 {
		if _, err := s.server.AddPath(apiutil.AddPathRequest{Paths: add}); err != nil {
			return errs.New(errs.Internal, "announce %d routes: %w", len(add), err)
		}
	}
	if len(drop) > 0 {
		if err := s.server.DeletePath(apiutil.DeletePathRequest{Paths: drop}); err != nil {
			return errs.New(errs.Internal, "withdraw %d routes: %w", len(drop), err)
		}
	}
	s.routes = want
	return nil
}

// meet makes the sessions be with these peers.
func (d *Driver) meet(ctx context.Context, peers []driver.Router) error {
	s := d.speaker
	off, err := s.putOff(ctx)
	if err != nil {
		return err
	}
	want := map[string]told{}
	by := map[netip.Addr]string{}
	for _, p := range peers {
		t := told{peer: p}
		other, twice := by[p.At.Addr()]
		switch {
		case twice:
			d.failed[p.Name] = fmt.Sprintf("%s is the peer %s already", p.At.Addr(), other)
			continue
		case p.Secret != "":
			if t.password, err = readPassword(d.cfg.Passwords, p.Secret); err != nil {
				d.failed[p.Name] = err.Error()
				continue
			}
		}
		by[p.At.Addr()] = p.Name
		want[p.Name] = t
	}
	for name, t := range s.peers {
		if w, ok := want[name]; !ok || !reflect.DeepEqual(w, t) || off[t.peer.At.Addr()] {
			if err := s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: t.peer.At.Addr().String()}); err != nil {
				return errs.New(errs.Internal, "end the session with %s: %w", name, err)
			}
			delete(s.peers, name)
			s.mu.Lock()
			delete(s.ends, t.peer.At.Addr())
			s.mu.Unlock()
		}
	}
	for name, t := range want {
		if _, ok := s.peers[name]; ok {
			continue
		}
		if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: neighbor(t, s.fresh)}); err != nil {
			d.failed[name] = "cannot be spoken to: " + err.Error()
			continue
		}
		s.peers[name] = t
	}
	s.fresh = false
	return nil
}

// putOff is which peers the library has put off for telling too much; they are met anew.
func (s *speaker) putOff(ctx context.Context) (map[netip.Addr]bool, error) {
	off := map[netip.Addr]bool{}
	err := s.server.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		if a, err := netip.ParseAddr(p.GetState().GetNeighborAddress()); err == nil && p.GetState().GetAdminState() == api.PeerState_ADMIN_STATE_PFX_CT {
			off[a] = true
		}
	})
	if err != nil {
		return nil, errs.New(errs.Internal, "look at the sessions: %w", err)
	}
	return off, nil
}

// neighbor is a peer in the library's words.
func neighbor(t told, fresh bool) *api.Peer {
	p := t.peer
	n := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: p.At.Addr().String(), PeerAsn: p.ASN, AuthPassword: t.password},
		Timers:    &api.Timers{Config: &api.TimersConfig{HoldTime: uint64(p.Hold / time.Second), ConnectRetry: retryDial, IdleHoldTimeAfterReset: retryIdle}},
		Transport: &api.Transport{RemotePort: uint32(p.At.Port())},
	}
	if p.Multihop > 0 {
		n.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.Multihop)} //nolint:gosec // at most 255
	}
	if p.Restart > 0 {
		n.GracefulRestart = &api.GracefulRestart{Enabled: true, RestartTime: uint32(p.Restart / time.Second), DeferralTime: deferral, LocalRestarting: fresh}
	}
	for _, f := range p.Families {
		fam, most := families[f], uint32(mostUnicast)
		if f == driver.FamilyEVPN {
			most = mostEVPN
		}
		af := &api.Family{Afi: api.Family_Afi(fam.Afi()), Safi: api.Family_Safi(fam.Safi())}
		n.AfiSafis = append(n.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: af, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: p.Restart > 0}},
			PrefixLimits:      &api.PrefixLimit{Family: af, MaxPrefixes: most},
		})
	}
	return n
}

var families = map[driver.Family]bgp.Family{driver.FamilyIPv4: bgp.RF_IPv4_UC, driver.FamilyIPv6: bgp.RF_IPv6_UC, driver.FamilyEVPN: bgp.RF_EVPN}

// States of sessions, in the words of RFC 4271. Those between the two last come and go within seconds
// and say no more than the one.
const (
	stateRefused     = "Idle" // it is not tried
	stateTrying      = "Active"
	stateEstablished = "Established"
)

// Sessions says how it stands with each peer.
func (d *Driver) Sessions(ctx context.Context) ([]driver.Session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := map[string]driver.Session{}
	if s := d.speaker; s != nil {
		names := map[netip.Addr]string{}
		for name, t := range s.peers {
			names[t.peer.At.Addr()] = name
		}
		err := s.server.ListPeer(ctx, &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
			a, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
			if name := names[a]; err == nil && name != "" {
				found[name] = s.session(name, a, p)
			}
		})
		if err != nil {
			return nil, errs.New(errs.Internal, "look at the sessions: %w", err)
		}
	}
	out := make([]driver.Session, 0, len(d.names))
	for _, name := range d.names {
		x, ok := found[name]
		if why := d.failed[name]; !ok || why != "" {
			x = driver.Session{Peer: name, State: stateRefused, Error: why}
		}
		out = append(out, x)
	}
	return out, nil
}

func (s *speaker) session(name string, a netip.Addr, p *api.Peer) driver.Session {
	out := driver.Session{Peer: name, State: stateEstablished}
	if p.GetState().GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED {
		if up := p.GetTimers().GetState().GetUptime(); up != nil {
			out.Since = up.AsTime()
		}
		for _, f := range p.GetAfiSafis() {
			out.Sent += int(f.GetState().GetAdvertised())   //nolint:gosec // bounded by what this host tells
			out.Received += int(f.GetState().GetAccepted()) //nolint:gosec // bounded by mostUnicast and mostEVPN
		}
		return out
	}
	out.State = stateTrying
	s.mu.Lock()
	out.Error = s.ends[a]
	s.mu.Unlock()
	switch {
	case p.GetState().GetAdminState() == api.PeerState_ADMIN_STATE_PFX_CT:
		out.Error = fmt.Sprintf("it told of more than %d prefixes of IPv4 or IPv6, or %d of EVPN; it should tell hosts no more than they need", mostUnicast, mostEVPN)
	case out.Error == "":
		out.Error = fmt.Sprintf("%s does not answer", s.peers[name].peer.At)
		if s.peers[name].password != "" {
			out.Error += ", or has another password"
		}
	}
	return out
}

// reason is why a session ended, for people.
func reason(r api.PeerState_DisconnectReason, more string) string {
	s := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(r.String(), "DISCONNECT_REASON_"), "_", " "))
	if more = strings.TrimSpace(more); more != "" && !strings.EqualFold(strings.ReplaceAll(more, "-", " "), s) {
		s += ": " + more
	}
	if len(s) > 200 {
		s = s[:200]
	}
	return s
}

// Learned is what routers tell of addresses of networks.
func (d *Driver) Learned(ctx context.Context) ([]driver.Learned, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.speaker == nil {
		return nil, nil
	}
	b := newBest(d.speaker.asn)
	for name, t := range d.speaker.peers {
		if !slices.Contains(t.peer.Families, driver.FamilyEVPN) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		req := apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: t.peer.At.Addr().String(), Family: bgp.RF_EVPN}
		err := d.speaker.server.ListPath(req, func(_ bgp.NLRI, paths []*apiutil.Path) {
			for _, p := range paths {
				b.offer(name, p)
			}
		})
		if err != nil {
			return nil, errs.New(errs.Internal, "look at what %s tells: %w", name, err)
		}
	}
	return b.list(), nil
}
