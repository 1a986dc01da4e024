package netlink

import (
	"os"
	"path/filepath"
	"strings"

	"atoll/internal/errs"
)

const sysctlRoot = "/proc/sys/net"

// Sysctl reads a setting below net, such as "ipv4/ip_forward", in the namespace the
// process runs in.
func Sysctl(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlRoot, filepath.Clean("/"+name)))
	if err != nil {
		return "", kernelError("read net."+strings.ReplaceAll(name, "/", "."), err)
	}
	return strings.TrimSpace(string(b)), nil
}

// SetSysctl writes a setting when it is not already so, and tells whether it wrote.
func SetSysctl(name, value string) (bool, error) {
	have, err := Sysctl(name)
	if err != nil || have == value {
		return false, err
	}
	key := "net." + strings.ReplaceAll(name, "/", ".")
	if err := os.WriteFile(filepath.Join(sysctlRoot, filepath.Clean("/"+name)), []byte(value), 0o644); err != nil {
		return false, errs.New(errs.Unsupported, "set %s=%s: %w", key, value, err).
			WithHint("set it on the host: sysctl -w %s=%s (a container needs /proc/sys writable)", key, value)
	}
	return true, nil
}
