package encrypt

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/sys/wg"
)

func hostKey(name string, key, next wg.Key) *api.HostKey {
	k := &api.HostKey{Head: api.Head{K: api.KindHostKey, Meta: api.Meta{Name: name}}, Spec: api.HostKeySpec{Key: key.Text(), Endpoint: "192.0.2.7:4799", Address: api.InnerAddress(name).String()}}
	if next != (wg.Key{}) {
		k.Spec.Next = next.Text()
	}
	return k
}

// apply is what a device does with a change.
func apply(have []wg.Peer, c wg.Change) []wg.Peer {
	var out []wg.Peer
	for _, p := range have {
		if !slices.Contains(c.Drop, p.Key) {
			out = append(out, p)
		}
	}
	for _, p := range c.Put {
		for i := range out {
			out[i].Allowed = slices.DeleteFunc(slices.Clone(out[i].Allowed), func(a netip.Prefix) bool { return slices.Contains(p.Allowed, a) })
		}
		i := slices.IndexFunc(out, func(o wg.Peer) bool { return o.Key == p.Key })
		if i < 0 {
			out = append(out, p)
			continue
		}
		p.Handshake = out[i].Handshake
		out[i] = p
	}
	return out
}

// TestPeersAreThePools has hosts come, go and change their keys: whatever a device had, it has the peers of the
// hosts that are there, each address is one peer's, and it is that of a key of the host whose address it is.
func TestPeersAreThePools(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := func(n int) wg.Key { return wg.Key{1, byte(n)} }
		var have []wg.Peer
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			var keys []*api.HostKey
			owner := map[wg.Key]string{}
			n := 0
			for i := range rapid.IntRange(0, 4).Draw(t, "hosts") {
				name := fmt.Sprintf("isle%d", i)
				n += rapid.IntRange(1, 3).Draw(t, "skip")
				cur, next := number(n), wg.Key{}
				owner[cur] = name
				if rapid.Bool().Draw(t, "ahead") {
					n++
					next = number(n)
					owner[next] = name
				}
				keys = append(keys, hostKey(name, cur, next))
			}
			want := wanted("isle0", keys, have)
			have = apply(have, change(have, want))
			if c := change(have, want); !c.Empty() {
				t.Fatalf("it is not done: %d to drop, %d to put", len(c.Drop), len(c.Put))
			}
			given := map[netip.Prefix]bool{}
			for _, p := range have {
				name := owner[p.Key]
				if name == "" || name == "isle0" {
					t.Fatalf("a peer that is no other host of the pool: %q", name)
				}
				for _, a := range p.Allowed {
					if given[a] || a.Addr() != api.InnerAddress(name) {
						t.Fatalf("%s is allowed %s", name, a)
					}
					given[a] = true
				}
			}
			for i := 1; i < len(keys); i++ {
				if a := api.InnerAddress(keys[i].Name); !given[netip.PrefixFrom(a, 128)] {
					t.Fatalf("%s is not reached", keys[i].Name)
				}
			}
			for i := range have {
				if rapid.Bool().Draw(t, "heard") {
					have[i].Handshake = time.Unix(1, 0)
				}
			}
		}
	})
}

func TestFollowsAHostToItsNextKey(t *testing.T) {
	cur, next := wg.Key{1}, wg.Key{2}
	keys := []*api.HostKey{hostKey("isle2", cur, next)}
	have := apply(nil, change(nil, wanted("isle1", keys, nil)))
	if len(have) != 2 {
		t.Fatalf("%d peers", len(have))
	}
	allowed := func(k wg.Key) int {
		return len(have[slices.IndexFunc(have, func(p wg.Peer) bool { return p.Key == k })].Allowed)
	}
	if allowed(cur) != 1 || allowed(next) != 0 {
		t.Error("the next key is used before its host uses it")
	}
	for i := range have {
		have[i].Handshake = time.Unix(5, 0)
	}
	have = apply(have, change(have, wanted("isle1", keys, have)))
	if allowed(cur) != 0 || allowed(next) != 1 {
		t.Error("the host was heard with its next key, and is not followed")
	}
	have = apply(have, change(have, wanted("isle1", []*api.HostKey{hostKey("isle2", next, wg.Key{})}, have)))
	if len(have) != 1 || have[0].Key != next {
		t.Errorf("%d peers at the end", len(have))
	}
}

// What a host says of another's address is not believed.
func TestForeignAddress(t *testing.T) {
	k := hostKey("isle3", wg.Key{3}, wg.Key{})
	k.Spec.Address = api.InnerAddress("isle2").String()
	for _, bad := range []*api.HostKey{k, {Head: api.Head{Meta: api.Meta{Name: "isle4"}}, Spec: api.HostKeySpec{Key: "x", Endpoint: "y", Address: api.InnerAddress("isle4").String()}}} {
		if got := wanted("isle1", []*api.HostKey{bad}, nil); len(got) != 0 {
			t.Errorf("%s became a peer", bad.Name)
		}
	}
}

func TestSilence(t *testing.T) {
	k := wg.Key{1}
	want := map[wg.Key]want{k: {node: "isle2", allowed: []netip.Prefix{netip.MustParsePrefix("fd00::1/128")}}}
	began := time.Unix(10_000, 0)
	var e ear
	for _, step := range []struct {
		after     time.Duration
		tx        int64
		handshake time.Time
		silent    bool
	}{
		{0, 0, time.Time{}, false},
		{10 * time.Second, 100, time.Time{}, false}, // it is only asked for
		{2 * time.Minute, 200, time.Time{}, false},
		{4 * time.Minute, 300, time.Time{}, true},
		{5 * time.Minute, 300, time.Time{}, false},                                 // nothing flows
		{6 * time.Minute, 400, began.Add(5 * time.Minute), false},                  // it answers
		{20 * time.Minute, 400, began.Add(5 * time.Minute), false},                 // an old one, and nothing flows
		{20*time.Minute + 10*time.Second, 500, began.Add(5 * time.Minute), true},   // something does
		{21 * time.Minute, 600, began.Add(20*time.Minute + 50*time.Second), false}, // it is back
	} {
		got := e.listen([]wg.Peer{{Key: k, Tx: step.tx, Handshake: step.handshake}}, want, began.Add(step.after))
		if (len(got) > 0) != step.silent {
			t.Errorf("after %v: %v", step.after, got)
		}
	}
}

func TestTurn(t *testing.T) {
	const every = 24 * time.Hour
	began := time.Unix(1_000_000, 0)
	k, err := newKeyring(rand.Reader, began)
	if err != nil {
		t.Fatal(err)
	}
	at := due("isle1", began, every)
	if at.Sub(began) < every/2 || at.Sub(began) > every || due("isle2", began, every).Equal(at) {
		t.Errorf("due after %v", at.Sub(began))
	}
	first := k.Key
	step := func(now time.Time, shown string, changed bool) {
		t.Helper()
		got, again, err := k.turn("isle1", every, shown, rand.Reader, now)
		if err != nil || got != changed || again <= 0 {
			t.Fatalf("changed %v, again %v, %v", got, again, err)
		}
	}
	step(at.Add(-2*time.Minute), "", false)
	step(at.Add(-time.Minute), "", true)
	_, next, err := pair(k.Next)
	if err != nil || k.Key != first {
		t.Fatal("it has no next key, or another one in use", err)
	}
	step(at.Add(-time.Second), next, false)
	// The pool does not show it: the others do not know it.
	step(at, "", true)
	if k.Key != first || !k.NextFrom.Equal(at.Add(time.Minute)) {
		t.Error("it took a key that nobody knows")
	}
	step(at.Add(time.Minute), next, true)
	if _, pub, _ := k.private(); pub != next || k.Next != "" {
		t.Error("it did not take the next key")
	}
	// Never.
	if changed, again, err := k.turn("isle1", 0, "", rand.Reader, at.Add(1000*time.Hour)); changed || again != 0 || err != nil {
		t.Error("it turns although it is never to")
	}
}

func TestKeysStayOnTheHost(t *testing.T) {
	dir := t.TempDir() + "/keys"
	if k, err := loadKeys(dir); k != nil || err != nil {
		t.Fatalf("%v, %v", k, err)
	}
	k, err := newKeyring(rand.Reader, time.Unix(5, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	k.Active, k.Port = true, 4799
	if err := k.save(dir); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, keyFile(dir): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	back, err := loadKeys(dir)
	if err != nil || !reflect.DeepEqual(back, k) {
		t.Errorf("%+v, %v", back, err)
	}
	for _, bad := range []string{"", "{", `{"key":"x"}`, `{"key":"` + k.Key + `","next":"x"}`, `{"key":"` + k.Key + `",`} {
		if err := os.WriteFile(keyFile(dir), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadKeys(dir); err == nil || strings.Contains(err.Error(), k.Key) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
