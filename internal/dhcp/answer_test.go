package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"atoll/api"
)

// The answers are read, and the questions made, by another implementation.

var (
	myMAC = [6]byte{0x0a, 0x58, 10, 1, 0, 5}
	gwMAC = [6]byte{0x0a, 0x58, 0, 0, 0, 1}
	myLL  = linkLocal(myMAC)
	zero4 = netip.IPv4Unspecified()
)

func mine() lease {
	return lease{mac: myMAC, four: netip.MustParsePrefix("10.1.0.5/16"), six: netip.MustParsePrefix("fd00:1::5/64"), first: true, host: "web", domain: "main.red.atoll.internal", mtu: 1450}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ask4(src, dst netip.Addr, body []byte) asked {
	f := way{from: myMAC, to: [6]byte{255, 255, 255, 255, 255, 255}, src: src, dst: dst, sport: 68, dport: 67}.frame(body)
	a, ok := readFrame(f)
	if !ok {
		panic("our own frame cannot be read")
	}
	return a
}

func ask6(body []byte) asked {
	a, ok := readFrame(way{from: myMAC, to: [6]byte{0x33, 0x33, 0, 1, 0, 2}, src: myLL, dst: allServers, sport: 546, dport: 547}.frame(body))
	if !ok {
		panic("our own frame cannot be read")
	}
	return a
}

// checked reads a frame of ours, and sees to its checksums.
func checked(t testing.TB, f []byte) asked {
	t.Helper()
	a, ok := readFrame(f)
	if !ok || a.mac != gwMAC || [6]byte(f) != myMAC {
		t.Fatalf("not a frame of the gateway to the port: %x", f)
	}
	at := 14 + 40
	if a.src.Is4() {
		at = 14 + 20
		if sum(0, f[14:at]) != 0xffff {
			t.Error("the header's checksum is wrong")
		}
	}
	pseudo := append(append(append([]byte{}, a.src.AsSlice()...), a.dst.AsSlice()...), 0, a.proto, 0, 0)
	binary.BigEndian.PutUint16(pseudo[len(pseudo)-2:], uint16(len(f)-at))
	if sum(sum32(sum(0, pseudo)), f[at:]) != 0xffff {
		t.Error("the checksum is wrong")
	}
	return a
}

func TestDHCP(t *testing.T) {
	own, gw := netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("10.1.0.1")
	ip := func(s string) net.IP { return net.ParseIP(s).To4() }
	with := func(o dhcpv4.Option) dhcpv4.Modifier { return dhcpv4.WithOption(o) }
	typ := func(m dhcpv4.MessageType) dhcpv4.Modifier { return dhcpv4.WithMessageType(m) }
	none := dhcpv4.MessageType(0)
	for _, c := range []struct {
		name     string
		src, dst netip.Addr
		mods     []dhcpv4.Modifier
		want     dhcpv4.MessageType
		to       netip.Addr
	}{
		{"discover", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeDiscover)}, dhcpv4.MessageTypeOffer, own},
		{"discover that wants another's address", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeDiscover), with(dhcpv4.OptRequestedIPAddress(ip("10.1.0.9")))}, dhcpv4.MessageTypeOffer, own},
		{"discover that hears broadcasts", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeDiscover), dhcpv4.WithBroadcast(true)}, dhcpv4.MessageTypeOffer, everybody},
		{"request", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeRequest), with(dhcpv4.OptRequestedIPAddress(ip("10.1.0.5"))), with(dhcpv4.OptServerIdentifier(ip("10.1.0.1")))}, dhcpv4.MessageTypeAck, own},
		{"request of another server", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeRequest), with(dhcpv4.OptRequestedIPAddress(ip("10.1.0.5"))), with(dhcpv4.OptServerIdentifier(ip("10.1.0.9")))}, none, own},
		{"request for another's address", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeRequest), with(dhcpv4.OptRequestedIPAddress(ip("10.1.0.6")))}, dhcpv4.MessageTypeNak, everybody},
		{"request for nothing", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeRequest)}, dhcpv4.MessageTypeNak, everybody},
		{"renewal", own, gw, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(ip("10.1.0.5"))}, dhcpv4.MessageTypeAck, own},
		{"rebinding", own, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(ip("10.1.0.5"))}, dhcpv4.MessageTypeAck, own},
		{"renewal of another's", own, gw, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(ip("10.1.0.6"))}, dhcpv4.MessageTypeNak, everybody},
		{"inform", own, gw, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(ip("10.1.0.5"))}, dhcpv4.MessageTypeAck, own},
		{"inform of another", own, gw, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(ip("10.1.0.6"))}, none, own},
		{"release", own, gw, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeRelease), dhcpv4.WithClientIP(ip("10.1.0.5"))}, none, own},
		{"decline", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeDecline)}, none, own},
		{"an offer", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeOffer)}, none, own},
		{"for another interface", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 9})}, none, own},
		{"by a relay", zero4, everybody, []dhcpv4.Modifier{typ(dhcpv4.MessageTypeDiscover), dhcpv4.WithRelay(ip("10.9.0.1"))}, none, own},
		{"to somebody beyond the gateway", own, netip.MustParseAddr("192.0.2.1"), []dhcpv4.Modifier{typ(dhcpv4.MessageTypeDiscover)}, none, own},
		{"bootp", zero4, everybody, nil, none, own},
	} {
		q, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(myMAC[:])}, c.mods...)...)
		must(t, err)
		f := mine().answer4(ask4(c.src, c.dst, q.ToBytes()), gwMAC)
		if f == nil != (c.want == none) {
			t.Errorf("%s: answered: %v", c.name, f != nil)
		}
		if f == nil {
			continue
		}
		a := checked(t, f)
		r, err := dhcpv4.FromBytes(a.body)
		must(t, err)
		if r.MessageType() != c.want || a.dst != c.to || r.TransactionID != q.TransactionID {
			t.Errorf("%s: %s to %s, want %s to %s", c.name, r.MessageType(), a.dst, c.want, c.to)
		}
		if !r.ServerIdentifier().Equal(ip("10.1.0.1")) {
			t.Errorf("%s: of server %s", c.name, r.ServerIdentifier())
		}
		if c.want == dhcpv4.MessageTypeNak {
			if !r.YourIPAddr.Equal(net.IPv4zero) {
				t.Errorf("%s: an address comes with a refusal: %s", c.name, r.YourIPAddr)
			}
			continue
		}
		leased := c.name != "inform"
		if r.YourIPAddr.Equal(ip("10.1.0.5")) != leased || (r.IPAddressLeaseTime(0) == leaseTime) != leased {
			t.Errorf("%s: %s for %s", c.name, r.YourIPAddr, r.IPAddressLeaseTime(0))
		}
		mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, r.Options)
		must(t, err)
		if ones, _ := r.SubnetMask().Size(); ones != 16 || mtu != 1450 || !r.Router()[0].Equal(ip("10.1.0.1")) || !r.DNS()[0].Equal(ip("10.1.0.1")) ||
			r.HostName() != "web" || r.DomainName() != "main.red.atoll.internal" || !slices.Equal(r.DomainSearch().Labels, []string{"main.red.atoll.internal"}) || !r.BroadcastAddress().Equal(ip("10.1.255.255")) {
			t.Errorf("%s: %s", c.name, r.Summary())
		}
	}
}

// Another interface than the first leads nowhere, and what has no IPv4 is answered nothing.
func TestDHCPOfOtherInterfaces(t *testing.T) {
	q, err := dhcpv4.NewDiscovery(myMAC[:], dhcpv4.WithOption(dhcpv4.OptClientIdentifier(make([]byte, 200))))
	must(t, err)
	l := mine()
	l.first = false
	r, err := dhcpv4.FromBytes(checked(t, l.answer4(ask4(zero4, everybody, q.ToBytes()), gwMAC)).body)
	must(t, err)
	if r.Router() != nil || r.DNS() != nil || r.DomainName() != "" || len(r.Options.Get(dhcpv4.OptionClientIdentifier)) == 0 {
		t.Error(r.Summary())
	}
	l.first, l.domain = true, "a-rather-long-name-of-a-network."+string(slices.Repeat([]byte("abcdefghi."), 15))+"example"
	b := checked(t, l.answer4(ask4(zero4, everybody, q.ToBytes()), gwMAC)).body
	if r, err = dhcpv4.FromBytes(b); err != nil || len(b) > bootMost || r.Router() == nil || r.DNS() == nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	l.four = netip.Prefix{}
	if l.answer4(ask4(zero4, everybody, q.ToBytes()), gwMAC) != nil {
		t.Error("an address out of nowhere")
	}
}

func TestDHCPv6(t *testing.T) {
	server := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: gwMAC[:]}
	own, other := net.ParseIP("fd00:1::5"), net.ParseIP("fd00:1::6")
	ask := func(kind dhcpv6.MessageType, mods ...dhcpv6.Modifier) *dhcpv6.Message {
		m, err := dhcpv6.NewMessage(mods...)
		must(t, err)
		m.MessageType = kind
		return m
	}
	client := dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{1, 2, 3, 4, 5, 6}})
	chosen := dhcpv6.WithServerID(server)
	at := func(a net.IP) dhcpv6.Modifier { return dhcpv6.WithIANA(dhcpv6.OptIAAddress{IPv6Addr: a}) }
	for _, c := range []struct {
		name string
		q    *dhcpv6.Message
		want dhcpv6.MessageType // 0: nothing
		code iana.StatusCode    // of the message, for those without an address
	}{
		{"solicit", ask(dhcpv6.MessageTypeSolicit, client, at(other)), dhcpv6.MessageTypeAdvertise, 0},
		{"rapid", ask(dhcpv6.MessageTypeSolicit, client, at(own), dhcpv6.WithRapidCommit), dhcpv6.MessageTypeReply, 0},
		{"request", ask(dhcpv6.MessageTypeRequest, client, chosen, at(own)), dhcpv6.MessageTypeReply, 0},
		{"renewal of another's", ask(dhcpv6.MessageTypeRenew, client, chosen, at(other)), dhcpv6.MessageTypeReply, 0},
		{"rebinding", ask(dhcpv6.MessageTypeRebind, client, at(own)), dhcpv6.MessageTypeReply, 0},
		{"confirm", ask(dhcpv6.MessageTypeConfirm, client, at(own)), dhcpv6.MessageTypeReply, iana.StatusSuccess},
		{"confirm elsewhere", ask(dhcpv6.MessageTypeConfirm, client, at(net.ParseIP("fd00:2::5"))), dhcpv6.MessageTypeReply, iana.StatusNotOnLink},
		{"release", ask(dhcpv6.MessageTypeRelease, client, chosen, at(own)), dhcpv6.MessageTypeReply, iana.StatusSuccess},
		{"information", ask(dhcpv6.MessageTypeInformationRequest), dhcpv6.MessageTypeReply, 0},
		{"solicit of nobody", ask(dhcpv6.MessageTypeSolicit, at(own)), 0, 0},
		{"request of another server", ask(dhcpv6.MessageTypeRequest, client, dhcpv6.WithServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: myMAC[:]}), at(own)), 0, 0},
		{"request of no server", ask(dhcpv6.MessageTypeRequest, client, at(own)), 0, 0},
		{"an advertisement", ask(dhcpv6.MessageTypeAdvertise, client, chosen), 0, 0},
	} {
		f := mine().answer6(ask6(c.q.ToBytes()), gwMAC)
		if f == nil != (c.want == 0) {
			t.Errorf("%s: answered: %v", c.name, f != nil)
		}
		if f == nil {
			continue
		}
		a := checked(t, f)
		r, err := dhcpv6.MessageFromBytes(a.body)
		must(t, err)
		if r.MessageType != c.want || r.TransactionID != c.q.TransactionID || a.src != linkLocal(gwMAC) || a.dst != myLL || r.Options.ServerID() == nil || !r.Options.ServerID().Equal(server) {
			t.Errorf("%s: from %s to %s: %s", c.name, a.src, a.dst, r.Summary())
		}
		if s := r.Options.Status(); s != nil {
			if s.StatusCode != c.code {
				t.Errorf("%s: %s", c.name, s)
			}
			continue
		}
		if !r.Options.DNS()[0].Equal(net.ParseIP("fd00:1::1")) || !slices.Equal(r.Options.DomainSearchList().Labels, []string{"main.red.atoll.internal"}) {
			t.Errorf("%s: %s", c.name, r.Summary())
		}
		if c.name == "information" {
			continue
		}
		for i, n := range r.Options.OneIANA().Options.Addresses() {
			mineAt := i == 0
			if n.IPv6Addr.Equal(own) != mineAt || (n.ValidLifetime == leaseTime) != mineAt || (n.ValidLifetime == 0) == mineAt {
				t.Errorf("%s: %s", c.name, n)
			}
		}
	}
}

// What is more than one address of the pool's is refused, each by its own code.
func TestDHCPv6GivesOneAddress(t *testing.T) {
	q, err := dhcpv6.NewMessage(dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: myMAC[:]}), dhcpv6.WithIAPD([4]byte{3}))
	must(t, err)
	q.MessageType = dhcpv6.MessageTypeSolicit
	for i := range byte(2) {
		q.AddOption(&dhcpv6.OptIANA{IaId: [4]byte{i}})
	}
	r, err := dhcpv6.MessageFromBytes(checked(t, mine().answer6(ask6(q.ToBytes()), gwMAC)).body)
	must(t, err)
	ias := r.Options.IANA()
	if len(ias) != 2 || ias[0].Options.OneAddress() == nil || ias[1].Options.OneAddress() != nil || ias[1].Options.Status().StatusCode != iana.StatusNoAddrsAvail ||
		r.Options.OneIAPD().Options.Status().StatusCode != iana.StatusNoPrefixAvail {
		t.Error(r.Summary())
	}
}

func TestLeasesOf(t *testing.T) {
	n := &api.Network{Head: api.Head{Meta: api.Meta{Name: "main", Tenant: "red"}}}
	e := &api.Endpoint{Head: api.Head{Meta: api.Meta{Name: "web", Tenant: "red"}}, Spec: api.EndpointSpec{Interfaces: []api.Interface{
		{Network: "back", MAC: "0a:58:0a:02:00:05", Address: "10.2.0.5/16"}, {Network: "main", MAC: "0a:58:0a:01:00:05", Address: "10.1.0.5/16"}}}}
	got := leasesOf(n, []*api.Endpoint{e})
	if l := got[myMAC]; len(got) != 1 || l.first || l.four.String() != "10.1.0.5/16" || l.six.IsValid() || l.domain != "main.red.atoll.internal" {
		t.Errorf("%+v", got)
	}
}

// FuzzAnswer has any frame answered: whatever it says, an answer holds the port's own address or none.
func FuzzAnswer(f *testing.F) {
	q4, err := dhcpv4.NewDiscovery(myMAC[:])
	must(f, err)
	f.Add(way{from: myMAC, src: zero4, dst: everybody, sport: 68, dport: 67}.frame(q4.ToBytes()))
	q6, err := dhcpv6.NewSolicit(myMAC[:])
	must(f, err)
	f.Add(way{from: myMAC, src: myLL, dst: allServers, sport: 546, dport: 547}.frame(q6.ToBytes()))
	f.Add(way{from: myMAC, src: myLL, dst: netip.MustParseAddr("ff02::2"), longestWay: true}.frame([]byte{133, 0, 0, 0, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := readFrame(b)
		if !ok {
			return
		}
		l := mine()
		for _, got := range [][]byte{l.answer4(a, gwMAC), l.answer6(a, gwMAC)} {
			if got == nil {
				continue
			}
			r := checked(t, got)
			switch {
			case r.proto == protoICM:
			case r.src.Is4():
				m, err := dhcpv4.FromBytes(r.body)
				must(t, err)
				if y, _ := netip.AddrFromSlice(m.YourIPAddr.To4()); y != l.four.Addr() && y != zero4 {
					t.Fatalf("it gives %s", y)
				}
			default:
				if _, err := dhcpv6.MessageFromBytes(r.body); err != nil {
					t.Fatalf("%v: %x", err, r.body)
				}
			}
		}
	})
}
