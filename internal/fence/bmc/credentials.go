package bmc

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"atoll/internal/errs"
)

// credentials are never printed: the type hides them from every verb of fmt.
type credentials struct{ file, user, password, address string }

func (c credentials) String() string   { return "credentials in " + c.file }
func (c credentials) GoString() string { return c.String() }

// maxCredentials bounds the file; a longer one is something else.
const maxCredentials = 4096

// readCredentials reads dir/name, which must be root's and nobody else's to read.
func readCredentials(dir, name string) (credentials, error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return credentials{}, errs.New(errs.Unavailable, "credentials of the management controller: %w", err).
			WithHint("on every server: %s with the lines user=… and password=…, owned by root, mode 0600", path)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return credentials{}, errs.New(errs.Unavailable, "credentials of the management controller: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.Mode().IsRegular() || !ok || sys.Uid != 0 || st.Mode().Perm()&0o177 != 0 {
		return credentials{}, errs.New(errs.Denied, "credentials in %s are not used: the file must be root's alone", path).
			WithHint("chown root:root %s && chmod 600 %s, and change the password if others may have read it", path, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	if err != nil {
		return credentials{}, errs.New(errs.Unavailable, "read %s: %w", path, err)
	}
	return parseCredentials(path, b)
}

// belong refuses to send a password to another host than the one that the file names, if it
// names one: whoever may change a node's spec must not learn passwords that way.
func (c credentials) belong(host string) error {
	if c.address == "" || strings.EqualFold(c.address, strings.Trim(host, "[]")) {
		return nil
	}
	return errs.New(errs.Denied, "the credentials in %s are for the management controller %s, not for %s", c.file, c.address, host).
		WithHint("change spec.bmc of the node, or address= in the file on this server")
}

// parseCredentials reads lines of user=, password= and address=; empty lines and those with # in front
// are passed over. Its errors name lines, never what stands in them.
func parseCredentials(path string, b []byte) (credentials, error) {
	c := credentials{file: path}
	bad := func(line int, rule string) (credentials, error) {
		return credentials{}, errs.InvalidFields("credentials", []errs.Field{{Field: fmt.Sprintf("%s line %d", path, line), Rule: rule, Example: "user=admin"}})
	}
	if len(b) > maxCredentials {
		return bad(1, fmt.Sprintf("the file must have at most %d bytes", maxCredentials))
	}
	seen := map[string]bool{}
	lines := strings.Split(string(b), "\n")
	for n, l := range lines {
		l = strings.TrimSuffix(l, "\r")
		if strings.TrimSpace(l) == "" || strings.HasPrefix(l, "#") {
			continue
		}
		key, value, ok := strings.Cut(l, "=")
		key = strings.TrimSpace(key)
		switch {
		case !ok || key != "user" && key != "password" && key != "address":
			return bad(n+1, "must be user=…, password=… or address=…")
		case seen[key]:
			return bad(n+1, key+" must be there once")
		case strings.ContainsAny(value, "\x00\r"):
			return bad(n+1, "must not have control characters")
		}
		seen[key] = true
		switch key {
		case "user":
			c.user = strings.TrimSpace(value)
		case "address":
			c.address = strings.Trim(strings.TrimSpace(value), "[]")
		default:
			c.password = value // as it is: spaces may belong to it
		}
	}
	if c.user == "" || c.password == "" {
		return bad(len(lines), "user=… and password=… must both be there")
	}
	return c, nil
}
