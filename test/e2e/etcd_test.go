package e2e

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	"atoll/test/rig"
)

// The same pool on an etcd of its own process: what is written there is there for the
// next daemon.
func TestExternalEtcd(t *testing.T) {
	bin, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("etcd-server is not installed")
	}
	const client, peer = "http://127.0.0.1:23790", "http://127.0.0.1:23800" // in the pool's own network namespace
	p := startAfter(t, func(p *rig.Pool) {
		etcd := p.Host(bin, "--data-dir", t.TempDir(), "--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
		etcd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := etcd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = etcd.Process.Kill()
			_ = etcd.Wait() // killed
		})
		eventually(t, "etcd", func() (bool, string) {
			err := p.Host("timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/23790").Run()
			return err == nil, fmt.Sprint(err)
		})
	}, "--etcd-endpoints", client)
	do(t, p, "run", "-d", "--name", "a", "--network", "none", "busybox", "sleep", "100000")
	p.Kill()
	up(t, p)
	if s := at(object(t, p, "instance/a"), "status", "state"); s != "running" {
		t.Fatalf("state %v", s)
	}
	do(t, p, "delete", "instance/a", "--now")
}
