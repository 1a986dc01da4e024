package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/driver/network/overlay/bpf"
)

// TestTrafficIsExplained asks why, who, how far and what, on two hosts.
func TestTrafficIsExplained(t *testing.T) {
	if err := bpf.Probe(); err != nil {
		t.Skip(err)
	}
	l := labOf(t, 2)
	n := &insight{networks{several: several{l}}}
	inTurn(t, []part{{"Grow", n.grow}, {"Why", n.why}, {"Flows", n.flows}, {"Check", n.check}, {"Capture", n.capture}, {"LogsAndDryRuns", n.groups}, {"HostAway", n.away}})
}

type insight struct{ networks }

func (n *insight) grow(t *testing.T) {
	n.networks.grow(t)
	n.serve(t, "red", "web", "isle1")
	n.serve(t, "red", "db", "isle2")
	n.serve(t, "red", "near", "isle1")
	n.serve(t, "blue", "web", "isle1")
	n.apply(t, `kind: SecurityGroup
metadata: {name: db-clients, tenant: red}
spec:
  log: true
  select: {app: db}
  ingress: [{from: [{labels: {app: web}}], ports: [tcp/80]}]
`)
	eventually(t, "near is kept off", func() (bool, string) { got := n.ask("red", "near", n.addr["red/db"]); return got == "", got })
	n.reaches(t, "red", "web", "db")
}

// says runs a verb and reports its output and whether it ended well.
func (n *insight) says(args ...string) (string, bool) {
	out, err := n.Do(args...)
	if err != nil {
		out = err.Error() // with all that was said
	}
	return out, err == nil
}

func (n *insight) expect(t *testing.T, good bool, words []string, args ...string) {
	t.Helper()
	out, ok := n.says(args...)
	if ok != good {
		t.Errorf("atoll %v: ended well is %v\n%s", args, ok, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("atoll %v does not say %q:\n%s", args, w, out)
		}
	}
	t.Logf("$ atoll %s\n%s", strings.Join(args, " "), out)
}

func (n *insight) why(t *testing.T) {
	n.expect(t, true, []string{"allowed by SecurityGroup red/db-clients, ingress rule 1 (from app=web, tcp 80)", "default inside network red/main", "vxlan", "isle2", "flows now:"},
		"net", "why", "web", "db:80", "--tenant", "red")
	n.expect(t, false, []string{"denied: SecurityGroup red/db-clients lets only app=web in", "what would allow it", "app: near", "tcp/80", "refused lately:"}, "net", "why", "near -> db:80", "--tenant", "red")
	n.expect(t, false, []string{"asked was tcp 5432"}, "net", "why", "red/web", "->", "red/db:5432")
	n.expect(t, false, []string{"denied: different tenants, and no peering between blue/main and red/main"}, "net", "why", "blue/web", "red/web:80")
	n.expect(t, true, []string{"default of network red/main"}, "net", "why", "web", "outside:443", "--tenant", "red")
	n.expect(t, true, []string{"red/web"}, "net", "why", "near", n.addr["red/web"], "--tenant", "red")
	n.expect(t, true, []string{"allowed"}, "net", "why", "near", "web.main.red.atoll.internal:80/udp", "--tenant", "red")
	var v api.NetVerdict
	out, _ := n.says("net", "why", "web", "db:80", "--tenant", "red", "-o", "json")
	if err := json.Unmarshal([]byte(out), &v); err != nil || !v.Allowed || !v.Complete || len(v.Hops) != 3 || !v.Hops[2].Known || v.Hops[2].Port == 0 {
		t.Errorf("%v %s", err, out)
	}
	if out, ok := n.says("net", "why", "web", "nobody:80", "--tenant", "red"); ok || !strings.Contains(out, "nobody") {
		t.Errorf("%s", out)
	}
}

func (n *insight) flows(t *testing.T) {
	n.expect(t, true, []string{"red/web", "red/db", "tcp/80", "allowed", "refused: no rule allows it to be received"}, "net", "flows", "--tenant", "red")
	out, _ := n.says("net", "flows", "--tenant", "red", "--denied")
	if strings.Contains(out, "allowed\n") || !strings.Contains(out, "red/near") {
		t.Errorf("denied:\n%s", out)
	}
	if out, _ := n.says("net", "flows", "--tenant", "blue"); strings.Contains(out, "red") {
		t.Errorf("blue sees red's:\n%s", out)
	}
	n.expect(t, true, []string{"FROM", "red/web", "red/db", "tcp/80", "red/near"}, "net", "map", "--tenant", "red")
	n.expect(t, true, []string{`"red app=web" -> "red app=db"`, "digraph", "red"}, "net", "map", "--tenant", "red", "--by", "label=app", "-o", "dot")
	n.expect(t, true, []string{"red/db-clients"}, "net", "map", "--tenant", "red", "--by", "group")
}

func (n *insight) check(t *testing.T) {
	n.expect(t, true, []string{"red/near -> red/web: in order", "5 of 5 answered", "round trip", "tcp 80", "connected"}, "net", "check", "near", "web:80", "--tenant", "red")
	n.expect(t, true, []string{"no echo was sent", "connected"}, "net", "check", "web", "db:80", "--tenant", "red")
	n.expect(t, false, []string{"the destination's wall (red/db on isle2)"}, "net", "check", "near", "db:80", "--tenant", "red")
	n.expect(t, false, []string{"nobody listens"}, "net", "check", "near", "web:81", "--tenant", "red")
}

func (n *insight) capture(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.pcap")
	done := make(chan string, 1)
	go func() {
		out, err := n.Do("net", "capture", "web", "--tenant", "red", "-w", file, "--count", "4", "--duration", "20s", "--port", "80", "--host", n.addr["red/db"])
		done <- fmt.Sprint(out, err)
	}()
	eventually(t, "packets were captured", func() (bool, string) {
		got := n.ask("red", "web", n.addr["red/db"])
		select {
		case out := <-done:
			done <- out
			return true, ""
		default:
			return false, got
		}
	})
	t.Log(<-done)
	b, err := os.ReadFile(file)
	if err != nil || len(b) < 24 || binary.LittleEndian.Uint32(b) != 0xa1b23c4d || binary.LittleEndian.Uint32(b[20:]) != 1 {
		t.Fatalf("%v, %d bytes", err, len(b))
	}
	count := 0
	for b = b[24:]; len(b) > 0; count++ {
		size := int(binary.LittleEndian.Uint32(b[8:]))
		frame := b[16 : 16+size]
		if len(frame) < 38 || frame[23] != 6 || binary.BigEndian.Uint16(frame[34:]) != 80 && binary.BigEndian.Uint16(frame[36:]) != 80 {
			t.Errorf("packet %d is not what was asked for: %x", count, frame)
		}
		b = b[16+size:]
	}
	if count != 4 {
		t.Errorf("%d packets", count)
	}
}

func (n *insight) groups(t *testing.T) {
	n.apply(t, "kind: SecurityGroup\nmetadata: {name: trial, tenant: red}\nspec: {dryRun: true, select: {app: web}, ingress: [{from: [{labels: {app: db}}]}, {from: [{group: nobody}]}]}\n")
	eventually(t, "the dry run counts", func() (bool, string) {
		n.ask("red", "near", n.addr["red/web"])
		out, _ := n.says("net", "hits", "trial", "--tenant", "red")
		return strings.Contains(out, "red/near -> red/web tcp 80"), out
	})
	n.expect(t, true, []string{"red/db-clients", "ingress rule 1", "(logged)", "(dry run)"}, "net", "hits", "--tenant", "red")
	n.expect(t, true, []string{"a dry run at the ingress of red/web: would be denied"}, "net", "why", "near", "web:80", "--tenant", "red")
	eventually(t, "what the group judges is recorded", func() (bool, string) {
		n.ask("red", "web", n.addr["red/db"])
		n.ask("red", "near", n.addr["red/db"])
		out, _ := n.says("net", "flows", "--log", "--tenant", "red")
		return strings.Contains(out, "red/web") && strings.Contains(out, "refused: no rule") && strings.Contains(out, "allowed"), out
	})
	eventually(t, "the group's status says what does not exist", func() (bool, string) {
		out, _ := n.says("get", "securitygroup/trial", "--tenant", "red", "-o", "yaml")
		return strings.Contains(out, "Resolved") && strings.Contains(out, "has no group nobody"), out
	})
}

// away: what cannot be asked is judged by what is written, and that is said.
func (n *insight) away(t *testing.T) {
	lost := n.Host("isle2")
	if len(n.Serving()) == 0 || n.Serving()[0].Name == "isle2" {
		t.Skip("isle2 is the one that answers")
	}
	if err := lost.Kill(); err != nil {
		t.Fatal(err)
	}
	out, _ := n.says("net", "why", "web", "db:80", "--tenant", "red")
	if !strings.Contains(out, "allowed by SecurityGroup red/db-clients") || !strings.Contains(out, "not every wall on the way could be asked") {
		t.Errorf("with a host away:\n%s", out)
	}
	if err := lost.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := lost.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}
