package etcdstore

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"atoll/internal/errs"
	"atoll/internal/store"
)

// Copy is what the data directory of a member holds, read while no etcd runs on it.
type Copy struct {
	Revision int64        // of the newest change that was applied
	Index    uint64       // of the newest entry of the log that was applied
	Logged   uint64       // of the newest entry in the log; those after Index may not have been agreed on
	Members  []store.Peer // as this copy knows them, ordered by name
	Written  time.Time    // when anything was written last
	Bytes    int64        // of the database
}

const (
	// forgetBy is how much further the revisions go on after a copy was made the only
	// one. What the lost members acknowledged, and this copy never heard of, had revisions
	// that must not be used again: whoever has seen them must notice that history is
	// another one. At a thousand changes a second they last for eleven days.
	forgetBy = 1_000_000_000
	// dbWait is how long another process may hold the database.
	dbWait = 2 * time.Second
	// settleTickMS and settleElectionMS let a member that has nobody to agree with find its lead soon.
	settleTickMS, settleElectionMS = 10, 50
)

func memberDir(dataDir string) string { return filepath.Join(dataDir, "member-data") }

func dbFile(dataDir string) string { return filepath.Join(memberDir(dataDir), "member", "snap", "db") }

// Inspect reads a data directory that no process uses. errs.NotFound: there is no copy.
func Inspect(dataDir string) (Copy, error) {
	var c Copy
	info, err := os.Stat(dbFile(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return c, errs.New(errs.NotFound, "there is no copy of the pool's state in %s", dataDir)
	}
	if err != nil {
		return c, errs.New(errs.Unavailable, "look at the copy of the state: %w", err)
	}
	lock, err := lockDir(dataDir)
	if err != nil {
		return c, err
	}
	defer lock.Close()
	c.Bytes, c.Written = info.Size(), info.ModTime()
	db, err := bbolt.Open(dbFile(dataDir), 0o600, &bbolt.Options{ReadOnly: true, Timeout: dbWait})
	if err != nil {
		return c, errs.New(errs.Unavailable, "read %s: %w", dbFile(dataDir), err).WithHint("if it is damaged, another host's copy or a backup must do: atolld recover --from FILE")
	}
	defer db.Close()
	if err := db.View(c.read); err != nil {
		return c, err
	}
	c.log(filepath.Join(memberDir(dataDir), "member", "wal"))
	return c, nil
}

// read fills in what the database says.
func (c *Copy) read(tx *bbolt.Tx) error {
	if b := tx.Bucket(schema.Meta.Name()); b != nil {
		if v := b.Get(schema.MetaConsistentIndexKeyName); len(v) == 8 {
			c.Index = binary.BigEndian.Uint64(v)
		}
		if v := b.Get(schema.ScheduledCompactKeyName); len(v) >= 17 { // etcd never goes back behind it
			c.Revision = mvcc.BytesToRev(v[:17]).Main
		}
	}
	if b := tx.Bucket(schema.Key.Name()); b != nil {
		if k, _ := b.Cursor().Last(); len(k) >= 17 {
			c.Revision = max(c.Revision, mvcc.BytesToRev(k[:17]).Main)
		}
	}
	b := tx.Bucket(schema.Members.Name())
	if b == nil {
		return nil
	}
	err := b.ForEach(func(_, v []byte) error {
		m := &membership.Member{}
		if err := json.Unmarshal(v, m); err != nil {
			return errs.New(errs.Unavailable, "the members in the copy of the state cannot be read: %w", err)
		}
		p := store.Peer{ID: uint64(m.ID), Name: m.Name, Learner: m.IsLearner}
		if len(m.PeerURLs) > 0 {
			p.URL = m.PeerURLs[0]
		}
		c.Members = append(c.Members, p)
		return nil
	})
	sort.Slice(c.Members, func(i, j int) bool { return c.Members[i].Name < c.Members[j].Name })
	return err
}

// log fills in what the log says. A log that cannot be read here says nothing; etcd will
// say why when it is started.
func (c *Copy) log(dir string) {
	if files, err := filepath.Glob(filepath.Join(dir, "*.wal")); err == nil {
		for _, f := range files {
			if info, err := os.Stat(f); err == nil && info.ModTime().After(c.Written) {
				c.Written = info.ModTime()
			}
		}
	}
	snaps, err := wal.ValidSnapshotEntries(zap.NewNop(), dir)
	if err != nil || len(snaps) == 0 {
		return
	}
	w, err := wal.OpenForRead(zap.NewNop(), dir, snaps[len(snaps)-1])
	if err != nil {
		return
	}
	defer w.Close()
	c.Logged = snaps[len(snaps)-1].GetIndex()
	if _, _, ents, err := w.ReadAll(); err == nil && len(ents) > 0 {
		c.Logged = ents[len(ents)-1].GetIndex()
	}
}

// MakeOnly makes the copy in a data directory the only one of a group that has lost its
// majority for good, and starts another history: revisions go on far behind what the lost
// members may have used. What was in the log and not agreed on is dropped. It may be
// repeated; no process may use the directory.
func MakeOnly(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if _, err := os.Stat(dbFile(cfg.DataDir)); err != nil {
		return errs.New(errs.NotFound, "there is no copy of the pool's state in %s", cfg.DataDir)
	}
	cfg.Peers = Peers{}
	lock, err := lockDir(cfg.DataDir)
	if err != nil {
		return err
	}
	m := &member{lock: lock}
	defer m.stop()
	ec, err := embedConfig(cfg)
	if err != nil {
		return err
	}
	// A new snapshot, so that a single member may take the lead at once from now on; see member.start.
	ec.ForceNewCluster, ec.SnapshotCount = true, 1
	ec.TickMs, ec.ElectionMs = settleTickMS, settleElectionMS
	if err := m.run(ctx, ec, nil); err != nil {
		return err
	}
	m.server.Close()
	m.server = nil
	return skip(cfg.DataDir, forgetBy)
}

// SkipTo starts another history in a data directory that no process uses: its revisions
// go on at least behind rev.
func SkipTo(dataDir string, rev int64) error {
	c, err := Inspect(dataDir)
	if err != nil {
		return err
	}
	lock, err := lockDir(dataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	return skip(dataDir, max(rev-c.Revision, 0)+forgetBy)
}

// skip moves the revision of a database on, the way etcd itself does after it compacted
// and was ended before it could say so: it goes on from the scheduled revision, and has
// no history before it. The directory is locked.
func skip(dataDir string, by int64) error {
	db, err := bbolt.Open(dbFile(dataDir), 0o600, &bbolt.Options{Timeout: dbWait})
	if err != nil {
		return errs.New(errs.Unavailable, "open %s: %w", dbFile(dataDir), err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		var c Copy
		if err := c.read(tx); err != nil {
			return err
		}
		b, err := tx.CreateBucketIfNotExists(schema.Meta.Name())
		if err != nil {
			return err
		}
		return b.Put(schema.ScheduledCompactKeyName, mvcc.RevToBytes(mvcc.Revision{Main: c.Revision + by}, mvcc.NewRevBytes()))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return errs.New(errs.Unavailable, "begin another history: %w", err)
	}
	return nil
}
