// Package vm runs the product on kernels and hosts that this machine is not: a host with
// cgroup v2 alone, one with v1 alone, each with crun and with runc, and one that systemd runs. The
// guests are Debian machines under QEMU, without a network, on copies of one disk that is made
// once and kept in the user's cache folder. They run one after the other, and end with the test.
package vm

import (
	"context"
	"strings"
	"testing"
	"time"
)

// building is how long the first run may take to fetch and unpack what the guests are made of.
const building = 5 * time.Minute

// How many checks the tours of testdata/tour.sh have.
const (
	long  = 23
	short = 18
)

// TestHosts boots every kind of host.
func TestHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("guests take a minute")
	}
	if m := missing(); m != "" {
		t.Skip("guests need " + m)
	}
	ctx, cancel := context.WithTimeout(t.Context(), building)
	defer cancel()
	began := time.Now()
	b, err := prepared(ctx)
	if err != nil {
		t.Fatal(err)
	}
	disk := payload(t)
	t.Logf("the guests' disks were ready after %.1f s", time.Since(began).Seconds())
	for _, g := range []struct {
		name   string
		checks int
		args   []string
	}{
		{"cgroup v2", long + long, []string{"cgroup_no_v1=all", "atoll.init=/opt/atoll/test/host.sh", "atoll.runc=long"}},
		{"cgroup v1", long + short, []string{"atoll.init=/opt/atoll/test/host.sh"}},
		{"systemd", 24, []string{"atoll.init=/sbin/init", "systemd.show_status=true"}},
	} {
		t.Run(strings.ReplaceAll(g.name, " ", "-"), func(t *testing.T) { boot(t, b, disk, g.args...).judge(t, g.checks) })
	}
}
