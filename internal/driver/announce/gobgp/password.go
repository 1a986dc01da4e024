package gobgp

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"atoll/internal/errs"
)

// maxPassword is what the kernel takes for TCP MD5.
const maxPassword = 80

// readPassword reads dir/name, which must be root's and nobody else's to read. Its errors
// name the file, never what stands in it.
func readPassword(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", errs.New(errs.Unavailable, "password of the session: %w", err).
			WithHint("on this host: %s with the password, owned by root, mode 0600", path)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", errs.New(errs.Unavailable, "password of the session: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.Mode().IsRegular() || !ok || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o177 != 0 {
		return "", errs.New(errs.Denied, "the password in %s is not used: the file must be root's alone", path).
			WithHint("chown root:root %s && chmod 600 %s, and change the password if others may have read it", path, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", errs.New(errs.Unavailable, "read %s: %w", path, err)
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" || len(s) > maxPassword || strings.ContainsAny(s, "\x00\r\n") {
		return "", errs.InvalidFields("password of the session", []errs.Field{{Field: path, Rule: "must be one line of 1 to 80 bytes", Example: "a word"}})
	}
	return s, nil
}
