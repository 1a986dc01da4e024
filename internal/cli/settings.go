package cli

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
)

// DefaultSocket is where the daemon of this host listens.
const DefaultSocket = "/run/atoll/atoll.sock"

// Settings say which server is talked to, and as whom.
type Settings struct {
	Server    string // https://host:7443; "": the socket
	Socket    string
	Token     string // never from an argument
	CAFile    string
	UserAgent string
	// Trace is told of every request, without secrets; nil: nobody wants to know.
	Trace func(line string)
}

// config is ~/.config/atoll/config.yaml. Every field may be overruled by the
// environment, and that by a flag.
type config struct {
	Tenant    string `json:"tenant,omitempty"`    // tenant that is meant when none is named
	Server    string `json:"server,omitempty"`    // URL; without it the local socket
	Socket    string `json:"socket,omitempty"`    // default /run/atoll/atoll.sock
	TokenFile string `json:"tokenFile,omitempty"` // file that holds a bearer token, mode 0600
	CAFile    string `json:"caFile,omitempty"`    // certificate authority of the server, PEM
}

type globalOptions struct {
	tenant, server, socket, tokenFile, caFile string
	verbose                                   bool
}

func (g *globalOptions) flags(fs *pflag.FlagSet) {
	short := func(s string) string {
		if fs.ShorthandLookup(s) != nil {
			return ""
		}
		return s
	}
	str := func(p *string, name, sh, usage string) {
		if fs.Lookup(name) == nil {
			fs.StringVarP(p, name, short(sh), "", usage)
		}
	}
	str(&g.tenant, "tenant", "n", "tenant (ATOLL_TENANT; default: the one chosen by 'atoll use')")
	str(&g.server, "server", "", "URL of the server (ATOLL_SERVER; default: this host's socket)")
	str(&g.socket, "socket", "", "socket of the daemon (ATOLL_SOCKET; default "+DefaultSocket+")")
	str(&g.tokenFile, "token-file", "", "file that holds a token (or the token itself in ATOLL_TOKEN)")
	str(&g.caFile, "ca-file", "", "certificate authority of the server, PEM")
	fs.BoolVarP(&g.verbose, "verbose", short("v"), false, "show the requests that are made")
}

func (c *call) configPath() string { return filepath.Join(c.Home, ".config", "atoll", "config.yaml") }

const maxConfig = 64 << 10

func (c *call) config() (*config, error) {
	if c.file != nil {
		return c.file, nil
	}
	b, err := readBounded(c.configPath(), maxConfig)
	if os.IsNotExist(err) {
		c.file = &config{}
		return c.file, nil
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "read settings: %w", err)
	}
	f := &config{}
	if err := yaml.UnmarshalStrict(b, f); err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", c.configPath(), err).WithHint("correct it or remove it")
	}
	c.file = f
	return f, nil
}

func (c *call) saveConfig(f *config) error {
	b, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	return writePrivate(c.configPath(), b)
}

// writePrivate replaces a file whole, readable by its owner only.
func writePrivate(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".new-*") // created 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

func first(vals ...string) string {
	for _, v := range vals {
		if v != "" {
			return v
		}
	}
	return ""
}

// settings decides: flag before environment before file.
func (c *call) settings() (Settings, error) {
	f, err := c.config()
	if err != nil {
		return Settings{}, err
	}
	g := c.global
	s := Settings{
		Server: first(g.server, c.Getenv("ATOLL_SERVER"), f.Server),
		Socket: first(g.socket, c.Getenv("ATOLL_SOCKET"), f.Socket, DefaultSocket),
		Token:  c.Getenv("ATOLL_TOKEN"),
		CAFile: first(g.caFile, c.Getenv("ATOLL_CA_FILE"), f.CAFile),

		UserAgent: "atoll/" + first(c.Version, "dev"),
	}
	if g.socket != "" && g.server == "" {
		s.Server = "" // a socket on the command line outranks a server in the file
	}
	if g.tokenFile != "" || s.Token == "" {
		if s.Token, err = readToken(first(g.tokenFile, f.TokenFile)); err != nil {
			return Settings{}, err
		}
	}
	if g.verbose {
		s.Trace = func(line string) { c.note("%s", line) }
	}
	return s, nil
}

func readToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := readBounded(path, 4<<10)
	if err != nil {
		return "", errs.New(errs.Invalid, "read token: %w", err).WithHint("log in again: atoll login URL")
	}
	return strings.TrimSpace(string(b)), nil
}

// server gives the connection, made at the first use.
func (c *call) server() (Client, error) {
	if c.client != nil {
		return c.client, nil
	}
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	if c.client, err = c.Dial(s); err != nil {
		c.client = nil
		return nil, err
	}
	return c.client, nil
}

// chosenTenant is the tenant named by flag, environment or file; "" if none is.
func (c *call) chosenTenant() (string, error) {
	f, err := c.config()
	if err != nil {
		return "", err
	}
	t := strings.Trim(first(c.global.tenant, c.Getenv("ATOLL_TENANT"), f.Tenant), "/")
	if t != "" && !api.ValidTenantPath(t) {
		return "", errs.InvalidFields("tenant", []errs.Field{{Field: "--tenant", Value: t, Rule: "must be names joined by /", Example: "acme/research"}})
	}
	return t, nil
}

// tenant is the tenant that is meant: the chosen one, or the only one there is.
func (c *call) tenant(ctx context.Context) (string, error) {
	t, err := c.chosenTenant()
	if err != nil || t != "" {
		return t, err
	}
	names, err := c.tenants(ctx)
	if err != nil {
		return "", err
	}
	switch len(names) {
	case 1:
		return names[0], nil
	case 0:
		return "", errs.New(errs.Invalid, "there is no tenant yet").WithHint("atoll tenant create NAME")
	}
	return "", errs.New(errs.Invalid, "which tenant? there are %s", strings.Join(names[:min(len(names), 8)], ", ")).
		WithHint("choose one: atoll use %s (or --tenant %s for this call)", names[0], names[0])
}

// tenants lists the tenants the caller may see.
func (c *call) tenants(ctx context.Context) ([]string, error) {
	cl, err := c.server()
	if err != nil {
		return nil, err
	}
	list, _, err := store.List[*api.Tenant](ctx, cl, api.Selector{Kind: api.KindTenant})
	if err != nil {
		if errs.KindOf(err) != errs.Denied {
			return nil, err
		}
		id, err := cl.WhoAmI(ctx) // somebody of one tenant may not list them all
		return id.Tenants, err
	}
	var names []string
	for _, t := range list {
		if t.DeletedAt == nil {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
