package stream

import (
	"strings"
	"testing"
)

func TestDetacher(t *testing.T) {
	for _, c := range []struct {
		keys   string
		chunks []string
		want   string
		hit    bool
	}{
		{"pq", []string{"hello"}, "hello", false},
		{"pq", []string{"apq", "rest"}, "a", true},
		{"pq", []string{"ap", "qx"}, "a", true},
		{"pq", []string{"ppq"}, "p", true},
		{"pq", []string{"p", "x"}, "px", false},
		{"aab", []string{"aaab"}, "a", true},
		{"abac", []string{"ababac"}, "ab", true},
		{"", []string{"pq"}, "pq", false},
	} {
		d := detacher{keys: []byte(c.keys)}
		got, hit := "", false
		for _, ch := range c.chunks {
			out, h := d.filter([]byte(ch))
			got += string(out)
			if hit = h; h {
				break
			}
		}
		if !hit {
			got += string(d.flush())
		}
		if got != c.want || hit != c.hit {
			t.Errorf("%q in %q: %q %v, want %q %v", c.keys, c.chunks, got, hit, c.want, c.hit)
		}
	}
}

// FuzzDetacher: without the sequence every byte comes through, in order; with it, all before it.
func FuzzDetacher(f *testing.F) {
	f.Add("aab", "aaaab", 2)
	f.Add("\x10\x11", "x\x10\x10\x11", 1)
	f.Fuzz(func(t *testing.T, keys, text string, cut int) {
		if keys == "" || len(keys) > 16 {
			return
		}
		cut = min(max(cut, 0), len(text))
		d := detacher{keys: []byte(keys)}
		got, hit := d.filter([]byte(text[:cut]))
		if !hit {
			var more []byte
			more, hit = d.filter([]byte(text[cut:]))
			got = append(got, more...)
		}
		want, _, has := strings.Cut(text, keys)
		if !hit {
			got = append(got, d.flush()...)
		}
		if hit != has || string(got) != want {
			t.Fatalf("%q in %q cut at %d: %q %v, want %q %v", keys, text, cut, got, hit, want, has)
		}
	})
}
