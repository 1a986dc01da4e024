package fence

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"atoll/internal/errs"
)

func TestFramesGoThrough(t *testing.T) {
	items := []Item{{ID: "x1", Groups: []string{"atoll/a.t/x1"}}, {ID: strings.Repeat("y", maxID), Groups: []string{"atoll/b", "atoll/c/d"}}}
	var b bytes.Buffer
	if err := writeFrame(&b, askReplace, encodeItems(items)); err != nil {
		t.Fatal(err)
	}
	k, body, err := readFrame(&b)
	if err != nil || k != askReplace {
		t.Fatal(k, err)
	}
	got, err := decodeItems(body, "atoll")
	if err != nil || !reflect.DeepEqual(got, items) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := decodeItems(encodeItems(nil), "atoll"); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
	st := State{Pid: 7, Deadline: time.Hour, Guarded: 3, Fenced: 1 << 40}
	if got, err := decodeState(st.encode()); err != nil || got != st {
		t.Errorf("%+v %v", got, err)
	}
	if d, err := decodeTime(encodeTime(time.Minute)); err != nil || d != time.Minute {
		t.Error(d, err)
	}
}

func TestBadFrames(t *testing.T) {
	for name, in := range map[string]string{"other": "GET / HTTP/1.1\r\n", "version": "AW\x02\x01\x00\x00\x00\x00", "long": "AW\x01\x01\xff\xff\xff\xff", "cut": "AW\x01\x01\x08\x00\x00\x00ab", "head": "AW\x01"} {
		_, _, err := readFrame(strings.NewReader(in))
		if err == nil || errors.Is(err, io.EOF) && err == io.EOF { //nolint:errorlint // exactly the end between two frames
			t.Errorf("%s: %v", name, err)
		}
		if name == "version" && !errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := encodeItems([]Item{{ID: "x", Groups: []string{"atoll/x"}}})
	for name, in := range map[string][]byte{"empty": nil, "cut": good[:len(good)-1], "more": append(bytes.Clone(good), 0), "claims many": {255, 15, 0, 0}, "too many": {255, 255, 255, 255}} {
		if got, err := decodeItems(in, "atoll"); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for _, i := range []Item{{ID: "", Groups: []string{"atoll/x"}}, {ID: "x"}, {ID: "x", Groups: []string{"atoll"}}, {ID: "x", Groups: []string{"atoll/"}}, {ID: "x", Groups: []string{"/atoll/x"}},
		{ID: "x", Groups: []string{"atoll/../system.slice"}}, {ID: "x", Groups: []string{"atollfoo/x"}}, {ID: "x", Groups: []string{"system.slice/ssh"}}, {ID: strings.Repeat("x", maxID+1), Groups: []string{"atoll/x"}}} {
		if got, err := decodeItems(encodeItems([]Item{i}), "atoll"); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", got, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 7), make([]byte, 8), encodeTime(-1)} {
		if d, err := decodeTime(b); err == nil {
			t.Errorf("%v: %v", b, d)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	_ = writeFrame(&b, askReplace, encodeItems([]Item{{ID: "x", Groups: []string{"atoll/x"}}})) // into memory
	f.Add(b.Bytes())
	f.Add([]byte("AW\x01\x01\x08\x00\x00\x00abcdefgh"))
	f.Fuzz(func(t *testing.T, in []byte) {
		k, body, err := readFrame(bytes.NewReader(in))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writeFrame(&out, k, body); err != nil || !bytes.HasPrefix(in, out.Bytes()) {
			t.Fatalf("%q was read as %q", in, out.Bytes())
		}
	})
}

func FuzzDecodeItems(f *testing.F) {
	f.Add(encodeItems([]Item{{ID: "x", Groups: []string{"atoll/x", "atoll/y/z"}}}))
	f.Add([]byte{255, 15, 0, 0, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		items, err := decodeItems(in, "atoll")
		if err != nil {
			return
		}
		for _, i := range items {
			for _, g := range i.Groups {
				if !strings.HasPrefix(g, "atoll/") || strings.Contains(g, "..") && filepath.Clean(g) != g {
					t.Fatalf("%q would be emptied", g)
				}
			}
		}
		if !bytes.Equal(encodeItems(items), in) {
			t.Fatalf("%v is not what was sent", items)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add(State{Pid: 1, Deadline: 2, Guarded: 3, Fenced: 4}.encode())
	f.Fuzz(func(t *testing.T, in []byte) {
		if s, err := decodeState(in); err == nil && !bytes.Equal(s.encode(), in) {
			t.Fatalf("%+v", s)
		}
	})
}

func TestGuard(t *testing.T) {
	const s = time.Second
	one := []Item{{ID: "x", Groups: []string{"atoll/x"}}}
	g := guard{idle: 60 * s, since: 100 * s}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("not refused")
		}
	}
	refused(g.replace(100*s, one, 1)) // nobody said until when
	ok(g.set(100*s, 105*s, 1))
	refused(g.set(100*s, 100*s+farthest+1, 1))
	ok(g.replace(101*s, one, 1))
	if g.next() != 105*s || g.done(1e6*s) || g.expired(105*s-1) != nil {
		t.Error("before the deadline")
	}
	ok(g.set(104*s, 109*s, 1))
	if g.expired(105*s) != nil {
		t.Error("the old deadline was kept")
	}
	if due := g.expired(109 * s); len(due) != 1 || g.fenced != 1 || len(g.items) != 0 {
		t.Error(due, g)
	}
	if g.expired(110*s) != nil {
		t.Error("stopped twice")
	}
	refused(g.replace(110*s, one, 1)) // the lease has ended
	// A daemon's successor: what the first one wrote is read late.
	ok(g.set(110*s, 120*s, 2))
	ok(g.replace(110*s, one, 2))
	refused(g.set(110*s, 130*s, 1))
	refused(g.replace(110*s, nil, 1))
	ok(g.replace(110*s, nil, 2))
	if g.done(170*s-1) || !g.done(170*s) || g.next() != 170*s {
		t.Error("idle")
	}
	// An end that is moved nearer holds.
	ok(g.set(110*s, 111*s, 2))
	if g.deadline != 111*s {
		t.Error(g.deadline)
	}
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	if all, done, err := Take(dir); err != nil || len(all) != 0 || done() != nil {
		t.Fatal(all, err)
	}
	one := Fenced{ID: "x", Groups: []string{"atoll/x"}, At: time.Unix(1, 0).UTC(), Late: time.Millisecond, Deadline: time.Minute}
	two := one
	two.ID = "y"
	for _, f := range []Fenced{one, two} {
		if err := addRecord(dir, []Fenced{f}); err != nil {
			t.Fatal(err)
		}
	}
	want := []Fenced{one, two}
	all, _, err := Take(dir) // and killed before it was done
	if err != nil || !reflect.DeepEqual(all, want) {
		t.Fatal(all, err)
	}
	if err := addRecord(dir, []Fenced{one}); err != nil {
		t.Fatal(err)
	}
	all, done, err := Take(dir)
	if err != nil || !reflect.DeepEqual(all, want) || done() != nil {
		t.Fatal(all, err)
	}
	if all, done, err = Take(dir); err != nil || len(all) != 1 || done() != nil {
		t.Fatal("what came meanwhile", all, err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Take(dir); err == nil {
		t.Error("a damaged record was read")
	}
	if all, _, err := Take(dir); err != nil || len(all) != 0 {
		t.Error("a damaged record stays in the way", all, err)
	}
	for range maxRecord + 5 {
		all = append(all, one)
	}
	if err := addRecord(dir, append(all, two)); err != nil {
		t.Fatal(err)
	}
	if all, _, err := Take(dir); err != nil || len(all) != maxRecord || all[maxRecord-1].ID != "y" {
		t.Error(len(all), err)
	}
}
