package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/sys/systest"
)

// has skips where a program that the test is about is not installed.
func has(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
}

// private gives the test's mount namespace files of its own in these directories; those with a + keep what is in them.
func private(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		keep, dir := strings.HasPrefix(d, "+"), strings.TrimPrefix(d, "+")
		own := filepath.Join(t.TempDir(), "own")
		sh(t, "", "mkdir", "-p", own, dir)
		if keep {
			sh(t, "", "cp", "-a", dir+"/.", own)
		}
		if err := syscall.Mount(own, dir, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// both directions: to what is outside, and from there to published ports and floating addresses.
func (w *world) passes() {
	w.t.Helper()
	w.reach(w.web, outIP+":7000", "outside "+floatIP)
	w.reach(w.peer, outIP+":7000", "outside "+hostIP)
	w.reach(w.outside, hostIP+":8080", "web "+outIP)
	w.reach(w.outside, floatIP+":80", "web "+outIP)
	w.reach(nil, "127.0.0.1:8080", "web "+gwIP)
	w.reach(w.peer, hostIP+":8080", "web "+gwIP)
	w.reach(w.peer, "10.88.0.2:80", "web 10.88.0.3")
	w.reach(w.outside, hostIP+":7001", w.service) // of the host: the other firewall decides
}

// furnish starts what passes asks for.
func (w *world) furnish() {
	w.t.Helper()
	w.web = w.start(spec("web", "acme", "10.88.0.2", api.Port{Port: 80, Publish: 8080}, api.Port{Port: 80, Publish: 8080, Protocol: "udp"}), 80)
	w.peer = w.start(spec("peer", "acme", "10.88.0.3"))
	w.floats(floating(floatIP, "10.88.0.2"))
	w.serve(w.outside, "outside", "0.0.0.0:7000")
	w.serve(nil, "host", "0.0.0.0:7001")
	w.service = "host " + outIP
}

// Debian's ufw, with its defaults: nothing comes in and nothing is forwarded.
func TestBesideUFW(t *testing.T) {
	has(t, "ufw", "iptables")
	if !systest.Apart(t) {
		return
	}
	private(t, "+/etc/ufw", "+/etc/default", "/run", "/var/lib/ufw")
	w := newWorld(t, Config{})
	w.furnish()
	w.passes()
	sh(t, "", "ufw", "--force", "enable")
	w.must(w.d.Reconcile(context.Background()))
	w.service = "" // as ufw has it
	w.passes()
	for _, c := range []string{"ufw allow 7001/tcp", "ufw allow 7001/udp", "ufw reload"} {
		sh(t, "", strings.Fields(c)...)
	}
	w.service = "host " + outIP // what we put there does not stand in ufw's way
	w.passes()                  // without anybody having looked after it
	sh(t, "", "ufw", "--force", "disable")
	w.must(w.d.Reconcile(context.Background()))
	w.passes()
	sh(t, "", "ufw", "--force", "enable")
	w.must(w.d.Reconcile(context.Background()))
	w.passes()
	w.must(w.d.Teardown(context.Background()))
	if left := sh(t, "", "iptables", "-S"); strings.Contains(left, "atoll") || !strings.Contains(left, "-j ufw-before-forward") {
		t.Errorf("left in ufw's rules:\n%s", left)
	}
}

// docker is a real daemon of Debian's docker.io with a container that answers on a published port.
type docker struct {
	w    *world
	dir  string
	args []string
	cmd  *exec.Cmd
}

func (d *docker) cli(args ...string) string {
	d.w.t.Helper()
	return sh(d.w.t, "", append([]string{"/usr/bin/docker", "-H", "unix://" + d.dir + "/docker.sock"}, args...)...)
}

func (d *docker) begin() {
	t := d.w.t
	t.Helper()
	// It ends by itself whatever becomes of the test. No signal at its parent's death: that would be a thread's.
	d.cmd = exec.Command("timeout", append([]string{"110", "/usr/sbin/dockerd"}, d.args...)...)
	log, err := os.OpenFile(d.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	d.w.must(err)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.w.must(d.cmd.Start())
	log.Close()
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if exec.Command("/usr/bin/docker", "-H", "unix://"+d.dir+"/docker.sock", "version").Run() == nil {
			return
		}
		if time.Now().After(end) || d.cmd.ProcessState != nil {
			b, _ := os.ReadFile(d.dir + "/log")
			t.Fatalf("dockerd does not start:\n%s", b)
		}
	}
}

func (d *docker) end() {
	if d.cmd == nil || d.cmd.Process == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()                                      // it was asked to end
	_ = exec.Command("umount", "-R", d.dir+"/data").Run() // it may have left none
	d.cmd = nil
}

// Debian's docker.io: its containers reach the outside and are reached, and so do and are ours.
func TestBesideRealDocker(t *testing.T) {
	has(t, "/usr/sbin/dockerd", "/usr/bin/docker", "iptables", "busybox")
	if !systest.Apart(t) {
		return
	}
	private(t, "/run", "/var/lib/docker", "/var/lib/containerd")
	w := newWorld(t, Config{})
	w.furnish()
	w.passes()
	d := &docker{w: w, dir: t.TempDir()}
	d.args = []string{"-H", "unix://" + d.dir + "/docker.sock", "--data-root", d.dir + "/data", "--exec-root", d.dir + "/exec", "-p", d.dir + "/pid",
		"--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", fmt.Sprintf("/atolltest-docker-%d", os.Getpid()), "--userland-proxy=false", "--ip-forward=true"}
	d.begin()
	t.Cleanup(func() {
		d.end()
		_ = exec.Command("sh", "-c", fmt.Sprintf("rmdir /sys/fs/cgroup/*/atolltest-docker-%[1]d /sys/fs/cgroup/atolltest-docker-%[1]d", os.Getpid())).Run() // where there are such
	})
	w.must(w.d.Reconcile(context.Background()))
	w.passes()
	root := filepath.Join(d.dir, "root")
	sh(t, "", "sh", "-ec", "mkdir -p "+root+"/bin "+root+"/w; cp \"$(command -v busybox)\" "+root+"/bin/busybox; echo a container of docker >"+root+"/w/index.html; tar -C "+root+" -cf "+d.dir+"/root.tar .")
	d.cli("import", d.dir+"/root.tar", "box")
	run := exec.Command("/usr/bin/docker", "-H", "unix://"+d.dir+"/docker.sock", "run", "-d", "--name", "theirs", "-p", "9090:80", "box", "/bin/busybox", "httpd", "-f", "-h", "/w")
	if out, err := run.CombinedOutput(); err != nil {
		t.Logf("containers of docker do not run here, only its rules are tried: %v: %s", err, out)
		d.restart()
		w.passes()
		return
	}
	t.Cleanup(func() {
		_ = exec.Command("/usr/bin/docker", "-H", "unix://"+d.dir+"/docker.sock", "rm", "-f", "theirs").Run()
	})
	theirs := func() {
		t.Helper()
		fetch := `printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 3 %s %d | tail -n 1`
		for who, c := range map[string]*exec.Cmd{
			"outside":     exec.Command("nsenter", "--net="+w.outside.Path(), "sh", "-c", fmt.Sprintf(fetch, hostIP, 9090)),
			"an instance": exec.Command("nsenter", "--net="+w.web.Path(), "sh", "-c", fmt.Sprintf(fetch, hostIP, 9090)),
		} {
			if out, err := c.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "a container of docker" {
				t.Errorf("%s asks docker's published port: %q, %v", who, out, err)
			}
		}
		var at []struct{ NetworkSettings struct{ IPAddress string } }
		w.must(json.Unmarshal([]byte(d.cli("inspect", "theirs")), &at))
		if len(at) != 1 || at[0].NetworkSettings.IPAddress == "" {
			t.Fatalf("%+v", at)
		}
		// A container of theirs reaches what is outside, and our published ports; our instances do not get past docker's walls.
		if got := d.cli("exec", "theirs", "/bin/busybox", "nc", "-w", "3", outIP, "7000"); got != "outside "+hostIP {
			t.Errorf("docker's container asks outside: %q", got)
		}
		if got := d.cli("exec", "theirs", "/bin/busybox", "nc", "-w", "3", hostIP, "8080"); !strings.HasPrefix(got, "web ") {
			t.Errorf("docker's container asks our published port: %q", got)
		}
		if got := w.ask(w.web, "tcp4", at[0].NetworkSettings.IPAddress+":80", wait); got != "" {
			t.Errorf("an instance got past docker's walls: %q", got)
		}
	}
	theirs()
	d.restart()
	w.passes() // its chain for others' rules is left as it was
	if exec.Command("/usr/bin/docker", "-H", "unix://"+d.dir+"/docker.sock", "start", "theirs").Run() == nil {
		theirs()
	}
	sh(t, "", "iptables", "-F", "DOCKER-USER")
	w.must(w.d.Reconcile(context.Background()))
	w.passes()
	w.must(w.d.Teardown(context.Background()))
	if left := sh(t, "", "iptables", "-S"); strings.Contains(left, "atoll") {
		t.Errorf("left in docker's rules:\n%s", left)
	}
}

func (d *docker) restart() {
	d.w.t.Helper()
	d.end()
	d.begin()
}
