package bmc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

const ipmiSecret = "ipmi-s3cret"

// simulator starts OpenIPMI's ipmi_sim with one host that is on, and returns where it
// listens and whether the host is on.
func simulator(t *testing.T) (address string, runs func() bool) {
	t.Helper()
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		t.Skip("needs ipmi_sim (Debian: apt-get install openipmi)")
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := c.LocalAddr().(*net.UDPAddr).Port
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf := fmt.Sprintf(`name "atoll"
set_working_mc 0x20
startlan 1
  addr 127.0.0.1 %d
  priv_limit admin
  allowed_auths_callback none md2 md5 straight
  allowed_auths_user none md2 md5 straight
  allowed_auths_operator none md2 md5 straight
  allowed_auths_admin none md2 md5 straight
  guid a123456789abcdefa123456789abcdef
endlan
chassis_control "%s 0x20"
user 1 true "" "" user 10 none md2 md5 straight
user 2 true "admin" "%s" admin 10 none md2 md5 straight
`, port, filepath.Join(dir, "chassis"), ipmiSecret)
	for name, f := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"lan.conf": {conf, 0o600},
		"sim.emu":  {"mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n", 0o600},
		"chassis":  {chassisScript, 0o700},
		"power":    {"1", 0o600},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(f.text), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	out, err := os.Create(filepath.Join(dir, "out")) // a file: the simulator's host inherits it
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	said := func() string {
		b, err := os.ReadFile(out.Name())
		return fmt.Sprint(string(b), err)
	}
	cmd := exec.Command("ipmi_sim", "-n", "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "sim.emu"), "-s", filepath.Join(dir, "state"))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Log(said())
		}
	})
	address = fmt.Sprintf("127.0.0.1:%d", port)
	for end := time.Now().Add(5 * time.Second); !listens(port); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the simulator does not listen: %s", said())
		}
	}
	return address, func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "power"))
		return err == nil && strings.TrimSpace(string(b)) == "1"
	}
}

// listens reports whether somebody has the UDP port of 127.0.0.1.
func listens(port int) bool {
	b, err := os.ReadFile("/proc/net/udp")
	return err == nil && strings.Contains(string(b), fmt.Sprintf(" 0100007F:%04X ", port))
}

// chassisScript is the simulator's host: it takes a moment to change.
const chassisScript = `#!/bin/sh
cd "$(dirname "$0")"
shift
op=$1
shift
case $op in
get) for p; do
  case $p in power) echo "power:$(cat power)" ;; *) exit 1 ;; esac
done ;;
set) while [ -n "$1" ]; do
  case $1 in power) (sleep 0.3; echo "$2" >power) </dev/null >/dev/null 2>&1 & ;; *) exit 1 ;; esac
  shift 2
done ;;
check) ;;
esac
`

func TestIPMI(t *testing.T) {
	address, runs := simulator(t)
	b := api.BMC{Protocol: "ipmi", Address: address, Credentials: "isle2"}
	dir := writeCredentials(t, "user=admin\npassword="+ipmiSecret+"\n")
	p := open(t, b, dir)
	if st, err := p.State(t.Context()); err != nil || st != On {
		t.Fatal(st, err)
	}
	if err := p.Off(t.Context()); err != nil {
		t.Fatal(err)
	}
	if runs() {
		t.Error("the host runs on")
	}
	if st, err := p.State(t.Context()); err != nil || st != Off {
		t.Fatal(st, err)
	}
	if err := p.Off(t.Context()); err != nil { // already
		t.Fatal(err)
	}
	if err := p.On(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err := p.State(t.Context()); err != nil || st != On {
		t.Fatal(st, err)
	}
	// Sessions are given back: more of them than the simulator has.
	for range 12 {
		if _, err := p.State(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"wrong password": "user=admin\npassword=otherwise", "nobody": "user=nobody\npassword=otherwise"} {
		err := open(t, b, writeCredentials(t, text)).Off(t.Context())
		if !errors.Is(err, errs.Denied) || !strings.Contains(errs.HintOf(err), "isle2") || strings.Contains(err.Error(), "otherwise") || strings.Contains(err.Error(), ipmiSecret) {
			t.Errorf("%s: %v (%s)", name, err, errs.HintOf(err))
		}
	}
}

func TestIPMINobodyAnswers(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0") // takes all and answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dir := writeCredentials(t, "user=admin\npassword="+ipmiSecret+"\n")
	began := time.Now()
	err = open(t, api.BMC{Protocol: "ipmi", Address: c.LocalAddr().String(), Credentials: "isle2"}, dir).Off(t.Context())
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), c.LocalAddr().String()) || errs.HintOf(err) == "" {
		t.Errorf("%v (%s)", err, errs.HintOf(err))
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	long := writeCredentials(t, "user=admin\npassword="+strings.Repeat("x", maxIPMIPassword+1))
	if err := open(t, api.BMC{Protocol: "ipmi", Address: c.LocalAddr().String(), Credentials: "isle2"}, long).Off(t.Context()); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}
