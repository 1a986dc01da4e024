package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	stdfs "io/fs"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"atoll/internal/errs"
	"atoll/internal/image/oci"
)

// authFile is docker's config.json as far as it concerns registries. Programs it
// names (credential helpers) are not run: a daemon must not run what a file says.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredsStore  string               `json:"credsStore"`
	CredHelpers map[string]string    `json:"credHelpers"`
}

type authEntry struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

const maxAuthFile = 1 << 20

func decodeAuthFile(raw []byte) (authFile, error) {
	var f authFile
	if len(raw) > maxAuthFile {
		return f, errs.New(errs.Invalid, "auth file: more than %d bytes", maxAuthFile)
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		// The text of the error could quote a secret.
		return authFile{}, errs.New(errs.Invalid, "auth file: not valid JSON in docker's config.json format")
	}
	return f, nil
}

// lookup finds the credentials for a repository: the most specific key wins, as
// host/namespace/repo, host/namespace, host. ok is false when there are none.
func (f authFile) lookup(host, repo string) (cfg authn.AuthConfig, ok bool, err error) {
	byKey := map[string]authEntry{}
	for k, v := range f.Auths {
		byKey[authKey(k)] = v
	}
	for key := host + "/" + repo; ; {
		if e, found := byKey[key]; found {
			cfg, err := e.config(key)
			return cfg, err == nil && cfg != authn.AuthConfig{}, err
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			break
		}
		key = key[:i]
	}
	if f.CredHelpers[host] != "" {
		return cfg, false, errs.New(errs.Unsupported, "auth file: credentials of %s are kept by a credential helper, which is not run", host).
			WithHint("put an entry for %s under \"auths\"", host)
	}
	return cfg, false, nil
}

// authKey brings the ways people write a registry to one.
func authKey(k string) string {
	k = strings.TrimPrefix(strings.TrimPrefix(k, "https://"), "http://")
	k = strings.TrimSuffix(k, "/")
	k = strings.TrimSuffix(strings.TrimSuffix(k, "/v1"), "/v2")
	for _, hub := range []string{"index.docker.io", "registry-1.docker.io"} {
		if k == hub || strings.HasPrefix(k, hub+"/") {
			return oci.DefaultHost + k[len(hub):]
		}
	}
	return k
}

func (e authEntry) config(key string) (authn.AuthConfig, error) {
	cfg := authn.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth == "" {
		return cfg, nil
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimRight(e.Auth, "\x00"))
	if err != nil {
		if raw, err = base64.RawStdEncoding.DecodeString(e.Auth); err != nil {
			return authn.AuthConfig{}, errs.New(errs.Invalid, "auth file: auth of %s is not base64", oci.Clip(key))
		}
	}
	user, pass, ok := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
	if !ok {
		return authn.AuthConfig{}, errs.New(errs.Invalid, "auth file: auth of %s is not user:password", oci.Clip(key))
	}
	cfg.Username, cfg.Password = user, pass
	return cfg, nil
}

// credentials chooses what to show a registry. given is "user:password" or a bearer
// token for the image's own registry; a mirror never gets to see it.
func (c *Client) credentials(host, repo, given string) (authn.Authenticator, error) {
	if given != "" {
		if user, pass, ok := strings.Cut(given, ":"); ok {
			return authn.FromConfig(authn.AuthConfig{Username: user, Password: pass}), nil
		}
		return authn.FromConfig(authn.AuthConfig{RegistryToken: given}), nil
	}
	if c.AuthFile == "" {
		return authn.Anonymous, nil
	}
	raw, err := os.ReadFile(c.AuthFile)
	if errors.Is(err, stdfs.ErrNotExist) {
		return authn.Anonymous, nil
	}
	if err != nil {
		return nil, fmt.Errorf("auth file: %w", err)
	}
	f, err := decodeAuthFile(raw)
	if err != nil {
		return nil, err
	}
	cfg, ok, err := f.lookup(host, repo)
	if err != nil {
		return nil, err
	}
	if !ok {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(cfg), nil
}
