package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"

	"atoll/internal/errs"
)

// maxIPMIPassword is the protocol's own bound.
const maxIPMIPassword = 20

// ipmiHost is the chassis behind an IPMI 2.0 session (RMCP+): authenticated and encrypted.
type ipmiHost struct {
	address string
	file    string
	c       *client.Client
	call    time.Duration
}

func openIPMI(ctx context.Context, host string, port int, cred credentials, call time.Duration) (machine, error) {
	if len(cred.password) > maxIPMIPassword || len(cred.user) > 16 {
		return nil, errs.InvalidFields("credentials", []errs.Field{{Field: cred.file, Rule: "IPMI has users of at most 16 and passwords of at most 20 bytes"}})
	}
	h := &ipmiHost{address: net.JoinHostPort(host, strconv.Itoa(port)), file: cred.file, call: call}
	var err error
	for _, suite := range suites {
		if h.c, err = client.NewClient(host, port, cred.user, cred.password); err != nil {
			return nil, errs.New(errs.Invalid, "management controller %s: %w", h.address, err)
		}
		h.c.WithTimeout(min(call, time.Second)).WithRetry(int(call / time.Second)).WithMaxPrivilegeLevel(types.PrivilegeLevelOperator).WithCipherSuiteID(suite)
		if err = h.connect(ctx, call/time.Duration(len(suites))); err == nil {
			return h, nil
		}
		if errors.Is(err, errs.Denied) { // another suite would only count as one more wrong password
			break
		}
	}
	return nil, err
}

// suites are the ways to log in that are tried, the better one first: HMAC-SHA256 and HMAC-SHA1, both
// with AES. All others leave out what makes a session safe.
var suites = []types.CipherSuiteID{types.CipherSuiteID17, types.CipherSuiteID3} //nolint:gochecknoglobals // a constant

func (h *ipmiHost) connect(ctx context.Context, patience time.Duration) error {
	ictx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := h.c.Connect(ictx)
	if err != nil {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_ = h.c.Close(gone) // only its socket is there to be closed
	}
	return h.fail("log in", err)
}

func (h *ipmiHost) state(ctx context.Context) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, h.call)
	defer cancel()
	st, err := h.c.GetChassisStatus(ctx)
	if err != nil {
		return Unknown, h.fail("read the power state", err)
	}
	if st.PowerIsOn {
		return On, nil
	}
	return Off, nil
}

func (h *ipmiHost) set(ctx context.Context, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, h.call)
	defer cancel()
	do, step := chassis.ChassisControlPowerDown, "switch off"
	if on {
		do, step = chassis.ChassisControlPowerUp, "switch on"
	}
	_, err := h.c.ChassisControl(ctx, do)
	return h.fail(step, err)
}

// close ends the session, also when ctx has ended: controllers have few.
func (h *ipmiHost) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(h.call, 2*time.Second))
	defer cancel()
	_ = h.c.Close(ctx) // one that does not answer ends the session itself
}

// fail gives an error its kind. The library tells by text alone what a controller refused
// while logging in.
func (h *ipmiHost) fail(step string, err error) error {
	if err == nil {
		return nil
	}
	text := strings.ToLower(err.Error())
	var re *types.ResponseError
	if errors.As(err, &re) && re.CompletionCode() == types.CodeInsufficientPrivilege {
		return refused(step, h.address, h.file, err)
	}
	for _, sign := range []string{"rakp", "unauthorized", "privilege", "auth code"} {
		if strings.Contains(text, sign) && !strings.Contains(text, "timed out") {
			return refused(step, h.address, h.file, err)
		}
	}
	return unreachable(step, h.address, fmt.Errorf("IPMI: %w", err))
}
