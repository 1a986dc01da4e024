package join

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/release"
)

const (
	adoptTimeout   = time.Minute
	maxAdoptAnswer = 16 << 20
)

// Own is the pool that a host has for itself.
type Own struct {
	Node    string // the host, as it is called there
	Subnet  string
	Objects []json.RawMessage // all there are
}

// Adopt asks a pool to take the host in with what it runs, or with dry, what would become
// of that. Nothing changes on this host. Asked again, the pool answers the same.
func Adopt(ctx context.Context, d Deps, r Request, own Own, into string, dry bool) (*api.AdoptAnswer, error) {
	text, err := auth.ParseJoin(strings.TrimSpace(r.Token))
	if err != nil {
		return nil, err
	}
	urls, err := servers(r.URLs)
	if err != nil {
		return nil, err
	}
	f := api.NodeNameFields("node", r.Node)
	if !api.ValidTenantPath(into) {
		f = append(f, errs.Field{Field: "adopt", Value: clip(into), Rule: "must be a tenant of the pool: one to four names joined by /", Example: "acme"})
	}
	if err := errs.InvalidFields("join", f); err != nil {
		return nil, err
	}
	key, err := hostKey(r.Dir, d.Rand)
	if err != nil {
		return nil, err
	}
	csr, err := request(key, d.Rand)
	if err != nil {
		return nil, err
	}
	body := api.AdoptRequest{CSR: string(csr), Node: r.Node, Address: r.Address, Version: r.Version, Release: release.Number(), Arch: runtime.GOARCH,
		Tenant: into, Was: own.Node, Subnet: own.Subnet, DryRun: dry, Objects: own.Objects}
	var ans api.AdoptAnswer
	at, err := ask(ctx, question{tls: auth.PinnedTLS(text.Authority, d.Clock), urls: urls, path: "/v1/join/adopt", body: body,
		bearer: text.String(), within: adoptTimeout, most: maxAdoptAnswer}, &ans)
	if err != nil {
		return nil, err
	}
	switch {
	case ans.Join == nil && !dry && len(ans.Plan.Clashes) == 0:
		return nil, errs.New(errs.Unavailable, "the answer of %s cannot be read", urls[at])
	case ans.Join == nil:
		return &ans, nil
	}
	if err := checkAuthority([]byte(ans.Join.Authority), text); err != nil {
		return nil, err
	}
	if _, err := parseCert([]byte(ans.Join.Certificate), []byte(ans.Join.Authority), key, d.Clock.Now()); err != nil {
		return nil, err
	}
	ans.Join.Endpoints = known(urls[at], ans.Join.Endpoints)
	return &ans, nil
}

// Move is what a host notes while it leaves a pool of its own for another one. From the
// moment in which the other pool may have taken it, its own must not go on, so nothing
// else begins on it as long as this is there.
type Move struct {
	Tenant string          `json:"tenant"`           // into which it comes
	Node   string          `json:"node"`             // its name there
	Aside  string          `json:"aside"`            // where what it had goes, below the state directory
	Plan   *api.AdoptPlan  `json:"plan,omitempty"`   // what is called how
	Answer *api.JoinAnswer `json:"answer,omitempty"` // nil: the pool was asked, and what it answered is not known
}

func moveFile(dir string) string { return filepath.Join(dir, "adopt.json") }

// Moving gives what the host noted; nil: it is not on its way.
func Moving(dir string) (*Move, error) {
	f, err := os.Open(moveFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // the usual case
	}
	if err != nil {
		return nil, errs.New(errs.Internal, "read adopt.json: %w", err)
	}
	defer f.Close()
	m := &Move{}
	if err := json.NewDecoder(f).Decode(m); err != nil || m.Tenant == "" || m.Aside == "" || !filepath.IsLocal(m.Aside) || m.Aside == "." || m.Aside != filepath.Base(m.Aside) || m.Answer != nil && m.Plan == nil {
		return nil, errs.New(errs.Invalid, "%s cannot be read", moveFile(dir)).WithHint("if the pool does not know this host (atoll get nodes there), remove the file; else ask it to forget the host: atoll node remove NAME --force")
	}
	return m, nil
}

// NewMove is the beginning of one.
func NewMove(dir, tenant, node string) (*Move, error) {
	m := &Move{Tenant: tenant, Node: node, Aside: "before-join"}
	for n := 2; ; n++ {
		if _, err := os.Lstat(filepath.Join(dir, m.Aside)); errors.Is(err, fs.ErrNotExist) {
			return m, nil
		} else if err != nil {
			return nil, errs.New(errs.Internal, "look at %s: %w", m.Aside, err)
		}
		m.Aside = "before-join-" + strconv.Itoa(n)
	}
}

// Save notes it for certain.
func (m *Move) Save(dir string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return errs.New(errs.Internal, "write adopt.json: %w", err)
	}
	return replace(moveFile(dir), append(b, '\n'))
}

// Drop forgets it: the pool did not take the host.
func (m *Move) Drop(dir string) error {
	err := os.Remove(moveFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.New(errs.Unavailable, "remove adopt.json: %w", err)
	}
	return syncDir(dir)
}

// Blocked refuses to begin anything on a host that is on its way.
func Blocked(dir string) error {
	m, err := Moving(dir)
	if err != nil || m == nil {
		return err
	}
	return errs.New(errs.Conflict, "this host is on its way into another pool, as %s in %s", m.Node, m.Tenant).
		WithHint("finish that: atolld join URL --adopt %s, as before; instances run on meanwhile. To stay instead: there atoll node remove %s --force, if it knows this host, and here rm %s", m.Tenant, m.Node, moveFile(dir))
}

// aside are what the old pool had in the state directory, and the host's key is not: the
// copy of its state is the last one, so that as long as that is there, not all is done.
func aside() []string {
	return []string{"join.json", "member.json", "replica", "pki/ca.crt", "pki/ca.key", "pki/server.crt", "pki/server.key", "pki/node.crt", "pki/member.crt", "etcd.old", "etcd"}
}

// Leave moves what the old pool had out of the way, keeps what the new one answered, and
// ends the move. Ended anywhere, it is called again.
func (m *Move) Leave(dir string, d Deps) (*Identity, error) {
	if m.Answer == nil {
		return nil, errs.New(errs.Internal, "the pool has not answered yet")
	}
	if _, err := os.Lstat(filepath.Join(dir, "etcd")); err == nil {
		to := filepath.Join(dir, m.Aside)
		if err := os.MkdirAll(filepath.Join(to, "pki"), 0o700); err != nil {
			return nil, errs.New(errs.Unavailable, "make %s: %w", to, err)
		}
		for _, name := range aside() {
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(to, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, errs.New(errs.Unavailable, "put %s away: %w", name, err)
			}
		}
		for _, p := range []string{to, filepath.Join(to, "pki"), filepath.Join(dir, "pki"), dir} {
			if err := syncDir(p); err != nil {
				return nil, errs.New(errs.Unavailable, "put the old pool away: %w", err)
			}
		}
	}
	key, err := hostKey(dir, d.Rand)
	if err != nil {
		return nil, err
	}
	if err := save(dir, d, m.Answer, key, true); err != nil {
		return nil, err
	}
	if err := m.Drop(dir); err != nil {
		return nil, err
	}
	return Load(dir, d)
}
