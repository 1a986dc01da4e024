// Package rollout is what administrators ask of upgrades, and where hosts get the
// programs of a version from: it takes archives in, checks whether the pool can go to a
// version, keeps a backup, and writes what is wanted into the Upgrade. The upgrade
// controller and the hosts do the rest. The server's routes call it after they have
// checked who asks; that only hosts and administrators fetch programs is checked here.
//
// It starts no goroutine. It must never give out a file that is not one of a version's.
package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/release"
	"atoll/internal/stage"
	"atoll/internal/store"
)

// Desk is what upgrades come to.
type Desk struct {
	Store   store.Store
	Dir     stage.Dir
	Backups string // directory of backups
	Node    string // the host this server runs on
	Clock   clock.Clock
	// Level is the pool's, as this server writes.
	Level func() int
}

const (
	maxUpload = 2 << 30
	maxBody   = 1 << 20
	retries   = 16
	// keepBackups is how many backups of upgrades are kept.
	keepBackups = 5
)

// Call is one request at the desk.
type Call struct {
	R    *http.Request
	Body io.Reader // of an upload; may take its time
	Who  auth.Identity
	// Answer answers with JSON, Send with a file of so many bytes.
	Answer func(status int, v any) error
	Send   func(f io.Reader, size int64) error
}

// Serve answers: POST /v1/upgrade, POST /v1/upgrade/{version}/files, and
// GET /v1/upgrade/{version}/{os}/{arch}/{binary}.
func (d *Desk) Serve(c Call) error {
	if d == nil {
		return errs.New(errs.Unsupported, "this server does not upgrade its pool")
	}
	ctx, version := c.R.Context(), c.R.PathValue("version")
	switch {
	case c.R.Method == http.MethodGet:
		if !c.Who.Trusted() {
			return errs.New(errs.Denied, "%s may not fetch programs: hosts of the pool and administrators do", c.Who)
		}
		f, info, err := d.Dir.Open(version, c.R.PathValue("os"), c.R.PathValue("arch"), c.R.PathValue("binary"))
		if err != nil {
			return err
		}
		defer f.Close()
		return c.Send(f, info.Size)
	case version != "":
		want := version
		if want == "-" { // whatever the programs say
			want = ""
		} else if err := errs.InvalidFields("upgrade", api.VersionFields("version", want)); err != nil {
			return err
		}
		up, err := d.Dir.Unpack(ctx, io.LimitReader(c.Body, maxUpload), want)
		if err != nil {
			return err
		}
		return c.Answer(http.StatusCreated, up)
	}
	req, err := request(io.LimitReader(c.R.Body, maxBody))
	if err != nil {
		return err
	}
	up, err := d.Ask(ctx, req, c.Who.String())
	if err != nil {
		return err
	}
	return c.Answer(http.StatusOK, up)
}

// request reads the body of POST /v1/upgrade.
func request(r io.Reader) (api.UpgradeRequest, error) {
	var req api.UpgradeRequest
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return req, errs.New(errs.Invalid, "the request cannot be read: %w", err).WithHint(`for example {"action":"activate","pause":"10s"}`)
	}
	return req, req.Validate()
}

// Admit turns away what a host of an older release would write into a pool whose formats
// it does not know: it would drop what it does not see. A host left behind upgrades itself
// first; until then it reads.
func (d *Desk) Admit(who auth.Identity, r *http.Request) error {
	if d == nil || d.Level == nil || who.Node == "" || who.Via == auth.ViaProcess || r.Method == http.MethodGet {
		return nil
	}
	rel, err := strconv.Atoi(r.Header.Get(api.HeaderRelease))
	if err != nil {
		rel = release.First
	}
	return api.ReadableAt(rel, d.Level())
}

// Ask does what an administrator asks for. What it answers is the upgrade as it is then.
func (d *Desk) Ask(ctx context.Context, req api.UpgradeRequest, by string) (*api.Upgrade, error) {
	backup := ""
	for try := 0; ; try++ {
		old, err := store.Get[*api.Upgrade](ctx, d.Store, api.UpgradeRef())
		if errors.Is(err, errs.NotFound) {
			old, err = nil, nil
		}
		if err != nil {
			return nil, err
		}
		p, err := d.look(ctx)
		if err != nil {
			return nil, err
		}
		next, err := d.next(ctx, old, req, p)
		if err != nil {
			return nil, err
		}
		next.Spec.By, next.Spec.Since = by, d.now()
		if req.Action == "prepare" {
			if backup == "" {
				if backup, err = d.backup(ctx, req.Version); err != nil {
					return nil, err
				}
			}
			next.Spec.Backup = backup
		}
		next.Generation++
		op := store.Update(next)
		if old == nil {
			op = store.Create(next)
		}
		rev, err := d.Store.Commit(ctx, op)
		if (errors.Is(err, errs.Conflict) || errors.Is(err, errs.Exists)) && try < retries && d.Clock.Sleep(ctx, time.Millisecond<<min(try, 6)) == nil {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("upgrade: %w", err)
		}
		next.Revision = rev
		return next, nil
	}
}

func (d *Desk) now() time.Time { return d.Clock.Now().UTC().Round(time.Millisecond) }

// pool is what decisions are made by.
type pool struct {
	level   int
	nodes   []*api.Node
	live    map[string]bool
	members []*api.Member
	drains  []*api.Drain
}

func (d *Desk) look(ctx context.Context) (pool, error) {
	p := pool{live: map[string]bool{}}
	pl, err := store.Get[*api.Pool](ctx, d.Store, api.PoolRef())
	if errors.Is(err, errs.NotFound) {
		pl, err = nil, nil
	}
	if err != nil {
		return p, err
	}
	p.level = api.LevelOf(pl)
	if p.nodes, _, err = store.List[*api.Node](ctx, d.Store, api.Selector{Kind: api.KindNode}); err != nil {
		return p, err
	}
	ids, _, err := store.List[*api.NodeIdentity](ctx, d.Store, api.Selector{Kind: api.KindNodeIdentity})
	if err != nil {
		return p, err
	}
	p.nodes = api.UpgradeHosts(p.nodes, ids)
	if p.members, _, err = store.List[*api.Member](ctx, d.Store, api.Selector{Kind: api.KindMember}); err != nil {
		return p, err
	}
	if p.drains, _, err = store.List[*api.Drain](ctx, d.Store, api.Selector{Kind: api.KindDrain}); err != nil {
		return p, err
	}
	leases, _, err := store.List[*api.Lease](ctx, d.Store, api.Selector{Kind: api.KindLease})
	for _, l := range leases {
		if l.Held() && l.Name != api.LeaseLeader {
			p.live[l.Spec.Holder] = true
		}
	}
	return p, err
}

// Told takes in what a host that has no Node says of its versions, and answers with its
// task: the upgrade with its line only; an empty one where there is none.
func (d *Desk) Told(ctx context.Context, name string, told api.NodeIdentityStatus) (*api.Upgrade, error) {
	for try := 0; ; try++ {
		id, err := store.Get[*api.NodeIdentity](ctx, d.Store, api.Ref{Kind: api.KindNodeIdentity, Name: name})
		if err != nil {
			return nil, err
		}
		if reflect.DeepEqual(id.Status, told) {
			break
		}
		next := api.Clone(id)
		next.Status = told
		_, err = d.Store.Commit(ctx, store.Update(next))
		if err == nil {
			break
		}
		if !errors.Is(err, errs.Conflict) || try >= retries {
			return nil, fmt.Errorf("note the version of %s: %w", name, err)
		}
	}
	up, err := store.Get[*api.Upgrade](ctx, d.Store, api.UpgradeRef())
	if errors.Is(err, errs.NotFound) {
		return &api.Upgrade{Head: api.Head{K: api.KindUpgrade, Meta: api.Meta{Name: api.PoolName}}}, nil
	}
	if err != nil {
		return nil, err
	}
	up = api.Clone(up)
	up.Status.Hosts = slices.DeleteFunc(up.Status.Hosts, func(h api.UpgradeHost) bool { return h.Name != name })
	return up, nil
}

// backup keeps the state from before, and the last few of those.
func (d *Desk) backup(ctx context.Context, version string) (string, error) {
	if err := os.MkdirAll(d.Backups, 0o700); err != nil {
		return "", errs.New(errs.Unavailable, "backup: %w", err)
	}
	at := d.now()
	name := filepath.Join(d.Backups, "before-"+version+"-"+at.Format("20060102T150405Z")+".backup")
	f, err := os.CreateTemp(d.Backups, ".new-*") // mode 0600
	if err != nil {
		return "", errs.New(errs.Unavailable, "backup: %w", err)
	}
	defer os.Remove(f.Name())
	err = store.Dump(ctx, d.Store, f, at)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("upgrade: %w", err)
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return "", errs.New(errs.Unavailable, "backup: %w", err)
	}
	if old, err := filepath.Glob(filepath.Join(d.Backups, "before-*.backup")); err == nil && len(old) > keepBackups {
		slices.SortFunc(old, byAge)
		for _, o := range old[:len(old)-keepBackups] {
			_ = os.Remove(o) // one too many does no harm
		}
	}
	return name, nil
}

func byAge(a, b string) int {
	age := func(p string) time.Time {
		fi, err := os.Stat(p)
		if err != nil {
			return time.Time{}
		}
		return fi.ModTime()
	}
	return age(a).Compare(age(b))
}
