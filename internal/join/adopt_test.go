package join_test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/join"
)

// founded is the state directory of a host with a pool of its own.
func founded(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := join.KeyHash(dir, rand.Reader); err != nil {
		t.Fatal(err)
	}
	for _, f := range append(oldFiles(), "images/names.json", "etcd/member-data/db") {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte("old "+f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func oldFiles() []string {
	return []string{"join.json", "member.json", "pki/ca.crt", "pki/ca.key", "pki/server.crt", "pki/server.key", "pki/node.crt", "pki/member.crt"}
}

func ownObjects(t *testing.T) join.Own {
	t.Helper()
	tn := &api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "shop"}}}
	tn.Status.UIDBase, tn.Status.UIDCount = 1<<22, 65536
	b, err := json.Marshal(tn)
	if err != nil {
		t.Fatal(err)
	}
	return join.Own{Node: "isle9", Subnet: "10.88.0.0/16", Objects: []json.RawMessage{b}}
}

func (p *pool) adopt(dir, token string, own join.Own, dry bool) (*api.AdoptAnswer, error) {
	return join.Adopt(p.t.Context(), p.deps(), join.Request{Dir: dir, URLs: []string{p.web.URL}, Token: token, Node: "isle9", Version: "test"}, own, "acme", dry)
}

func adopted(t *testing.T) (*pool, *api.AdoptAnswer, string) {
	t.Helper()
	p, dir := newPool(t), founded(t)
	p.admin("POST", "/v1/tenants", `{"metadata":{"name":"acme"}}`, nil)
	word := p.token("a", `{"adopt":"acme"}`)
	ans, err := p.adopt(dir, word, ownObjects(t), true)
	if err != nil || ans.Join != nil || ans.Plan.Tenants["shop"] != "acme/shop" {
		t.Fatalf("%+v %v", ans, err)
	}
	for range 2 {
		if ans, err = p.adopt(dir, word, ownObjects(t), false); err != nil || ans.Join == nil {
			t.Fatalf("%+v %v", ans, err)
		}
	}
	return p, ans, dir
}

func copied(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "s")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Whatever was done of it before the host was switched off, doing it again comes to the
// same: the old pool's files are aside, the host has the identity the pool gave it, and
// its key and data where they were.
func TestLeaveAfterAnyStep(t *testing.T) {
	p, ans, origin := adopted(t)
	m, err := join.NewMove(origin, "acme", "isle9")
	if err != nil {
		t.Fatal(err)
	}
	m.Plan, m.Answer = &ans.Plan, ans.Join
	if err := m.Save(origin); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(origin, "pki/node.key"))
	if err != nil {
		t.Fatal(err)
	}
	steps := append(oldFiles(), "etcd")
	written := []string{"pki/ca.crt", "pki/node.crt", "join.json"} // by Leave, after all steps
	for done := range len(steps) + len(written) + 2 {
		dir := copied(t, origin)
		if done > 0 {
			if err := os.MkdirAll(filepath.Join(dir, "before-join/pki"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range steps[:min(done, len(steps))] {
			if err := os.Rename(filepath.Join(dir, f), filepath.Join(dir, "before-join", f)); err != nil {
				t.Fatal(err)
			}
		}
		whole := copied(t, dir)
		if n := done - len(steps); n > 0 {
			if _, err := again(t, whole).Leave(whole, p.deps()); err != nil {
				t.Fatal(err)
			}
			for _, f := range written[:min(n, len(written))] {
				b, err := os.ReadFile(filepath.Join(whole, f))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := join.Blocked(dir); !errors.Is(err, errs.Conflict) || !strings.Contains(errs.HintOf(err), "--adopt acme") {
			t.Fatalf("after %d steps the old pool may go on: %v", done, err)
		}
		id, err := again(t, dir).Leave(dir, p.deps())
		if err != nil {
			t.Fatalf("after %d steps: %v", done, err)
		}
		if id.Node() != "isle9" || id.Founder() || id.Role() != api.RoleNode {
			t.Fatalf("after %d steps: %+v", done, id)
		}
		if code, body := p.call(id); code != 200 {
			t.Fatal(code, body)
		}
		for _, f := range append(oldFiles(), "etcd/member-data/db") {
			if b, err := os.ReadFile(filepath.Join(dir, "before-join", f)); err != nil || string(b) != "old "+f {
				t.Errorf("after %d steps: %s: %q %v", done, f, b, err)
			}
		}
		for _, f := range []string{"etcd", "pki/ca.key", "member.json", "adopt.json"} {
			if _, err := os.Lstat(filepath.Join(dir, f)); err == nil {
				t.Errorf("after %d steps: %s is still there", done, f)
			}
		}
		if now, err := os.ReadFile(filepath.Join(dir, "pki/node.key")); err != nil || string(now) != string(key) {
			t.Error("the host's key is another one")
		}
		if b, err := os.ReadFile(filepath.Join(dir, "images/names.json")); err != nil || string(b) != "old images/names.json" {
			t.Error("its data was touched")
		}
		if err := join.Blocked(dir); err != nil {
			t.Error(err)
		}
	}
}

func again(t *testing.T, dir string) *join.Move {
	t.Helper()
	m, err := join.Moving(dir)
	if err != nil || m == nil {
		t.Fatal(m, err)
	}
	return m
}

func TestAdoptRefusals(t *testing.T) {
	p, dir := newPool(t), founded(t)
	p.admin("POST", "/v1/tenants", `{"metadata":{"name":"acme"}}`, nil)
	if _, err := p.adopt(dir, p.token("plain", `{}`), ownObjects(t), false); !errors.Is(err, errs.Denied) {
		t.Fatal(err)
	}
	// A server of another pool learns nothing, not even the token.
	other := newPool(t)
	if _, err := p.adopt(dir, other.token("x", `{}`), ownObjects(t), false); !errors.Is(err, errs.Unauthenticated) {
		t.Fatal(err)
	}
	own := ownObjects(t)
	own.Subnet = "10.1.0.0/16"
	ans, err := p.adopt(dir, p.token("b", `{"adopt":"acme"}`), own, false)
	if err != nil || ans.Join != nil || len(ans.Plan.Clashes) == 0 {
		t.Fatalf("%+v %v", ans, err)
	}
	// Without --adopt it is told how.
	if err := os.Remove(filepath.Join(dir, "join.json")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.join(dir, p.token("c", `{}`), "isle9"); !errors.Is(err, errs.Conflict) || !strings.Contains(errs.HintOf(err), "--adopt TENANT") {
		t.Fatal(err)
	}
}

// Whatever is in the file, it is read or refused, and never leads out of the directory.
func FuzzMoving(f *testing.F) {
	f.Add([]byte(`{"tenant":"acme","node":"isle9","aside":"before-join"}`))
	f.Add([]byte(`{"tenant":"acme","node":"isle9","aside":"../x","answer":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "adopt.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := join.Moving(dir)
		if err == nil && (m == nil || m.Aside != filepath.Base(m.Aside) || m.Aside == "." || m.Aside == ".." || strings.Contains(m.Aside, "/")) {
			t.Fatalf("%+v", m)
		}
		if join.Blocked(dir) == nil {
			t.Fatal("a host on its way may begin")
		}
	})
}
