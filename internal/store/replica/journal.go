package replica

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/release"
)

// The file is a log of records: a line that says what it is, then frames of a length, a
// checksum (CRC-32C) and JSON. What is read is the longest part from the beginning that
// is whole; what a crash left behind it is cut off. When the log has grown to several
// times of what it says it is written anew, beside the old one, and takes its place.
//
// A log of our own and not bbolt, which the module has through etcd: nearly all writes
// are copies of what the pool has anyway and need not be on the disk at once, which
// bbolt would do with two fsyncs and whole pages each; what must be is a few hundred
// bytes and one fsync here, and a torn file costs its end and not the whole.
const (
	magic       = "atoll replica 1\n"
	frameHead   = 8
	maxRecord   = 4 << 20
	maxFile     = 1 << 30
	compactOver = 1 << 20 // a log is never written anew before it is this much longer than it must be
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is one step of the log. Exactly one field is set.
type record struct {
	Head  *head           `json:"head,omitempty"`
	Put   json.RawMessage `json:"put,omitempty"`   // an object as the pool has it
	Named json.RawMessage `json:"named,omitempty"` // one that only an assignment names
	Gone  *api.Ref        `json:"gone,omitempty"`  // it is not the pool's any more, or not for this node
	Tell  json.RawMessage `json:"tell,omitempty"`  // an object with the status that the pool is to be told
	Told  *api.Ref        `json:"told,omitempty"`  // it was, or nobody wants to know
	At    *position       `json:"at,omitempty"`
	Lease *Lease          `json:"lease,omitempty"` // of duration 0: there is none any more
}

// head is whose log it is.
type head struct {
	Node string `json:"node"`
	Pool string `json:"pool"`
}

// position is how far the copy of a kind has come.
type position struct {
	Kind api.Kind `json:"kind"`
	Rev  int64    `json:"rev"`
}

// state is what a log says.
type state struct {
	head  head
	base  map[api.Ref]*base
	tell  map[api.Ref]api.Object
	at    map[api.Kind]int64
	lease Lease
}

// base is an object as the pool has it.
type base struct {
	obj      api.Object
	followed bool // a watch tells of its changes; otherwise an assignment names it
	fresh    bool // this process has it from the pool; otherwise an earlier one had
}

// oldest is the level whose formats are written here: any build that may come back to this
// host, after an upgrade that was undone, reads them.
var oldest = release.Oldest(release.Number()) //nolint:gochecknoglobals // follows from the build

func kindOf(raw json.RawMessage) api.Kind {
	var head struct {
		K api.Kind `json:"kind"`
	}
	if json.Unmarshal(raw, &head) != nil {
		return ""
	}
	return head.K
}

func newState(h head) *state {
	return &state{head: h, base: map[api.Ref]*base{}, tell: map[api.Ref]api.Object{}, at: map[api.Kind]int64{}}
}

// apply takes in one record; false: it makes no sense.
func (s *state) apply(r record) bool {
	object := func(raw json.RawMessage) api.Object {
		o, err := api.DecodeStored(kindOf(raw), raw)
		if err != nil || o.Metadata().Name == "" {
			return nil
		}
		return o
	}
	switch {
	case r.Head != nil:
		s.head = *r.Head
	case r.Put != nil, r.Named != nil:
		raw := r.Put
		if raw == nil {
			raw = r.Named
		}
		o := object(raw)
		if o == nil {
			return false
		}
		s.base[api.RefOf(o)] = &base{obj: o, followed: r.Put != nil}
	case r.Gone != nil:
		delete(s.base, *r.Gone)
	case r.Tell != nil:
		o := object(r.Tell)
		if o == nil {
			return false
		}
		s.tell[api.RefOf(o)] = o
	case r.Told != nil:
		delete(s.tell, *r.Told)
	case r.At != nil:
		s.at[r.At.Kind] = r.At.Rev
	case r.Lease != nil:
		s.lease = *r.Lease
	default:
		return false
	}
	return true
}

// records is the shortest log that says the same.
func (s *state) records() ([]record, error) {
	h := s.head
	out := []record{{Head: &h}}
	for _, b := range s.base {
		raw, err := api.EncodeStored(b.obj, oldest)
		if err != nil {
			return nil, errs.New(errs.Internal, "encode %s: %w", api.RefOf(b.obj), err)
		}
		if b.followed {
			out = append(out, record{Put: raw})
		} else {
			out = append(out, record{Named: raw})
		}
	}
	for ref, o := range s.tell {
		raw, err := api.EncodeStored(o, oldest)
		if err != nil {
			return nil, errs.New(errs.Internal, "encode %s: %w", ref, err)
		}
		out = append(out, record{Tell: raw})
	}
	for k, rev := range s.at {
		out = append(out, record{At: &position{k, rev}})
	}
	if s.lease.Duration != 0 {
		l := s.lease
		out = append(out, record{Lease: &l})
	}
	return out, nil
}

// frame adds a record to a log.
func frame(log []byte, r record) ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, errs.New(errs.Internal, "encode: %w", err)
	}
	if len(b) > maxRecord {
		return nil, errs.New(errs.Invalid, "a record of %d bytes is over %d", len(b), maxRecord)
	}
	var h [frameHead]byte
	binary.BigEndian.PutUint32(h[:4], uint32(len(b))) //nolint:gosec // bounded above
	binary.BigEndian.PutUint32(h[4:], crc32.Checksum(b, castagnoli))
	return append(append(log, h[:]...), b...), nil
}

// decode reads a log, and how much of it is whole. errs.Unsupported: it is none that
// this version knows.
func decode(log []byte) (*state, int, error) {
	if len(log) < len(magic) || string(log[:len(magic)]) != magic {
		return nil, 0, errs.New(errs.Unsupported, "not a replica that this version can read")
	}
	s, good := newState(head{}), len(magic)
	for {
		rest := log[good:]
		if len(rest) < frameHead {
			return s, good, nil
		}
		n := int(binary.BigEndian.Uint32(rest[:4]))
		if n > maxRecord || n > len(rest)-frameHead {
			return s, good, nil
		}
		b := rest[frameHead : frameHead+n]
		var r record
		if crc32.Checksum(b, castagnoli) != binary.BigEndian.Uint32(rest[4:8]) || json.Unmarshal(b, &r) != nil || !s.apply(r) {
			return s, good, nil
		}
		good += frameHead + n
	}
}

// journal is the log on disk. It is used by one at a time.
type journal struct {
	path string
	f    *os.File
	size int64 // of the file; -1: what is there is not to be relied on
	live int64 // when it was last written anew
}

// openJournal reads what is there. What cannot be read at all is put aside: the pool has
// the rest.
func openJournal(path string, whose head) (*journal, *state, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, errs.New(errs.Internal, "directory of the replica: %w", err)
	}
	j := &journal{path: path, size: -1}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		s := newState(whose)
		return j, s, j.rewrite(s)
	}
	if err != nil {
		return nil, nil, errs.New(errs.Internal, "read the replica: %w", err)
	}
	var log []byte
	if info.Size() <= maxFile {
		if log, err = os.ReadFile(path); err != nil {
			return nil, nil, errs.New(errs.Internal, "read the replica: %w", err)
		}
	}
	s, _, err := decode(log)
	if err != nil || s.head != whose {
		if err := os.Rename(path, path+".unread"); err != nil {
			return nil, nil, errs.New(errs.Internal, "put the unreadable replica aside: %w", err)
		}
		s = newState(whose)
	}
	return j, s, j.rewrite(s) // short, and without what a crash left at its end
}

// append writes records behind the others; now: they are on the disk when it returns. s
// is what the log says with them.
func (j *journal) append(s *state, now bool, recs ...record) error {
	if j.size < 0 {
		return j.rewrite(s)
	}
	var log []byte
	var err error
	for _, r := range recs {
		if log, err = frame(log, r); err != nil {
			return err
		}
	}
	if j.size+int64(len(log)) > 3*j.live+compactOver {
		return j.rewrite(s)
	}
	if _, err = j.f.Write(log); err == nil && now {
		err = j.f.Sync()
	}
	if err != nil {
		j.size = -1 // its end may be torn: nothing more is written behind it
		return errs.New(errs.Unavailable, "write the replica: %w", err).WithHint("is the disk full?")
	}
	j.size += int64(len(log))
	return nil
}

// rewrite writes what s says as a new log that takes the old one's place.
func (j *journal) rewrite(s *state) error {
	recs, err := s.records()
	if err != nil {
		return err
	}
	log := []byte(magic)
	for _, r := range recs {
		if log, err = frame(log, r); err != nil {
			return err
		}
	}
	tmp := j.path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return errs.New(errs.Unavailable, "write the replica: %w", err)
	}
	if _, err = f.Write(log); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, j.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(j.path))
	}
	if err != nil {
		return errs.New(errs.Unavailable, "write the replica: %w", errors.Join(err, f.Close())).WithHint("is the disk full?")
	}
	if j.f != nil {
		_ = j.f.Close() // nothing of it is needed any more
	}
	j.f, j.size, j.live = f, int64(len(log)), int64(len(log))
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (j *journal) close() error {
	if j.f == nil {
		return nil
	}
	return errors.Join(j.f.Sync(), j.f.Close())
}

// Lease is a node's right to act, as it must be known after a restart without a server.
type Lease struct {
	Epoch    int64         `json:"epoch"`
	Rev      int64         `json:"rev"`
	Duration time.Duration `json:"duration"`

	Boot    string        `json:"boot"`    // of the host, when it was written
	BootEnd time.Duration `json:"bootEnd"` // until when it may be counted on, since that boot
	BootAt  time.Duration `json:"bootAt"`  // when it was written
	At      time.Time     `json:"at"`      // the same, by the clock on the wall
}

// Moment is now, by all clocks there are.
type Moment struct {
	Boot     string        // changes with every boot
	Since    time.Duration // since that boot
	Wall     time.Time
	Hardware time.Time // of a clock that runs while the host is off; zero: there is none
}

// wallError is how much two clocks of one host may differ that are both set.
const wallError = time.Minute

// Left is how long a lease may still be counted on. Within one boot the clock that nobody
// can set says so. After another boot only the clock on the wall tells how long the host was
// off, so it is trusted only where a hardware clock that runs meanwhile says the same, and
// where it has not gone back; and a tenth of the lease is left out for its errors.
func (l Lease) Left(now Moment) time.Duration {
	if l.Epoch == 0 || l.Duration <= 0 || l.Boot == "" {
		return 0
	}
	if l.Boot == now.Boot {
		return max(l.BootEnd-now.Since, 0)
	}
	passed := now.Wall.Sub(l.At)
	if now.Hardware.IsZero() || now.Hardware.Sub(now.Wall).Abs() > wallError || passed < 0 {
		return 0
	}
	return max(l.BootEnd-l.BootAt-passed-l.Duration/10-wallError, 0)
}

// worth reports whether next says something for which the disk should be written: it is another
// lease, ends a good deal later, or the clock on the wall was set.
func (l Lease) worth(next Lease) bool {
	set := (next.At.Sub(l.At) - (next.BootAt - l.BootAt)).Abs()
	return l.Epoch != next.Epoch || l.Rev != next.Rev || l.Boot != next.Boot || l.Duration != next.Duration ||
		next.BootEnd-l.BootEnd > max(next.Duration/100, 5*time.Second) || next.BootEnd < l.BootEnd || set > wallError/2
}
