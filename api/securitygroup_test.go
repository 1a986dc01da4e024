package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func securityGroup(spec string) (*SecurityGroup, error) {
	o, err := DecodeStrict([]byte(`{"kind":"SecurityGroup","metadata":{"name":"g","tenant":"acme"},"spec":` + spec + `}`))
	if err != nil {
		return nil, err
	}
	return o.(*SecurityGroup), nil
}

// A list that is not given and one that is empty mean opposite things, so the store keeps them apart.
func TestNoListIsNotAnEmptyList(t *testing.T) {
	g, err := securityGroup(`{"select":{"app":"db"},"ingress":[]}`)
	if err != nil || Check(g) != nil {
		t.Fatal(err, Check(g))
	}
	b, err := EncodeStored(g, 1)
	if err != nil {
		t.Fatal(err)
	}
	o, err := DecodeStored(KindSecurityGroup, b)
	if err != nil {
		t.Fatal(err)
	}
	got := Clone(o.(*SecurityGroup)).Spec
	if got.Ingress == nil || len(got.Ingress) != 0 || got.Egress != nil {
		t.Fatalf("%s became ingress %#v, egress %#v", b, got.Ingress, got.Egress)
	}
	if b, _ := json.Marshal(got); string(b) != `{"select":{"app":"db"},"ingress":[]}` {
		t.Fatal(string(b))
	}
}

func TestASecurityGroupIsChecked(t *testing.T) {
	for spec, want := range map[string]string{
		`{"select":{"app":"db"},"ingress":[{"from":[{"labels":{"app":"web"}}],"ports":["tcp/5432"]}]}`: "",
		`{}`: "",
		`{"ingress":[{"from":[{"labels":{"app":"web"},"network":"lab/main"}]}],"egress":[{"to":[{"where":"outside"}]}]}`: "",
		`{"egress":[{"to":[{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]},{"dns":"example.org"},{"service":"db"}]}]}`:    "",
		`{"egress":[{"ports":["icmp/8","icmpv6/128","sctp/2905","47","udp/8000-8100","tcp","icmp/3/4"]}]}`:               "",
		`{"network":"Main"}`:                                                                                      "spec.network",
		`{"select":{"-":"x"}}`:                                                                                    "spec.select",
		`{"ingress":[{"from":[]}]}`:                                                                               "spec.ingress[0].from",
		`{"ingress":[{"ports":[]}]}`:                                                                              "spec.ingress[0].ports",
		`{"ingress":[{"to":[{"group":"a"}]}]}`:                                                                    "spec.ingress[0].to",
		`{"egress":[{"from":[{"group":"a"}]}]}`:                                                                   "spec.egress[0].from",
		`{"ingress":[{"ports":["tcp/0"]}]}`:                                                                       "spec.ingress[0].ports[0]",
		`{"ingress":[{"ports":["tcp/9-8"]}]}`:                                                                     "spec.ingress[0].ports[0]",
		`{"ingress":[{"from":[{}]}]}`:                                                                             "spec.ingress[0].from[0]",
		`{"ingress":[{"from":[{"labels":{}}]}]}`:                                                                  "spec.ingress[0].from[0].labels",
		`{"ingress":[{"from":[{"group":"a","cidr":"10.0.0.0/8"}]}]}`:                                              "spec.ingress[0].from[0]",
		`{"ingress":[{"from":[{"group":"a","network":"main"}]}]}`:                                                 "spec.ingress[0].from[0]",
		`{"ingress":[{"from":[{"cidr":"10.0.0.1/8"}]}]}`:                                                          "write 10.0.0.0/8",
		`{"ingress":[{"from":[{"cidr":"10.0.0.1"}]}]}`:                                                            "write 10.0.0.1/32",
		`{"ingress":[{"from":[{"cidr":"::ffff:10.0.0.0/104"}]}]}`:                                                 "spec.ingress[0].from[0].cidr",
		`{"ingress":[{"from":[{"cidr":"10.0.0.0/8","except":["11.0.0.0/16"]}]}]}`:                                 "spec.ingress[0].from[0].except[0]",
		`{"ingress":[{"from":[{"cidr":"10.0.0.0/8","except":["10.0.0.0/8"]}]}]}`:                                  "spec.ingress[0].from[0].except[0]",
		`{"ingress":[{"from":[{"where":"here"}]}]}`:                                                               "spec.ingress[0].from[0].where",
		`{"ingress":[{"from":[{"network":"a/b/"}]}]}`:                                                             "spec.ingress[0].from[0].network",
		`{"egress":[{"to":[{"dns":"*.example.org"}]}]}`:                                                           "spec.egress[0].to[0].dns",
		`{"egress":[{"to":[{"dns":"10.0.0.1"}]}]}`:                                                                "spec.egress[0].to[0].dns",
		`{"egress":[{"to":[{"group":"a","except":["10.0.0.0/8"]}]}]}`:                                             "except",
		`{"ingress":[` + strings.TrimSuffix(strings.Repeat(`{},`, MaxSecurityRules+1), ",") + `]}`:                "at most 1000 rules",
		`{"ingress":[{"ports":[` + strings.TrimSuffix(strings.Repeat(`"tcp",`, MaxSecurityItems+1), ",") + `]}]}`: "spec.ingress[0].ports",
	} {
		g, err := securityGroup(spec)
		if err == nil {
			err = Check(g)
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.90s: %v, want %q", spec, err, want)
		}
	}
}

func TestPortsInWords(t *testing.T) {
	for s, want := range map[string]string{"tcp/5432": "tcp 5432", "udp/8000-8100": "udp 8000-8100", "tcp": "tcp", "icmp": "icmp", "icmp/8": "icmp type 8",
		"icmp/3/4": "icmp type 3 code 4", "icmpv6/128": "icmpv6 type 128", "sctp/2905": "sctp 2905", "47": "protocol 47", "6": "tcp"} {
		if r, err := ParsePorts(s); err != nil || r.String() != want {
			t.Errorf("%s: %s, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "/", "tcp/", "tcp/0", "tcp/65536", "tcp/-5", "tcp/5-", "tcp/+5", "tcp/05", "TCP/5", "tcp/5/6", "tcp/9-8", "icmp/256", "icmp/8/", "icmp/8/256", "icmp/8-9", "0", "256", "6/80", "http", " tcp"} {
		if r, err := ParsePorts(s); err == nil {
			t.Errorf("%q was read as %s", s, r)
		}
	}
}

// Whatever is read says the same when it is written in the words of a rule again.
func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"tcp/5432", "udp/8000-8100", "icmp/8", "icmp/3/4", "47", "tcp", "sctp/1-65535", "icmpv6/128", "tcp/-", "0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParsePorts(s)
		if err != nil {
			if len(err.Error()) > 400 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if r.Proto == 0 || r.First > r.Last || !r.Has(r.Proto, r.First) || !r.Has(r.Proto, r.Last) || r.Has(r.Proto+1, r.First) {
			t.Fatalf("%q: %+v", s, r)
		}
		words := strings.Split(r.String(), " ")
		again := words[0]
		switch {
		case words[0] == "protocol":
			again = words[1]
		case slices.Contains(words, "code"):
			again = fmt.Sprintf("%s/%s/%s", words[0], words[2], words[4])
		case len(words) > 1:
			again = words[0] + "/" + words[len(words)-1]
		}
		if b, err := ParsePorts(again); err != nil || b != r {
			t.Fatalf("%q: %+v is %q, which is %+v (%v)", s, r, again, b, err)
		}
	})
}

// Whatever a peer is decoded from, judging it neither fails nor fills the error.
func FuzzSecurityPeer(f *testing.F) {
	for _, s := range []string{`{"labels":{"app":"web"}}`, `{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}`, `{"cidr":"::/0"}`, `{"dns":"example.org"}`, `{"where":"host"}`, `{"network":"a/b/c"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, err := securityGroup(`{"ingress":[{"from":[` + s + `]}]}`)
		if err != nil || Check(g) != nil {
			return
		}
		for _, p := range g.Spec.Ingress[0].From {
			if p.CIDR == "" {
				continue
			}
			whole, err := ParseCIDR(p.CIDR)
			if err != nil {
				t.Fatalf("%q was accepted: %v", p.CIDR, err)
			}
			for _, e := range p.Except {
				if x, err := ParseCIDR(e); err != nil || !whole.Overlaps(x) || x.Bits() <= whole.Bits() {
					t.Fatalf("%q is no part of %q", e, p.CIDR)
				}
			}
		}
	})
}
