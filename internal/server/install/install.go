// Package install is how a host without Atoll gets it from a server: a script, and the
// programs the server itself runs, so that all hosts have the same version. What is
// served is public; the host knows by the pinned key that it comes from the pool.
//
// It starts no goroutine. It must never serve a file that is not one of the programs.
package install

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"atoll/deploy"
	"atoll/internal/errs"
)

// Programs are what can be fetched.
func Programs() []string { return []string{"atoll", "atolld", "atoll-init", "atoll-watchdog"} }

var pinRE = regexp.MustCompile(`^(sha256//[A-Za-z0-9+/=]{44})?$`)

// Script is the installer for this server: pin is the hash of its key, as curl
// --pinnedpubkey takes it, or "" where the server has none.
func Script(pin string) ([]byte, error) {
	if !pinRE.MatchString(pin) { // it becomes part of a script
		return nil, errs.New(errs.Internal, "%q is not the hash of a key", pin)
	}
	s := deploy.Install
	for mark, text := range map[string]string{"@PACKAGES@": deploy.Packages, "@UNIT@": deploy.Unit} {
		if strings.Contains(text, "\nEND_OF_FILE") {
			return nil, errs.New(errs.Internal, "a file of the installer ends too early")
		}
		s = bytes.Replace(s, []byte(mark+"\n"), []byte(strings.TrimSuffix(text, "\n")+"\n"), 1)
	}
	return bytes.ReplaceAll(s, []byte("@PIN@"), []byte(pin)), nil
}

// Binary opens a program in dir. Only what this server runs itself can be had: it has
// no others.
func Binary(dir, goos, arch, name string) (*os.File, int64, error) {
	if !slices.Contains(Programs(), name) {
		return nil, 0, errs.New(errs.NotFound, "there is no program %q", clip(name)).WithHint("there are: %s", strings.Join(Programs(), ", "))
	}
	if goos != runtime.GOOS || arch != runtime.GOARCH {
		return nil, 0, errs.New(errs.Unsupported, "this server has programs for %s/%s only, not for %s/%s", runtime.GOOS, runtime.GOARCH, clip(goos), clip(arch)).
			WithHint("build them for that host (GOOS=%s GOARCH=%s make build), copy bin/* to its /usr/local/bin, and there: atolld join", clip(goos), clip(arch))
	}
	missing := errs.New(errs.NotFound, "this server has no %s beside its atolld", name).WithHint("copy it to the host from where Atoll was built (bin/%s)", name)
	if dir == "" {
		return nil, 0, missing
	}
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, missing
	}
	if err != nil {
		return nil, 0, errs.New(errs.Internal, "open %s: %w", name, err)
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return nil, 0, errors.Join(missing, f.Close())
	}
	return f, fi.Size(), nil
}

// Copy sends exactly size bytes, or breaks the connection off: half a program must
// never be taken for a whole one.
func Copy(w io.Writer, f io.Reader, size int64) error {
	if _, err := io.CopyN(w, f, size); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 20)]
}
