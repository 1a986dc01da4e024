package etcdstore

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

// member is an etcd server inside this process.
type member struct {
	lock   *os.File
	server *embed.Etcd
}

const (
	// A single member has nobody to agree with. It is told to lead (see lead), so
	// these are only how often it wakes up for nothing.
	aloneTickMS, aloneElectionMS = 500, 2500
	// A lost leader is noticed within 0.6 to 1.2 s. etcd's own default is 1 to 2 s, made
	// for slower networks than that between the hosts of a pool.
	peersTickMS, peersElectionMS = 100, 600

	// maxTxnOps is how many ops one commit may have; etcd's 128 is too few for
	// loading a backup in reasonable steps.
	maxTxnOps = 4096
	// maxRequestBytes bounds one commit.
	maxRequestBytes = 8 << 20
	// aloneSnapshot and aloneCatchUp bound the log entries a single member keeps in
	// memory and replays at start. CatchUp must stay well above Snapshot: what is
	// replayed must not be dropped while raft still looks at it (see lead).
	aloneSnapshot, aloneCatchUp = 1000, 2500

	leadPause = time.Millisecond
	// batchInterval is how long etcd gathers writes before they go from the log into
	// the database file; the log is what makes them durable.
	batchInterval = 500 * time.Millisecond

	// alonePeerURL names the member in its own cluster; nothing listens there.
	alonePeerURL = "http://127.0.0.1:7380"
)

// startMember runs etcd on a data directory and waits until it serves.
func startMember(ctx context.Context, cfg Config) (*member, *clientv3.Client, error) {
	lock, err := lockDir(cfg.DataDir)
	if err != nil {
		return nil, nil, err
	}
	m := &member{lock: lock}
	ec, err := embedConfig(cfg)
	if err == nil {
		err = m.start(ctx, cfg, ec)
	}
	if err != nil {
		m.stop()
		return nil, nil, err
	}
	return m, v3client.New(m.server.Server), nil
}

// start brings the server up. A single member takes the lead at once, see lead;
// that is only safe with a snapshot on disk, so a new directory is started once to
// make one, which takes a few milliseconds.
func (m *member) start(ctx context.Context, cfg Config, ec *embed.Config) error {
	if cfg.Peers.Listen != "" {
		return m.run(ctx, ec, nil)
	}
	if !hasSnapshot(ec.Dir) {
		first := *ec
		first.SnapshotCount = 1
		// It is stopped while it settles in, which it warns about.
		first.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapCore{log: cfg.Log, least: zap.ErrorLevel}))
		takeLead := cfg.Clock
		if _, err := os.Stat(filepath.Join(ec.Dir, "member")); err == nil {
			// Ended before its first snapshot: it must find the lead by itself, so let that be soon.
			first.TickMs, first.ElectionMs = 10, 50
			takeLead = nil
		}
		if err := m.run(ctx, &first, takeLead); err != nil {
			return err
		}
		m.server.Close()
		m.server = nil
	}
	if !hasSnapshot(ec.Dir) {
		return m.run(ctx, ec, nil)
	}
	return m.run(ctx, ec, cfg.Clock)
}

func hasSnapshot(dir string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "member", "snap", "*.snap"))
	return err == nil && len(files) > 0
}

// run starts the server and waits until it is ready, taking the lead if c is given.
func (m *member) run(ctx context.Context, ec *embed.Config, c clock.Clock) error {
	server, err := embed.StartEtcd(ec)
	if err != nil {
		return errs.New(errs.Unavailable, "start etcd on %s: %w", ec.Dir, err).
			WithHint("look at the log for details; 'atoll backup restore' brings a damaged directory back")
	}
	m.server = server
	if c != nil {
		lead(ctx, server.Server, c)
	}
	select {
	case <-server.Server.ReadyNotify():
		return nil
	case <-server.Server.StopNotify():
		return errs.New(errs.Unavailable, "etcd on %s ended while it started", ec.Dir)
	case <-ctx.Done():
		return errs.New(errs.Timeout, "etcd on %s did not become ready: %w", ec.Dir, ctx.Err()).
			WithHint("with several members, a majority must be up")
	}
}

// lead makes the only member of a cluster its leader at once, instead of after an
// election timeout: with the message by which a leader hands over to another. Raft
// passes it over until the member has applied its own membership, so it is
// repeated. Raft then looks through the log it has not applied yet, and ends the
// process when etcd has dropped part of that meanwhile. etcd drops entry 1 and what
// is more than aloneCatchUp behind, so what is replayed must start after a snapshot
// (entry 1 is before it) and be shorter than that (aloneSnapshot).
func lead(ctx context.Context, s *etcdserver.EtcdServer, c clock.Clock) {
	id := uint64(s.MemberID())
	for s.Leader() == 0 {
		select {
		case <-s.ReadyNotify():
			return
		case <-s.StopNotify():
			return
		default:
		}
		// An error means that it is stopping, or has more members after all: then it waits like any other.
		if err := s.Process(ctx, &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: &id, To: &id}); err != nil {
			return
		}
		if c.Sleep(ctx, leadPause) != nil {
			return
		}
	}
}

// stopped reports whether etcd has ended or is about to.
func (m *member) stopped() bool {
	select {
	case <-m.server.Server.StoppingNotify():
		return true
	default:
		return false
	}
}

func (m *member) stop() {
	if m.server != nil {
		m.server.Close()
	}
	_ = m.lock.Close() // nothing was written; closing gives the lock back
}

// lockDir makes sure that no other process uses the directory: etcd itself would
// wait for the other one without end.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.New(errs.Unavailable, "etcd's data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "etcd's data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // the lock is what failed
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errs.New(errs.Unavailable, "%s is in use by another process", dir).WithHint("stop the other atolld first")
		}
		return nil, errs.New(errs.Unavailable, "lock %s: %w", dir, err)
	}
	return f, nil
}

func embedConfig(cfg Config) (*embed.Config, error) {
	ec := embed.NewConfig()
	ec.Name, ec.Dir = cfg.Name, memberDir(cfg.DataDir)
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapCore{log: cfg.Log}))
	ec.QuotaBackendBytes = cfg.QuotaBytes
	ec.MaxTxnOps, ec.MaxRequestBytes = maxTxnOps, maxRequestBytes
	ec.MaxSnapFiles, ec.MaxWalFiles = 2, 2
	ec.BackendFreelistType = "map"
	ec.BackendBatchInterval = batchInterval
	ec.WatchProgressNotifyInterval = time.Minute
	ec.AutoCompactionRetention = "0" // see keep.go
	ec.EnableGRPCGateway = false
	ec.UnsafeNoFsync = false // an acknowledged write survives a power cut
	// Clients are inside this process: no listener at all.
	ec.ListenClientUrls, ec.ListenClientHttpUrls = nil, nil
	ec.AdvertiseClientUrls = nil
	if cfg.Peers.Listen == "" {
		ec.TickMs, ec.ElectionMs = aloneTickMS, aloneElectionMS
		ec.SnapshotCount, ec.SnapshotCatchUpEntries = aloneSnapshot, aloneCatchUp
		return ec, setPeers(ec, cfg.Name, "", alonePeerURL, nil)
	}
	ec.TickMs, ec.ElectionMs = peersTickMS, peersElectionMS
	if cfg.Peers.Join {
		ec.ClusterState = embed.ClusterStateFlagExisting
	}
	ec.PeerTLSInfo = transport.TLSInfo{CertFile: cfg.Peers.CertFile, KeyFile: cfg.Peers.KeyFile, TrustedCAFile: cfg.Peers.CAFile, ClientCertAuth: true,
		SkipClientSANVerify: true} // a host may call from any of its addresses; its certificate says who it is
	if cfg.Peers.Subject != "" {
		ec.PeerTLSInfo.AllowedCNs = []string{cfg.Peers.Subject}
	}
	return ec, setPeers(ec, cfg.Name, cfg.Peers.Listen, cfg.Peers.Advertise, cfg.Peers.Cluster)
}

func setPeers(ec *embed.Config, name, listen, advertise string, cluster map[string]string) error {
	adv, err := url.Parse(advertise)
	if err != nil {
		return err
	}
	ec.AdvertisePeerUrls = []url.URL{*adv}
	ec.ListenPeerUrls = nil
	if listen != "" {
		l, err := url.Parse(listen)
		if err != nil {
			return err
		}
		ec.ListenPeerUrls = []url.URL{*l}
	}
	if len(cluster) == 0 {
		cluster = map[string]string{name: advertise}
	}
	var parts []string
	for n, u := range cluster {
		parts = append(parts, n+"="+u)
	}
	sort.Strings(parts)
	ec.InitialCluster = strings.Join(parts, ",")
	return nil
}
