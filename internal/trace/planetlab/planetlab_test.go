package planetlab

import (
	"bytes"
	"compress/gzip"
	"errors"
	"strconv"
	"strings"
	"testing"

	"atoll/internal/errs"
)

func row(name string, n int, last string) string {
	var b strings.Builder
	b.WriteString(name)
	for i := range n - 1 {
		b.WriteString("," + strconv.Itoa(i%101))
	}
	return b.String() + "," + last
}

func TestRead(t *testing.T) {
	text := row("a", Samples, "100") + "\r\n" + row("b", Samples, " 7") + "\n"
	for _, packed := range []bool{false, true} {
		var ms []Machine
		var err error
		if packed {
			var buf bytes.Buffer
			z := gzip.NewWriter(&buf)
			if _, err := z.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			ms, err = ReadGzip(&buf)
		} else {
			ms, err = Read(strings.NewReader(text))
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(ms) != 2 || ms[0].Name != "a" || ms[0].Use[286] != 286%101 || ms[0].Use[287] != 100 || ms[1].Use[287] != 7 {
			t.Fatalf("read %d machines, the last values are %d and %d", len(ms), ms[0].Use[287], ms[1].Use[287])
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for what, text := range map[string]string{
		"too few":     row("a", Samples-1, "1"),
		"too many":    row("a", Samples+1, "1"),
		"above 100":   row("a", Samples, "101"),
		"negative":    row("a", Samples, "-1"),
		"no number":   row("a", Samples, "x"),
		"no name":     row("", Samples, "1"),
		"empty line":  row("a", Samples, "1") + "\n\n",
		"a long line": row("a", Samples, strings.Repeat("0", maxLine)),
	} {
		if _, err := Read(strings.NewReader(text)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ReadGzip(strings.NewReader("plain")); !errors.Is(err, errs.Invalid) {
		t.Errorf("not packed: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(row("a", Samples, "1")))
	f.Add([]byte("a,1\n"))
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := Read(bytes.NewReader(b))
		if err != nil && ms != nil {
			t.Fatal("both machines and an error")
		}
		for _, m := range ms {
			for _, u := range m.Use {
				if u > 100 || m.Name == "" {
					t.Fatalf("%q uses %d %%", m.Name, u)
				}
			}
		}
		if _, err := ReadGzip(bytes.NewReader(b)); err != nil && !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
}
