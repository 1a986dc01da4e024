package store_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

var when = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func seeded(t testing.TB, n int) *store.Mem {
	m := store.NewMem()
	mustCommit(t, m, store.Create(&api.Tenant{Head: api.Head{K: api.KindTenant, Meta: api.Meta{Name: "acme/research"}}}),
		store.Create(&api.Node{Head: api.Head{K: api.KindNode, Meta: api.Meta{Name: "isle1"}}}))
	for i := range n {
		mustCommit(t, m, store.Create(item(api.KindInstance, "acme", fmt.Sprintf("n%04d", i), map[string]string{"i": fmt.Sprint(i)})))
	}
	return m
}

func dump(t testing.TB, s store.Store) []byte {
	var b bytes.Buffer
	if err := store.Dump(context.Background(), s, &b, when); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// content is everything but the revisions.
func content(t testing.TB, s store.Store) []api.Object {
	objs, _, err := s.List(context.Background(), api.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	out := make([]api.Object, len(objs))
	for i, o := range objs {
		out[i] = api.Clone(o)
		out[i].Metadata().Revision = 0
	}
	return out
}

func TestBackupRoundTrip(t *testing.T) {
	ctx, from := context.Background(), seeded(t, 350)
	data := dump(t, from)
	if again := dump(t, from); !bytes.Equal(data, again) {
		t.Error("the same state gives two different backups")
	}
	to := store.NewMem()
	n, err := store.Load(ctx, to, bytes.NewReader(data), store.LoadOptions{})
	if err != nil || n != 352 {
		t.Fatal(n, err)
	}
	if !reflect.DeepEqual(content(t, from), content(t, to)) {
		t.Fatal("what came back differs")
	}
	m := manifestOf(t, data)
	if m.Objects != 352 || m.Kinds[api.KindInstance] != 350 || !m.CreatedAt.Equal(when) || m.Revision != from.Revision() {
		t.Fatalf("%+v", m)
	}
}

func TestRestoreOnlyIntoAnEmptyStoreUnlessForced(t *testing.T) {
	ctx, from := context.Background(), seeded(t, 5)
	data := dump(t, from)
	to := store.NewMem()
	mustCommit(t, to, store.Create(item(api.KindInstance, "acme", "n0001", nil)), store.Create(item(api.KindInstance, "other", "surplus", nil)))
	before := to.Revision()
	if n, err := store.Load(ctx, to, bytes.NewReader(data), store.LoadOptions{}); !errors.Is(err, errs.Conflict) || n != 0 || errs.HintOf(err) == "" {
		t.Fatal(n, err)
	}
	if to.Revision() != before {
		t.Fatal("something was written")
	}
	if n, err := store.Load(ctx, to, bytes.NewReader(data), store.LoadOptions{Force: true}); err != nil || n != 7 {
		t.Fatal(n, err)
	}
	if !reflect.DeepEqual(content(t, from), content(t, to)) {
		t.Fatal("what came back differs")
	}
}

func TestRestoreOfAnEmptyStore(t *testing.T) {
	if n, err := store.Load(context.Background(), store.NewMem(), bytes.NewReader(dump(t, store.NewMem())), store.LoadOptions{}); n != 0 || err != nil {
		t.Fatal(n, err)
	}
}

// parts of a hand-made backup.
type parts struct {
	manifest any
	objects  string
	names    [2]string
	cut      int
}

func (p parts) bytes(t testing.TB) []byte {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	head, err := json.Marshal(p.manifest)
	if err != nil {
		t.Fatal(err)
	}
	for i, data := range []string{string(head), p.objects} {
		if err := w.WriteHeader(&tar.Header{Name: p.names[i], Mode: 0o600, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[:b.Len()-p.cut]
}

func fit(objects string, n int) parts {
	sum := sha256.Sum256([]byte(objects))
	return parts{manifest: store.Manifest{Format: 1, Objects: n, Bytes: int64(len(objects)), SHA256: hex.EncodeToString(sum[:])},
		objects: objects, names: [2]string{"manifest.json", "objects.jsonl"}}
}

func manifestOf(t testing.TB, data []byte) store.Manifest {
	z, err := zstd.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	r := tar.NewReader(z)
	var m store.Manifest
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

const oneNode = `{"kind":"Node","metadata":{"name":"a"},"spec":{}}` + "\n"

func TestDamagedBackupsWriteNothing(t *testing.T) {
	good := fit(oneNode, 1)
	sumWrong := fit(oneNode, 1)
	sumWrong.objects = `{"kind":"Node","metadata":{"name":"b"},"spec":{}}` + "\n"
	swapped := fit(oneNode, 1)
	swapped.names = [2]string{"objects.jsonl", "manifest.json"}
	climbing := fit(oneNode, 1)
	climbing.names[1] = "../../etc/passwd"
	short := fit(oneNode, 1)
	short.cut = 20
	newer := fit(oneNode, 1)
	newer.manifest = store.Manifest{Format: 99}
	for name, c := range map[string]struct {
		data []byte
		kind errs.Kind
	}{
		"empty":        {nil, errs.Invalid},
		"not zstd":     {[]byte("hello, world"), errs.Invalid},
		"checksum":     {sumWrong.bytes(t), errs.Invalid},
		"order":        {swapped.bytes(t), errs.Invalid},
		"name":         {climbing.bytes(t), errs.Invalid},
		"cut off":      {short.bytes(t), errs.Invalid},
		"newer":        {newer.bytes(t), errs.Unsupported},
		"count":        {fit(oneNode, 2).bytes(t), errs.Invalid},
		"twice":        {fit(oneNode+oneNode, 2).bytes(t), errs.Invalid},
		"unknown kind": {fit(oneNode+`{"kind":"Kraken","metadata":{"name":"a"}}`+"\n", 2).bytes(t), errs.Invalid},
		"no object":    {fit(oneNode+"[]\n", 2).bytes(t), errs.Invalid},
	} {
		to := store.NewMem()
		n, err := store.Load(context.Background(), to, bytes.NewReader(c.data), store.LoadOptions{Force: true})
		if errs.KindOf(err) != c.kind || err == nil || n != 0 || to.Revision() != 1 {
			t.Errorf("%s: %d objects, %v (%s)", name, n, err, errs.KindOf(err))
		}
	}
	if n, err := store.Load(context.Background(), store.NewMem(), bytes.NewReader(good.bytes(t)), store.LoadOptions{}); n != 1 || err != nil {
		t.Fatal("the undamaged one:", n, err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(dump(f, seeded(f, 2)))
	f.Add(fit(oneNode, 1).bytes(f))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		to := store.NewMem()
		n, err := store.Load(context.Background(), to, bytes.NewReader(data), store.LoadOptions{})
		if err != nil && to.Revision() != 1 {
			t.Fatalf("refused with %v after writing", err)
		}
		if err == nil && n != len(content(t, to)) {
			t.Fatalf("%d told, %d there", n, len(content(t, to)))
		}
	})
}

// FuzzObjects looks behind the checksum: at what the lines may hold.
func FuzzObjects(f *testing.F) {
	f.Add(oneNode)
	f.Add(`{"kind":"Tenant","metadata":{"name":"a/b"},"spec":{"limit":{"cpu":1}}}`)
	f.Add("\n\n{}")
	f.Fuzz(func(t *testing.T, lines string) {
		to := store.NewMem()
		if _, err := store.Load(context.Background(), to, bytes.NewReader(fit(lines, 1).bytes(t)), store.LoadOptions{}); err == nil && to.Revision() != 2 {
			t.Fatalf("one object, revision %d", to.Revision())
		}
	})
}
