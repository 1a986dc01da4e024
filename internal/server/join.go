package server

import (
	"net/http"
	"strconv"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/server/enroll"
	"atoll/internal/server/install"
)

func (s *Server) newDesk() *enroll.Desk {
	return &enroll.Desk{Group: s.Group, Store: s.Store, Auth: s.Auth, CA: s.CA, Clock: s.Clock, Rand: s.Rand,
		Node: s.cfg.Node, Names: s.hosts(), Endpoints: s.cfg.Advertise, Pool: s.cfg.Pool}
}

func (s *Server) joinRoutes() []*Route {
	return []*Route{
		{Method: "GET", Path: "/v1/join", ID: "joinInfo", Doc: "Where hosts reach the API, and the key they find there.", Verb: api.VerbCreate, Def: def(api.KindJoinToken), Answer: typeJSON, Result: "JoinInfo", handle: (*call).joinInfo},
		{Method: "POST", Path: "/v1/join", ID: "join", Doc: "A host joins by a token and gets its certificate.", Public: true, Body: typeJSON, Schema: "JoinRequest", Answer: typeJSON, Result: "JoinAnswer", handle: (*call).join},
		{Method: "POST", Path: "/v1/join/adopt", ID: "adopt", Doc: "A host joins by a token, with what the pool it had for itself runs, or learns what is in the way.", Public: true, Body: typeJSON, Schema: "AdoptRequest", Answer: typeJSON, Result: "AdoptAnswer", handle: (*call).adopt},
		{Method: "POST", Path: "/v1/join/renew", ID: "renew", Doc: "A host that joined gets a new certificate; the request's signature proves who it is.", Public: true, Body: typeJSON, Schema: "RenewRequest", Answer: typeJSON, Result: "JoinAnswer", handle: (*call).renew},
		{Method: "POST", Path: "/v1/nodes/{name}/revoke", ID: "revokeNode", Doc: "Turns the key of a host away until it joins anew.", Verb: api.VerbUpdate, Def: def(api.KindNodeIdentity), Body: typeJSON, Schema: "Revocation", Answer: typeJSON, Result: "NodeIdentity", handle: (*call).revokeNode},
		{Method: "POST", Path: "/v1/members/{name}/part", ID: "takePart", Doc: "A host that the leader wants among the members takes part in keeping the state. That host only, by its certificate.", Known: true,
			Def: def(api.KindMember), Body: typeJSON, Schema: "TakePartRequest", Answer: typeJSON, Result: "TakePartAnswer", handle: (*call).takePart},
		{Method: "GET", Path: "/install", ID: "install", Doc: "A script that installs Atoll from this server and joins.", Public: true, Answer: typeText, handle: (*call).install},
		{Method: "GET", Path: "/install/{os}/{arch}/{binary}", ID: "installBinary", Doc: "A program of this server's version.", Public: true, Answer: typeBinary, Long: true, handle: (*call).installBinary},
	}
}

func (c *call) joinInfo() error {
	info, err := c.desk.Info()
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, info)
}

// join and renew are public: the token and the key are what is checked, in package enroll.
func (c *call) join() error {
	var req api.JoinRequest
	if err := c.bodyJSON(&req); err != nil {
		return err
	}
	c.ref = api.Ref{Kind: api.KindNodeIdentity, Name: clip(req.Node)}
	ans, err := c.desk.Join(c.r.Context(), req, c.source)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, ans)
}

// adopt checks the token, too, before it reads what is sent.
func (c *call) adopt() error {
	ans, err := c.desk.Adopt(c.r.Context(), c.r.Header.Get("Authorization"), c.r.Body, c.source)
	if err != nil {
		return err
	}
	c.ref = api.Ref{Kind: api.KindNodeIdentity, Name: ans.Plan.Node}
	return c.json(http.StatusOK, ans)
}

func (c *call) renew() error {
	var req api.RenewRequest
	if err := c.bodyJSON(&req); err != nil {
		return err
	}
	c.ref = api.Ref{Kind: api.KindNodeIdentity, Name: clip(req.Node)}
	ans, err := c.desk.Renew(c.r.Context(), req, c.source)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, ans)
}

// takePart gives a member the pool's authority, so it is for nobody but the host itself.
func (c *call) takePart() error {
	name := c.r.PathValue("name")
	c.ref = api.Ref{Kind: api.KindMember, Name: name}
	if c.id.Node == "" || c.id.Node != name {
		return errs.New(errs.Denied, "%s may not take part as %s: a host does that for itself", c.id, clip(name))
	}
	var req api.TakePartRequest
	if err := c.bodyJSON(&req); err != nil {
		return err
	}
	ans, err := c.desk.TakePart(c.r.Context(), name, req)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, ans)
}

func (c *call) bodyJSON(v any) error {
	b, err := c.body()
	if err != nil {
		return err
	}
	return strictJSON(b, v)
}

func (c *call) revokeNode() error {
	var req api.Revocation
	if err := c.bodyJSON(&req); err != nil {
		return err
	}
	c.ref = api.Ref{Kind: api.KindNodeIdentity, Name: c.r.PathValue("name")}
	if err := checkRef(c.ref); err != nil {
		return err
	}
	why := "by " + c.id.String()
	if req.Why != "" {
		why = req.Why + ", " + why
	}
	id, err := c.desk.Revoke(c.r.Context(), c.ref.Name, why)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, id)
}

// removeNode takes a host out with everything by which it is known.
func (c *call) removeNode(ref api.Ref) error {
	rev, err := c.ifMatch()
	if err != nil {
		return err
	}
	if err := checkRef(ref); err != nil {
		return err
	}
	q := c.r.URL.Query()
	o := enroll.Removal{Force: isTrue(q.Get("force")), Off: isTrue(q.Get("off")), By: c.id.String(), Rev: rev}
	if o.Off && !o.Force {
		return errs.InvalidFields("request", []errs.Field{{Field: "off", Value: "true", Rule: "goes with force only", Example: "force=true&off=true"}})
	}
	was, err := c.desk.Remove(c.r.Context(), ref.Name, o)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, was)
}

func (c *call) install() error {
	pin := ""
	if c.CA != nil && c.cfg.TLSAddr != "" {
		var err error
		if pin, err = c.CA.Pin(); err != nil {
			return err
		}
	}
	b, err := install.Script(pin)
	if err != nil {
		return err
	}
	return c.bytes(http.StatusOK, typeText, b)
}

func (c *call) installBinary() error {
	f, size, err := install.Binary(c.cfg.Binaries, c.r.PathValue("os"), c.r.PathValue("arch"), c.r.PathValue("binary"))
	if err != nil {
		return err
	}
	defer f.Close()
	c.w.Header().Set("Content-Type", typeBinary)
	c.w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	return install.Copy(c.rolling(), f, size)
}
