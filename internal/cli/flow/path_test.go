package flow

import (
	"strings"
	"testing"

	"atoll/internal/errs"
)

func TestParsePath(t *testing.T) {
	for text, want := range map[string]Path{
		"web db":                             {"web", "db", 0, ""},
		"web db:5432":                        {"web", "db", 5432, "tcp"},
		"web|->|db:53/udp":                   {"web", "db", 53, "udp"},
		"web -> acme/db:80":                  {"web", "acme/db", 80, "tcp"},
		"web->db:icmp":                       {"web", "db", 0, "icmp"},
		"acme/research/web outside:443":      {"acme/research/web", "outside", 443, "tcp"},
		"web 10.1.0.5":                       {"web", "10.1.0.5", 0, ""},
		"web fd00::1":                        {"web", "fd00::1", 0, ""},
		"web [fd00::1]:80":                   {"web", "fd00::1", 80, "tcp"},
		"outside instance/web:80":            {"outside", "web", 80, "tcp"},
		"web db.main.acme.atoll.internal:22": {"web", "db.main.acme.atoll.internal", 22, "tcp"},
	} {
		got, err := ParsePath(strings.Split(text, "|"))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "web", "web -", "web db x", "web -> ", "-> db", "a -> b -> c", "web db:0", "web db:70000", "web db:80/sctp", "web db:", "web :80", "we\x1bb db", "web db:http", "[x db:1"} {
		if got, err := ParsePath([]string{text}); errs.KindOf(err) != errs.Invalid && text != "web db:" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if _, err := ParsePath([]string{"web", "-"}); err == nil || !strings.Contains(errs.HintOf(err), "quotes") {
		t.Errorf("the shell's part is not told: %v", err)
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"web db:5432", "web -> acme/db:53/udp", "a [fd00::1]:80", "outside ::1", "x y:icmp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath([]string{s})
		if err != nil {
			if errs.KindOf(err) != errs.Invalid {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if p.From == "" || p.To == "" || strings.ContainsAny(p.From+p.To, " \x00\x1b") || p.Port != 0 && p.Protocol != "tcp" && p.Protocol != "udp" {
			t.Fatalf("%q: %+v", s, p)
		}
	})
}
