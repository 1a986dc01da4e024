package conn

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"atoll/internal/cli/parse"
	"atoll/internal/clock"
)

const (
	refreshAfter = 10 * time.Minute        // age at which the list of servers is asked for again
	refreshLimit = 1500 * time.Millisecond // for that question, at the end of a command
)

// Servers are the addresses in a setting: one URL, or several with commas between.
func Servers(s string) []string {
	var out []string
	for _, p := range strings.Split(s, ",") {
		if p = strings.TrimRight(strings.TrimSpace(p), "/"); p != "" && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// MemoryPath is where commands of the user with this home leave each other what
// they found out about the servers.
func MemoryPath(home string) string { return filepath.Join(filepath.Dir(Path(home)), "servers.json") }

// memory is what earlier commands found out: which servers there are, the one that
// answered last in front. It holds for one setting only, and nothing is lost with it.
type memory struct {
	For     string    `json:"for"`
	Servers []string  `json:"servers"`
	Asked   time.Time `json:"asked"` // when the pool was asked for its servers
}

// recall reads it; what cannot be read or is about other servers is as good as none.
func recall(path, setting string) memory {
	none := memory{For: setting, Servers: Servers(setting)}
	if path == "" {
		return none
	}
	b, err := parse.ReadFile(path, maxConfig)
	var m memory
	if err != nil || json.Unmarshal(b, &m) != nil || m.For != setting {
		return none
	}
	for _, s := range none.Servers { // the setting's own stay in any case
		if !slices.Contains(m.Servers, s) {
			m.Servers = append(m.Servers, s)
		}
	}
	return m
}

// remember keeps what this command found out, and from time to time asks the pool for
// its servers. It never fails: the command is done.
func (s *wire) remember() {
	if s.path == "" || !s.Answered() {
		return
	}
	c := clock.Real{}
	now := c.Now()
	old := s.known
	if age := now.Sub(old.Asked); age > refreshAfter || age < 0 {
		ctx, cancel := context.WithTimeout(context.Background(), refreshLimit)
		defer cancel()
		_, _ = s.RefreshEndpoints(ctx) // a pool that cannot tell is asked again after the same time
		s.known.Asked = now
	}
	s.known.Servers = s.Endpoints()
	if s.known.Asked.Equal(old.Asked) && slices.Equal(s.known.Servers, old.Servers) {
		return
	}
	b, err := json.Marshal(s.known)
	if err == nil {
		_ = WritePrivate(s.path, append(b, '\n')) // the next command finds out by itself
	}
}
