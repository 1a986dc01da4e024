package main

import (
	"strings"
	"testing"
)

func TestAdvertised(t *testing.T) {
	for _, c := range []struct{ listen, advertise, want string }{
		{"", "", ""},
		{"127.0.0.1:7443", "", ""},
		{"localhost:7443", "", ""},
		{"[::1]:7443", "", ""},
		{"10.0.0.1:7443", "", "https://10.0.0.1:7443"},
		{"[2001:db8::1]:7443", "", "https://[2001:db8::1]:7443"},
		{"0.0.0.0:7443", "isle1.example:443, 10.0.0.1:7443", "https://isle1.example:443 https://10.0.0.1:7443"},
		{"127.0.0.1:7443", "https://10.0.0.1:7443", "https://10.0.0.1:7443"}, // something in front of it listens
	} {
		conf := defaults()
		conf.Listen, conf.Advertise = c.listen, c.advertise
		got, err := advertised(conf)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v %v", c, got, err)
		}
	}
	for _, bad := range []string{"isle1", ":7443", "isle1:", "isle1:x", "a'b:1", "$(x):1", "https://isle1/x:1"} {
		conf := defaults()
		conf.Advertise = bad
		if _, err := advertised(conf); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	conf := defaults()
	conf.Listen = "0.0.0.0:7443"
	got, err := advertised(conf)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range got {
		if strings.Contains(e, "127.0.0.1") || strings.Contains(e, "0.0.0.0") {
			t.Errorf("%s is no address for others", e)
		}
	}
}
