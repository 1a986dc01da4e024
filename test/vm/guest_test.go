package vm

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"atoll/test/rig"
)

// patience is for one guest on a machine that has other things to do, too; alone it takes a tenth.
const patience = 10 * time.Minute

// report is what a guest said.
type report struct {
	checks  []check
	done    bool
	console string
	err     error // of QEMU, or that the time was over
}

type check struct{ name, failure string }

// boot starts a guest, which switches itself off in the end.
func boot(t *testing.T, b base, payload string, args ...string) report {
	t.Helper()
	for again := 2; ; again-- {
		r := try(t, b, payload, args...)
		if again == 0 || !stands(r.console) || slices.ContainsFunc(r.checks, func(c check) bool { return c.failure != "" && c.failure != "failed: not tried" }) {
			return r
		}
		t.Logf("both emulated processors stood still, which is the emulator's doing, after %d checks; once more:\n%s", len(r.checks), r.console[max(0, len(r.console)-3000):])
	}
}

// stuck is what a guest's kernel says of a processor on which nothing else has run for over a minute.
var stuck = regexp.MustCompile(`soft lockup - CPU#(\d) stuck for (\d{3,}|[6-9]\d)s`)

// stands reports whether a guest goes on no more: both its processors are in the kernel and wait for each other. Now and then
// the emulator loses the interrupt that one of them waits for.
func stands(console string) bool {
	seen := map[string]bool{}
	for _, m := range stuck.FindAllStringSubmatch(console, -1) {
		seen[m[1]] = true
	}
	return len(seen) == 2
}

// try boots one, and ends it when it goes on no more.
func try(t *testing.T, b base, payload string, args ...string) report {
	t.Helper()
	dir := t.TempDir()
	results, console := filepath.Join(dir, "results"), filepath.Join(dir, "console")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Emulated, also where there is KVM: slower, and the same on every machine.
	q := []string{"-accel", "tcg,tb-size=512", "-cpu", "max", "-smp", "2", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "file:" + console, "-serial", "file:" + results,
		// What a guest writes goes to a file without a name that ends with it.
		"-drive", "if=virtio,format=raw,snapshot=on,cache=unsafe,file=" + filepath.Join(b.dir, "root.ext4"),
		"-drive", "if=virtio,format=raw,readonly=on,file=" + payload,
		"-kernel", filepath.Join(b.dir, "vmlinuz"), "-initrd", filepath.Join(b.dir, "initrd"),
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check " + strings.Join(args, " ")}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", q...)
	// The guest ends with the test, however that ends: the signal comes when this thread does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ctx.Err() == nil {
			if text, err := os.ReadFile(console); err == nil && stands(string(text)) {
				cancel()
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
		}
	}()
	out, err := cmd.CombinedOutput()
	late := ctx.Err()
	cancel()
	<-watched
	t.Logf("the guest ran for %.1f s", time.Since(began).Seconds())
	if late != nil {
		err = fmt.Errorf("not done after %v: %w", time.Since(began).Round(time.Second), late)
	} else if err != nil {
		err = fmt.Errorf("qemu: %w: %s", err, out)
	}
	said, err1 := os.ReadFile(results)
	text, err2 := os.ReadFile(console)
	r := report{console: string(text), err: errors.Join(err, err1, err2)}
	for line := range strings.Lines(string(said)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "ok "); ok {
			r.checks = append(r.checks, check{name: name})
		} else if rest, ok := strings.CutPrefix(line, "not ok "); ok {
			name, why, _ := strings.Cut(rest, ": ")
			r.checks = append(r.checks, check{name, "failed: " + why})
		}
		r.done = r.done || line == "done"
	}
	return r
}

// judge makes a test of every check, and asks that there are as many as there should be.
func (r report) judge(t *testing.T, want int) {
	t.Helper()
	untried := 0
	for _, c := range r.checks {
		if c.failure == "failed: not tried" { // after others that are told
			untried++
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			if c.failure != "" {
				t.Error(c.failure)
			}
		})
	}
	if untried > 0 {
		t.Errorf("%d checks were not tried any more", untried)
	}
	if r.err != nil {
		t.Error(r.err)
	}
	if !r.done {
		t.Error("the guest did not come to the end of its tour")
	}
	if len(r.checks) != want {
		t.Errorf("%d checks, want %d", len(r.checks), want)
	}
	if t.Failed() {
		t.Logf("the end of the console:\n%s", r.console[max(0, len(r.console)-6000):])
	}
}

// payload is a disk that is a tar file: the built tree, and what the guests run.
func payload(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	bin, err := rig.Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "payload.tar")
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	root := rig.Root()
	err = errors.Join(
		addTo(w, filepath.Join(root, "deploy"), "opt/atoll/deploy"),
		addTo(w, filepath.Join(root, "Makefile"), "opt/atoll/Makefile"),
		addTo(w, filepath.Join(bin, "atoll"), "opt/atoll/bin/atoll"),
		addTo(w, filepath.Join(bin, "atolld"), "opt/atoll/bin/atolld"),
		addTo(w, "testdata", "opt/atoll/test"),
		addTo(w, "testdata/atoll-tour.service", "etc/systemd/system/atoll-tour.service"),
		w.WriteHeader(&tar.Header{Name: "etc/systemd/system/multi-user.target.wants/atoll-tour.service", Linkname: "../atoll-tour.service", Typeflag: tar.TypeSymlink, Mode: 0o777}),
		w.Close())
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// addTo puts a file, or a folder with all that is in it, into the archive.
func addTo(w *tar.Writer, from, name string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		mode := int64(0o644)
		if st, err := d.Info(); err == nil && st.Mode()&0o111 != 0 || strings.HasSuffix(p, ".sh") {
			mode = 0o755
		}
		if err := w.WriteHeader(&tar.Header{Name: filepath.Join(name, rel), Mode: mode, Size: int64(len(b)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
}
