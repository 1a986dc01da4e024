package server

import (
	"net/http"
	"reflect"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/errs"
	"atoll/internal/server/openapi"
)

// Route is one row of the table that feeds the mux, the OpenAPI document and the
// test of rights: what is not in it does not exist.
type Route struct {
	Method string
	Path   string // in http.ServeMux's form
	ID     string // operationId
	Doc    string
	// Who may: exactly one of Public (everybody), Known (whoever was recognised; the
	// answer is cut to their rights) and Verb, a right on Def's kind, or on every
	// kind where Def is nil.
	Public bool
	Known  bool
	Verb   api.Verb
	Def    *api.Definition

	Query   []Param
	Body    string // media type of the request: "" none
	Schema  string // schema of the body
	Answer  string // media type of the answer
	Result  string // schema of the answer
	Status  int    // when it goes well; 0: 200
	Socket  bool   // a WebSocket
	Long    bool   // a watch or stream: not in the latency histogram
	handle  func(*call) error
	Example string // of the body
}

// Param is a parameter in the query.
type Param = struct{ Name, Type, Doc string }

func (r *Route) kind() api.Kind {
	if r.Def == nil {
		return auth.AnyKind
	}
	return r.Def.Kind
}

const (
	typeJSON    = "application/json"
	typePatch   = "application/merge-patch+json"
	typeLines   = "application/x-ndjson"
	typeText    = "text/plain; charset=utf-8"
	typeBinary  = "application/octet-stream"
	typeProblem = "application/problem+json"
)

var (
	paramTenant = Param{"tenant", "string", "tenant, such as acme/research"}
	paramList   = []Param{
		{"nested", "boolean", "also the tenants inside"}, {"name", "string", "only this name"},
		{"labels", "string", "label selector: app=db,tier!=web,gpu,!old,zone in (a b)"},
		{"fields", "string", "field selector: field=value,…"},
		{"limit", "integer", "at most so many; the answer's \"after\" continues"}, {"after", "string", "continue an earlier answer"},
		{"minRevision", "integer", "wait until this revision is seen"},
		{"watch", "boolean", "stream changes as JSON lines instead"},
		{"rev", "integer", "with watch: only what changed after this revision; without, what is there comes first"},
	}
	paramLogs = []Param{
		{"follow", "boolean", "until it has ended"}, {"tail", "integer", "only the last so many lines"},
		{"since", "string", "only what is younger: a time as in RFC 3339"}, {"timestamps", "boolean", "each line starts with its time"},
		{"raw", "boolean", "the bytes as written"},
	}
	paramStream = Param{"params", "string", "the request as JSON; without it, it is the first text message"}
	paramNode   = Param{"node", "string", "on this node; default: one that can"}
)

// table lists every route.
func (s *Server) table() []*Route {
	out := append(append(s.commonRoutes(), s.planRoute(), s.powerRoute()), s.joinRoutes()...)
	for _, d := range api.Definitions() {
		out = append(out, s.kindRoutes(d)...)
	}
	out = append(append(out, s.serverRoutes()...), s.upgradeRoutes()...)
	return append(append(out, s.streamRoutes()...), s.netRoutes()...)
}

func (s *Server) commonRoutes() []*Route {
	return []*Route{
		{Method: "GET", Path: "/healthz", ID: "health", Doc: "The process answers.", Public: true, Answer: typeText, handle: (*call).health},
		{Method: "GET", Path: "/readyz", ID: "ready", Doc: "The server can do its work.", Public: true, Answer: typeText, handle: (*call).readiness},
		{Method: "GET", Path: "/version", ID: "version", Doc: "Version of the server.", Public: true, Answer: typeJSON, Result: "Version", handle: (*call).version},
		{Method: "GET", Path: "/openapi.json", ID: "openapi", Doc: "This document.", Public: true, Answer: typeJSON, handle: (*call).openAPI},
		{Method: "GET", Path: "/metrics", ID: "metrics", Doc: "Numbers about the server, in Prometheus' text format.", Verb: api.VerbGet, Def: def(api.KindNode), Answer: typeText, handle: (*call).metrics},
		{Method: "GET", Path: "/v1/whoami", ID: "whoami", Doc: "Who the caller is, and what they are bound to.", Known: true, Answer: typeJSON, Result: "WhoAmI", handle: (*call).whoami},
		{Method: "GET", Path: "/v1/usage", ID: "usage", Doc: "What nodes, tenants and instances use now, as far as the caller may see it.", Verb: api.VerbList, Def: def(api.KindInstance),
			Query: []Param{paramTenant}, Answer: typeJSON, Result: "UsageReport", handle: (*call).usage},
		{Method: "GET", Path: "/v1/all", ID: "listAll", Doc: "Objects of every kind at one revision, or with watch their changes.", Verb: api.VerbWatch, Query: append([]Param{paramTenant}, paramList...), Answer: typeJSON, Result: "List", handle: (*call).list},
		{Method: "GET", Path: "/v1/backup", ID: "backup", Doc: "The whole state of the control plane.", Verb: api.VerbBackup, Answer: typeBinary, Long: true, handle: (*call).backup},
		{Method: "POST", Path: "/v1/backup", ID: "restore", Doc: "Replaces the whole state of the control plane by a backup.", Verb: api.VerbBackup, Body: typeBinary, Answer: typeJSON, Result: "Committed", Long: true, handle: (*call).restore},
		{Method: "POST", Path: "/v1/commit", ID: "commit", Doc: "Applies several changes as one transaction: all or none. Each is authorized by itself.", Known: true,
			Query: []Param{{"dryRun", "boolean", "check everything and say what would change, but write nothing"}},
			Body:  typeJSON, Schema: "Commit", Answer: typeJSON, Result: "Committed", handle: (*call).commit,
			Example: `{"ops":[{"verb":"put","rev":-1,"object":{"kind":"Tenant","metadata":{"name":"acme"},"spec":{"limit":{"cpu":"4"}}}}]}`},
	}
}

func def(k api.Kind) *api.Definition {
	d, ok := api.Lookup(string(k))
	if !ok {
		panic("server: " + k + " is not a kind") // a mistake in this package, found by every test
	}
	return d
}

func (s *Server) kindRoutes(d *api.Definition) []*Route {
	base, one := "/v1/"+d.Plural, "/v1/"+d.Plural+"/{name}"
	k := string(d.Kind)
	var tenant []Param
	if d.Tenanted {
		tenant = []Param{paramTenant}
	}
	query := append(slices.Clone(tenant), paramList...)
	out := []*Route{
		{Method: "GET", Path: base, ID: "list" + k, Doc: "Lists or watches. " + d.Doc, Verb: api.VerbList, Def: d, Query: query, Answer: typeJSON, Result: k + "List", handle: (*call).list},
		{Method: "GET", Path: one, ID: "get" + k, Doc: "Reads one. " + d.Doc, Verb: api.VerbGet, Def: d, Query: tenant, Answer: typeJSON, Result: k, handle: (*call).get},
		{Method: "PUT", Path: one + "/status", ID: "status" + k, Doc: "Reports the status; for Atoll's own parts.", Verb: api.VerbUpdate, Def: d, Query: tenant, Body: typeJSON, Schema: k, Answer: typeJSON, Result: k, handle: (*call).status},
	}
	if d.ReadOnly {
		return out
	}
	del := tenant
	if d.Kind == api.KindNode {
		del = []Param{{"force", "boolean", "although instances are assigned to it: they are given up there and placed anew"}, {"off", "boolean", "with force: it is switched off, for certain; nothing runs there any more"}}
	}
	return append(out,
		&Route{Method: "POST", Path: base, ID: "create" + k, Doc: "Creates. " + d.Doc, Verb: api.VerbCreate, Def: d, Query: tenant, Body: typeJSON, Schema: k, Answer: typeJSON, Result: k, Status: http.StatusCreated, handle: (*call).create},
		&Route{Method: "PUT", Path: one, ID: "replace" + k, Doc: "Replaces spec, labels and annotations; what the server keeps stays.", Verb: api.VerbUpdate, Def: d, Query: tenant, Body: typeJSON, Schema: k, Answer: typeJSON, Result: k, handle: (*call).replace},
		&Route{Method: "PATCH", Path: one, ID: "patch" + k, Doc: "Changes what the merge patch (RFC 7396) names.", Verb: api.VerbUpdate, Def: d, Query: tenant, Body: typePatch, Schema: k, Answer: typeJSON, Result: k, handle: (*call).patch},
		&Route{Method: "DELETE", Path: one, ID: "delete" + k, Doc: "Removes: at once (200), or as soon as all is cleaned up (202).", Verb: api.VerbDelete, Def: d, Query: del, Answer: typeJSON, Result: k, handle: (*call).remove},
	)
}

func (s *Server) streamRoutes() []*Route {
	inst, img := def(api.KindInstance), def(api.KindImage)
	row := func(verb string, v api.Verb, doc string) *Route {
		return &Route{Method: "GET", Path: "/v1/instances/{name}/" + verb, ID: verb, Doc: doc, Verb: v, Def: inst, Query: []Param{paramTenant, paramStream}, Socket: true, Long: true,
			handle: func(c *call) error { return c.instanceStream(verb) }}
	}
	logs := row("logs", api.VerbLogs, "Output of the instance: a WebSocket stream, or plain text for a plain GET.")
	logs.Query, logs.Answer = append(logs.Query, paramLogs...), typeText
	out := []*Route{
		row("exec", api.VerbExec, "Runs a command inside."),
		row("attach", api.VerbExec, "Connects to the first process; with logs.wait it waits for the start."),
		logs,
		// Reading files gives as much away as running a command, so both ways need exec.
		row("copy", api.VerbExec, "Copies files in or out as a tar stream."),
		row("capture", api.VerbCapture, "Copies the packets on its wire, as pcap."),
	}
	for op, v := range map[string]api.Verb{"pull": api.VerbCreate, "import": api.VerbCreate, "export": api.VerbGet, "push": api.VerbGet} {
		out = append(out, &Route{Method: "GET", Path: "/v1/images/" + op + "/stream", ID: op + "Image", Doc: "Works on a node's images: " + op + ".", Verb: v, Def: img,
			Query: []Param{paramTenant, paramNode, paramStream}, Socket: true, Long: true, handle: func(c *call) error { return c.imageStream(op) }})
	}
	slices.SortFunc(out[5:], func(a, b *Route) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// mux sends requests to their routes, and answers the rest with problems.
func (s *Server) mux() http.Handler {
	m := http.NewServeMux()
	methods := map[string][]string{}
	for _, rt := range s.routes {
		m.Handle(rt.Method+" "+rt.Path, s.serve(rt))
		methods[rt.Path] = append(methods[rt.Path], rt.Method)
	}
	other := http.NewServeMux() // the paths without their methods, to tell 404 from 405
	for path, list := range methods {
		slices.Sort(list)
		other.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(list, ", "))
			p := problemOf(errs.New(errs.Unsupported, "%s cannot be done with %s", clip(r.Method), clip(r.URL.Path)).WithHint("what can be done: %s", strings.Join(list, ", ")))
			p.Status = http.StatusMethodNotAllowed
			writeProblemStatus(w, p)
		})
	}
	other.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, errs.New(errs.NotFound, "there is nothing at %s", clip(r.URL.Path)).WithHint("/openapi.json lists what there is"))
	})
	m.Handle("/", other)
	return m
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// shown is the route as callers see it.
func (r *Route) shown() openapi.Route {
	right := string(r.Verb) + " " + strings.ToLower(string(r.kind()))
	switch {
	case r.Public:
		right = "none"
	case r.Known:
		right = "any user; what it does is checked by itself"
	}
	return openapi.Route{Method: r.Method, Path: r.Path, ID: r.ID, Doc: r.Doc, Public: r.Public, Right: right, Def: r.Def, Query: r.Query,
		Body: r.Body, Schema: r.Schema, Answer: r.Answer, Result: r.Result, Status: r.Status, Socket: r.Socket, Example: r.Example}
}

// document describes the table for callers.
func (s *Server) document() ([]byte, error) {
	rows := make([]openapi.Route, 0, len(s.routes))
	for _, r := range s.routes {
		rows = append(rows, r.shown())
	}
	return openapi.Document(s.Version, rows, map[string]reflect.Type{
		"Problem": reflect.TypeFor[Problem](), "Version": reflect.TypeFor[Version](), "WhoAmI": reflect.TypeFor[WhoAmI](), "Servers": reflect.TypeFor[Servers](),
		"Commit": reflect.TypeFor[CommitRequest](), "Committed": reflect.TypeFor[Committed](), "UsageReport": reflect.TypeFor[api.UsageReport](),
		"JoinInfo": reflect.TypeFor[api.JoinInfo](), "JoinRequest": reflect.TypeFor[api.JoinRequest](), "RenewRequest": reflect.TypeFor[api.RenewRequest](),
		"JoinAnswer": reflect.TypeFor[api.JoinAnswer](), "Revocation": reflect.TypeFor[api.Revocation](), "AdoptRequest": reflect.TypeFor[api.AdoptRequest](), "AdoptAnswer": reflect.TypeFor[api.AdoptAnswer](),
		"TakePartRequest": reflect.TypeFor[api.TakePartRequest](), "TakePartAnswer": reflect.TypeFor[api.TakePartAnswer](),
		"PowerRequest": reflect.TypeFor[api.PowerRequest](), "PowerAnswer": reflect.TypeFor[api.PowerAnswer](),
		"UpgradeRequest": reflect.TypeFor[api.UpgradeRequest](), "NodeIdentityStatus": reflect.TypeFor[api.NodeIdentityStatus](), "UpgradeUpload": reflect.TypeFor[api.UpgradeUpload](),
		"PlanRequest": reflect.TypeFor[api.PlanRequest](), "PlanAnswer": reflect.TypeFor[api.PlanAnswer](),
		"NetVerdict": reflect.TypeFor[api.NetVerdict](), "NetFlows": reflect.TypeFor[api.NetFlows](), "NetMap": reflect.TypeFor[api.NetMap](), "NetHits": reflect.TypeFor[api.NetHits](), "NetCheck": reflect.TypeFor[api.NetCheck](),
	})
}
