package flow

import (
	"net/netip"
	"strconv"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

// Path is a question about two ends as it was typed.
type Path struct {
	From, To string // an instance as [TENANT/]NAME, an address, a DNS name, host or outside
	Port     uint16
	Protocol string // tcp, udp, icmp; "": what goes without saying
}

// bare reports whether a name comes without its tenant.
func (p Path) bare() bool { return isBare(p.From) || isBare(p.To) }

func isBare(s string) bool {
	_, err := netip.ParseAddr(s)
	return err != nil && s != api.PlaceHost && s != api.PlaceOutside && !strings.ContainsAny(s, "./")
}

// ParsePath reads "FROM -> TO[:PORT[/PROTO]]" or "FROM TO[:PORT[/PROTO]]", in one argument or several.
func ParsePath(args []string) (Path, error) {
	text := strings.Join(args, " ")
	words := strings.Fields(text)
	if from, to, ok := strings.Cut(text, "->"); ok {
		words = append(strings.Fields(from), strings.Fields(to)...)
		if len(strings.Fields(from)) != 1 || len(strings.Fields(to)) != 1 {
			words = nil
		}
	}
	if len(words) == 2 && words[1] == "-" {
		return Path{}, errs.New(errs.Invalid, "the shell took the > of -> for itself, and has made a file of it").WithHint("write: atoll net why %s TO:PORT, or put it in quotes", words[0])
	}
	if len(words) != 2 || len(text) > 2048 {
		return Path{}, bad(text, "must be two ends", "web db:5432")
	}
	p := Path{}
	var err error
	if p.From, err = endOf(words[0]); err != nil {
		return Path{}, err
	}
	to, port := split(words[1])
	if p.To, err = endOf(to); err != nil {
		return Path{}, err
	}
	if port == "" {
		return p, nil
	}
	number, proto, has := strings.Cut(port, "/")
	if !has && number == "icmp" {
		p.Protocol = number
		return p, nil
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return Path{}, bad(words[1], "must have a port of 1 to 65535 behind the colon, or icmp", "db:5432")
	}
	p.Port, p.Protocol = uint16(n), "tcp"
	if has {
		if proto != "tcp" && proto != "udp" {
			return Path{}, bad(words[1], "must have tcp or udp behind the port", "db:53/udp")
		}
		p.Protocol = proto
	}
	return p, nil
}

// split takes the port off: what is behind the last colon, but for a bare IPv6 address.
func split(s string) (end, port string) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, ""
	}
	if strings.HasPrefix(s, "[") {
		if i := strings.Index(s, "]"); i > 0 {
			return s[1:i], strings.TrimPrefix(s[i+1:], ":")
		}
	}
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// endOf checks one end. What it is, the server finds out.
func endOf(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return a.String(), nil
	}
	s = strings.TrimPrefix(s, "instance/")
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./", r)) {
			return "", bad(s, "must be an instance, an address, a DNS name, host or outside", "acme/web")
		}
	}
	if s == "" || strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.HasPrefix(s, "-") {
		return "", bad(s, "must be an instance, an address, a DNS name, host or outside", "acme/web")
	}
	return s, nil
}

func bad(value, rule, example string) error {
	if len(value) > 80 {
		value = value[:80] + "…"
	}
	return errs.InvalidFields("path", []errs.Field{{Field: "FROM TO", Value: value, Rule: rule, Example: example}})
}
