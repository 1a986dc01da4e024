package replica

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"atoll/api"
)

func instance(i int, uid string) *api.Instance {
	return &api.Instance{Head: api.Head{K: api.KindInstance, Meta: api.Meta{Tenant: "acme", Name: fmt.Sprint("w", i), UID: uid, Revision: int64(i)}}, Spec: api.InstanceSpec{Image: "x"}}
}

func encode(t testing.TB, o api.Object) []byte {
	t.Helper()
	b, err := api.Encode(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// story is a log of every kind of record.
func story(t testing.TB) []record {
	gone := ref(api.KindInstance, 1)
	return []record{
		{Head: &head{self, "p"}}, {Put: encode(t, instance(1, "a"))}, {Named: encode(t, instance(2, "b"))}, {At: &position{api.KindInstance, 7}},
		{Tell: encode(t, instance(2, "b"))}, {Lease: &Lease{Epoch: 3, Rev: 5, Duration: time.Hour, Boot: "x", BootEnd: time.Hour}}, {Gone: &gone},
		{Put: encode(t, instance(3, "c"))}, {Told: ptr(ref(api.KindInstance, 2))},
	}
}

func ptr[T any](v T) *T { return &v }

func write(t testing.TB, recs []record) (log []byte, ends []int) {
	log = []byte(magic)
	for _, r := range recs {
		var err error
		if log, err = frame(log, r); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, len(log))
	}
	return log, ends
}

func same(a, b *state) bool {
	return a.head == b.head && reflect.DeepEqual(a.base, b.base) && reflect.DeepEqual(a.tell, b.tell) && reflect.DeepEqual(a.at, b.at) && a.lease == b.lease
}

// Wherever a crash cuts the log: what was whole before is read, and nothing else.
func TestATornLogIsReadToTheTear(t *testing.T) {
	recs := story(t)
	log, ends := write(t, recs)
	for cut := len(magic); cut <= len(log); cut++ {
		want, whole := newState(head{}), 0
		for whole < len(recs) && ends[whole] <= cut {
			want.apply(recs[whole])
			whole++
		}
		got, good, err := decode(log[:cut])
		if err != nil || !same(got, want) {
			t.Fatalf("cut at %d: %+v, want %+v, %v", cut, got, want, err)
		}
		if whole > 0 && good != ends[whole-1] {
			t.Fatalf("cut at %d: %d bytes are said to be good", cut, good)
		}
	}
	for i := len(magic); i < len(log); i++ { // a bit turned over ends it there
		bad := append([]byte(nil), log...)
		bad[i] ^= 0x10
		if _, good, err := decode(bad); err != nil || good > i {
			t.Fatalf("byte %d is wrong, and %d are said to be good: %v", i, good, err)
		}
	}
}

func TestAForeignFileIsPutAside(t *testing.T) {
	for name, content := range map[string][]byte{"empty": nil, "newer": []byte("atoll replica 9\n"), "text": []byte("hello, world, this is no replica")} {
		path := filepath.Join(t.TempDir(), "replica", self)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		j, s, err := openJournal(path, head{Node: self})
		if err != nil || len(s.base) != 0 {
			t.Fatal(name, s, err)
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path + ".unread"); err != nil || string(b) != string(content) {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
}

func TestTheFileStaysSmallAndPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "replica", self)
	j, s, err := openJournal(path, head{Node: self})
	if err != nil {
		t.Fatal(err)
	}
	most := int64(0)
	for i := range 20000 {
		o := instance(i%10, "a")
		o.Spec.Image = fmt.Sprint("image", i)
		s.base[api.RefOf(o)] = &base{obj: o, followed: true}
		if err := j.append(s, i%1000 == 0, record{Put: encode(t, o)}); err != nil {
			t.Fatal(err)
		}
		most = max(most, j.size)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() != j.size || most > compactOver+64<<10 || most < compactOver {
		t.Errorf("%v %v, at most %d", info, err, most)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %s", info.Mode())
	}
	_ = j.f.Close() // as a kill does
	again, got, err := openJournal(path, head{Node: self})
	if err != nil || !same(got, s) {
		t.Fatalf("%v\n%v\n%v", got, s, err)
	}
	if err := again.close(); err != nil {
		t.Fatal(err)
	}
}

// A disk that does not take a record is written anew when it does again: nothing stands
// behind a tear.
func TestAFullDiskLeavesNoGap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "replica", self)
	j, s, err := openJournal(path, head{Node: self})
	if err != nil {
		t.Fatal(err)
	}
	_ = j.f.Close() // what is written now fails
	o := instance(1, "a")
	s.base[api.RefOf(o)] = &base{obj: o, followed: true}
	if err := j.append(s, true, record{Put: encode(t, o)}); err == nil {
		t.Fatal("written to a closed file")
	}
	if err := j.append(s, true, record{At: &position{api.KindNode, 3}}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, good, err := decode(b); err != nil || good != len(b) || !same(got, s) {
		t.Errorf("%v %v", got, err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
}

func TestALeaseOnDisk(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	day := 24 * time.Hour
	l := Lease{Epoch: 2, Rev: 9, Duration: day, Boot: "a", BootAt: time.Hour, BootEnd: 23 * time.Hour, At: at}
	later := func(d time.Duration) time.Time { return at.Add(d) }
	for name, c := range map[string]struct {
		l    Lease
		now  Moment
		want time.Duration
	}{
		"same boot":                   {l, Moment{"a", 3 * time.Hour, later(time.Hour), time.Time{}}, 20 * time.Hour},
		"same boot, wall set back":    {l, Moment{"a", 22 * time.Hour, later(-time.Hour), time.Time{}}, time.Hour},
		"same boot, over":             {l, Moment{"a", 24 * time.Hour, later(time.Hour), time.Time{}}, 0},
		"other boot":                  {l, Moment{"b", time.Minute, later(2 * time.Hour), later(2 * time.Hour)}, 20*time.Hour - day/10 - time.Minute},
		"other boot, over":            {l, Moment{"b", time.Minute, later(20 * time.Hour), later(20 * time.Hour)}, 0},
		"other boot, no other clock":  {l, Moment{"b", time.Minute, later(2 * time.Hour), time.Time{}}, 0},
		"other boot, clocks disagree": {l, Moment{"b", time.Minute, later(2 * time.Hour), later(3 * time.Hour)}, 0},
		"other boot, went back":       {l, Moment{"b", time.Minute, later(-2 * time.Hour), later(-2 * time.Hour)}, 0},
		"none":                        {Lease{}, Moment{"", time.Minute, later(0), later(0)}, 0},
	} {
		if got := c.l.Left(c.now); got != c.want {
			t.Errorf("%s: %s left, want %s", name, got, c.want)
		}
	}
	next := l
	if next.BootEnd, next.BootAt, next.At = l.BootEnd+time.Second, l.BootAt+time.Second, later(time.Second); l.worth(next) {
		t.Error("written for a second")
	}
	if next.BootEnd, next.BootAt, next.At = l.BootEnd+time.Hour, l.BootAt+time.Hour, later(time.Hour); !l.worth(next) {
		t.Error("not written for an hour")
	}
	if next.BootEnd, next.BootAt, next.At = l.BootEnd+time.Second, l.BootAt+time.Second, later(time.Hour); !l.worth(next) {
		t.Error("not written though the clock on the wall was set")
	}
}

func FuzzDecode(f *testing.F) {
	log, _ := write(f, story(f))
	f.Add(log)
	f.Add(log[:len(log)-3])
	f.Add([]byte(magic + "\xff\xff\xff\xff0000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, good, err := decode(b)
		if err != nil {
			return
		}
		if good < len(magic) || good > len(b) {
			t.Fatalf("%d of %d bytes are good", good, len(b))
		}
		again, at, err := decode(b[:good])
		if err != nil || at != good || !same(again, s) {
			t.Fatalf("the good part reads as %+v, the whole as %+v, %v", again, s, err)
		}
		recs, err := s.records()
		if err != nil {
			return // an object that cannot be written again is none that was written
		}
		short, _ := write(t, recs)
		if got, n, err := decode(short); err != nil || n != len(short) || len(got.base) != len(s.base) || len(got.tell) != len(s.tell) || got.lease.Epoch != s.lease.Epoch && s.lease.Duration != 0 {
			t.Fatalf("written anew it is %+v, was %+v, %v", got, s, err)
		}
	})
}
