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
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"atoll/internal/errs"
)

// member is an etcd server inside this process.
type member struct {
	lock   *os.File
	server *embed.Etcd
}

const (
	// A single member has nobody to agree with: a short election is what it waits
	// for at start, and a tick costs it a few microseconds.
	aloneTickMS, aloneElectionMS = 10, 50
	// etcd's own defaults, right for a local network.
	peersTickMS, peersElectionMS = 100, 1000

	// maxTxnOps is how many ops one commit may have; etcd's 128 is too few for
	// loading a backup in reasonable steps.
	maxTxnOps = 4096
	// maxRequestBytes bounds one commit.
	maxRequestBytes = 8 << 20
	// snapshotCount and catchUp bound the log entries etcd keeps in memory. A single
	// member needs none of them; a follower further behind gets a snapshot.
	snapshotCount, catchUp = 5000, 500

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
		m.server, err = embed.StartEtcd(ec)
	}
	if err != nil {
		m.stop()
		return nil, nil, errs.New(errs.Unavailable, "start etcd on %s: %w", cfg.DataDir, err).
			WithHint("look at the log for details; 'atoll backup restore' brings a damaged directory back")
	}
	select {
	case <-m.server.Server.ReadyNotify():
	case <-m.server.Server.StopNotify():
		m.stop()
		return nil, nil, errs.New(errs.Unavailable, "etcd on %s ended while it started", cfg.DataDir)
	case <-ctx.Done():
		m.stop()
		return nil, nil, errs.New(errs.Timeout, "etcd on %s did not become ready: %w", cfg.DataDir, ctx.Err()).
			WithHint("with several members, a majority must be up")
	}
	return m, v3client.New(m.server.Server), nil
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
	ec.Name, ec.Dir = cfg.Name, filepath.Join(cfg.DataDir, "member-data")
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapCore{log: cfg.Log}))
	ec.QuotaBackendBytes = cfg.QuotaBytes
	ec.MaxTxnOps, ec.MaxRequestBytes = maxTxnOps, maxRequestBytes
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = snapshotCount, catchUp
	ec.MaxSnapFiles, ec.MaxWalFiles = 2, 2
	ec.BackendFreelistType = "map"
	ec.WatchProgressNotifyInterval = time.Minute
	ec.AutoCompactionRetention = "0" // see keep.go
	ec.EnableGRPCGateway = false
	ec.UnsafeNoFsync = false // an acknowledged write survives a power cut
	// Clients are inside this process: no listener at all.
	ec.ListenClientUrls, ec.ListenClientHttpUrls = nil, nil
	ec.AdvertiseClientUrls = nil
	if cfg.Peers.Listen == "" {
		ec.TickMs, ec.ElectionMs = aloneTickMS, aloneElectionMS
		return ec, setPeers(ec, cfg.Name, "", alonePeerURL, nil)
	}
	ec.TickMs, ec.ElectionMs = peersTickMS, peersElectionMS
	if cfg.Peers.Join {
		ec.ClusterState = embed.ClusterStateFlagExisting
	}
	ec.PeerTLSInfo = transport.TLSInfo{CertFile: cfg.Peers.CertFile, KeyFile: cfg.Peers.KeyFile, TrustedCAFile: cfg.Peers.CAFile, ClientCertAuth: true}
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
