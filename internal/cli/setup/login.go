// Package setup holds the verbs about the command line and the daemon themselves: use,
// login, backup, doctor, version.
//
// It starts no goroutine. It must never put a token where others can read it.
package setup

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"atoll/api"
	"atoll/internal/cli/conn"
	"atoll/internal/cli/term"
	"atoll/internal/cli/verb"
	"atoll/internal/errs"
)

// Use chooses the tenant that is meant.
func Use() verb.Def {
	clear := false
	return verb.Def{
		Use: "use [TENANT]", Group: verb.GroupSetup, Max: 1, Short: "Choose the tenant that is meant when none is named",
		Long:    "Use keeps the choice in ~/.config/atoll/config.yaml. Without an argument it shows the choice; --clear takes it back. --tenant and ATOLL_TENANT outrank it.",
		Example: "  atoll use acme\n  atoll use acme/research\n  atoll use --clear",
		Flags:   func(fs *pflag.FlagSet) { fs.BoolVar(&clear, "clear", false, "choose none") },
		Run:     func(ctx context.Context, c *verb.Call) error { return runUse(ctx, c, clear) }, Complete: verb.CompleteTenants,
	}
}

func runUse(ctx context.Context, c *verb.Call, clear bool) error {
	f, err := c.Config()
	if err != nil {
		return err
	}
	switch {
	case clear:
		f.Tenant = ""
		c.Note("no tenant is chosen")
		return f.Save(c.Home)
	case len(c.Args) == 0:
		t, err := c.Tenant(ctx)
		if err == nil {
			c.Say("%s", t)
		}
		return err
	}
	name := strings.Trim(c.Args[0], "/")
	if !api.ValidTenantPath(name) {
		return errs.InvalidFields("use", []errs.Field{{Field: "tenant", Value: name, Rule: "must be names joined by /", Example: "acme/research"}})
	}
	if _, err := c.Get(ctx, api.Ref{Kind: api.KindTenant, Name: name}); err != nil {
		return err
	}
	f.Tenant = name
	if err := f.Save(c.Home); err != nil {
		return err
	}
	c.Say("commands now mean tenant %s", name)
	return nil
}

type loginOptions struct{}

// Login chooses the server that is meant.
func Login() verb.Def {
	o := &loginOptions{}
	return verb.Def{
		Use: "login URL[,URL…]", Group: verb.GroupSetup, Min: 1, Max: 1, Short: "Use a server over the network",
		Long: `Login checks a token against a server and keeps both: the address in
~/.config/atoll/config.yaml, the token in a file beside it that only you can read.
The token is read from --token-file, ATOLL_TOKEN or the terminal (not shown), or
from standard input; it is never an argument, where others could see it.
Of a pool with several servers one address is enough: the others are learned from it
and kept in servers.json beside it, the one that answered last in front. With several
addresses, any that answers will do.
'atoll login local' goes back to this host's own daemon.`,
		Example: "  atoll login https://isle1:7443 --ca-file ca.pem\n  atoll login https://isle1:7443 < ci.token\n  atoll login local",
		Run:     o.run,
	}
}

func (o *loginOptions) run(ctx context.Context, c *verb.Call) error {
	f, err := c.Config()
	if err != nil {
		return err
	}
	tokenPath := filepath.Join(filepath.Dir(conn.Path(c.Home)), "token")
	if c.Args[0] == "local" {
		f.Server, f.TokenFile, f.CAFile = "", "", ""
		if err := os.Remove(conn.MemoryPath(c.Home)); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.Remove(tokenPath); err != nil && !os.IsNotExist(err) {
			return err
		}
		c.Note("commands go to this host's daemon")
		return f.Save(c.Home)
	}
	servers, err := loginServers(c.Args[0])
	if err != nil {
		return err
	}
	token := c.Getenv("ATOLL_TOKEN")
	switch {
	case c.Global.TokenFile != "":
		if token, err = conn.ReadToken(c.Global.TokenFile); err != nil {
			return err
		}
	case token != "":
	case c.Term.InIs():
		c.Note("Token for %s (not shown):", servers)
		if token, err = c.Term.Password(); err != nil {
			return errs.New(errs.Invalid, "read token: %w", err)
		}
	default:
		if token, err = term.ReadLine(c.In); err != nil && !errors.Is(err, io.EOF) {
			return errs.New(errs.Invalid, "read token: %w", err)
		}
	}
	if token = strings.TrimSpace(token); token == "" {
		return errs.New(errs.Invalid, "no token was given").WithHint("make one on the server: atoll token create NAME")
	}
	ca := f.CAFile
	if c.Global.CAFile != "" {
		if ca, err = filepath.Abs(c.Global.CAFile); err != nil {
			return err
		}
	}
	s := conn.Settings{Server: servers, Token: token, CAFile: ca, UserAgent: c.Agent(), Memory: conn.MemoryPath(c.Home)}
	cl, err := c.Dial(s)
	if err != nil {
		return err
	}
	defer cl.Close()
	id, err := cl.WhoAmI(ctx)
	if err != nil {
		return err
	}
	if err := conn.WritePrivate(tokenPath, []byte(token+"\n")); err != nil {
		return err
	}
	f.Server, f.TokenFile, f.CAFile = s.Server, tokenPath, ca
	if err := f.Save(c.Home); err != nil {
		return err
	}
	c.Say("logged in to %s as %s", servers, id.User)
	return nil
}

// loginServers checks the addresses given.
func loginServers(arg string) (string, error) {
	list := conn.Servers(arg)
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Path != "" {
			return "", errs.New(errs.Invalid, "%q is not the URL of a server", s).WithHint("such as https://isle1:7443")
		}
	}
	if len(list) == 0 {
		return "", errs.New(errs.Invalid, "%q names no server", arg).WithHint("such as https://isle1:7443,https://isle2:7443")
	}
	return strings.Join(list, ","), nil
}
