package api

import (
	"strings"
	"testing"
	"time"
)

func TestBGPPeerSays(t *testing.T) {
	good := func() *BGPPeer {
		return &BGPPeer{Head: Head{K: KindBGPPeer, Meta: Meta{Name: "tor"}}, Spec: BGPPeerSpec{Address: "192.0.2.1", ASN: 65001, LocalASN: 64512}}
	}
	if f := good().Validate(); len(f) > 0 {
		t.Fatal(f)
	}
	d := func(x time.Duration) *Duration { v := Duration(x); return &v }
	for field, edit := range map[string]func(*BGPPeerSpec){
		"spec.address":     func(s *BGPPeerSpec) { s.Address = "tor1.example" },
		"spec.address ":    func(s *BGPPeerSpec) { s.Address = "127.0.0.1" },
		"spec.address  ":   func(s *BGPPeerSpec) { s.Address = "fe80::1%eth0" },
		"spec.port":        func(s *BGPPeerSpec) { s.Port = 70000 },
		"spec.asn":         func(s *BGPPeerSpec) { s.ASN = 0 },
		"spec.localAsn":    func(s *BGPPeerSpec) { s.LocalASN = 23456 },
		"spec.families[0]": func(s *BGPPeerSpec) { s.Families = []string{"vpnv4"} },
		"spec.families[1]": func(s *BGPPeerSpec) { s.Families = []string{"ipv4", "ipv4"} },
		"spec.holdTime":    func(s *BGPPeerSpec) { s.HoldTime = d(time.Second) },
		"spec.restart":     func(s *BGPPeerSpec) { s.Restart = d(2 * time.Hour) },
		"spec.multihop":    func(s *BGPPeerSpec) { s.Multihop = 256 },
		"spec.bfd":         func(s *BGPPeerSpec) { s.BFD = "on" },
		"spec.import[0]":   func(s *BGPPeerSpec) { s.Families, s.Import = []string{"evpn"}, []string{"main"} },
		"spec.import":      func(s *BGPPeerSpec) { s.Import = []string{"acme/main"} },
		"spec.nodes":       func(s *BGPPeerSpec) { s.Nodes = map[string]string{"a b": "c"} },
	} {
		p := good()
		edit(&p.Spec)
		f := p.Validate()
		if len(f) != 1 || f[0].Field != strings.TrimSpace(field) || f[0].Rule == "" {
			t.Errorf("%q: %+v", field, f)
		}
	}
	// Who writes the password where the file's name belongs does not find it in the error.
	p := good()
	p.Spec.Password = "Top Secret!"
	if f := p.Validate(); len(f) != 1 || f[0].Field != "spec.password" || strings.Contains(f[0].Value+f[0].Rule+f[0].Example, "Secret!") {
		t.Errorf("%+v", f)
	}
}
