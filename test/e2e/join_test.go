package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/server"
	"atoll/internal/store"
)

// The line that atoll node token prints, pasted on a host without Atoll: the script
// and the programs come from the server, whose key is pinned, and the host is in the
// pool. The host is a mount namespace with empty directories and a package manager
// that has everything; what starts the daemon is noted, not done.
func TestPastedLineJoins(t *testing.T) {
	if os.Getuid() != 0 || exec.Command("unshare", "-m", "true").Run() != nil {
		t.Skip("mount namespaces need root")
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("this host has no curl")
	}
	dir := t.TempDir()
	for _, b := range []string{"atolld", "atoll"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "bin", b), "./cmd/"+b)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	url, srv, mem := joinable(t, filepath.Join(dir, "bin"))
	admin := srv.As(auth.Identity{User: "root", Admin: true})
	ask := func(method, path, body string, out any) {
		t.Helper()
		w := httptest.NewRecorder()
		admin.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		if w.Code >= 300 || json.Unmarshal(w.Body.Bytes(), out) != nil {
			t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}
	var tok api.JoinToken
	ask("POST", "/v1/jointokens", `{"metadata":{"name":"t"},"spec":{"uses":1,"zone":"room-b"}}`, &tok)
	var info api.JoinInfo
	ask("GET", "/v1/join", "", &info)
	line := func(pin string) string {
		return "curl -fsSk --pinnedpubkey '" + pin + "' " + url + "/install | ATOLLD_TOKEN=" + tok.Status.Secret + " sh -s -- " + url + " --node isle2"
	}
	wrong := strings.Replace(info.Pin, info.Pin[8:12], map[bool]string{true: "AAAA", false: "BBBB"}[info.Pin[8:12] != "AAAA"], 1)
	script := `set -u
for d in /usr/local/bin /var/lib /var/log /run /etc/systemd; do mkdir -p $d; mount -t tmpfs tmpfs $d; done
cd ` + dir + ` && mkdir stub
printf '#!/bin/sh\necho "install ok installed"\n' >stub/dpkg-query
printf '#!/bin/sh\nexit 1\n' >stub/apt-get
printf '#!/bin/sh\necho "$@" >` + dir + `/started\n' >stub/setsid
chmod +x stub/*
export PATH=$PWD/stub:/usr/sbin:/usr/bin:/sbin:/bin
` + line(wrong) + `
[ ! -e /usr/local/bin/atolld ] || { echo "installed from a server of another key"; exit 1; }
` + line(info.Pin) + ` || exit 1
[ -x /usr/local/bin/atoll ] && [ -x /usr/local/bin/atolld ] || { echo "programs are missing"; exit 1; }
` + line(info.Pin) + ` || { echo "a second time it fails"; exit 1; }
cat /var/lib/atoll/join.json
/usr/local/bin/atolld join ` + url + ` --token ` + tok.Status.Secret + ` --node isle3 && { echo "one host is two"; exit 1; }
i=0; while [ ! -e started ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
grep -q '^nohup /usr/local/bin/atolld up' started || { echo "the daemon was not started"; exit 1; }
`
	out, err := exec.CommandContext(t.Context(), "unshare", "-m", "--propagation", "private", "sh", "-c", script).CombinedOutput()
	if err != nil || strings.Contains(strings.ReplaceAll(string(out), line(info.Pin), ""), tok.Status.Secret) {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"isle2 joined the pool as node", "isle2 is in the pool already", `"subnet": "10.88.0.0/16"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
	n, err := store.Get[*api.Node](t.Context(), mem, api.Ref{Kind: api.KindNode, Name: "isle2"})
	if err != nil || n.Spec.Zone != "room-b" {
		t.Fatalf("%+v %v", n, err)
	}
	used, err := store.Get[*api.JoinToken](t.Context(), mem, api.Ref{Kind: api.KindJoinToken, Name: "t"})
	if err != nil || used.Status.Used != 1 {
		t.Fatalf("%+v %v", used, err)
	}
}

// joinable is a server that hosts can join, with the programs in bin.
func joinable(t *testing.T, bin string) (string, *server.Server, *store.Mem) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	mem := store.NewMem()
	srv := server.New(server.Deps{Store: mem, Auth: auth.New(clock.Real{}, auth.Config{}), CA: auth.NewCA(t.TempDir(), clock.Real{}, rand.Reader), Clock: clock.Real{}, Rand: rand.Reader, Version: "test"},
		server.Config{TLSAddr: addr, Advertise: []string{"https://" + addr}, Binaries: bin, Pool: api.PoolSettings{Subnet: "10.88.0.0/16"}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !srv.Ready(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(fmt.Errorf("the server on %s is not ready", addr))
		}
	}
	return "https://" + addr, srv, mem
}
