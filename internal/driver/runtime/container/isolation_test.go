package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/driver"
	"atoll/internal/errs"
)

// start prepares and starts.
func (f *fixture) begin(s driver.Spec) driver.Observed {
	f.t.Helper()
	o, err := f.Ensure(f.t.Context(), s)
	if err != nil {
		f.t.Fatalf("ensure %s: %v", s.ID, err)
	}
	if err := f.Start(f.t.Context(), s.ID); err != nil {
		f.t.Fatalf("start %s: %v", s.ID, err)
	}
	return o
}

// wait returns when the instance has ended.
func (f *fixture) wait(id string) driver.Observed {
	f.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if o, _, _ := f.look(f.env, id); o.Phase == driver.PhaseExited {
			return o
		}
	}
	f.t.Fatalf("%s does not end", id)
	return driver.Observed{}
}

// output runs a shell script to its end.
func (f *fixture) output(s driver.Spec, script string) (string, driver.Observed) {
	f.t.Helper()
	s.Instance.Spec.Command = []string{"sh", "-c", script}
	f.begin(s)
	o := f.wait(s.ID)
	return f.logged(s.ID), o
}

func (f *fixture) logged(id string) string {
	f.t.Helper()
	var out bytes.Buffer
	if err := f.Logs(f.t.Context(), id, api.LogRequest{Raw: true}, driver.Stream{Out: &out, Err: &out}); err != nil {
		f.t.Fatal(err)
	}
	return out.String()
}

func (f *fixture) mustExec(id string, argv ...string) string {
	f.t.Helper()
	var out bytes.Buffer
	code, err := f.Exec(f.t.Context(), id, api.ExecRequest{Argv: argv}, driver.Stream{Out: &out, Err: &out})
	if err != nil || code != 0 {
		f.t.Fatalf("exec %v: %d %v: %s", argv, code, err, &out)
	}
	return out.String()
}

func TestTheWallsStand(t *testing.T) {
	f := open(t)
	for _, round := range []string{"profile", "compiled"} { // the second one gets the kept seccomp filter
		got, _ := f.output(f.spec("walls-"+round), `
grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status
echo uid $(id -u) map $(cat /proc/self/uid_map)
echo procs $(ls /proc | grep -c '^[0-9]')
echo kcore $(head -c 10 /proc/kcore | wc -c)
echo ifs $(ls /sys/class/net)
echo cgroup $(cat /proc/self/cgroup | grep -vc ':/$')
mount -t tmpfs none /tmp 2>/dev/null && echo ESCAPED mount
mount -o remount,rw /proc/sys 2>/dev/null && echo ESCAPED remount
echo 1 2>/dev/null >/proc/sys/kernel/panic && echo ESCAPED sysctl
echo b 2>/dev/null >/proc/sysrq-trigger && echo ESCAPED sysrq
mknod /tmp/null c 1 3 2>/dev/null && echo ESCAPED mknod
mknod /dev/sda b 8 0 2>/dev/null && echo ESCAPED mknod in dev
unshare -U true 2>/dev/null && echo ESCAPED unshare
ls /proc/1/root/bin/busybox >/dev/null || echo no root
echo x >/dev/null && echo null
echo file >/file && stat -c '%u %g' /file
hostname; cat /etc/hostname
echo ping $(cat /proc/sys/net/ipv4/ping_group_range)
`)
		want := map[string]string{"CapInh:": "0000000000000000", "CapPrm:": "00000000800005fb", "CapEff:": "00000000800005fb", "CapBnd:": "00000000800005fb", "CapAmb:": "0000000000000000", "NoNewPrivs:": "1", "Seccomp:": "2"}
		for l := range strings.Lines(got) {
			if w := strings.Fields(l); len(w) == 2 && want[w[0]] != "" {
				if w[1] != want[w[0]] {
					t.Errorf("%s: %s %s, want %s", round, w[0], w[1], want[w[0]])
				}
				delete(want, w[0])
			}
		}
		if len(want) > 0 {
			t.Errorf("%s: not said: %v", round, want)
		}
		for _, line := range []string{"uid 0 map 0 1048576 65536", "kcore 0", "ifs lo", "cgroup 0", "null", "0 0", "walls-" + round, "ping 0 65535"} {
			if !strings.Contains("\n"+got, "\n"+line+"\n") {
				t.Errorf("%s: %q is missing", round, line)
			}
		}
		if strings.Contains(got, "ESCAPED") || strings.Contains(got, "procs 1\n") {
			t.Errorf("%s: %s", round, got)
		}
		if t.Failed() {
			t.Log(got)
		}
		st, err := os.Stat(f.state("i", "walls-"+round, "upper", "file"))
		if err != nil || ownerOf(st) != 1<<20 {
			t.Errorf("a file of root inside belongs to %d on the host (%v)", ownerOf(st), err)
		}
	}
	kept := 0
	if f.env.isCrun { // runc takes no compiled filter
		kept = 1
	}
	if es, err := os.ReadDir(f.state("seccomp")); err != nil || len(es) != kept {
		t.Errorf("%d filters kept (%v), want %d", len(es), err, kept)
	}
}

func TestAnUnknownSeccompAnnotationFailsClosed(t *testing.T) {
	if !strings.Contains(failClosed, `"SCMP_ACT_KILL_PROCESS"`) || strings.Contains(failClosed, "ALLOW\"") && !strings.Contains(failClosed, "SPEC_ALLOW") {
		t.Fatal(failClosed)
	}
}

func TestCapabilitiesAndUsers(t *testing.T) {
	f := open(t)
	s := f.spec("caps")
	s.Instance.Spec.Capabilities = &api.Capabilities{Drop: []string{"ALL"}, Add: []string{"net_admin", "CAP_CHOWN"}}
	if got, _ := f.output(s, "grep CapEff /proc/self/status"); !strings.Contains(got, "0000000000001001") {
		t.Errorf("%s", got)
	}
	s = f.spec("user")
	s.Instance.Spec.User = "web"
	got, _ := f.output(s, "id; echo $HOME; grep CapEff /proc/self/status; touch /x 2>/dev/null && echo wrote; stat -c %u /proc/self/fd/1")
	if !strings.Contains(got, "uid=1000(web) gid=1000(web) groups=2000(extra)") && !strings.Contains(got, "uid=1000(web) gid=1000(web) groups=1000(web),2000(extra)") {
		t.Errorf("%s", got)
	}
	if !strings.Contains(got, "/home/web\n") || !strings.Contains(got, "CapEff:\t0000000000000000") || strings.Contains(got, "wrote") {
		t.Errorf("%s", got)
	}
	s = f.spec("nobody")
	s.Instance.Spec.User = "no-such-user"
	s.Instance.Spec.Command = []string{"true"}
	if _, err := f.Ensure(t.Context(), s); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no-such-user") {
		t.Errorf("%v", err)
	}
	if left, err := f.Observe(t.Context()); err != nil || len(left) != 2 {
		t.Errorf("a failed preparation left something: %+v %v", left, err)
	}
	s = f.spec("cap2")
	s.Instance.Spec.Capabilities = &api.Capabilities{Add: []string{"EVERYTHING"}}
	if _, err := f.Ensure(t.Context(), s); !errors.Is(err, errs.Invalid) {
		t.Errorf("%v", err)
	}
}

func TestOutOfMemoryIsReported(t *testing.T) {
	f := open(t)
	s := f.spec("oom")
	s.Instance.Spec.Limits = api.Resources{api.Memory: 24 << 20}
	_, o := f.output(s, "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; exit 9")
	if !o.OOMKilled || o.ExitCode != 9 && o.ExitCode != 137 {
		t.Fatalf("%+v", o)
	}
	s.Instance.Spec.Limits = nil
	if _, o = f.output(s, "exit 3"); o.OOMKilled || o.ExitCode != 3 {
		t.Fatalf("the next run is blamed for the last one: %+v", o)
	}
}

func TestLimitsHoldAndChangeLive(t *testing.T) {
	f := open(t)
	s := f.spec("limits", "sh", "-c", "while :; do :; done")
	s.Instance.Spec.Limits = api.Resources{api.CPU: 200, api.Pids: 5, api.Memory: 64 << 20}
	s.Instance.Spec.Requests = api.Resources{api.CPU: 100, api.Memory: 32 << 20}
	f.begin(s)
	used := func() time.Duration {
		a, err := f.Usage(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b, _ := f.Usage(t.Context(), s.ID)
		return b.CPU - a.CPU
	}
	if d := used(); d > 320*time.Millisecond {
		t.Errorf("used %v of a second, 200m allowed", d)
	}
	s.Instance.Spec.Limits = api.Resources{api.CPU: 600, api.Pids: 50, api.Memory: 80 << 20}
	if _, err := f.Ensure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	u, _ := f.Usage(t.Context(), s.ID)
	if d := used(); d > 800*time.Millisecond || d < 210*time.Millisecond {
		t.Errorf("used %v of a second, 600m allowed", d)
	}
	if u.Throttled == 0 || u.Pids != 1 || u.Memory <= 0 {
		t.Errorf("%+v", u)
	}
	if f.groups.Mode == "hybrid" && u.PressureCPU < 0 {
		t.Errorf("no pressure on a hybrid host: %+v", u)
	}
}

func TestProcessLimit(t *testing.T) {
	f := open(t)
	s := f.spec("pids")
	s.Instance.Spec.Limits = api.Resources{api.Pids: 6}
	got, _ := f.output(s, "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo all")
	if !strings.Contains(got, "can't fork") {
		t.Fatalf("%s", got)
	}
}

func TestVolumesAndDisk(t *testing.T) {
	f := open(t)
	dir := filepath.Dir(f.layer)
	host, named := filepath.Join(dir, "host"), filepath.Join(dir, "named")
	for _, d := range []string{host, named} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(host+"/f", []byte("host\n"), 0o600), os.Chown(named, 1<<20, 1<<20)); err != nil {
		t.Fatal(err)
	}
	s := f.spec("volumes")
	s.Mounts = []driver.Mount{{Source: named, Target: "/named"}}
	s.Instance.Spec.Volumes = []api.Mount{{Name: "named", Path: "/named"}, {HostPath: host, Path: "/host"}, {HostPath: host + "/f", Path: "/hostfile", ReadOnly: true},
		{Tmpfs: true, Path: "/mem", Size: "1Mi"}, {Path: "/eph"}, {Path: "/small", Size: "8Mi"}}
	s.Instance.Spec.ReadOnlyRoot = true
	s.Instance.Spec.Limits = api.Resources{api.Disk: 16 << 20}
	got, o := f.output(s, `
touch /x 2>/dev/null && echo WROTE root
echo 1 >/named/f && echo 1 >/eph/f && echo 1 >/mem/f && echo 1 >/host/g && echo written
cat /host/f /hostfile; echo 2 2>/dev/null >/hostfile && echo WROTE hostfile
dd if=/dev/zero of=/mem/big bs=64k count=64 2>/dev/null || echo mem full
dd if=/dev/zero of=/small/big bs=64k count=256 2>/dev/null || echo small full
`)
	for _, want := range []string{"written\n", "host\nhost\n", "mem full\n", "small full\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %s (warnings %v)", want, got, o.Warnings)
		}
	}
	if strings.Contains(got, "WROTE") {
		t.Error(got)
	}
	if st, err := os.Stat(host + "/g"); err != nil || ownerOf(st) != 0 {
		t.Errorf("host path: %d %v", ownerOf(st), err)
	}
	if st, err := os.Stat(named + "/f"); err != nil || ownerOf(st) != 1<<20 {
		t.Errorf("named volume: %d %v", ownerOf(st), err)
	}
	s = f.spec("disk")
	s.Instance.Spec.Limits = api.Resources{api.Disk: 16 << 20}
	if got, o := f.output(s, "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null || echo full"); !strings.Contains(got, "full") {
		t.Errorf("the writable layer has no limit: %q %v", got, o.Warnings)
	}
	s = f.spec("own")
	s.Instance.Spec.Volumes = []api.Mount{{HostPath: f.deps.State, Path: "/s"}}
	s.Instance.Spec.Command = []string{"true"}
	if _, err := f.Ensure(t.Context(), s); !errors.Is(err, errs.Denied) {
		t.Errorf("our own state was bound: %v", err)
	}
}

func TestRestartKeepsFilesAndLogs(t *testing.T) {
	f := open(t)
	s := f.spec("restart", "sh", "-c", "cat /n 2>/dev/null; echo again >>/n")
	for range 3 {
		f.begin(s)
		f.wait(s.ID)
	}
	if got := f.logged(s.ID); got != "again\nagain\nagain\n" {
		t.Fatalf("%q", got)
	}
}

func TestShiftedCopies(t *testing.T) {
	f := open(t)
	f.env.idmapped = false
	for range 2 {
		got, _ := f.output(f.spec("shifted"), "stat -c '%u %F' /bin/busybox /bin/sh; id -u")
		if got != "0 regular file\n0 symbolic link\n0\n" && !strings.HasSuffix(got, "0 regular file\n0 symbolic link\n0\n") {
			t.Fatalf("%q", got)
		}
	}
}

func TestHostNetwork(t *testing.T) {
	f := open(t)
	s := f.spec("hostnet")
	s.Network.Mode = "host"
	got, _ := f.output(s, "ls /sys/class/net | wc -l; cat /proc/net/dev | wc -l; ip link set lo down 2>/dev/null && echo ESCAPED")
	o, err := f.Observe(t.Context())
	if strings.Contains(got, "ESCAPED") || err != nil || o[0].NetNS != "" {
		t.Fatalf("%s %+v %v", got, o, err)
	}
}

func TestManyLayersAndHostileAccounts(t *testing.T) {
	f := open(t)
	s := f.spec("layers")
	secret := filepath.Join(filepath.Dir(f.layer), "secret")
	if err := os.WriteFile(secret, []byte("outside:x:77:77::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		d := filepath.Join(filepath.Dir(f.layer), fmt.Sprintf("l%d", i))
		if err := os.MkdirAll(d+"/etc", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d+"/f", []byte(fmt.Sprint(i)), 0o644); err != nil {
			t.Fatal(err)
		}
		if i == 59 {
			if err := os.Symlink(strings.Repeat("../", 20)+secret[1:], d+"/etc/passwd"); err != nil {
				t.Fatal(err)
			}
		}
		s.Image.Layers = append(s.Image.Layers, d)
	}
	if got, _ := f.output(s, "cat /f"); got != "59" {
		t.Fatalf("%q", got)
	}
	s.ID, s.Cgroup.Path = "layers2", f.group+"/layers2"
	s.Instance.Spec.User = "outside"
	if _, err := f.Ensure(t.Context(), s); !errors.Is(err, errs.Invalid) {
		t.Fatalf("a file of the host was read: %v", err)
	}
}
