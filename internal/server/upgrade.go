package server

import (
	"io"
	"net/http"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/server/install"
	"atoll/internal/server/rollout"
)

func (s *Server) upgradeRoutes() []*Route {
	h := (*call).upgrade
	return []*Route{
		{Method: "POST", Path: "/v1/upgrade", ID: "upgrade", Doc: "Asks for a step of an upgrade of the pool.", Verb: api.VerbBackup, Body: typeJSON, Schema: "UpgradeRequest", Answer: typeJSON, Result: "Upgrade", handle: h},
		{Method: "POST", Path: "/v1/upgrade/{version}/files", ID: "upgradeFiles", Doc: "Takes the programs of a version in: a tar. Version - is whatever they say.", Verb: api.VerbBackup, Body: typeBinary, Answer: typeJSON, Result: "UpgradeUpload", Status: 201, Long: true, handle: h},
		{Method: "GET", Path: "/v1/upgrade/{version}/{os}/{arch}/{binary}", ID: "upgradeFile", Doc: "A program of a version; for hosts of the pool.", Known: true, Answer: typeBinary, Long: true, handle: h},
		{Method: "POST", Path: "/v1/nodeidentities/{name}/version", ID: toldVersion, Doc: "A host that runs no instances tells its version, and gets its task of an upgrade. That host only, by its certificate.", Known: true,
			Def: def(api.KindNodeIdentity), Body: typeJSON, Schema: "NodeIdentityStatus", Answer: typeJSON, Result: "Upgrade", handle: (*call).hostVersion},
	}
}

// toldVersion is the call by which hosts of an older release than the pool's learn what
// to do about that.
const toldVersion = "toldVersion"

func (c *call) hostVersion() error {
	name := c.r.PathValue("name")
	c.ref = api.Ref{Kind: api.KindNodeIdentity, Name: name}
	if c.id.Node == "" || c.id.Node != name {
		return errs.New(errs.Denied, "%s may not speak for %s: a host does that for itself", c.id, clip(name))
	}
	var st api.NodeIdentityStatus
	if err := c.bodyJSON(&st); err != nil {
		return err
	}
	if err := errs.InvalidFields("version of "+name, st.Validate()); err != nil {
		return err
	}
	if c.Upgrades == nil {
		return errs.New(errs.Unsupported, "this server does not upgrade its pool")
	}
	up, err := c.Upgrades.Told(c.r.Context(), name, st)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, up)
}

func (c *call) upgrade() error {
	return c.Upgrades.Serve(rollout.Call{R: c.r, Body: c.rolling(), Who: c.id, Answer: c.json, Send: func(f io.Reader, size int64) error { return install.Copy(c.rolling(), f, size) }})
}
