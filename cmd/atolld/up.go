package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"atoll/api"
	"atoll/cmd/atolld/builtin"
	"atoll/cmd/atolld/images"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/image/registry"
	"atoll/internal/release"
	"atoll/internal/server"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
	"atoll/internal/sys/cgroup"
	"atoll/internal/sys/mount"
)

// kinds that the cache mirrors: all of them.
func allKinds() []api.Kind {
	var out []api.Kind
	for _, d := range api.Definitions() {
		out = append(out, d.Kind)
	}
	return out
}

// settleIn gives the daemon a group of its own beside the tenants', so that it answers
// however busy they are. Where a service manager has put it into a group already, its
// unit says the same.
func settleIn(c config) error {
	cg, err := cgroup.Detect()
	if err != nil {
		return err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(own), "\n") {
		if strings.Contains(line, ":cpu:") && !strings.HasSuffix(line, ":/") || strings.HasPrefix(line, "0::") && cg.Mode == cgroup.V2 && line != "0::/" {
			return nil
		}
	}
	if _, err := cg.Ensure(daemonGroup(c), cgroup.Limits{CPUWeight: 10000, IOWeight: 10000}); err != nil {
		return err
	}
	return cg.Join(daemonGroup(c), os.Getpid())
}

func daemonGroup(c config) string { return c.Group + "-daemon" }

// audit writes a line per call that changed something or was refused; the
// tamper-evident log will take the same records.
func audit(log *slog.Logger) func(server.Record) {
	return func(r server.Record) {
		if r.Status < 400 && (r.Verb == api.VerbGet || r.Verb == api.VerbList || r.Verb == api.VerbWatch) {
			return
		}
		log.Debug("call", "who", r.Who.String(), "from", r.Source, "verb", string(r.Verb), "ref", r.Ref.String(), "status", r.Status, "kind", string(r.Kind), "took", r.Took)
	}
}

// runSize bounds what is kept in memory: some kilobytes an instance.
const runSize = 256 << 20

// prepareDirs makes the directories and keeps a second daemon away.
func prepareDirs(c config) (unlock func(), err error) {
	if err := makeDirs(c); err != nil {
		return nil, err
	}
	// Where /run is on disk, starts would wait for that disk.
	if in, err := mount.InMemory(c.Run); err != nil {
		return nil, errs.New(errs.Unavailable, "%w", err)
	} else if !in {
		if err := mount.Tmpfs(c.Run, runSize, 0o755); err != nil {
			return nil, errs.New(errs.Unavailable, "%w", err)
		}
	}
	return lockDirs(c)
}

func makeDirs(c config) error {
	for dir, mode := range map[string]os.FileMode{c.State: 0o711, c.Run: 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return errs.New(errs.Unavailable, "make %s: %w", dir, err).WithHint("run it as root, or give directories that this account may write: --state DIR --run DIR")
		}
	}
	return nil
}

// lockDirs keeps a second daemon away.
func lockDirs(c config) (unlock func(), err error) {
	lock, err := os.OpenFile(filepath.Join(c.Run, "atolld.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "make the lock: %w", err)
	}
	if err := takeLock(lock); err != nil {
		lock.Close()
		return nil, errs.New(errs.Conflict, "another atolld runs with %s: %w", c.Run, err).WithHint("atoll version shows it; give another --run and --state to run a second one")
	}
	pid := filepath.Join(c.Run, "atolld.pid")
	if err := os.WriteFile(pid, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return func() { os.Remove(pid); lock.Close() }, nil
}

// lockPatience covers the moment in which a child of a killed daemon, started but not
// yet replaced by its program, still holds what the daemon held.
const lockPatience = 3 * time.Second

func takeLock(f *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil || !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

func openStore(ctx context.Context, c config, peers etcdstore.Peers, clk clock.Clock, log *slog.Logger) (*etcdstore.Store, error) {
	ec := etcdstore.Config{Name: c.Node, Clock: clk, Log: log}
	if c.EtcdEndpoints == "" {
		ec.DataDir, ec.Peers = filepath.Join(c.State, "etcd"), peers
	} else {
		ec.Endpoints, ec.User, ec.Password = list(c.EtcdEndpoints), c.EtcdUser, os.Getenv("ATOLLD_ETCD_PASSWORD")
		t, err := etcdTLS(c)
		if err != nil {
			return nil, err
		}
		ec.TLS = t
	}
	return etcdstore.Open(ctx, ec)
}

func etcdTLS(c config) (*tls.Config, error) {
	if c.EtcdCA == "" && c.EtcdCert == "" {
		return nil, nil //nolint:nilnil // the system's trust
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12} // etcd servers of distributions may not have 1.3 switched on
	if c.EtcdCA != "" {
		pem, err := os.ReadFile(c.EtcdCA)
		if err != nil {
			return nil, errs.New(errs.Invalid, "etcd-ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errs.New(errs.Invalid, "etcd-ca: no certificate in %s", c.EtcdCA)
		}
	}
	if c.EtcdCert != "" {
		pair, err := tls.LoadX509KeyPair(c.EtcdCert, c.EtcdKey)
		if err != nil {
			return nil, errs.New(errs.Invalid, "etcd-cert: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// bootstrap makes what every pool has: the roles and ranks that come with Atoll.
func bootstrap(ctx context.Context, s store.Store, clk clock.Clock) error {
	roles, _, err := s.List(ctx, api.Selector{Kind: api.KindRole, Limit: 1})
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	level := release.Number() // a new pool has no older hosts
	if len(roles) > 0 {
		level = release.First // it is older than levels
	}
	objs := []api.Object{&api.Pool{Head: api.Head{K: api.KindPool, Meta: api.Meta{Name: api.PoolName}}, Spec: api.PoolSpec{Level: level, Since: clk.Now().UTC()}}}
	for _, r := range auth.BuiltinRoles() {
		objs = append(objs, r)
	}
	for name, v := range map[string]int64{"low": -1000, "normal": 0, "high": 1000} {
		objs = append(objs, &api.PriorityClass{Head: api.Head{K: api.KindPriorityClass, Meta: api.Meta{Name: name}},
			Spec: api.PriorityClassSpec{Value: v, Preempt: v > 0, Default: v == 0}})
	}
	now := clk.Now().UTC()
	for {
		var ops []store.Op // in one commit: every one waits for the disk
		for _, o := range objs {
			if _, err := s.Get(ctx, api.RefOf(o)); err == nil {
				continue
			} else if !errors.Is(err, errs.NotFound) {
				return fmt.Errorf("bootstrap %s: %w", api.RefOf(o), err)
			}
			m := o.Metadata()
			m.UID, m.CreatedAt, m.Generation = newUID(), &now, 1
			ops = append(ops, store.Create(o))
		}
		if len(ops) == 0 {
			return nil
		}
		switch _, err := s.Commit(ctx, ops...); {
		case err == nil:
			return nil
		case !errors.Is(err, errs.Exists):
			return fmt.Errorf("bootstrap: %w", err)
		}
		if err := clk.Sleep(ctx, time.Millisecond); err != nil { // another server makes them, too
			return err
		}
	}
}

func newUID() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

// driversOf makes the drivers of the host.
func driversOf(c config, clk clock.Clock, log *slog.Logger) (builtin.Set, error) {
	return builtin.Build(builtin.Host{Node: c.Node, State: c.State, Run: c.Run, Subnet: c.Subnet, Tunnel: tunnelOf(c), Sections: c.Drivers}, clk, log)
}

// tunnelOf is the address to which other hosts send what is for instances on tenants' networks: that of the API,
// or the one by which this host calls others. Where no other host can be, it is loopback.
func tunnelOf(c config) string {
	if h, _, err := net.SplitHostPort(c.Listen); err == nil {
		if ip := net.ParseIP(h); ip != nil && !ip.IsUnspecified() && !ip.IsLoopback() {
			return h
		}
	}
	if own := ownAddresses(c.Subnet); len(own) > 0 {
		return own[0]
	}
	return "127.0.0.1"
}

func newLogger(c config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, errs.InvalidFields("settings", []errs.Field{{Field: "log-level", Value: c.LogLevel, Rule: "must be debug, info, warn or error", Example: "info"}})
	}
	opt := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opt)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opt)), nil
}

// imagesConfig is what the image store is told of the settings.
func imagesConfig(c config) images.Config {
	return images.Config{Node: c.Node, State: c.State, Busybox: c.Busybox, UID: newUID,
		Registry: registry.Options{AuthFile: c.Registry.AuthFile, Mirrors: c.Registry.Mirrors, CAFiles: c.Registry.CAFiles, Insecure: c.Registry.Insecure}}
}
