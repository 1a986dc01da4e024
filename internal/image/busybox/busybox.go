// Package busybox makes the image every node has, of the host's own busybox, for pools that
// reach no registry.
//
// It starts no goroutine. It must never take a busybox that needs the host's libraries.
package busybox

import (
	"archive/tar"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	stdfs "io/fs"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"time"

	"atoll/internal/errs"
	"atoll/internal/image/oci"
)

const welcome = `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Atoll</title></head>
<body>
<h1>It works.</h1>
<p>This page is served by a container on your Atoll pool.</p>
<p>Next: <code>atoll get instances</code>, <code>atoll run --rm -it busybox sh</code></p>
</body>
</html>
`

// Config is how the image made of BusyboxRootfs is run.
func Config() oci.Config {
	return oci.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
}

// Rootfs writes a small root directory as a tar, made of a statically linked
// busybox such as that of Debian's busybox-static, for hosts that reach no registry.
// The same busybox gives the same bytes. The program is run once, to list what it can do.
// errs.Unsupported: there is none, or it needs libraries.
func Rootfs(ctx context.Context, busyboxPath string, w io.Writer) error {
	bin, err := os.ReadFile(busyboxPath)
	if errors.Is(err, stdfs.ErrNotExist) {
		return errs.New(errs.Unsupported, "built-in image: %s is not there", busyboxPath).WithHint("install it: apt install busybox-static")
	}
	if err != nil {
		return fmt.Errorf("built-in image: %w", err)
	}
	if err := static(busyboxPath); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, busyboxPath, "--list").Output()
	if err != nil {
		return fmt.Errorf("built-in image: list what busybox can do: %w", err)
	}
	return writeRootfs(w, bin, strings.Fields(string(out)))
}

// static refuses a busybox that would not run without the host's libraries.
func static(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return errs.New(errs.Unsupported, "built-in image: %s is not a program: %w", path, err).WithHint("install it: apt install busybox-static")
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return errs.New(errs.Unsupported, "built-in image: %s needs libraries", path).WithHint("install the static one: apt install busybox-static")
	}
	return nil
}

func writeRootfs(w io.Writer, busybox []byte, applets []string) error {
	files := map[string]*tar.Header{}
	content := map[string]string{
		"etc/passwd":         "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":          "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n",
		"etc/hosts":          "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
		"etc/hostname":       "localhost\n",
		"etc/resolv.conf":    "",
		"etc/nsswitch.conf":  "hosts: files dns\n",
		"var/www/index.html": welcome,
		"bin/busybox":        string(busybox),
	}
	for _, d := range []string{"", "bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "sbin", "var", "var/tmp", "var/log", "var/www"} {
		files[d] = &tar.Header{Typeflag: tar.TypeDir, Name: "./" + d + "/", Mode: 0o755}
	}
	files[""].Name = "./"
	files["root"].Mode = 0o700
	files["tmp"].Mode, files["var/tmp"].Mode = 0o1777, 0o1777
	for name, c := range content {
		files[name] = &tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: 0o644, Size: int64(len(c))}
	}
	files["bin/busybox"].Mode = 0o755
	for _, a := range applets {
		if strings.ContainsAny(a, "/\x00") || strings.HasPrefix(a, ".") || a == "busybox" || len(a) > 64 {
			continue
		}
		files["bin/"+a] = &tar.Header{Typeflag: tar.TypeSymlink, Name: "./bin/" + a, Linkname: "busybox", Mode: 0o777}
	}
	var names []string
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	tw := tar.NewWriter(w)
	for _, n := range names {
		h := files[n]
		h.ModTime, h.Format, h.Uname, h.Gname = time.Unix(0, 0), tar.FormatUSTAR, "root", "root"
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("built-in image: %w", err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(tw, content[n]); err != nil {
				return fmt.Errorf("built-in image: %w", err)
			}
		}
	}
	return tw.Close()
}
