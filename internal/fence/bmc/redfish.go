package bmc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stmcginnis/gofish"
	"github.com/stmcginnis/gofish/common"
	"github.com/stmcginnis/gofish/redfish"

	"atoll/api"
	"atoll/internal/errs"
)

// maxAnswer bounds what a controller may answer.
const maxAnswer = 4 << 20

// redfishHost is a system behind a Redfish service.
type redfishHost struct {
	address string
	file    string // of the credentials, for hints
	client  *gofish.APIClient
	tr      *http.Transport
	system  *redfish.ComputerSystem
}

// openRedfish logs in and finds the system. Requests are bounded by call each and not cut off
// by ctx, so that a session that was opened can be closed: controllers have few.
func openRedfish(ctx context.Context, base string, b api.BMC, cred credentials, call time.Duration) (machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, errs.New(errs.Timeout, "management controller %s: %w", base, err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: b.Insecure, MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: call, DisableKeepAlives: true} //nolint:gosec // the operator's choice, per host
	client := &http.Client{Transport: bounded{tr}, Timeout: call, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		return fmt.Errorf("it sends to another address, %s://%s", r.URL.Scheme, r.URL.Host)
	}}
	c, err := gofish.ConnectContext(context.WithoutCancel(ctx), gofish.ClientConfig{Endpoint: base, Username: cred.user, Password: cred.password, HTTPClient: client})
	if err != nil {
		tr.CloseIdleConnections()
		return nil, redfishError("log in", base, cred.file, err)
	}
	h := &redfishHost{address: base, file: cred.file, client: c, tr: tr}
	systems, err := c.Service.Systems()
	if err == nil || len(systems) > 0 { // one of several that cannot be read is no reason
		h.system, err = choose(systems, b.System, base)
	} else {
		err = redfishError("list the systems", base, cred.file, err)
	}
	if err != nil {
		h.close(ctx)
		return nil, err
	}
	return h, nil
}

// choose finds the system that is meant: the only one, or the one of that ID.
func choose(systems []*redfish.ComputerSystem, id, address string) (*redfish.ComputerSystem, error) {
	var names []string
	for _, s := range systems {
		if id != "" && s.ID == id || id == "" && len(systems) == 1 {
			return s, nil
		}
		names = append(names, s.ID)
	}
	if len(names) == 0 {
		return nil, errs.New(errs.NotFound, "the management controller %s has no system", address).WithHint("does the user have the right to see it?")
	}
	slices.Sort(names)
	return nil, invalid("system", id, "must name one of the systems of "+address+": "+strings.Join(names, ", "), names[0])
}

func (h *redfishHost) state(ctx context.Context) (State, error) {
	if err := ctx.Err(); err != nil {
		return Unknown, errs.New(errs.Timeout, "management controller %s: %w", h.address, err)
	}
	s, err := redfish.GetComputerSystem(h.client, h.system.ODataID)
	if err != nil {
		return Unknown, redfishError("read the power state", h.address, h.file, err)
	}
	h.system = s
	switch s.PowerState {
	case redfish.OnPowerState:
		return On, nil
	case redfish.OffPowerState:
		return Off, nil
	case redfish.PoweringOnPowerState, redfish.PoweringOffPowerState, redfish.PausedPowerState:
		return Between, nil
	}
	return Unknown, nil
}

func (h *redfishHost) set(ctx context.Context, on bool) error {
	if err := ctx.Err(); err != nil {
		return errs.New(errs.Timeout, "management controller %s: %w", h.address, err)
	}
	how, step := redfish.ForceOffResetType, "switch off"
	if on {
		how, step = redfish.OnResetType, "switch on"
	}
	if can := h.system.SupportedResetTypes; len(can) > 0 && !slices.Contains(can, how) {
		if forced := redfish.ForceOnResetType; on && slices.Contains(can, forced) {
			how = forced
		} else {
			return errs.New(errs.Unsupported, "%s at the management controller %s: it knows no %s, only %v", step, h.address, how, can).WithHint("see the controller's settings for remote power control")
		}
	}
	return redfishError(step, h.address, h.file, h.system.Reset(how))
}

// close logs out, whatever became of the call.
func (h *redfishHost) close(context.Context) {
	h.client.Logout()
	h.tr.CloseIdleConnections()
}

// redfishError gives what a service answers its kind and bounds its text.
func redfishError(step, address, file string, err error) error {
	if err == nil {
		return nil
	}
	var answer *common.Error
	if !errors.As(err, &answer) {
		return unreachable(step, address, err)
	}
	text := strings.TrimSpace(answer.Message)
	for _, i := range answer.ExtendedInfos {
		text = strings.TrimSpace(text + " " + i.Message)
	}
	short := fmt.Errorf("it answers %d: %q", answer.HTTPReturnedStatusCode, text[:min(len(text), 300)])
	switch answer.HTTPReturnedStatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return refused(step, address, file, short)
	}
	return stepError{errs.Unavailable, step, address, "see the controller's log"}.error(short)
}

// bounded keeps a controller's answers within maxAnswer.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}
