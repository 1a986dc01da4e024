// Package bmc switches hosts off and on by their management controllers, over Redfish or
// IPMI 2.0. It is the last proof that a lost host runs nothing: so a host counts as off when
// its controller says that it is, never because it was told to.
//
// Every call is a connection of its own: log in, do, log out. It owns no goroutine that
// outlives a call, and must never put a password into an error or a log.
package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
)

// State is what a controller says about its host.
type State string

// The states. Off alone is a proof.
const (
	On      State = "on"
	Off     State = "off"
	Between State = "between" // it is being switched, or paused
	Unknown State = "unknown"
)

// Power is the switch of one host.
type Power interface {
	// Off cuts the power, without asking the system, and returns nil when the controller says that the
	// host is off, also when it was already. errs.Timeout: it does not come to say so.
	Off(ctx context.Context) error
	// On is the same the other way.
	On(ctx context.Context) error
	State(ctx context.Context) (State, error)
}

// Do does what a person asks, on, off or status, and says how the host is then.
func Do(ctx context.Context, p Power, what string) (State, error) {
	switch what {
	case "on":
		return On, p.On(ctx)
	case "off":
		return Off, p.Off(ctx)
	case "status":
		return p.State(ctx)
	}
	return Unknown, errs.InvalidFields("power", []errs.Field{{Field: "state", Value: what[:min(len(what), 80)], Rule: "must be on, off or status", Example: "status"}})
}

// Dir is where the credentials are on a server.
const Dir = "/etc/atoll/bmc"

// Timing bounds the patience with controllers, which are slow computers.
type Timing struct {
	Call   time.Duration // one question; default 10 s
	Settle time.Duration // from the command until the host is off; default 60 s
	Again  time.Duration // the command is given again when it shows nothing after so long; default 15 s
	Look   time.Duration // between two looks at the state; default 500 ms
}

func (t Timing) filled() Timing {
	for _, d := range []struct {
		to *time.Duration
		d  time.Duration
	}{{&t.Call, 10 * time.Second}, {&t.Settle, time.Minute}, {&t.Again, 15 * time.Second}, {&t.Look, 500 * time.Millisecond}} {
		if *d.to <= 0 {
			*d.to = d.d
		}
	}
	return t
}

// Open makes the switch for what a node's spec says. It talks to nobody yet, and reads the
// credentials in dir at every use: they may change at any time.
func Open(b api.BMC, dir string) (Power, error) { return OpenWith(b, dir, clock.Real{}, Timing{}) }

// OpenWith is Open with a clock and patience of the caller's.
func OpenWith(b api.BMC, dir string, clk clock.Clock, t Timing) (Power, error) {
	if !api.ValidName(b.Credentials) {
		return nil, invalid("credentials", b.Credentials, "must be the name of a file in "+dir, "isle2")
	}
	s := &power{clk: clk, t: t.filled(), address: b.Address}
	login := func(host string) (credentials, error) {
		c, err := readCredentials(dir, b.Credentials)
		if err == nil {
			err = c.belong(host)
		}
		return c, err
	}
	switch b.Protocol {
	case "redfish":
		u, err := redfishURL(b)
		if err != nil {
			return nil, err
		}
		s.open = func(ctx context.Context) (machine, error) {
			cred, err := login(u.Hostname())
			if err != nil {
				return nil, err
			}
			return openRedfish(ctx, u.Scheme+"://"+u.Host, b, cred, s.t.Call)
		}
	case "ipmi":
		host, port, err := ipmiAddress(b.Address)
		if err != nil {
			return nil, err
		}
		s.open = func(ctx context.Context) (machine, error) {
			cred, err := login(host)
			if err != nil {
				return nil, err
			}
			return openIPMI(ctx, host, port, cred, s.t.Call)
		}
	default:
		return nil, invalid("protocol", b.Protocol, "must be redfish or ipmi", "redfish")
	}
	return s, nil
}

func invalid(field, value, rule, example string) error {
	return errs.InvalidFields("bmc", []errs.Field{{Field: "spec.bmc." + field, Value: value[:min(len(value), 80)], Rule: rule, Example: example}})
}

// redfishURL reads an address such as https://10.0.9.2 or 10.0.9.2.
func redfishURL(b api.BMC) (*url.URL, error) {
	a := b.Address
	if !strings.Contains(a, "://") {
		a = "https://" + a
	}
	u, err := url.Parse(a)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return nil, invalid("address", strings.ReplaceAll(b.Address, "@", " at "), "must be https:// and a host, with a port where it is not 443", "https://10.0.9.2")
	case u.User != nil:
		return nil, invalid("address", u.Host, "must not hold a user: that is in the file of the credentials", "https://10.0.9.2")
	case u.Scheme == "http" && !b.Insecure:
		return nil, invalid("address", b.Address, "must be https, or spec.bmc.insecure must allow that the password is sent in the clear", "https://10.0.9.2")
	}
	return u, nil
}

// ipmiAddress reads an address such as 10.0.9.2, bmc7:623 or [fd00::7]:623.
func ipmiAddress(a string) (string, int, error) {
	host, port := strings.TrimPrefix(a, "ipmi://"), 623
	if h, p, err := net.SplitHostPort(host); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", 0, invalid("address", a, "must have a port of 1 to 65535", "10.0.9.2:623")
		}
		host, port = h, int(n)
	}
	host = strings.Trim(host, "[]")
	if host == "" || strings.ContainsAny(host, "/@ ") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return "", 0, invalid("address", strings.ReplaceAll(a, "@", " at "), "must be a host, with a port where it is not 623", "10.0.9.2")
	}
	return host, port, nil
}

// machine is an open session with a controller.
type machine interface {
	state(ctx context.Context) (State, error)
	set(ctx context.Context, on bool) error
	close(ctx context.Context)
}

// power is what both protocols have in common: when it is enough.
type power struct {
	address string
	clk     clock.Clock
	t       Timing
	open    func(context.Context) (machine, error)
}

func (p *power) State(ctx context.Context) (State, error) {
	m, err := p.open(ctx)
	if err != nil {
		return Unknown, err
	}
	defer m.close(ctx)
	return m.state(ctx)
}

func (p *power) Off(ctx context.Context) error { return p.become(ctx, Off) }
func (p *power) On(ctx context.Context) error  { return p.become(ctx, On) }

// become gives the command and looks until the controller says that it is so. A controller
// that fails or refuses once is asked again: it may have been busy, or the host may have
// changed in between; what counts is what it says in the end.
func (p *power) become(ctx context.Context, want State) error {
	m, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer func() { m.close(ctx) }()
	st, err := m.state(ctx)
	if err == nil && st == want {
		return nil
	}
	end := p.clk.Now().Add(p.t.Settle)
	var next time.Time // when to give the command
	var last error
	for {
		now := p.clk.Now()
		if st != want && !now.Before(next) {
			last = m.set(ctx, want == On)
			next = now.Add(p.t.Again)
			if errors.Is(last, errs.Unsupported) || errors.Is(last, errs.Denied) {
				return last
			}
		}
		if st, err = m.state(ctx); err == nil && st == want {
			return nil
		}
		if err != nil {
			// The session may have ended, as when the controller was started anew.
			if again, oerr := p.open(ctx); oerr == nil {
				m.close(ctx)
				m = again
			}
			last = err
		}
		if now := p.clk.Now(); !now.Before(end) {
			break
		}
		if err := p.clk.Sleep(ctx, p.t.Look); err != nil {
			return errs.New(errs.Timeout, "switch the host of the management controller at %s %s: %w; it reads %s", p.address, want, err, st)
		}
	}
	e := errs.New(errs.Timeout, "the management controller at %s was told to switch its host %s, and %s later it reads %s", p.address, want, p.t.Settle, st)
	if last != nil {
		e = errs.New(errs.Timeout, "the management controller at %s was told to switch its host %s, and %s later it reads %s: %w", p.address, want, p.t.Settle, st, last)
	}
	return e.WithHint("look at the host itself, or at its controller's log; nothing of it may be started elsewhere before it is certainly off")
}

// step names where a conversation failed, and what to check.
func (p stepError) error(err error) error {
	if err == nil {
		return nil
	}
	return errs.New(p.kind, "%s at the management controller %s: %w", p.step, p.address, err).WithHint("%s", p.check)
}

type stepError struct {
	kind                 errs.Kind
	step, address, check string
}

func unreachable(step, address string, err error) error {
	return stepError{errs.Unavailable, step, address, "is the address right, and can this server reach the management network? Try it: atoll node power NAME status"}.error(err)
}

func refused(step, address, file string, err error) error {
	return stepError{errs.Denied, step, address, fmt.Sprintf("user and password are in the file %s on this server; the user needs the right to switch the power (Redfish: Operator, IPMI: OPERATOR on the LAN channel)", file)}.error(err)
}
