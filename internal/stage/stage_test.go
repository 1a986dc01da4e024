package stage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/api"
	"atoll/internal/errs"
)

var at0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestNext(t *testing.T) {
	trial := func(starts int, halted bool) Record {
		return Record{Current: "v2", Installed: "v1", Activating: &Activating{From: "v1", To: "v2", Starts: starts, Halted: halted, Try: 4}}
	}
	installed := Self{Version: "v1", Installed: true}
	for _, c := range []struct {
		name   string
		rec    Record
		self   Self
		target string
		check  func(Record) bool
	}{
		{"nothing was chosen", Record{}, installed, "", func(r Record) bool { return r == Record{} }},
		{"another was chosen", Record{Current: "v2", Installed: "v1"}, installed, "v2", nil},
		{"it is what was chosen", Record{Current: "v1", Installed: "v1"}, installed, "", nil},
		{"whoever started it decided", Record{Current: "v2", Installed: "v1"}, Self{Version: "v1", Installed: true, Chosen: true}, "", nil},
		{"somebody installed a third by hand", Record{Current: "v2", Installed: "v1"}, Self{Version: "v3", Installed: true}, "", func(r Record) bool { return r.Current == "" }},
		{"the chosen one was installed by hand, too", Record{Current: "v2", Installed: "v1"}, Self{Version: "v2", Installed: true}, "", func(r Record) bool { return r.Current == "v2" }},
		{"on trial, it ended once", trial(1, false), installed, "v2", func(r Record) bool { return r.Activating.Starts == 2 }},
		{"on trial, it ended twice", trial(2, false), installed, "", func(r Record) bool {
			return r.Activating == nil && r.Current == "v1" && r.Failed.Version == "v2" && r.Failed.Try == 4
		}},
		{"on trial, it ended twice, and another is installed", Record{Current: "v3", Installed: "v1", Activating: &Activating{From: "v2", To: "v3", Starts: 2}}, installed, "v2", nil},
		{"on trial, somebody stopped it", trial(2, true), installed, "v2", func(r Record) bool { return r.Activating.Starts == 2 && !r.Activating.Halted }},
	} {
		before := c.rec
		got, target := Next(c.rec, c.self, at0)
		if target != c.target || c.check != nil && !c.check(got) {
			t.Errorf("%s: %+v, run %q", c.name, got, target)
		}
		if !reflect.DeepEqual(before, c.rec) {
			t.Errorf("%s: what was given was changed", c.name)
		}
	}
}

// TestATrialEnds: however a version on trial ends, soon one runs that is not on trial, and
// it is the one before unless the new one proved itself.
func TestATrialEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Record{Current: rapid.SampledFrom([]string{"", "v1"}).Draw(t, "current")}
		r = r.Begin(Activating{From: "v1", To: "v2", Try: 1, Since: at0}, "v1")
		proved := false
		for step := range 20 {
			switch rapid.SampledFrom([]string{"crash", "crash", "prove", "halt"}).Draw(t, "what") {
			case "prove":
				proved = proved || r.Activating != nil
				r = r.Proved()
			case "halt":
				r = r.Halt()
			}
			if r.Activating == nil {
				break
			}
			r, _ = Next(r, Self{Version: "v1", Installed: true}, at0)
			if r.Activating != nil && r.Activating.Starts > MaxStarts {
				t.Fatalf("step %d: started %d times", step, r.Activating.Starts)
			}
		}
		for i := 0; r.Activating != nil; i++ { // from here on it only crashes
			if i > MaxStarts {
				t.Fatalf("it is on trial for ever: %+v", r.Activating)
			}
			r, _ = Next(r, Self{Version: "v1", Installed: true}, at0)
		}
		if want := map[bool]string{true: "v2", false: "v1"}[proved]; r.Current != want {
			t.Fatalf("%s runs, want %s: %+v", r.Current, want, r)
		}
	})
}

func TestRecordOnDisk(t *testing.T) {
	d := Of(t.TempDir())
	if r, err := d.Read(); err != nil || r != (Record{}) {
		t.Fatalf("%+v %v", r, err)
	}
	want := Record{}.Begin(Activating{From: "v1", To: "v2", Try: 3, Since: at0}, "v1")
	if err := d.Write(want); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Read(); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v %v", got, err)
	}
	if to, err := os.Readlink(filepath.Join(d.Root, "current")); err != nil || to != "v2" {
		t.Fatalf("the link shows %q %v", to, err)
	}
	if err := os.WriteFile(d.recordFile(), []byte(`{"current":"../../etc"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(); !errors.Is(err, errs.Invalid) {
		t.Fatalf("a record that leads out of the directory: %v", err)
	}
}

func file(binary, content string) api.UpgradeFile {
	sum := sha256.Sum256([]byte(content))
	return api.UpgradeFile{OS: runtime.GOOS, Arch: runtime.GOARCH, Binary: binary, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content))}
}

func TestPutKeepsAllOrNothing(t *testing.T) {
	ctx := context.Background()
	d := Of(t.TempDir())
	files := []api.UpgradeFile{file("atolld", "daemon"), file("atoll", "cli")}
	give := func(content map[string]string) func(api.UpgradeFile, io.Writer) error {
		return func(f api.UpgradeFile, w io.Writer) error { _, err := io.WriteString(w, content[f.Binary]); return err }
	}
	for name, content := range map[string]map[string]string{
		"damaged": {"atolld": "daemon", "atoll": "clo"}, "short": {"atolld": "daemon", "atoll": "cl"}, "long": {"atolld": "daemon", "atoll": "cli and more"},
	} {
		if err := d.Put(ctx, "v2", files, give(content)); !errors.Is(err, errs.Invalid) || len(d.Versions()) != 0 {
			t.Errorf("%s: %v, kept %v", name, err, d.Versions())
		}
	}
	good := give(map[string]string{"atolld": "daemon", "atoll": "cli"})
	if err := d.Put(ctx, "v2", files, good); err != nil || !slices.Equal(d.Versions(), []string{"v2"}) {
		t.Fatalf("%v, kept %v", err, d.Versions())
	}
	if fi, err := os.Stat(d.Path("v2", "atolld")); err != nil || fi.Mode().Perm() != 0o755 {
		t.Fatalf("%v %v", fi, err)
	}
	// What is there is not asked for again, unless it was damaged since.
	if err := d.Put(ctx, "v2", files, give(nil)); err != nil {
		t.Fatalf("asked for again: %v", err)
	}
	if err := os.WriteFile(d.Path("v2", "atoll"), []byte("xxx"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(ctx, "v2", files, good); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(d.Path("v2", "atoll")); err != nil || string(b) != "cli" {
		t.Fatalf("%q %v", b, err)
	}
	if left, _ := filepath.Glob(filepath.Join(d.Root, ".in-*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	for _, v := range []string{"..", "a/b", "", "current", "record.json"} {
		if err := d.Put(ctx, v, files, good); !errors.Is(err, errs.Invalid) {
			t.Errorf("version %q: %v", v, err)
		}
	}
	if _, _, err := d.Open("v2", runtime.GOOS, runtime.GOARCH, "../record.json"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a file that is no program: %v", err)
	}
	if err := errors.Join(d.Put(ctx, "v3", files, good), d.Put(ctx, "v4", files, good), d.Prune("v3", "v4")); err != nil || !slices.Equal(d.Versions(), []string{"v3", "v4"}) {
		t.Errorf("%v, kept %v", err, d.Versions())
	}
}

func TestFetchTriesTheNextServer(t *testing.T) {
	f := file("atolld", "daemon")
	none := httptest.NewServer(http.NotFoundHandler())
	defer none.Close()
	var asked string
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked = r.URL.Path; io.WriteString(w, "daemon") }))
	defer good.Close()
	var b bytes.Buffer
	if err := Fetch(context.Background(), good.Client(), []string{"http://127.0.0.1:1", none.URL, good.URL}, "v2", f, &b); err != nil || b.String() != "daemon" {
		t.Fatalf("%q %v", b.String(), err)
	}
	if want := "/v1/upgrade/v2/" + runtime.GOOS + "/" + runtime.GOARCH + "/atolld"; asked != want {
		t.Errorf("asked for %s, want %s", asked, want)
	}
	err := Fetch(context.Background(), good.Client(), []string{none.URL}, "v2", f, &b)
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
}

// elf is the head of a program for a processor.
func elf(machine byte, rest string) string {
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01")
	h[18] = machine
	return string(h) + rest
}

type entry struct {
	name, content string
	typ           byte
}

func archive(t testing.TB, zip bool, list ...entry) []byte {
	var b bytes.Buffer
	var w io.WriteCloser = nop{&b}
	if zip {
		w = gzip.NewWriter(&b)
	}
	tw := tar.NewWriter(w)
	for _, e := range list {
		h := &tar.Header{Name: e.name, Mode: 0o755, Size: int64(len(e.content)), Typeflag: tar.TypeReg}
		if e.typ != 0 {
			h.Typeflag, h.Size, h.Linkname, e.content = e.typ, 0, "/etc/passwd", ""
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type nop struct{ io.Writer }

func (nop) Close() error { return nil }

func TestExtract(t *testing.T) {
	for _, zip := range []bool{false, true} {
		dir := t.TempDir()
		got, err := extract(context.Background(), bytes.NewReader(archive(t, zip, entry{name: "atoll-1/README", content: "hello"}, entry{name: "atoll-1/bin/atolld", content: elf(62, "one")},
			entry{name: "../../atoll", content: elf(183, "two")}, entry{name: "atoll-init", typ: tar.TypeSymlink})), dir)
		if err != nil || len(got) != 2 || got[0].Arch != "amd64" || got[0].Binary != "atolld" || got[1].Arch != "arm64" || got[1].Binary != "atoll" {
			t.Fatalf("%+v %v", got, err)
		}
		for _, f := range got {
			if sum, n, err := sumOf(at(dir, f)); err != nil || sum != f.SHA256 || n != f.Size {
				t.Errorf("%s: %s %d %v", f.Binary, sum, n, err)
			}
		}
	}
	for name, b := range map[string][]byte{
		"no tar": []byte("hello, this is no archive at all"), "half a gzip": archive(t, true, entry{name: "atolld", content: elf(62, "x")})[:30],
		"a script": archive(t, false, entry{name: "atolld", content: "#!/bin/sh\n"}), "twice": archive(t, false, entry{name: "a/atolld", content: elf(62, "x")}, entry{name: "b/atolld", content: elf(62, "y")}),
		"half a tar": archive(t, false, entry{name: "atolld", content: elf(62, strings.Repeat("x", 4000))})[:1500],
	} {
		if _, err := extract(context.Background(), bytes.NewReader(b), t.TempDir()); !errors.Is(err, errs.Invalid) || errs.KindOf(err) == errs.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Of(t.TempDir()).Unpack(context.Background(), bytes.NewReader(archive(t, false, entry{name: "atoll", content: elf(62, "x")})), ""); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no atolld") {
		t.Errorf("without a daemon: %v", err)
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	script := func(s string) string {
		p := filepath.Join(dir, fmt.Sprint(len(s)))
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"+s+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if got, err := Probe(context.Background(), script(`echo '{"version":"v2","release":2}'`)); err != nil || got != (Told{"v2", 2}) {
		t.Fatalf("%+v %v", got, err)
	}
	for _, s := range []string{"exit 1", "echo atolld v2", `echo '{"version":"../x","release":2}'`, `echo '{"version":"v2"}'`} {
		if _, err := Probe(context.Background(), script(s)); !errors.Is(err, errs.Unsupported) || errs.HintOf(err) == "" {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(archive(f, false, entry{name: "atolld", content: elf(62, "x")}))
	f.Add(archive(f, true, entry{name: "x/atoll", content: elf(183, "y")}, entry{name: "l", typ: tar.TypeLink}))
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, b []byte) {
		root := t.TempDir()
		dir := filepath.Join(root, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		files, err := extract(context.Background(), bytes.NewReader(b), dir)
		if err != nil && errs.KindOf(err) == errs.Internal {
			t.Fatalf("an error without a kind: %v", err)
		}
		for _, f := range files {
			if !slices.Contains(api.UpgradeBinaries(), f.Binary) || f.OS != "linux" {
				t.Fatalf("kept %+v", f)
			}
		}
		if list, _ := os.ReadDir(root); len(list) != 1 {
			t.Fatalf("something was written outside: %v", list)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"current":"v2","activating":{"from":"v1","to":"v2","starts":1}}`))
	f.Add([]byte(`{"activating":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		r, target := Next(r, Self{Version: "v1", Installed: true}, at0)
		if target != "" && (target != filepath.Base(target) || strings.Contains(target, "..")) {
			t.Fatalf("would run %q", target)
		}
		_ = r.Fell("x", at0).Proved().Halt()
	})
}

func FuzzTold(f *testing.F) {
	f.Add([]byte(`{"version":"v2","release":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseTold(b); err == nil && (!valid(got.Version) || got.Release < 1) {
			t.Fatalf("%+v", got)
		}
	})
}
