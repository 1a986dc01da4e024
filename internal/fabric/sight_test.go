package fabric

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// telling is a driver that tells what its test says.
type telling struct {
	*told
	mu      sync.Mutex
	verdict driver.Verdict
	flows   []driver.Flow
	counts  driver.Counts
	sample  uint32
	logged  map[uint32]bool
	frames  []driver.Frame
	probe   driver.Probe
}

func (d *telling) Wires() ([]driver.Wire, error) { return nil, nil }
func (d *telling) Judge(driver.Question) (driver.Verdict, error) {
	return d.verdict, nil
}
func (d *telling) Flows(fn func(driver.Flow) bool) error {
	for _, f := range d.flows {
		if !fn(f) {
			break
		}
	}
	return nil
}
func (d *telling) Counts() (driver.Counts, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts, nil
}
func (d *telling) Events(ctx context.Context, _ func(driver.FlowEvent)) error {
	<-ctx.Done()
	return nil
}
func (d *telling) Sample(n uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sample = n
	return nil
}
func (d *telling) Log(rule uint32, on bool) error {
	if d.logged[rule] = true; !on {
		delete(d.logged, rule)
	}
	return nil
}
func (d *telling) Tap(ctx context.Context, vni uint32, addr netip.Addr, snaplen int, fn func(driver.Frame) error) (uint64, error) {
	for _, f := range d.frames {
		if err := fn(f); err != nil {
			return 2, err
		}
	}
	<-ctx.Done()
	return 2, nil
}
func (d *telling) TapInside(ctx context.Context, _ string, n int, fn func(driver.Frame) error) (uint64, error) {
	return d.Tap(ctx, 0, netip.Addr{}, n, fn)
}
func (d *telling) Reach(_ context.Context, _ string, p driver.Probe) (driver.Reached, error) {
	d.probe = p
	return driver.Reached{Sent: 5, Answered: 5, RTT: time.Millisecond, MTU: 1450, Largest: 1450}, nil
}

// sighted is a host with db, which lets in only web, and groups that log and are tried.
func sighted(t *testing.T) (*world, *telling) {
	w := newWorld(t)
	d := &telling{told: w.d, logged: map[uint32]bool{}}
	w.f = New(Deps{Node: "n1", Store: w.mem, Clock: w.clk, Log: w.f.Log, Driver: d, Dir: t.TempDir()})
	w.put(newNetwork("a", "main", 7))
	w.put(endpoint("a", "db", "n1", 3, map[string]string{"app": "db"}, "main"))
	w.put(endpoint("a", "web", "n2", 2, map[string]string{"app": "web1"}, "main"))
	group := func(name string, spec api.SecurityGroupSpec) {
		spec.Select = map[string]string{"app": "db"}
		w.put(&api.SecurityGroup{Head: api.Head{K: api.KindSecurityGroup, Meta: api.Meta{Name: name, Tenant: "a"}}, Spec: spec})
	}
	group("clients", api.SecurityGroupSpec{Log: true, Ingress: []api.SecurityRule{{From: []api.SecurityPeer{{Labels: map[string]string{"app": "web1"}}}, Ports: []string{"tcp/80"}}}})
	group("trial", api.SecurityGroupSpec{DryRun: true, Ingress: []api.SecurityRule{{From: []api.SecurityPeer{{Where: api.WhereOutside}}}}})
	w.settle()
	return w, d
}

func (w *world) answer(q api.NetAsk, out any) error {
	var b bytes.Buffer
	if err := w.f.Answer(w.t.Context(), q, "/ns", &b); err != nil {
		return err
	}
	return json.Unmarshal(b.Bytes(), out)
}

// ruleOf finds the number of the rule that a group has.
func (w *world) ruleOf(group string) uint32 {
	for _, n := range w.f.nets {
		for id, r := range n.compiler.Rules() {
			if r.Group.Name == group {
				return id
			}
		}
	}
	w.t.Fatal("no rule of " + group)
	return 0
}

var db, web = netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("10.1.0.2")

func TestJudgeInWords(t *testing.T) {
	w, d := sighted(t)
	ask := api.NetAsk{What: api.NetJudge, VNI: 7, Local: "10.1.0.3", Remote: "10.1.0.2", Ingress: true, Proto: 6, Port: 80}
	for _, c := range []struct {
		v    driver.Verdict
		want string
	}{
		{driver.Verdict{Allowed: true, Set: 1, Rule: w.ruleOf("clients"), Peer: 260}, "SecurityGroup a/clients, ingress rule 1 (from app=web1, tcp 80)"},
		{driver.Verdict{Allowed: true, Peer: 260}, "default inside network a/main"},
		{driver.Verdict{Allowed: true, Peer: 2}, "default of network a/main"},
		{driver.Verdict{Set: 1, Peer: 260}, "no rule of SecurityGroup a/clients allows it"},
		{driver.Verdict{Allowed: true, Rule: 99999}, "a rule that was changed since (number 99999)"},
	} {
		d.verdict = c.v
		d.verdict.Dry = &driver.Verdict{}
		var h api.NetHop
		if err := w.answer(ask, &h); err != nil || h.Text != c.want || h.Instance != "a/db" || h.Allowed != c.v.Allowed || !h.Known || (h.Dry != "") != c.v.Allowed {
			t.Errorf("%+v, %v; want %q", h, err, c.want)
		}
	}
	var h api.NetHop
	if err := w.answer(api.NetAsk{What: api.NetJudge, VNI: 7, Local: "nonsense"}, &h); errs.KindOf(err) != errs.Invalid {
		t.Error(err)
	}
	if err := w.answer(api.NetAsk{What: "else"}, &h); errs.KindOf(err) != errs.Unsupported {
		t.Error(err)
	}
	var r api.NetReach
	if err := w.answer(api.NetAsk{What: api.NetPath, Remote: "10.1.0.2", Echo: true, Port: 80}, &r); err != nil || r.RTTUS != 1000 || r.Largest != 1450 || d.probe.Port != 80 || !d.probe.Echo {
		t.Errorf("%+v %v", r, err)
	}
	w.again()
	if err := w.answer(ask, &h); errs.KindOf(err) != errs.Unsupported {
		t.Error("a driver that cannot tell:", err)
	}
}

func TestFlowsAndHitsByName(t *testing.T) {
	w, d := sighted(t)
	rule := w.ruleOf("clients")
	d.flows = []driver.Flow{{VNI: 7, Local: db, Remote: web, LocalPort: 80, RemotePort: 4000, Proto: 6, Ingress: true, Rule: rule, Packets: 9, Bytes: 900},
		{VNI: 7, Local: db, Remote: netip.MustParseAddr("203.0.113.9"), LocalPort: 5, RemotePort: 5, Proto: 1}, {VNI: 7, Local: db, Remote: netip.MustParseAddr("10.1.0.1"), RemotePort: 53, Proto: 17}}
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Refused: "no rule allows it to be received", Judged: true, Proto: 6, Src: web, Dst: db, SrcPort: 1, DstPort: 81, Length: 60})
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Refused: "no rule allows it to be received", Judged: true, Proto: 6, Src: web, Dst: db, SrcPort: 2, DstPort: 81, Length: 60})
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Dry: true, Proto: 6, Src: web, Dst: db, SrcPort: 2, DstPort: 80, Length: 60, Rule: rule})
	var f api.NetFlows
	if err := w.answer(api.NetAsk{What: api.NetTables, Tenant: "a"}, &f); err != nil || len(f.Flows) != 4 {
		t.Fatalf("%+v %v", f, err)
	}
	if x := f.Flows[0]; x.From.String() != "a/web" || x.To.String() != "a/db" || x.Port != 80 || x.SourcePort != 4000 || x.Seen != "ingress" || !strings.Contains(x.Rule, "ingress rule 1") {
		t.Errorf("%+v", x)
	}
	if x := f.Flows[1]; x.To.String() != "203.0.113.9" || x.To.Place != api.PlaceOutside || x.Port != 0 {
		t.Errorf("%+v", x)
	}
	if x := f.Flows[2]; x.To.String() != "host" {
		t.Errorf("%+v", x)
	}
	if x := f.Flows[3]; x.Refused == "" || x.Packets != 2 || x.Bytes != 120 || x.Port != 81 {
		t.Errorf("%+v", x)
	}
	for _, c := range []struct {
		ask  api.NetAsk
		want int
	}{{api.NetAsk{Denied: true}, 1}, {api.NetAsk{Tenant: "b"}, 0}, {api.NetAsk{Instance: "web"}, 2}, {api.NetAsk{Network: "back"}, 0}, {api.NetAsk{Limit: 1}, 2}} {
		c.ask.What = api.NetTables
		f = api.NetFlows{}
		if err := w.answer(c.ask, &f); err != nil || len(f.Flows) != c.want || f.More != (c.ask.Limit == 1) {
			t.Errorf("%+v: %+v %v", c.ask, f, err)
		}
	}
	var dry uint32
	for _, n := range w.f.nets {
		for set := range n.compiler.Tried() {
			dry = set
		}
	}
	d.counts = driver.Counts{Rules: map[uint32]uint64{rule: 3}, Dry: map[uint32]driver.DryCount{dry: {Allowed: 1, Refused: 4}}}
	var h api.NetHits
	if err := w.answer(api.NetAsk{What: api.NetCounts, Tenant: "a"}, &h); err != nil || len(h.Hits) != 2 {
		t.Fatalf("%+v %v", h, err)
	}
	if x := h.Hits[0]; x.Group != "a/clients" || x.Rule != "ingress rule 1" || x.Allowed != 3 || !x.Log {
		t.Errorf("%+v", x)
	}
	if x := h.Hits[1]; x.Group != "a/trial" || !x.DryRun || x.Refused != 4 || fmt.Sprint(x.Samples) != "[a/web -> a/db tcp 80]" {
		t.Errorf("%+v", x)
	}
}

func TestRefusalsAreBounded(t *testing.T) {
	w, _ := sighted(t)
	for i := range keptRefusals * 2 {
		w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Refused: "no", Proto: 6, Src: web, Dst: db, DstPort: uint16(i + 1)})
	}
	if n := len(w.f.sight.refused); n != keptRefusals {
		t.Error(n)
	}
}

// What a group with log judges is recorded, in files of which there are only so many, and which a kill does not spoil.
func TestRecord(t *testing.T) {
	w, d := sighted(t)
	rule := w.ruleOf("clients")
	if err := w.f.tellLogged(d); err != nil || !d.logged[rule] || len(d.logged) != 1 {
		t.Errorf("%v %v", d.logged, err)
	}
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Rule: rule, Proto: 6, Src: web, Dst: db, DstPort: 80})
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Refused: "no rule", Judged: true, Proto: 6, Src: web, Dst: db, DstPort: 81})
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Refused: "short", Proto: 6, Src: web, Dst: db, DstPort: 82}) // nobody judged it
	w.f.heard(driver.FlowEvent{VNI: 7, Proto: 6, Src: db, Dst: web, DstPort: 83})                                  // another direction
	file := w.f.sight.log.path(0)
	appendTo(t, file, `{"cut sho`)
	w.f.sight.log = &record{dir: w.f.Dir} // another life
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Rule: rule, Proto: 6, Src: web, Dst: db, DstPort: 84})
	var f api.NetFlows
	if err := w.answer(api.NetAsk{What: api.NetRecord, Tenant: "a"}, &f); err != nil || len(f.Flows) != 3 || f.Flows[0].Port != 80 || f.Flows[1].Refused == "" || f.Flows[2].Port != 84 {
		t.Fatalf("%+v %v", f, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	big := api.NetFlow{Node: strings.Repeat("x", recordSize/4), To: api.NetEnd{Tenant: "b", Instance: "i"}}
	for range 30 {
		if err := w.f.sight.log.add(&big); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(w.f.Dir, "*"))
	if err != nil || len(files) != recordFiles {
		t.Error(files, err)
	}
	for _, x := range files {
		if st, err := os.Stat(x); err != nil || st.Size() > recordSize {
			t.Error(x, st.Size(), err)
		}
	}
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestFollow(t *testing.T) {
	w, d := sighted(t)
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- w.f.Answer(ctx, api.NetAsk{What: api.NetFollow, Denied: true}, "", pw) }()
	dec := json.NewDecoder(pr)
	for { // it is told of only when it looks on
		d.mu.Lock()
		n := d.sample
		d.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Proto: 6, Src: web, Dst: db, DstPort: 80})
	w.f.heard(driver.FlowEvent{VNI: 7, Ingress: true, Refused: "no", Proto: 6, Src: web, Dst: db, DstPort: 81})
	var f api.NetFlow
	if err := dec.Decode(&f); err != nil || f.Port != 81 || f.From.Instance != "web" {
		t.Errorf("%+v %v", f, err)
	}
	d.mu.Lock()
	d.counts.Lost = 5
	d.mu.Unlock()
	go func() {
		for ctx.Err() == nil {
			w.clk.Advance(lookEvery)
			time.Sleep(time.Millisecond)
		}
	}()
	f = api.NetFlow{}
	if err := dec.Decode(&f); err != nil || f.Seen != api.SeenLost || f.Packets != 5 {
		t.Errorf("%+v %v", f, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if d.sample != 0 || len(w.f.sight.followers) != 0 {
		t.Error("it goes on telling")
	}
}

// frame is an Ethernet frame with IPv4 and the beginning of TCP.
func frame(src, dst netip.Addr, sport, dport uint16) []byte {
	b := make([]byte, 14, 64)
	b[12], b[13] = 8, 0
	ip := make([]byte, 20)
	ip[0], ip[9] = 0x45, 6
	s, d := src.As4(), dst.As4()
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	b = append(b, ip...)
	b = binary.BigEndian.AppendUint16(b, sport)
	return append(binary.BigEndian.AppendUint16(b, dport), make([]byte, 16)...)
}

func TestCapture(t *testing.T) {
	w, d := sighted(t)
	at := time.Unix(1700000000, 123456789)
	one, two := frame(web, db, 4000, 80), frame(web, db, 4000, 81)
	d.frames = []driver.Frame{{At: at, Data: one, Size: 1500}, {At: at, Data: two, Size: len(two)}, {At: at, Data: one, Size: len(one)}, {At: at, Data: one, Size: len(one)}}
	var out bytes.Buffer
	var told []api.Progress
	err := w.f.Capture(t.Context(), api.Ref{Kind: api.KindInstance, Tenant: "a", Name: "db"}, "", api.CaptureRequest{Count: 2, Port: 80, Host: "10.1.0.3", Proto: "tcp"}, &out, func(p api.Progress) { told = append(told, p) })
	if err != nil {
		t.Fatal(err)
	}
	b := out.Bytes()
	if binary.LittleEndian.Uint32(b) != 0xa1b23c4d || b[4] != 2 || b[6] != 4 || binary.LittleEndian.Uint32(b[16:]) != api.CaptureSnaplen || binary.LittleEndian.Uint32(b[20:]) != 1 {
		t.Fatalf("head %x", b[:24])
	}
	want := 24 + 2*(16+len(one))
	if len(b) != want || binary.LittleEndian.Uint32(b[24:]) != 1700000000 || binary.LittleEndian.Uint32(b[28:]) != 123456789 || binary.LittleEndian.Uint32(b[32:]) != uint32(len(one)) || binary.LittleEndian.Uint32(b[36:]) != 1500 || !bytes.Equal(b[40:40+len(one)], one) {
		t.Errorf("%d bytes, want %d: %x", len(b), want, b)
	}
	if len(told) < 2 || told[len(told)-2].Current != 2 || told[len(told)-1].Phase != captureLost || told[len(told)-1].Current != 2 {
		t.Errorf("%+v", told)
	}
	ref := api.Ref{Kind: api.KindInstance, Tenant: "a", Name: "db"}
	for _, r := range []api.CaptureRequest{{Count: -1}, {Snaplen: 10}, {For: 2 * time.Hour}, {Host: "x"}, {Proto: "sctp"}, {Proto: "icmp", Port: 1}, {Network: "back"}} {
		if err := w.f.Capture(t.Context(), ref, "", r, io.Discard, func(api.Progress) {}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if err := w.f.Capture(t.Context(), api.Ref{Kind: api.KindInstance, Tenant: "a", Name: "other"}, "", api.CaptureRequest{}, io.Discard, func(api.Progress) {}); errs.KindOf(err) != errs.Conflict {
		t.Error(err)
	}
	// A caller who leaves ends it.
	gone := errors.New("gone")
	if err := w.f.Capture(t.Context(), ref, "", api.CaptureRequest{}, failing{gone}, func(api.Progress) {}); !errors.Is(err, gone) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func FuzzFilter(f *testing.F) {
	f.Add(frame(web, db, 1, 80), uint16(80), "tcp")
	f.Add([]byte{}, uint16(0), "")
	f.Add(append(make([]byte, 12), 0x86, 0xdd, 0x60), uint16(1), "udp")
	f.Fuzz(func(t *testing.T, b []byte, port uint16, proto string) {
		for _, host := range []netip.Addr{{}, db, netip.MustParseAddr("fd00::1")} {
			x := filter{host, port, proto}
			if got := x.has(b); !got && x == (filter{}) {
				t.Fatal("without a filter everything is wanted")
			}
		}
	})
}
