package etcdstore

import (
	"crypto/tls"
	"log/slog"
	"time"

	"atoll/internal/clock"
	"atoll/internal/errs"
)

// Config says where etcd is. Exactly one of DataDir and Endpoints must be given.
type Config struct {
	// DataDir is where the embedded etcd keeps its files; made with mode 0700.
	DataDir string
	// Name of the embedded member; default "atoll". Unique among members.
	Name string
	// QuotaBytes bounds the embedded database file, as etcd must not be let grow
	// without end; default 2 GiB. When it is full only deletes are accepted.
	QuotaBytes int64
	// Peers is how the embedded member meets others; the zero value is a member
	// that stays alone and listens nowhere.
	Peers Peers

	// Endpoints of an external etcd: "https://10.0.0.1:2379".
	Endpoints []string
	// TLS for Endpoints with https; nil is the system's trust.
	TLS *tls.Config
	// User and Password for an external etcd with authentication.
	User, Password string

	// Prefix of all keys; default "/atoll/". Several pools can share an external etcd.
	Prefix string
	// Timeout bounds one call, so that a store that is down is told and not waited
	// for; default 10 s.
	Timeout time.Duration
	// HistoryAge is how long changes are kept for watches that start in the past;
	// default 10 minutes for the embedded etcd. An external etcd is only compacted
	// when this is set, since others may use it. Negative: never.
	HistoryAge time.Duration
	// HistoryRevisions bounds the history under load, whatever its age; default 10,000.
	HistoryRevisions int64
	// KeepEvery is the pause between looks at history and file size; default 1 minute.
	KeepEvery time.Duration

	Clock clock.Clock  // default: the machine's
	Log   *slog.Logger // gets etcd's warnings and errors; default: nowhere
}

// Peers connects embedded members to one cluster. With three or five members the
// control plane survives the loss of one or two.
type Peers struct {
	// Listen and Advertise are URLs: "https://0.0.0.0:7380", "https://10.0.0.1:7380".
	Listen, Advertise string
	// Cluster maps the name of every first member to its Advertise; with Join, of
	// every member there is and of this one.
	Cluster map[string]string
	// Join a cluster that exists, after the member was added there.
	Join bool
	// CertFile, KeyFile and CAFile prove members to each other (both ways).
	CertFile, KeyFile, CAFile string
	// Subject is what the certificate of a member says; "": any of that CA is good.
	Subject string
}

func (c Config) withDefaults() (Config, error) {
	if (c.DataDir == "") == (len(c.Endpoints) == 0) {
		return c, errs.New(errs.Invalid, "etcd: give either a data directory or endpoints")
	}
	if c.Peers.Listen != "" && (c.Peers.CertFile == "" || c.Peers.KeyFile == "" || c.Peers.CAFile == "") {
		return c, errs.New(errs.Invalid, "etcd: members that meet over a network need a certificate, its key and a CA")
	}
	if c.Name == "" {
		c.Name = "atoll"
	}
	if c.QuotaBytes == 0 {
		c.QuotaBytes = 2 << 30
	}
	if c.Prefix == "" {
		c.Prefix = "/atoll/"
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.HistoryAge == 0 && c.DataDir != "" {
		c.HistoryAge = 10 * time.Minute
	}
	if c.HistoryRevisions == 0 {
		c.HistoryRevisions = 10_000
	}
	if c.KeepEvery == 0 {
		c.KeepEvery = time.Minute
	}
	if c.Clock == nil {
		c.Clock = clock.Real{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
