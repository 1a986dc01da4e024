package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

const secret = "s3cret=with spaces"

// quick is patience that tests can afford.
var quick = Timing{Call: 2 * time.Second, Settle: 3 * time.Second, Again: 300 * time.Millisecond, Look: 20 * time.Millisecond}

// writeCredentials makes a directory with the file isle2.
func writeCredentials(t *testing.T, text string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: credentials must be root's")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "isle2"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func good(t *testing.T) string { return writeCredentials(t, "user=admin\npassword="+secret+"\n") }

// service is a Redfish service with one host, or more, as bad as its fields say.
type service struct {
	t *testing.T

	mu       sync.Mutex
	on       bool
	takes    time.Duration // from the command to the state
	ignore   int           // so many commands are accepted and not done
	fail     int           // so many commands are answered with 500
	breaks   int           // so many readings of the state are answered with 503
	allowed  []string      // reset types
	systems  []string
	sessions map[string]bool
	opened   int
	resets   []string
	hang     chan struct{} // readings of the state wait for it
}

func newService(t *testing.T) (*service, *httptest.Server) {
	s := &service{t: t, on: true, systems: []string{"1"}, sessions: map[string]bool{}, allowed: []string{"On", "ForceOff", "GracefulShutdown"}}
	srv := httptest.NewUnstartedServer(s)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // a client that does not trust it is tried, too
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return s, srv
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := strings.TrimSuffix(r.URL.Path, "/")
	if path == "/redfish/v1" {
		answer(w, 200, map[string]any{"@odata.id": "/redfish/v1", "Systems": link("/redfish/v1/Systems"), "SessionService": link("/redfish/v1/SessionService"),
			"Links": map[string]any{"Sessions": link("/redfish/v1/SessionService/Sessions")}})
		return
	}
	if path == "/redfish/v1/SessionService/Sessions" && r.Method == http.MethodPost {
		s.login(w, r)
		return
	}
	if !s.sessions[r.Header.Get("X-Auth-Token")] {
		problem(w, 401, "no session")
		return
	}
	switch {
	case strings.HasPrefix(path, "/redfish/v1/SessionService/Sessions/") && r.Method == http.MethodDelete:
		delete(s.sessions, r.Header.Get("X-Auth-Token"))
		w.WriteHeader(204)
	case path == "/redfish/v1/Systems":
		var m []any
		for _, id := range s.systems {
			m = append(m, link("/redfish/v1/Systems/"+id))
		}
		answer(w, 200, map[string]any{"Members": m, "Members@odata.count": len(m)})
	case strings.HasSuffix(path, "/Actions/ComputerSystem.Reset") && r.Method == http.MethodPost:
		s.reset(w, r)
	case strings.HasPrefix(path, "/redfish/v1/Systems/"):
		s.read(w, path)
	default:
		problem(w, 404, path)
	}
}

func (s *service) login(w http.ResponseWriter, r *http.Request) {
	var in struct{ UserName, Password string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.UserName != "admin" || in.Password != secret {
		problem(w, 401, "wrong user or password")
		return
	}
	s.opened++
	token := fmt.Sprint("token", s.opened)
	s.sessions[token] = true
	w.Header().Set("X-Auth-Token", token)
	w.Header().Set("Location", fmt.Sprint("/redfish/v1/SessionService/Sessions/", s.opened))
	answer(w, 201, map[string]any{"Id": fmt.Sprint(s.opened)})
}

func (s *service) read(w http.ResponseWriter, path string) {
	if hang := s.hang; hang != nil {
		s.mu.Unlock()
		<-hang
		s.mu.Lock()
	}
	if s.breaks > 0 && len(s.resets) > 0 {
		s.breaks--
		problem(w, 503, "busy")
		return
	}
	state := "Off"
	if s.on {
		state = "On"
	}
	answer(w, 200, map[string]any{"@odata.id": path, "Id": filepath.Base(path), "PowerState": state,
		"Actions": map[string]any{"#ComputerSystem.Reset": map[string]any{"target": path + "/Actions/ComputerSystem.Reset", "ResetType@Redfish.AllowableValues": s.allowed}}})
}

func (s *service) reset(w http.ResponseWriter, r *http.Request) {
	var in struct{ ResetType string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		problem(w, 400, "what?")
		return
	}
	s.resets = append(s.resets, in.ResetType)
	want := in.ResetType == "On" || in.ResetType == "ForceOn"
	switch {
	case s.fail > 0:
		s.fail--
		problem(w, 500, "try again")
		return
	case s.on == want:
		problem(w, 400, "the system is in that state already")
		return
	case s.ignore > 0:
		s.ignore--
	default:
		time.AfterFunc(s.takes, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.on = want
		})
	}
	w.WriteHeader(204)
}

func link(to string) map[string]any { return map[string]any{"@odata.id": to} }

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client may have gone
}

func problem(w http.ResponseWriter, code int, text string) {
	answer(w, code, map[string]any{"error": map[string]any{"code": "Base.1.0.GeneralError", "message": text}})
}

func open(t *testing.T, b api.BMC, dir string) Power {
	t.Helper()
	p, err := OpenWith(b, dir, clock.Real{}, quick)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func at(srv *httptest.Server) api.BMC {
	return api.BMC{Protocol: "redfish", Address: srv.URL, Credentials: "isle2", Insecure: true}
}

// the service is left as it was: no session stays open.
func (s *service) closed() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) > 0 {
		s.t.Errorf("%d sessions are still open", len(s.sessions))
	}
}

func TestRedfishOffAndOn(t *testing.T) {
	for name, set := range map[string]func(*service){
		"at once":            func(*service) {},
		"slowly":             func(s *service) { s.takes = 400 * time.Millisecond },
		"fails twice":        func(s *service) { s.fail = 2 },
		"forgets a command":  func(s *service) { s.ignore = 1 },
		"busy while it does": func(s *service) { s.takes, s.breaks = 100*time.Millisecond, 3 },
		"names no types":     func(s *service) { s.allowed = nil },
		"one of several":     func(s *service) { s.systems = []string{"0", "1", "blade"} },
	} {
		t.Run(name, func(t *testing.T) {
			s, srv := newService(t)
			set(s)
			b := at(srv)
			if len(s.systems) > 1 {
				b.System = "1"
			}
			p := open(t, b, good(t))
			if st, err := p.State(t.Context()); err != nil || st != On {
				t.Fatal(st, err)
			}
			if err := p.Off(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.mu.Lock()
			if s.on || len(s.resets) == 0 || s.resets[0] != "ForceOff" {
				t.Error("it is not off", s.resets)
			}
			before := len(s.resets)
			s.mu.Unlock()
			// Off already is off, and is not told to the host again.
			if err := p.Off(t.Context()); err != nil {
				t.Error(err)
			}
			s.mu.Lock()
			if len(s.resets) != before {
				t.Error("it was told again", s.resets)
			}
			s.mu.Unlock()
			if err := p.On(t.Context()); err != nil {
				t.Error(err)
			}
			if st, err := p.State(t.Context()); err != nil || st != On {
				t.Error(st, err)
			}
			s.closed()
		})
	}
}

// The host goes off between the look and the command: the service answers 400, and that is no failure.
func TestRedfishGoesOffMeanwhile(t *testing.T) {
	s, srv := newService(t)
	s.hang = make(chan struct{})
	p := open(t, at(srv), good(t))
	done := make(chan error, 1)
	go func() { done <- p.Off(t.Context()) }()
	go func() {
		for range 2 { // the list's reading, and the first look
			s.hang <- struct{}{}
		}
		s.mu.Lock()
		s.hang = nil
		s.takes, s.on = time.Hour, true
		s.mu.Unlock()
		time.Sleep(50 * time.Millisecond)
		s.mu.Lock()
		s.on = false
		s.mu.Unlock()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.closed()
}

func TestRedfishNeverAssumes(t *testing.T) {
	s, srv := newService(t)
	s.takes = time.Hour
	dir := good(t)
	err := open(t, at(srv), dir).Off(t.Context())
	if !errors.Is(err, errs.Timeout) || errs.HintOf(err) == "" || !strings.Contains(err.Error(), srv.URL) {
		t.Error(err)
	}
	if len(s.resets) < 3 {
		t.Error("it was told only", s.resets)
	}
	s.closed()
	// Whoever asks may stop waiting.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := open(t, at(srv), dir).Off(ctx); !errors.Is(err, errs.Timeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	s.closed()
}

func TestRedfishErrors(t *testing.T) {
	s, srv := newService(t)
	dir := good(t)
	wrong := writeCredentials(t, "user=admin\npassword=otherwise\n")
	check := func(name string, b api.BMC, dir string, kind errs.Kind, words ...string) {
		t.Helper()
		err := open(t, b, dir).Off(t.Context())
		if !errors.Is(err, kind) || errs.HintOf(err) == "" && kind != errs.Invalid {
			t.Errorf("%s: %v (%s)", name, err, errs.HintOf(err))
			return
		}
		text := err.Error() + errs.HintOf(err)
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q does not name %s", name, text, w)
			}
		}
		if strings.Contains(text, secret) || strings.Contains(text, "otherwise") {
			t.Errorf("%s: the password is in %q", name, text)
		}
	}
	check("wrong password", at(srv), wrong, errs.Denied, "log in", srv.URL, filepath.Join(wrong, "isle2"))
	secure := at(srv)
	secure.Insecure = false
	check("unknown certificate", secure, dir, errs.Unavailable, "certificate", srv.URL)
	nobody := at(srv)
	nobody.Address = "https://127.0.0.1:1"
	check("nobody there", nobody, dir, errs.Unavailable, "127.0.0.1:1")
	check("another host's password", at(srv), writeCredentials(t, "user=admin\npassword="+secret+"\naddress=10.0.9.7\n"), errs.Denied, "10.0.9.7", "127.0.0.1")
	if st, err := open(t, at(srv), writeCredentials(t, "user=admin\npassword="+secret+"\naddress=127.0.0.1\n")).State(t.Context()); err != nil || st != On {
		t.Error(st, err)
	}
	s.systems = []string{"1", "2"}
	check("which system", at(srv), dir, errs.Invalid, "spec.bmc.system", "1, 2")
	s.systems = nil
	check("no system", at(srv), dir, errs.NotFound)
	s.systems, s.allowed = []string{"1"}, []string{"GracefulShutdown"}
	check("cannot", at(srv), dir, errs.Unsupported, "ForceOff")
	s.closed()
	away := httptest.NewServer(http.RedirectHandler("https://127.0.0.1:1/redfish/v1/", http.StatusTemporaryRedirect))
	defer away.Close()
	check("sends elsewhere", at(away), dir, errs.Unavailable, "another address")
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 3 * maxAnswer / 1024 {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
		}
	}))
	defer endless.Close()
	check("endless answer", at(endless), dir, errs.Unavailable, endless.URL)
	if err := os.Remove(filepath.Join(dir, "isle2")); err != nil {
		t.Fatal(err)
	}
	check("no credentials", at(srv), dir, errs.Unavailable, dir)
}

func TestOpenRefuses(t *testing.T) {
	for _, b := range []api.BMC{
		{Protocol: "telnet", Address: "10.0.9.2", Credentials: "isle2"},
		{Protocol: "redfish", Address: "https://10.0.9.2", Credentials: "../shadow"},
		{Protocol: "redfish", Address: "http://10.0.9.2", Credentials: "isle2"},
		{Protocol: "redfish", Address: "https://admin:pw@10.0.9.2", Credentials: "isle2"},
		{Protocol: "redfish", Address: "ftp://10.0.9.2", Credentials: "isle2"},
		{Protocol: "redfish", Address: "https://10.0.9.2/redfish", Credentials: "isle2"},
		{Protocol: "redfish", Address: "", Credentials: "isle2"},
		{Protocol: "ipmi", Address: "10.0.9.2:0", Credentials: "isle2"},
		{Protocol: "ipmi", Address: "10.0.9.2:99999", Credentials: "isle2"},
		{Protocol: "ipmi", Address: "https://10.0.9.2", Credentials: "isle2"},
		{Protocol: "ipmi", Address: "", Credentials: "isle2"},
	} {
		if _, err := Open(b, Dir); !errors.Is(err, errs.Invalid) || strings.Contains(fmt.Sprint(err), "pw") {
			t.Errorf("%+v: %v", b, err)
		}
	}
	for a, want := range map[string]string{"10.0.9.2": "10.0.9.2 623", "bmc7:6230": "bmc7 6230", "[fd00::7]:623": "fd00::7 623", "fd00::7": "fd00::7 623", "ipmi://bmc7": "bmc7 623"} {
		h, p, err := ipmiAddress(a)
		if got := fmt.Sprint(h, " ", p); err != nil || got != want {
			t.Errorf("%s: %s %v", a, got, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	dir := writeCredentials(t, "# of isle2\r\n\nuser= admin\r\npassword="+secret)
	path := filepath.Join(dir, "isle2")
	c, err := readCredentials(dir, "isle2")
	if err != nil || c.user != "admin" || c.password != secret {
		t.Fatal(err, c.user)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", c, c, c, c); strings.Contains(s, secret) {
		t.Error(s)
	}
	refusedFor := func(what string, do func() error) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if _, err := readCredentials(dir, "isle2"); err == nil || errs.HintOf(err) == "" || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o700} {
		refusedFor(mode.String(), func() error { return os.Chmod(path, mode) })
	}
	refusedFor("another's", func() error { return errors.Join(os.Chmod(path, 0o600), os.Chown(path, 1, 1)) })
	refusedFor("a link", func() error {
		return errors.Join(os.Chown(path, 0, 0), os.Rename(path, path+".real"), os.Symlink(path+".real", path))
	})
	refusedFor("a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o600)) })
	for _, text := range []string{"", "user=a", "password=" + secret, "user=a\npassword=", "user=a\npassword=" + secret + "\npassword=x", secret, "user=a\npass=" + secret,
		"user=a\npassword=" + secret + "\x00", "user=a\npassword=" + strings.Repeat("x", maxCredentials)} {
		if _, err := parseCredentials("f", []byte(text)); !errors.Is(err, errs.Invalid) || strings.Contains(err.Error(), secret) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}

func FuzzParseCredentials(f *testing.F) {
	f.Add([]byte("user=a\npassword=b=c \n#x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCredentials("f", b)
		if (err == nil) != (c.user != "" && c.password != "") {
			t.Fatal(c.user, err)
		}
	})
}
