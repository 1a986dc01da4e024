package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/errs"
)

// config says where this process lives. Flag > environment (ATOLLD_NAME, dashes as
// underscores) > file > default. What can change while it runs is a kind in the
// store instead.
type config struct {
	Node      string `json:"node"`      // name of this host in the pool; default: its host name
	State     string `json:"state"`     // what must survive a reboot
	Run       string `json:"run"`       // what need not
	Socket    string `json:"socket"`    // unix socket of the API
	Listen    string `json:"listen"`    // host:port of the API over TLS; "": none
	Advertise string `json:"advertise"` // where hosts that join reach the API, host:port, comma-separated; default: follows from listen
	Subnet    string `json:"subnet"`    // addresses of instances on the default network
	Group     string `json:"group"`     // name of Atoll's tree in the host's cgroups

	EtcdEndpoints string `json:"etcdEndpoints"` // external etcd, comma-separated; default: an embedded one
	EtcdUser      string `json:"etcdUser"`      // with a password in ATOLLD_ETCD_PASSWORD
	EtcdCA        string `json:"etcdCA"`        // PEM file
	EtcdCert      string `json:"etcdCert"`      // PEM file, client certificate
	EtcdKey       string `json:"etcdKey"`       // PEM file

	PeerListen string       `json:"peerListen"`   // host:port where other servers reach this one's copy of the state; default: the API's host, the port after its
	Heartbeat  api.Duration `json:"heartbeat"`    // between signs of life of this host
	Lease      api.Duration `json:"lease"`        // a host that was not heard of for so long is lost
	Members    string       `json:"members"`      // how many hosts keep the state: auto, 1, 3 or 5
	Replace    api.Duration `json:"replaceAfter"` // a host that keeps the state and is lost for so long is replaced

	DNS       string                     `json:"dns"`       // resolvers of instances, comma-separated; default: the host's
	Busybox   string                     `json:"busybox"`   // static busybox the built-in image is made of; "": no built-in image
	Registry  registryConfig             `json:"registry"`  // file only
	Drivers   map[string]json.RawMessage `json:"drivers"`   // file only: a section per driver, read by the driver itself
	Buffer    int                        `json:"buffer"`    // percent of the pool that stays unpromised
	Spare     int                        `json:"spare"`     // nodes the pool can lose and still keep its promises
	Rebalance string                     `json:"rebalance"` // off, advise or auto
	PerHour   int                        `json:"perHour"`   // moves that rebalancing may begin in an hour
	LogLevel  string                     `json:"logLevel"`  // debug, info, warn, error
	LogFormat string                     `json:"logFormat"` // text, json
}

// registryConfig is how this host reaches image registries.
type registryConfig struct {
	AuthFile string              `json:"authFile"` // credentials, in the format of docker's config.json
	Mirrors  map[string][]string `json:"mirrors"`  // registry host -> mirrors, tried in order before it
	CAFiles  map[string][]string `json:"caFiles"`  // registry host -> PEM files trusted beside the system's; "*": all
	Insecure []string            `json:"insecure"` // hosts that may be spoken to without TLS
}

const defaultConfigFile = "/etc/atoll/atolld.yaml"

func defaults() config {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	return config{Node: nodeName(host), State: "/var/lib/atoll", Run: "/run/atoll", Listen: "127.0.0.1:7443",
		Subnet: "10.88.0.0/16", Group: "atoll", Busybox: "/bin/busybox", Buffer: 10, Heartbeat: api.Duration(time.Second), Lease: api.Duration(5 * time.Second), Members: "auto", Replace: api.Duration(5 * time.Minute), Rebalance: "advise", PerHour: 20, LogLevel: "info", LogFormat: "text"}
}

// nodeName makes a DNS label of a host name.
func nodeName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, host), "-")
	if !api.ValidName(name) {
		return "node"
	}
	return name
}

// load reads file, environment and flags, in that order.
func load(verb string, args []string, more func(*flag.FlagSet)) (config, error) {
	c := defaults()
	file, given := fileArg(args)
	if err := c.readFile(file, given); err != nil {
		return c, err
	}
	fs := flag.NewFlagSet("atolld "+verb, flag.ContinueOnError)
	fs.String("config", defaultConfigFile, "`file` with settings (YAML); flags and environment go first")
	c.flags(fs)
	if more != nil {
		more(fs)
	}
	var envErr error
	fs.VisitAll(func(f *flag.Flag) {
		if v, ok := os.LookupEnv("ATOLLD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))); ok && envErr == nil {
			if err := f.Value.Set(v); err != nil {
				envErr = errs.New(errs.Invalid, "environment for --%s: %w", f.Name, err)
			}
		}
	})
	if envErr != nil {
		return c, envErr
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return c, err
		}
		return c, errs.New(errs.Invalid, "%w", err)
	}
	if fs.NArg() > 0 {
		return c, errs.New(errs.Invalid, "unexpected argument %q", fs.Arg(0)).WithHint("atolld %s --help", verb)
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.Run, "atoll.sock")
	}
	return c, c.check()
}

func (c *config) flags(fs *flag.FlagSet) {
	fs.StringVar(&c.Node, "node", c.Node, "name of this host in the pool")
	fs.StringVar(&c.State, "state", c.State, "`directory` for what must survive a reboot")
	fs.StringVar(&c.Run, "run", c.Run, "`directory` for what need not; keep it short and in memory")
	fs.StringVar(&c.Socket, "socket", c.Socket, "unix `socket` of the API (default RUN/atoll.sock)")
	fs.StringVar(&c.Listen, "listen", c.Listen, "`host:port` of the API over TLS; empty: none")
	fs.StringVar(&c.Advertise, "advertise", c.Advertise, "where other hosts reach the API, `host:port,…`; default: follows from --listen")
	fs.StringVar(&c.Subnet, "subnet", c.Subnet, "addresses of instances on the default network")
	fs.StringVar(&c.Group, "group", c.Group, "name of Atoll's tree in the host's cgroups")
	fs.StringVar(&c.EtcdEndpoints, "etcd-endpoints", c.EtcdEndpoints, "external etcd, comma-separated `URLs`; default: an embedded one")
	fs.StringVar(&c.EtcdUser, "etcd-user", c.EtcdUser, "user at the external etcd; its password is read from ATOLLD_ETCD_PASSWORD")
	fs.StringVar(&c.EtcdCA, "etcd-ca", c.EtcdCA, "PEM `file` of who signed the external etcd's certificate")
	fs.StringVar(&c.EtcdCert, "etcd-cert", c.EtcdCert, "PEM `file`: certificate shown to the external etcd")
	fs.StringVar(&c.EtcdKey, "etcd-key", c.EtcdKey, "PEM `file`: key of that certificate")
	fs.StringVar(&c.PeerListen, "peer-listen", c.PeerListen, "`host:port` where other servers reach this one's copy of the state (default: the API's host, the port after its)")
	fs.TextVar(&c.Heartbeat, "heartbeat", c.Heartbeat, "`pause` between signs of life of this host")
	fs.TextVar(&c.Lease, "lease", c.Lease, "a host that was not heard of for this `time` is lost, and what was on it is started elsewhere")
	fs.StringVar(&c.Members, "members", c.Members, "how many hosts keep the pool's state: auto (1, 3 from three hosts on, 5 from five on), 1, 3 or 5")
	fs.TextVar(&c.Replace, "replace-after", c.Replace, "a host that keeps the state and is lost for this `time` is replaced by another")
	fs.StringVar(&c.DNS, "dns", c.DNS, "resolvers of instances, comma-separated (default: the host's)")
	fs.StringVar(&c.Busybox, "busybox", c.Busybox, "static busybox the built-in image is made of; empty: no built-in image")
	fs.IntVar(&c.Buffer, "buffer", c.Buffer, "`percent` of the pool that is promised to nobody")
	fs.IntVar(&c.Spare, "spare", c.Spare, "so many `nodes` (the largest) may be lost and what is promised still fits, in sum; 1 is called N+1")
	fs.StringVar(&c.Rebalance, "rebalance", c.Rebalance, "off, advise (propose moves: atoll get moves) or auto (make them)")
	fs.IntVar(&c.PerHour, "rebalance-per-hour", c.PerHour, "moves that rebalancing may begin in an hour")
	fs.StringVar(&c.LogLevel, "log-level", c.LogLevel, "debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", c.LogFormat, "text or json")
}

func fileArg(args []string) (path string, given bool) {
	for i, a := range args {
		name, val, eq := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if name != "config" || !strings.HasPrefix(a, "-") {
			continue
		}
		if eq {
			return val, true
		}
		if i+1 < len(args) {
			return args[i+1], true
		}
	}
	return defaultConfigFile, false
}

func (c *config) readFile(path string, given bool) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !given {
		return nil
	}
	if err != nil {
		return errs.New(errs.Invalid, "read settings: %w", err)
	}
	raw, err := yaml.YAMLToJSON(b)
	if err != nil {
		return errs.New(errs.Invalid, "settings in %s: %w", path, err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return errs.New(errs.Invalid, "settings in %s: %w", path, err)
	}
	return nil
}

func (c *config) check() error {
	var f []errs.Field
	if !api.ValidName(c.Node) {
		f = append(f, errs.Field{Field: "node", Value: c.Node, Rule: "must be a DNS label", Example: "isle1"})
	}
	for name, dir := range map[string]string{"state": c.State, "run": c.Run} {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			f = append(f, errs.Field{Field: name, Value: dir, Rule: "must be an absolute directory of Atoll's own", Example: "/var/lib/atoll"})
		}
	}
	if len(c.Socket) > 100 {
		f = append(f, errs.Field{Field: "socket", Value: c.Socket, Rule: "must be at most 100 characters, a limit of unix sockets", Example: "/run/atoll/atoll.sock"})
	}
	if !api.ValidName(c.Group) {
		f = append(f, errs.Field{Field: "group", Value: c.Group, Rule: "must be a DNS label", Example: "atoll"})
	}
	if !slices.Contains([]string{"off", "advise", "auto"}, c.Rebalance) {
		f = append(f, errs.Field{Field: "rebalance", Value: c.Rebalance, Rule: "must be off, advise or auto", Example: "advise"})
	}
	for name, v := range map[string][2]int{"buffer": {c.Buffer, 90}, "spare": {c.Spare, 1000}, "rebalance-per-hour": {c.PerHour, 100_000}} {
		if v[0] < 0 || v[0] > v[1] {
			f = append(f, errs.Field{Field: name, Value: strconv.Itoa(v[0]), Rule: fmt.Sprintf("must be 0 to %d", v[1]), Example: "1"})
		}
	}
	if _, err := advertised(*c); err != nil {
		f = append(f, errs.Field{Field: "advertise", Value: c.Advertise, Rule: "must be addresses other hosts can reach, with their port, separated by commas", Example: "10.0.0.1:7443"})
	}
	if h, l := c.Heartbeat.D(), c.Lease.D(); h < 100*time.Millisecond || h > time.Minute || l < 3*h || l > time.Hour {
		f = append(f, errs.Field{Field: "lease", Value: l.String() + " with a heartbeat of " + h.String(), Rule: "a heartbeat must be 100ms to 1m, a lease at least three of them and at most 1h", Example: "--heartbeat 1s --lease 5s"})
	}
	if !slices.Contains([]string{"auto", "1", "3", "5"}, c.Members) {
		f = append(f, errs.Field{Field: "members", Value: c.Members, Rule: "must be auto, 1, 3 or 5", Example: "auto"})
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		f = append(f, errs.Field{Field: "log-format", Value: c.LogFormat, Rule: "must be text or json", Example: "json"})
	}
	return errs.InvalidFields("settings", f)
}

func list(s string) []string {
	var out []string
	for _, p := range strings.Split(s, ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// resolvers are the host's own, when they can be reached from an instance.
func resolvers(c config) []string {
	return slices.DeleteFunc(hostResolvers(c), func(a string) bool { return c.DNS == "" && (strings.HasPrefix(a, "127.") || a == "::1") })
}

// hostResolvers are those that the host itself asks.
func hostResolvers(c config) []string {
	if c.DNS != "" {
		return list(c.DNS)
	}
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var out []string
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out
}

func describe(c config) string {
	return fmt.Sprintf("node %s, state %s, run %s", c.Node, c.State, c.Run)
}
