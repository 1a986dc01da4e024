package trace

import (
	"bytes"
	"compress/gzip"
	"errors"
	"strings"
	"testing"
	"time"

	"atoll/internal/errs"
)

func TestWhatIsWrittenIsRead(t *testing.T) {
	in := &Trace{Arrivals: []Arrival{{At: 2, Lasts: 1}, {At: 0.5}}, Series: []Series{{Name: "a", Step: 30, Values: []float64{1, 2, 3}}}}
	var plain, packed bytes.Buffer
	if err := Encode(&plain, in); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain.Bytes()); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	for _, b := range []*bytes.Buffer{&plain, &packed} {
		out, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Arrivals) != 2 || out.Arrivals[0].At != 0.5 || out.Arrivals[1].Lasts.D() != time.Second || out.Length() != 90*time.Second {
			t.Fatalf("%+v", out)
		}
		s := &out.Series[0]
		for at, want := range map[time.Duration]float64{-time.Second: 1, 0: 1, 29 * time.Second: 1, 30 * time.Second: 2, time.Hour: 3} {
			if v := s.At(at); v != want {
				t.Errorf("at %s: %g", at, v)
			}
		}
	}
}

func TestWhatBreaksTheRulesIsRefused(t *testing.T) {
	for _, bad := range []string{``, `[]`, `{"arrivals":[{"at":-1}]}`, `{"arrivals":[{"at":1e300}]}`, `{"series":[{"name":"x","step":0,"values":[1]}]}`,
		`{"series":[{"name":"x","step":1,"values":[]}]}`, `{"series":[{"name":"x","step":1,"values":[1e19]}]}`, `{"else":1}`, "\x1f\x8bnot gzip"} {
		if _, err := Decode(strings.NewReader(bad)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"arrivals":[{"at":1,"lasts":2,"requests":{"cpu":"1"}}],"series":[{"name":"a","step":1,"values":[1]}]}`))
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := Decode(bytes.NewReader(b))
		if err != nil {
			return
		}
		for i := range tr.Arrivals {
			if tr.Arrivals[i].At.D() < 0 || i > 0 && tr.Arrivals[i].At < tr.Arrivals[i-1].At {
				t.Fatalf("%+v", tr.Arrivals)
			}
		}
		for i := range tr.Series {
			tr.Series[i].At(time.Hour)
		}
	})
}
