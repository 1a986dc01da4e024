package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdfs "io/fs"
	"os"
	"sort"
	"strings"
	"time"

	"atoll/internal/errs"
	"atoll/internal/image/disk"
	"atoll/internal/image/oci"
)

// Info is a named image.
type Info struct {
	Scope     string    `json:"scope"`           // tenant path; "": everybody's
	Reference string    `json:"reference"`       // full form
	Digest    string    `json:"digest"`          // of the manifest; pins the content
	Index     string    `json:"index,omitempty"` // of the multi-platform index it was chosen from
	Size      int64     `json:"size"`            // bytes of config and layers, compressed
	Layers    int       `json:"layers"`
	Platform  string    `json:"platform"`
	Created   string    `json:"created,omitempty"` // RFC 3339, as its maker says
	Since     time.Time `json:"since"`             // brought here
}

// Name is the reference as people type it.
func (i Info) Name() string {
	r, err := oci.Parse(i.Reference)
	if err != nil {
		return i.Reference
	}
	return r.Short()
}

type nameKey struct{ scope, ref string }

type namesFile struct {
	Version int    `json:"version"`
	Names   []Info `json:"names"`
}

func (s *Store) loadNames() error {
	raw, err := os.ReadFile(s.path("names.json"))
	if errors.Is(err, stdfs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	list, err := decodeNames(raw)
	if err != nil {
		return errs.New(errs.Internal, "image store: %s: %w", s.path("names.json"), err).
			WithHint("restore the file, or remove it and pull the images again; the content stays")
	}
	for _, i := range list {
		s.names[nameKey{i.Scope, i.Reference}] = i
	}
	return nil
}

func decodeNames(raw []byte) ([]Info, error) {
	var f namesFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("version %d is not known", f.Version)
	}
	for _, i := range f.Names {
		if !oci.IsDigest(i.Digest) || i.Index != "" && !oci.IsDigest(i.Index) {
			return nil, fmt.Errorf("%q: no digest", oci.Clip(i.Reference))
		}
		if _, err := oci.Parse(i.Reference); err != nil {
			return nil, err
		}
	}
	return f.Names, nil
}

// saveNames writes the table; s.mu is held.
func (s *Store) saveNames() error {
	raw, err := json.Marshal(namesFile{Version: 1, Names: s.sorted(func(Info) bool { return true })})
	if err != nil {
		return err
	}
	return disk.Replace(s.path("tmp"), s.path("names.json"), raw)
}

// change edits the table and writes it; when that fails nothing has changed.
func (s *Store) change(edit func(map[nameKey]Info) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.names
	after := make(map[nameKey]Info, len(before)+1)
	for k, v := range before {
		after[k] = v
	}
	if err := edit(after); err != nil {
		return err
	}
	if len(after) > maxNames {
		return errs.New(errs.Quota, "image store: more than %d names", maxNames).WithHint("remove images nobody needs")
	}
	s.names = after
	if err := s.saveNames(); err != nil {
		s.names = before
		return fmt.Errorf("image store: save names: %w", disk.NoSpace(err))
	}
	return nil
}

func (s *Store) setName(i Info) error {
	return s.change(func(m map[nameKey]Info) error {
		m[nameKey{i.Scope, i.Reference}] = i
		s.touch(i.Digest)
		return nil
	})
}

// Resolve finds an image by the name people type, by name@digest, or by bare
// digest, in the scope and then among everybody's. errs.NotFound when it is not here.
func (s *Store) Resolve(ctx context.Context, scope, ref string) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resolve(scope, ref)
}

func (s *Store) resolve(scope, ref string) (Info, error) {
	if oci.IsDigest(ref) {
		for _, sc := range []string{scope, ""} {
			if l := s.sorted(func(i Info) bool { return i.Scope == sc && (i.Digest == ref || i.Index == ref) }); len(l) > 0 {
				return l[0], nil
			}
		}
		return Info{}, notHere(ref, ref)
	}
	r, err := oci.Parse(ref)
	if err != nil {
		return Info{}, err
	}
	for _, sc := range []string{scope, ""} {
		if i, ok := s.names[nameKey{sc, r.String()}]; ok {
			return i, nil
		}
		if r.Digest == "" {
			continue
		}
		if l := s.sorted(func(i Info) bool { return i.Scope == sc && pinned(i, r) }); len(l) > 0 {
			return l[0], nil
		}
	}
	return Info{}, notHere(ref, r.Short())
}

// pinned tells whether a name has the repository and the digest that are asked for.
func pinned(i Info, r oci.Reference) bool {
	return (i.Digest == r.Digest || i.Index == r.Digest) && strings.HasPrefix(i.Reference, r.Name()) && strings.ContainsRune(":@", rune(i.Reference[len(r.Name())]))
}

func notHere(ref, short string) error {
	return errs.New(errs.NotFound, "image %s is not on this node", oci.Clip(ref)).WithHint("pull it: atoll image pull %s", oci.Clip(short))
}

// List gives the names in a scope, sorted; not everybody's.
func (s *Store) List(scope string) []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sorted(func(i Info) bool { return i.Scope == scope })
}

// All gives the names of every scope, sorted: what this node has.
func (s *Store) All() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sorted(func(Info) bool { return true })
}

func (s *Store) sorted(want func(Info) bool) []Info {
	var out []Info
	for _, i := range s.names {
		if want(i) {
			out = append(out, i)
		}
	}
	sort.Slice(out, func(a, b int) bool {
		return out[a].Scope < out[b].Scope || out[a].Scope == out[b].Scope && out[a].Reference < out[b].Reference
	})
	return out
}

// Remove drops a name from exactly this scope; by digest, all names of that
// digest. The content goes with the next GC when nothing else needs it.
func (s *Store) Remove(ctx context.Context, scope, ref string) error {
	match := func(i Info) bool { return i.Digest == ref || i.Index == ref }
	if !oci.IsDigest(ref) {
		r, err := oci.Parse(ref)
		if err != nil {
			return err
		}
		match = func(i Info) bool { return i.Reference == r.String() || r.Digest != "" && pinned(i, r) }
	}
	return s.change(func(m map[nameKey]Info) error {
		n := 0
		for k, i := range m {
			if i.Scope == scope && match(i) {
				delete(m, k)
				n++
			}
		}
		if n == 0 {
			return errs.New(errs.NotFound, "image %s is not here under that name", oci.Clip(ref)).WithHint("list the names: atoll image ls")
		}
		return nil
	})
}

// Rescope gives the images of scopes, and the right to their content, to others: a map from
// old to new, of which no old one is a new one, too. Called again it finishes what it began.
func (s *Store) Rescope(ctx context.Context, scopes map[string]string) error {
	for from, to := range scopes {
		for _, i := range s.List(from) {
			img, err := s.image(i.Digest)
			if errors.Is(err, errs.NotFound) {
				continue // the name goes along, and the content when it is fetched again
			}
			if err == nil {
				err = s.claimImage(to, img)
			}
			if err != nil {
				return err
			}
		}
	}
	return s.change(func(m map[nameKey]Info) error {
		for k, i := range m {
			if to, ok := scopes[i.Scope]; ok {
				delete(m, k)
				i.Scope = to
				m[nameKey{to, i.Reference}] = i
			}
		}
		return nil
	})
}

// Tag gives an image that is here a further name in the scope.
func (s *Store) Tag(ctx context.Context, scope, ref, name string) (Info, error) {
	r, err := oci.Parse(name)
	if err != nil {
		return Info{}, err
	}
	if r.Digest != "" {
		return Info{}, errs.InvalidFields("image", []errs.Field{{Field: "name", Value: oci.Clip(name), Rule: "must not have a digest", Example: "team/app:1"}})
	}
	i, err := s.Resolve(ctx, scope, ref)
	if err != nil {
		return Info{}, err
	}
	img, err := s.image(i.Digest)
	if err != nil {
		return Info{}, err
	}
	i.Scope, i.Reference, i.Since = scope, r.String(), s.opt.Clock.Now()
	if err := s.claimImage(scope, img); err != nil {
		return Info{}, err
	}
	return i, s.change(func(m map[nameKey]Info) error {
		if !s.present(i.Digest) {
			return errs.New(errs.NotFound, "image %s has just been removed", oci.Clip(ref))
		}
		m[nameKey{scope, i.Reference}] = i
		s.touch(i.Digest)
		return nil
	})
}
