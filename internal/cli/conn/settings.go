package conn

import (
	"cmp"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"atoll/internal/cli/parse"
	"atoll/internal/cli/render"
	"atoll/internal/errs"
)

// DefaultSocket is where the daemon of this host listens.
const DefaultSocket = "/run/atoll/atoll.sock"

// Settings say which server is talked to, and as whom.
type Settings struct {
	Server    string // https://host:7443, or several with commas between; "": the socket
	Socket    string
	Token     string // never from an argument
	CAFile    string
	UserAgent string
	Memory    string // file in which commands leave each other what they know of the servers; "": none
	// Trace is told of every request, without secrets; nil: nobody wants to know.
	Trace func(line string)
}

// File is ~/.config/atoll/config.yaml. Every field may be overruled by the
// environment, and that by a flag.
type File struct {
	Tenant    string `json:"tenant,omitempty"`    // tenant that is meant when none is named
	Server    string `json:"server,omitempty"`    // URL, or several with commas between; without it the local socket
	Socket    string `json:"socket,omitempty"`    // default /run/atoll/atoll.sock
	TokenFile string `json:"tokenFile,omitempty"` // file that holds a bearer token, mode 0600
	CAFile    string `json:"caFile,omitempty"`    // certificate authority of the server, PEM
}

// Options are the flags every verb has.
type Options struct {
	Tenant, Server, Socket, TokenFile, CAFile string
	Verbose                                   bool
}

// Flags adds those a verb has not taken for itself.
func (g *Options) Flags(fs *pflag.FlagSet) {
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
	str(&g.Tenant, "tenant", "n", "tenant (ATOLL_TENANT; default: the one chosen by 'atoll use')")
	str(&g.Server, "server", "", "URL of the server, or several with commas between (ATOLL_SERVER; default: this host's socket)")
	str(&g.Socket, "socket", "", "socket of the daemon (ATOLL_SOCKET; default "+DefaultSocket+")")
	str(&g.TokenFile, "token-file", "", "file that holds a token (or the token itself in ATOLL_TOKEN)")
	str(&g.CAFile, "ca-file", "", "certificate authority of the server, PEM")
	fs.BoolVarP(&g.Verbose, "verbose", short("v"), false, "show the requests that are made")
}

// Path is where the settings of the user with this home are.
func Path(home string) string { return filepath.Join(home, ".config", "atoll", "config.yaml") }

const maxConfig = 64 << 10

// Load reads the settings of the user whose home this is; none are no error.
func Load(home string) (*File, error) {
	b, err := parse.ReadFile(Path(home), maxConfig)
	if os.IsNotExist(err) {
		return &File{}, nil
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "read settings: %w", err)
	}
	f := &File{}
	if err := yaml.UnmarshalStrict(b, f); err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", Path(home), err).WithHint("correct it or remove it")
	}
	return f, nil
}

// Save replaces the settings of the user whose home this is.
func (f *File) Save(home string) error {
	b, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	return WritePrivate(Path(home), b)
}

// WritePrivate replaces a file whole, readable by its owner only.
func WritePrivate(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	_, err := render.File(path, true, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
	return err
}

// Settings decides: flag before environment before file.
func (g Options) Settings(f *File, getenv func(string) string) (Settings, error) {
	s := Settings{
		Server: cmp.Or(g.Server, getenv("ATOLL_SERVER"), f.Server),
		Socket: cmp.Or(g.Socket, getenv("ATOLL_SOCKET"), f.Socket, DefaultSocket),
		Token:  getenv("ATOLL_TOKEN"),
		CAFile: cmp.Or(g.CAFile, getenv("ATOLL_CA_FILE"), f.CAFile),
	}
	if g.Socket != "" && g.Server == "" {
		s.Server = "" // a socket on the command line outranks a server in the file
	}
	if g.TokenFile != "" || s.Token == "" {
		var err error
		if s.Token, err = ReadToken(cmp.Or(g.TokenFile, f.TokenFile)); err != nil {
			return Settings{}, err
		}
	}
	return s, nil
}

// ReadToken reads a token from a file; without a path there is none.
func ReadToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := parse.ReadFile(path, 4<<10)
	if err != nil {
		return "", errs.New(errs.Invalid, "read token: %w", err).WithHint("log in again: atoll login URL")
	}
	return strings.TrimSpace(string(b)), nil
}
