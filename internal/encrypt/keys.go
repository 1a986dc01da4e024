package encrypt

import (
	"encoding/json"
	"errors"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"time"

	"atoll/internal/errs"
	"atoll/internal/sys/wg"
)

// keyring is the host's private key, and the next one while there is one. It is in one file that only root
// can read, replaced as a whole, and leaves the host by no way.
type keyring struct {
	Key      string    `json:"key"`
	Since    time.Time `json:"since"`
	Next     string    `json:"next,omitempty"`
	NextFrom time.Time `json:"nextFrom,omitzero"`
	// Active is that nothing may be sent in the clear, for a daemon that cannot ask the pool yet.
	Active bool `json:"active,omitempty"`
	Port   int  `json:"port,omitempty"` // as it was last told
}

func keyFile(dir string) string { return filepath.Join(dir, "keys.json") }

// loadKeys reads the keyring; nil when there is none. One that cannot be read stands in the way: it says whether the
// host may send in the clear.
func loadKeys(dir string) (*keyring, error) {
	b, err := os.ReadFile(keyFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, errs.New(errs.Unavailable, "keys of this host: %w", err)
	}
	k := &keyring{}
	if json.Unmarshal(b, k) != nil { // its error would quote the file
		return nil, errs.New(errs.Internal, "keys of this host: %s is not what was written", keyFile(dir)).
			WithHint("remove it: the host makes a new key")
	}
	for _, s := range []string{k.Key, k.Next} {
		if _, err := wg.ParseKey(s); s != "" && err != nil || k.Key == "" {
			return nil, errs.New(errs.Internal, "keys of this host: %s has no good key", keyFile(dir)).WithHint("remove it: the host makes a new key")
		}
	}
	return k, nil
}

// save replaces the file. It is on the disk when save returns: a key that others were told of is not lost.
func (k *keyring) save(dir string) error {
	b, err := json.Marshal(k)
	if err != nil {
		return errs.New(errs.Internal, "keys of this host cannot be written")
	}
	err = os.MkdirAll(dir, 0o700)
	tmp := keyFile(dir) + ".new"
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	}
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(tmp, keyFile(dir))
	}
	if err != nil {
		return errs.New(errs.Unavailable, "keys of this host: %w", err)
	}
	return nil
}

func newKeyring(random io.Reader, now time.Time) (*keyring, error) {
	k, err := wg.NewKey(random)
	if err != nil {
		return nil, err
	}
	return &keyring{Key: k.Text(), Since: now}, nil
}

// private is the key in use, and its public one.
func (k *keyring) private() (wg.Key, string, error) { return pair(k.Key) }

func pair(s string) (wg.Key, string, error) {
	p, err := wg.ParseKey(s)
	if err != nil {
		return wg.Key{}, "", err
	}
	pub, err := p.Public()
	return p, pub.Text(), err
}

// mostAhead is how long the others know a key before it is taken.
const mostAhead = time.Minute

func ahead(every time.Duration) time.Duration { return min(every/4, mostAhead) }

// due is when a host takes its next key: at the latest when the key is as old as is wanted, and hosts that began
// together do not go on together, as two that take a new key at the same moment do not find each other for
// as long as the pool needs to tell them.
func due(node string, since time.Time, every time.Duration) time.Time {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	half := every / 2
	return since.Add(half + time.Duration(float64(half)*float64(h.Sum32())/(1<<32)))
}

// turn is what becomes of the keys now. shown is the next key that the pool shows of this host; without it
// the others cannot know it. It reports whether the keyring changed, and when to look again (0: nothing is due).
func (k *keyring) turn(node string, every time.Duration, shown string, random io.Reader, now time.Time) (changed bool, again time.Duration, err error) {
	if every <= 0 {
		if k.Next != "" {
			k.Next, k.NextFrom = "", time.Time{}
			return true, 0, nil
		}
		return false, 0, nil
	}
	if k.Next == "" {
		begin := due(node, k.Since, every).Add(-ahead(every))
		if now.Before(begin) {
			return false, begin.Sub(now), nil
		}
		n, err := wg.NewKey(random)
		if err != nil {
			return false, 0, err
		}
		k.Next, k.NextFrom = n.Text(), now.Add(ahead(every))
		return true, ahead(every), nil
	}
	if now.Before(k.NextFrom) {
		return false, k.NextFrom.Sub(now), nil
	}
	_, pub, err := pair(k.Next)
	if err != nil {
		return false, 0, err
	}
	if shown != pub { // the pool was out of reach: the others get their time
		k.NextFrom = now.Add(ahead(every))
		return true, ahead(every), nil
	}
	k.Key, k.Since, k.Next, k.NextFrom = k.Next, now, "", time.Time{}
	return true, time.Second, nil
}
