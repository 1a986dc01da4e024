package api

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"atoll/internal/errs"
	"atoll/internal/release"
)

var update = flag.Bool("update", false, "write the golden files of the newest formats anew, as long as they are not released")

// thing is a kind that has been through three formats:
// 1 spec.size "3"; 2 spec.sizes ["3"]; 3 spec.sizes ["3"], spec.unit (default "Mi").
type thing struct {
	Head
	Spec thingSpec `json:"spec"`
}

type thingSpec struct {
	Sizes []string `json:"sizes,omitempty"`
	Unit  string   `json:"unit,omitempty"`
	Big   int64    `json:"big,omitempty"`
}

func (t *thing) Validate() []errs.Field { return nil }

// thing1 is the kind as builds know it that have only format 1.
type thing1 struct {
	Head
	Spec struct {
		Size string `json:"size,omitempty"`
		Big  int64  `json:"big,omitempty"`
	} `json:"spec"`
}

func (t *thing1) Validate() []errs.Field { return nil }

func specOf(o map[string]any) (map[string]any, error) {
	m, ok := o["spec"].(map[string]any)
	if !ok {
		return nil, errs.New(errs.Invalid, "spec is no object")
	}
	return m, nil
}

func thingDefinition(releases ...int) *Definition {
	steps := []Format{
		{Up: func(o map[string]any) error {
			s, err := specOf(o)
			if err != nil {
				return err
			}
			if v, ok := s["size"]; ok {
				s["sizes"] = []any{v}
				delete(s, "size")
			}
			return nil
		}, Down: func(o map[string]any) error {
			s, err := specOf(o)
			if err != nil {
				return err
			}
			if v, ok := s["sizes"].([]any); ok && len(v) > 0 {
				s["size"] = v[0] // only the new format can tell of more
			}
			delete(s, "sizes")
			return nil
		}},
		{Up: func(o map[string]any) error {
			s, err := specOf(o)
			if err == nil && s["unit"] == nil {
				s["unit"] = "Mi"
			}
			return err
		}, Down: func(o map[string]any) error {
			s, err := specOf(o)
			delete(s, "unit")
			return err
		}},
	}
	d := &Definition{Kind: "Thing", Plural: "things", New: func() Object { return &thing{Head: Head{K: "Thing"}} }}
	for i, r := range releases {
		steps[i].Release = r
		d.Formats = append(d.Formats, steps[i])
	}
	return d
}

func TestFormatFollowsTheLevel(t *testing.T) {
	d := thingDefinition(2, 4)
	for level, want := range map[int]int{0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 9: 3} {
		if got := d.FormatAt(level); got != want {
			t.Errorf("level %d: format %d, want %d", level, got, want)
		}
	}
	o := &thing{Head: Head{K: "Thing", Meta: Meta{Name: "a"}}, Spec: thingSpec{Sizes: []string{"3"}, Unit: "Gi", Big: 1<<62 + 1}}
	for level, want := range map[int]string{
		1: `{"kind":"Thing","metadata":{"name":"a"},"spec":{"big":4611686018427387905,"size":"3"}}`,
		3: `{"format":2,"release":2,"kind":"Thing","metadata":{"name":"a"},"spec":{"big":4611686018427387905,"sizes":["3"]}}`,
		4: `{"format":3,"release":4,"kind":"Thing","metadata":{"name":"a"},"spec":{"sizes":["3"],"unit":"Gi","big":4611686018427387905}}`,
	} {
		got, err := d.encode(o, level)
		if err != nil || string(got) != want {
			t.Errorf("level %d: %s %v, want %s", level, got, err, want)
		}
	}
}

func TestWhatIsStoredInANewerFormatIsRefusedWithTheReleaseItNeeds(t *testing.T) {
	newer, older := thingDefinition(2, 7), thingDefinition(2)
	o := &thing{Head: Head{K: "Thing", Meta: Meta{Name: "a"}}, Spec: thingSpec{Sizes: []string{"3"}}}
	b, err := newer.encode(o, 7)
	if err != nil {
		t.Fatal(err)
	}
	_, err = older.decode(b)
	if !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "format 3") || !strings.Contains(errs.HintOf(err), "release 7") {
		t.Fatalf("%v; hint %q", err, errs.HintOf(err))
	}
	// Also for kinds that have one format here.
	if _, err := DecodeStored(KindTenant, []byte(`{"format":2,"release":5,"kind":"Tenant","metadata":{"name":"a"},"spec":{}}`)); !errors.Is(err, errs.Unsupported) || !strings.Contains(errs.HintOf(err), "release 5") {
		t.Fatalf("%v; hint %q", err, errs.HintOf(err))
	}
	for _, bad := range []string{`{"format":0,"kind":"Thing"}`, `{"format":-1,"kind":"Thing"}`, `{"format":"x"}`, `{"format":99999999}`, `{"format":`, `{"format":1.5}`, `{"format":2,"release":-4}`} {
		if _, err := newer.decode([]byte(bad)); err == nil {
			t.Errorf("%s: was read", bad)
		}
	}
}

// TestEveryLevelIsReadByEveryNeighbour: builds of releases n-2 to n share pools of every
// level that all of them may work on, and read what each of the others writes.
func TestEveryLevelIsReadByEveryNeighbour(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	build := func(rel int) *Definition { // what a build of that release knows
		var known []int
		for _, r := range []int{3, 5} {
			if r <= rel {
				known = append(known, r)
			}
		}
		d := thingDefinition(known...)
		if len(known) == 0 {
			d.New = func() Object { return &thing1{Head: Head{K: "Thing"}} }
		}
		return d
	}
	for n := 1; n <= 9; n++ {
		for m := max(1, n-release.Reach); m <= n; m++ {
			for level := 1; level <= m; level++ {
				if ReadableAt(n, level) != nil || ReadableAt(m, level) != nil {
					continue
				}
				for range 50 {
					first := fmt.Appendf(nil, `{"kind":"Thing","metadata":{"name":"a","labels":{"k":"%d"}},"spec":{"size":"%d","big":%d}}`, rnd.IntN(9), rnd.IntN(99), rnd.Int64())
					o, err := build(n).decode(first)
					if err != nil {
						t.Fatal(err)
					}
					// It goes from one to the other and back, each writing it, and stays what it was.
					b, err := build(n).encode(o, level)
					if err != nil {
						t.Fatal(err)
					}
					for _, reader := range []*Definition{build(m), build(n), build(m)} {
						got, err := reader.decode(b)
						if err != nil {
							t.Fatalf("releases %d and %d, level %d: %v", n, m, level, err)
						}
						again, err := reader.encode(got, level)
						if err != nil || !sameJSON(again, b) {
							t.Fatalf("releases %d and %d, level %d: %s became %s (%v)", n, m, level, b, again, err)
						}
					}
				}
			}
		}
	}
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// TestConvertersUndoEachOther holds for those of real kinds as soon as there are any.
func TestConvertersUndoEachOther(t *testing.T) {
	defs := append([]*Definition{thingDefinition(2, 3)}, Definitions()...)
	for _, d := range defs {
		last := 0
		for i, f := range d.Formats {
			if f.Release <= last {
				t.Errorf("%s: format %d is of release %d, the one before of %d: they must grow", d.Kind, i+2, f.Release, last)
			}
			last = f.Release
			file := goldenFile(i+1, d)
			if d.Kind == "Thing" {
				file = ""
			}
			old := map[string]any{"kind": string(d.Kind), "metadata": map[string]any{"name": "a"}, "spec": map[string]any{"size": "3"}}
			if i == 1 {
				old["spec"] = map[string]any{"sizes": []any{"3"}}
			}
			if file != "" {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if old, err = object(b); err != nil {
					t.Fatal(err)
				}
			}
			want, err := json.Marshal(old)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Up(old), f.Down(old)); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(old)
			if err != nil || !sameJSON(want, got) {
				t.Errorf("%s, format %d: up and down again made %s of %s", d.Kind, i+2, got, want)
			}
		}
	}
}

func TestPoolsThatABuildWorksOn(t *testing.T) {
	for _, c := range []struct {
		build, level int
		says         string
	}{{1, 1, ""}, {3, 1, ""}, {3, 2, ""}, {3, 3, ""}, {3, 0, ""}, {2, 3, "too old"}, {4, 1, "too new"}, {1, 9, "needs release 9"}} {
		err := ReadableAt(c.build, c.level)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error()+errs.HintOf(err), c.says) {
			t.Errorf("build %d, pool %d: %v, want %q", c.build, c.level, err, c.says)
		}
	}
}

func TestNoKindHasFieldsOfTheName(t *testing.T) {
	for _, d := range Definitions() {
		EachField(reflect.TypeOf(d.New()).Elem(), func(_ reflect.StructField, name string) {
			if name == "format" || name == "release" {
				t.Errorf("%s has a field %s beside metadata: that name says how it is stored", d.Kind, name)
			}
		})
	}
}

func goldenFile(format int, d *Definition) string {
	return filepath.Join("testdata", "stored", "v"+strconv.Itoa(format), d.Singular()+".json")
}

const changed = `
The stored fields of %s are not those of its golden file %s.
What is stored is read and written by hosts of other releases, so a change is a new format:
  1. add a Format to the definition of %s, with the release that brings it and converters up
     and down (for fields that are only new: Up nothing, Down deletes them);
  2. go test ./api -run Stored -update   writes the golden file of the new format;
  3. leave the old golden files as they are: they must stay readable for ever.
As long as the format has not been released (testdata/stored/released is below it), 2 is enough.
%s`

// TestStoredFieldsHaveAGolden fails when the fields of a kind change without a new format.
func TestStoredFieldsHaveAGolden(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "stored", "released"))
	if err != nil {
		t.Fatal(err)
	}
	released, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range Definitions() {
		o := d.New()
		fill(reflect.ValueOf(o).Elem(), "", 0)
		*kindOf(o) = d.Kind
		got, err := json.MarshalIndent(o, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		file := goldenFile(d.Newest(), d)
		want, err := os.ReadFile(file)
		if err == nil && string(want) == string(got) {
			continue
		}
		if *update && d.Newest() > released {
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, got, 0o644)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		t.Errorf(changed, d.Kind, file, d.Kind, firstDifference(string(want), string(got)))
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		a, b := "(nothing)", "(nothing)"
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("The first difference, line %d: %s, was %s", i+1, strings.TrimSpace(b), strings.TrimSpace(a))
		}
	}
	return "no difference"
}

// TestStoredFilesStayReadable reads what every format ever was.
func TestStoredFilesStayReadable(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "stored", "v*", "*.json"))
	if err != nil || len(files) < len(Definitions()) {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		d, ok := Lookup(strings.TrimSuffix(filepath.Base(file), ".json"))
		if !ok {
			t.Errorf("%s: the kind is gone. What was stored of it is still in pools: keep its definition", file)
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(file)), "v"))
		if err != nil {
			t.Fatal(err)
		}
		stored := b
		if n > 1 {
			stored = append([]byte(formatMark+strconv.Itoa(n)+`,"release":`+strconv.Itoa(d.Formats[n-2].Release)+","), b[1:]...)
		}
		o, err := DecodeStored(d.Kind, stored)
		if err != nil {
			t.Errorf("%s cannot be read any more: %v", file, err)
			continue
		}
		level := release.First
		if n > 1 {
			level = d.Formats[n-2].Release
		}
		again, err := EncodeStored(o, level)
		if err != nil || !sameJSON(again, stored) {
			t.Errorf("%s is written back otherwise (%v): something of it is lost\n%s", file, err, again)
		}
	}
}

// fill sets every field to something that depends on its name only.
func fill(v reflect.Value, name string, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		if depth > 12 {
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name, depth+1)
	case reflect.Struct:
		if v.Type() == timeType {
			v.Set(reflect.ValueOf(time.Date(2024, 5, 17, 12, 30, 15, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				json, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				fill(v.Field(i), json, depth+1)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte(`"` + name + `"`))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), name, depth+1)
	case reflect.Map:
		key, val := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		key.SetString("key")
		if v.Type() == reflect.TypeFor[Resources]() {
			key.SetString(string(Memory))
		}
		fill(val, name, depth+1)
		v.Set(reflect.MakeMapWithSize(v.Type(), 1))
		v.SetMapIndex(key, val)
	case reflect.String:
		v.SetString(name)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(len(name) + 1))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(len(name) + 1))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(1.5)
	default:
		panic(fmt.Sprintf("fill: %s is a %s", name, v.Type()))
	}
}

func FuzzDecodeStored(f *testing.F) {
	d := thingDefinition(2, 4)
	for _, s := range []string{`{"kind":"Thing","metadata":{"name":"a"},"spec":{"size":"3"}}`, `{"format":2,"release":2,"kind":"Thing","metadata":{"name":"a"},"spec":{"sizes":["1"]}}`,
		`{"format":3,"release":4,"kind":"Thing","spec":{}}`, `{"format":9,"release":9}`, `{"format":2,"kind":"Thing","spec":null}`, `{"format":1}`, `null`, `[]`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := d.decode(b)
		if err != nil {
			if errs.KindOf(err) == errs.Internal {
				t.Fatalf("%q: an error without a kind: %v", b, err)
			}
			return
		}
		for _, level := range []int{1, 2, 4} {
			w, err := d.encode(o, level)
			if err != nil {
				t.Fatalf("%q was read and cannot be written at level %d: %v", b, level, err)
			}
			if _, err := d.decode(w); err != nil {
				t.Fatalf("%q: what was written cannot be read: %s: %v", b, w, err)
			}
		}
	})
}

func FuzzVersion(f *testing.F) {
	for _, s := range []string{"v1.2.3", "dev", "current", "..", "a/b", "a..b", "-x", "", strings.Repeat("a", 65), "v1.0.0-3-gabc123-dirty", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ValidVersion(s) && (s == "" || s != filepath.Base(s) || strings.ContainsAny(s, "/\\\x00 ") || strings.HasPrefix(s, ".") || strings.Contains(s, "..")) {
			t.Fatalf("%q may become a name of a directory", s)
		}
	})
}
