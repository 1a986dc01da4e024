package server

import (
	"io"

	"atoll/api"
	"atoll/internal/server/install"
	"atoll/internal/server/rollout"
)

func (s *Server) upgradeRoutes() []*Route {
	h := (*call).upgrade
	return []*Route{
		{Method: "POST", Path: "/v1/upgrade", ID: "upgrade", Doc: "Asks for a step of an upgrade of the pool.", Verb: api.VerbBackup, Body: typeJSON, Schema: "UpgradeRequest", Answer: typeJSON, Result: "Upgrade", handle: h},
		{Method: "POST", Path: "/v1/upgrade/{version}/files", ID: "upgradeFiles", Doc: "Takes the programs of a version in: a tar. Version - is whatever they say.", Verb: api.VerbBackup, Body: typeBinary, Answer: typeJSON, Result: "UpgradeUpload", Status: 201, Long: true, handle: h},
		{Method: "GET", Path: "/v1/upgrade/{version}/{os}/{arch}/{binary}", ID: "upgradeFile", Doc: "A program of a version; for hosts of the pool.", Known: true, Answer: typeBinary, Long: true, handle: h},
	}
}

func (c *call) upgrade() error {
	return c.Upgrades.Serve(rollout.Call{R: c.r, Body: c.rolling(), Who: c.id, Answer: c.json, Send: func(f io.Reader, size int64) error { return install.Copy(c.rolling(), f, size) }})
}
