package server

import (
	"bytes"
	"context"
	"net/http"
	"runtime"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/release"
)

func (c *call) health() error { return c.bytes(http.StatusOK, typeText, []byte("ok\n")) }

// readiness asks what answers need: the users, and a store that answers.
func (c *call) readiness() error {
	if !c.Auth.Ready() {
		return errs.New(errs.Unavailable, "users are not loaded yet").WithHint("try again in a moment")
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), 2*time.Second)
	defer cancel()
	if _, _, err := c.Store.List(ctx, api.Selector{Kind: api.KindNode, Limit: 1}); err != nil {
		c.Log.Warn("store does not answer", "error", err)
		return errs.New(errs.Unavailable, "the store does not answer").WithHint("the server's log says why")
	}
	return c.bytes(http.StatusOK, typeText, []byte("ready\n"))
}

// Version is the answer of GET /version.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	API     string `json:"api"`
	Release int    `json:"release"`
}

func (c *call) version() error {
	return c.json(http.StatusOK, Version{Version: c.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, API: "v1", Release: release.Number()})
}

func (c *call) metrics() error {
	var b bytes.Buffer
	if _, err := c.Metrics.WriteTo(&b); err != nil {
		return errs.New(errs.Internal, "write metrics: %w", err)
	}
	return c.bytes(http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", b.Bytes())
}

// WhoAmI is the answer of GET /v1/whoami.
type WhoAmI struct {
	User     string        `json:"user,omitempty"`
	Node     string        `json:"node,omitempty"`
	Admin    bool          `json:"admin"`
	Via      string        `json:"via"`
	Token    string        `json:"token,omitempty"`
	Expires  *time.Time    `json:"expires,omitempty"`
	Bindings []BindingNote `json:"bindings,omitempty"`
}

// BindingNote is one role of the caller.
type BindingNote struct {
	Role   string `json:"role"`
	Tenant string `json:"tenant,omitempty"` // "": the whole pool
}

func (c *call) whoami() error {
	out := WhoAmI{User: c.id.User, Node: c.id.Node, Admin: c.id.Admin, Via: c.id.Via}
	if t := c.id.Token; t != nil {
		out.Token, out.Expires = t.Name, t.Spec.ExpiresAt
	}
	if !c.id.Trusted() {
		for _, b := range c.Auth.Bindings(c.id.User) {
			out.Bindings = append(out.Bindings, BindingNote{Role: b.Spec.Role, Tenant: b.Spec.Tenant})
		}
	}
	return c.json(http.StatusOK, out)
}

func (c *call) openAPI() error {
	doc, err := c.openapi()
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "max-age=60")
	return c.bytes(http.StatusOK, typeJSON, doc)
}
