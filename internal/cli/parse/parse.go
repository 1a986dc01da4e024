// Package parse reads what a user wrote: flags, references, and files of objects.
// All of it is bounded and may be hostile, such as a file from elsewhere.
//
// It starts no goroutine. It must never talk to a server, nor repeat a secret in an
// error.
package parse

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
)

// BadFlag says what is wrong with the value of a flag.
func BadFlag(flag, value, rule, example string) error {
	if len(value) > 80 {
		value = value[:80] + "…"
	}
	return errs.InvalidFields("flags", []errs.Field{{Field: "--" + flag, Value: value, Rule: rule, Example: example}})
}

// Port reads [[IP:]HOST:]CONTAINER[/proto]; a port alone is listened on and not published.
func Port(s string) (api.Port, error) {
	bad := func(rule string) (api.Port, error) {
		return api.Port{}, BadFlag("publish", s, rule, "127.0.0.1:8080:80/tcp")
	}
	rest, proto, has := strings.Cut(s, "/")
	if has && proto != "tcp" && proto != "udp" {
		return bad("protocol must be tcp or udp")
	}
	p := api.Port{Protocol: proto}
	number := func(s string) (uint16, bool) {
		n, err := strconv.ParseUint(s, 10, 16)
		return uint16(n), err == nil && n > 0 && s[0] != '+'
	}
	cut := func() (last string) {
		i := strings.LastIndexByte(rest, ':')
		last, rest = rest[i+1:], rest[:max(i, 0)]
		return last
	}
	var ok bool
	if p.Port, ok = number(cut()); !ok {
		return bad("must be [[IP:]HOST:]CONTAINER[/tcp|udp] with ports 1 to 65535")
	}
	if rest == "" {
		if strings.HasPrefix(s, ":") {
			return bad("the port of the host is missing")
		}
		return p, nil
	}
	if p.Publish, ok = number(cut()); !ok {
		return bad("the port of the host must be 1 to 65535")
	}
	if rest == "" {
		return p, nil
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(rest, "["), "]"))
	if err != nil || addr.Zone() != "" || addr.Is6() != strings.HasPrefix(rest, "[") {
		return bad("the address of the host must be an IP address, an IPv6 one in brackets")
	}
	p.HostIP = addr.String()
	return p, nil
}

// Volume reads NAME:/path[:ro], /host:/path[:ro], ./host:/path[:ro] or /path (ephemeral).
func Volume(s string) (api.Mount, error) {
	bad := func(rule string) (api.Mount, error) {
		return api.Mount{}, BadFlag("volume", s, rule, "data:/var/lib/db")
	}
	parts := strings.Split(s, ":")
	var m api.Mount
	if n := len(parts); n > 1 && (parts[n-1] == "ro" || parts[n-1] == "rw") {
		m.ReadOnly = parts[n-1] == "ro"
		parts = parts[:n-1]
	}
	switch len(parts) {
	case 1:
		m.Path = parts[0]
	case 2:
		src := parts[0]
		m.Path = parts[1]
		switch {
		case strings.HasPrefix(src, "/"):
			m.HostPath = filepath.Clean(src)
		case src == "." || src == ".." || strings.HasPrefix(src, "./") || strings.HasPrefix(src, "../"):
			abs, err := filepath.Abs(src)
			if err != nil {
				return bad("where is that? " + err.Error())
			}
			m.HostPath = abs
		case api.ValidName(src):
			m.Name = src
		default:
			return bad("before the colon there must be the name of a volume or a path that begins with / or .")
		}
	default:
		return bad("must be NAME:/path[:ro], /host/path:/path[:ro] or /path")
	}
	if !strings.HasPrefix(m.Path, "/") || filepath.Clean(m.Path) == "/" {
		return bad("the path inside must be absolute and not /")
	}
	return m, nil
}

// Tmpfs reads /path[:SIZE].
func Tmpfs(s string) (api.Mount, error) {
	p, size, _ := strings.Cut(s, ":")
	if !strings.HasPrefix(p, "/") || filepath.Clean(p) == "/" {
		return api.Mount{}, BadFlag("tmpfs", s, "the path inside must be absolute and not /", "/run:64Mi")
	}
	if size != "" {
		if _, err := api.ParseQuantity(api.Memory, size); err != nil {
			return api.Mount{}, BadFlag("tmpfs", s, "the size must be an amount", "/run:64Mi")
		}
	}
	return api.Mount{Tmpfs: true, Path: p, Size: size}, nil
}

// Env reads NAME=value; NAME alone takes the value of the caller's own variable, if it has one.
func Env(s string, getenv func(string) string) (api.EnvVar, bool, error) {
	name, value, has := strings.Cut(s, "=")
	if name == "" || strings.ContainsAny(name, " \t\x00\n") || strings.ContainsRune(value, 0) {
		return api.EnvVar{}, false, BadFlag("env", name, "must be NAME=value, or NAME to pass your own on", "LANG=C.UTF-8")
	}
	if !has {
		value = getenv(name)
		return api.EnvVar{Name: name, Value: value}, value != "", nil
	}
	return api.EnvVar{Name: name, Value: value}, true, nil
}

const maxEnvFile = 1 << 20

// EnvFile reads NAME=value lines; empty lines and lines that begin with # do not count.
func EnvFile(b []byte, getenv func(string) string) ([]api.EnvVar, error) {
	var out []api.EnvVar
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxEnvFile)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSuffix(sc.Text(), "\r")
		if t := strings.TrimSpace(line); t == "" || t[0] == '#' {
			continue
		}
		v, set, err := Env(strings.TrimLeft(line, " \t"), getenv)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err) // the value is not repeated: it may be a secret
		}
		if set {
			out = append(out, v)
		}
	}
	return out, sc.Err()
}

// Pairs reads key=value flags.
func Pairs(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(list))
	for _, s := range list {
		for _, part := range strings.Split(s, ",") {
			k, v, _ := strings.Cut(part, "=")
			if k == "" {
				return nil, BadFlag(flag, s, "must be key=value", "app=db")
			}
			out[k] = v
		}
	}
	return out, nil
}

// Amounts puts "cpu=2,memory=-" over amounts; - takes one away.
func Amounts(flag string, have api.Resources, list []string) (api.Resources, error) {
	out := have.Clone()
	for _, part := range strings.Split(strings.Join(list, ","), ",") {
		if part == "" {
			continue
		}
		if name, ok := strings.CutSuffix(part, "=-"); ok {
			if !slices.Contains(api.ResourceNames(), api.Resource(name)) {
				return nil, BadFlag(flag, part, "unknown resource "+name, "cpu=-")
			}
			delete(out, api.Resource(name))
			continue
		}
		m, err := api.ParseResources(part)
		if err != nil {
			return nil, BadFlag(flag, part, err.Error(), "cpu=1,memory=2Gi")
		}
		if out == nil {
			out = api.Resources{}
		}
		for k, v := range m {
			out[k] = v
		}
	}
	return out, nil
}

// Taint reads key[=value]:Effect; the effect may be written in any case.
func Taint(flag, s string) (api.Taint, error) {
	kv, effect, has := strings.Cut(s, ":")
	t := api.Taint{}
	t.Key, t.Value, _ = strings.Cut(kv, "=")
	if !has && flag == "tolerate" {
		return t, nil // any effect
	}
	for _, e := range []string{"NoSchedule", "NoExecute"} {
		if strings.EqualFold(effect, e) {
			t.Effect = e
		}
	}
	if t.Key == "" || t.Effect == "" {
		return t, BadFlag(flag, s, "must be key[=value]:NoSchedule or :NoExecute", "gpu=only:NoSchedule")
	}
	return t, nil
}

// Affinity reads key=value[,key=value][@host|rack|zone].
func Affinity(flag, s string) (api.AffinityTerm, error) {
	labels, topology, _ := strings.Cut(s, "@")
	m, err := Pairs(flag, []string{labels})
	return api.AffinityTerm{Labels: m, Topology: topology}, err
}

// Spread reads host|rack|zone[:MAXSKEW].
func Spread(s string) (api.SpreadTerm, error) {
	topology, skew, has := strings.Cut(s, ":")
	t := api.SpreadTerm{Topology: topology}
	if has {
		n, err := strconv.Atoi(skew)
		if err != nil || n < 0 {
			return t, BadFlag("spread", s, "must be host, rack or zone, with an optional :LARGEST-DIFFERENCE", "zone:1")
		}
		t.MaxSkew = n
	}
	return t, nil
}

// DetachKeys reads "ctrl-p,ctrl-q" or single characters; "none" or "" switches detaching off.
func DetachKeys(s string) ([]byte, error) {
	if s == "" || s == "none" {
		return nil, nil
	}
	var out []byte
	for _, k := range strings.Split(s, ",") {
		switch {
		case len(k) == 1:
			out = append(out, k[0])
		case len(k) == 6 && strings.HasPrefix(strings.ToLower(k), "ctrl-") && strings.ToUpper(k)[5] >= '@' && strings.ToUpper(k)[5] <= '_':
			out = append(out, strings.ToUpper(k)[5]-'@')
		default:
			return nil, BadFlag("detach-keys", s, "must be characters and ctrl-X joined by commas, or none", "ctrl-p,ctrl-q")
		}
	}
	if len(out) > 16 {
		return nil, BadFlag("detach-keys", s, "must be at most 16 keys", "ctrl-p,ctrl-q")
	}
	return out, nil
}

// Since reads a duration before now, or a point in time.
func Since(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, BadFlag("since", s, "must be a duration or a time", "10m, or 2026-01-02T15:04:05Z")
}
