package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/store/remote"
	"atoll/test/rig"
)

// Up makes one pool of all hosts: the first begins it, the others join, and the tenant demo is
// there. It waits until as many keep the state as will.
func (l *Lab) Up(ctx context.Context) error {
	if err := l.Found(ctx); err != nil {
		return err
	}
	for _, h := range l.Hosts[1:] {
		if err := l.Join(ctx, h); err != nil {
			return err
		}
	}
	return l.WaitMembers(ctx, Members(len(l.Hosts)))
}

// Members is how many of so many hosts keep the state: 1, 3 or 5.
func Members(hosts int) int {
	switch {
	case hosts >= 5:
		return 5
	case hosts >= 3:
		return 3
	}
	return 1
}

// Found begins the pool on the first host.
func (l *Lab) Found(ctx context.Context) error {
	h := l.Hosts[0]
	if err := h.Start(ctx); err != nil {
		return err
	}
	if err := h.Serving(ctx); err != nil {
		return err
	}
	if _, err := h.Do("get", "tenant/demo"); err == nil {
		return nil
	}
	_, err := h.Do("tenant", "create", "demo")
	return err
}

// Join makes a host one of the pool, and starts its daemon.
func (l *Lab) Join(ctx context.Context, h *Host) error {
	tok, err := l.joinToken()
	if err != nil {
		return err
	}
	return l.join(ctx, h, tok)
}

// JoinAs is Join for a host that runs no instances.
func (l *Lab) JoinAs(ctx context.Context, h *Host, role api.JoinRole) error {
	tok, err := l.newToken("--role", string(role))
	if err != nil {
		return err
	}
	return l.join(ctx, h, tok)
}

func (l *Lab) join(ctx context.Context, h *Host, tok string) error {
	var urls []string
	for _, o := range l.Hosts {
		if o != h && rig.Ready(o.Socket) {
			urls = append(urls, o.URL())
		}
	}
	cmd := h.Exec(filepath.Join(l.Bin, "atolld"), append([]string{"join", strings.Join(urls, ",")}, h.where()...)...)
	cmd.Env = append(os.Environ(), "ATOLLD_TOKEN="+tok)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("join %s: %w: %s", h.Name, err, out)
	}
	return h.Start(ctx)
}

// joinToken is one for all hosts of the lab.
func (l *Lab) joinToken() (string, error) {
	l.mu.Lock()
	tok := l.token
	l.mu.Unlock()
	if tok != "" {
		return tok, nil
	}
	tok, err := l.newToken("--uses", "0", "--ttl", "24h")
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	l.token = tok
	l.mu.Unlock()
	return tok, l.save()
}

func (l *Lab) newToken(flags ...string) (string, error) {
	out, err := l.Do(append([]string{"node", "token", "-o", "json"}, flags...)...)
	if err != nil {
		return "", err
	}
	var t struct{ Token string }
	if err := json.Unmarshal([]byte(out), &t); err != nil || t.Token == "" {
		return "", errs.New(errs.Internal, "no token in the answer")
	}
	return t.Token, nil
}

// URL is where the host's API is, for those who reach its address.
func (h *Host) URL() string { return "https://" + h.Address + ":" + port }

// Serving lists the hosts whose API answers now.
func (l *Lab) Serving() []*Host {
	var out []*Host
	for _, h := range l.Hosts {
		if rig.Ready(h.Socket) {
			out = append(out, h)
		}
	}
	return out
}

// Do runs the CLI on the first host whose API answers.
func (l *Lab) Do(args ...string) (string, error) {
	for _, h := range l.Hosts {
		if rig.Ready(h.Socket) {
			return h.Do(args...)
		}
	}
	return "", errs.New(errs.Unavailable, "no host of the lab answers the API")
}

// Remote is a CLI call that knows all the hosts given and reaches them over their addresses, as an administrator
// with a token.
func (l *Lab) Remote(hosts []*Host, args ...string) (*exec.Cmd, error) {
	secret, ca, err := l.Admin()
	if err != nil {
		return nil, err
	}
	cmd := l.Command(filepath.Join(l.Bin, "atoll"), args...)
	cmd.Env = append(os.Environ(), "ATOLL_SERVER="+strings.Join(URLs(hosts), ","), "ATOLL_TOKEN="+secret, "ATOLL_CA_FILE="+ca, "ATOLL_TENANT=demo",
		"XDG_CONFIG_HOME="+l.Dir, "HOME="+l.Dir)
	return cmd, nil
}

// URLs of hosts.
func URLs(hosts []*Host) []string {
	out := make([]string, len(hosts))
	for i, h := range hosts {
		out[i] = h.URL()
	}
	return out
}

// Admin gives an administrator's token and the file of the pool's authority, for the API over TLS.
func (l *Lab) Admin() (token, caFile string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	caFile = filepath.Join(l.Hosts[0].State, "pki", "ca.crt")
	if l.secret != "" {
		return l.secret, caFile, nil
	}
	// Made anew by every process that asks: its secret is shown once.
	name := "lab-" + fmt.Sprint(os.Getpid())
	for _, args := range [][]string{
		{"user", "create", "lab"},
		{"user", "bind", "lab", "admin", "--pool"},
	} {
		if _, err := l.Do(args...); err != nil && !strings.Contains(err.Error(), "exists") {
			return "", "", err
		}
	}
	out, err := l.Do("token", "create", name, "--user", "lab")
	if err != nil {
		return "", "", err
	}
	l.secret = strings.TrimSpace(out)
	return l.secret, caFile, nil
}

// Client is the pool's state as the host's own API gives it. It is closed with the lab.
func (h *Host) Client() (*remote.Store, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client == nil {
		c, err := remote.New(remote.Config{Socket: h.Socket, Full: true, Agent: "lab"})
		if err != nil {
			return nil, err
		}
		h.client = c
		h.lab.atEnd(c.Close)
	}
	return h.client, nil
}

// Client is the pool's state as the given hosts give it, whichever of them answers: an administrator with a
// token, over TLS. The lab must have been made with Options.Here. The caller closes it.
func (l *Lab) Client(hosts []*Host) (*remote.Store, error) {
	secret, caFile, err := l.Admin()
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	return remote.New(remote.Config{Endpoints: URLs(hosts), CA: ca, Token: secret, Full: true, Agent: "lab"})
}

// client is that of the first host whose API answers.
func (l *Lab) client() (*remote.Store, error) {
	for _, h := range l.Hosts {
		if rig.Ready(h.Socket) {
			return h.Client()
		}
	}
	return nil, errs.New(errs.Unavailable, "no host of the lab answers the API")
}

// WaitMembers waits until so many hosts keep the state, and answer the API.
func (l *Lab) WaitMembers(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return until(ctx, fmt.Sprintf("%d members", n), func() error {
		serving := l.Serving()
		if n == 1 && len(serving) > 0 {
			return nil
		}
		c, err := l.client()
		if err != nil {
			return err
		}
		ms, _, err := store.List[*api.Member](ctx, c, api.Selector{Kind: api.KindMember})
		if err != nil {
			return err
		}
		voters := 0
		for _, m := range ms {
			if m.Spec.State == api.MemberVoter {
				voters++
			}
		}
		if voters < n || len(serving) < n {
			return errs.New(errs.Unavailable, "%d vote, %d answer", voters, len(serving))
		}
		return nil
	})
}

// Leader is the host that leads the pool, as its lease says.
func (l *Lab) Leader(ctx context.Context) (*Host, error) {
	c, err := l.client()
	if err != nil {
		return nil, err
	}
	le, err := store.Get[*api.Lease](ctx, c, api.LeaderLease())
	if err != nil {
		return nil, err
	}
	if h := l.Host(le.Spec.Holder); h != nil {
		return h, nil
	}
	return nil, errs.New(errs.NotFound, "the leader is %q, none of the lab", le.Spec.Holder)
}
