// Package openapi writes the OpenAPI 3.1 document of the API. It is made from the
// table of routes and the definitions of the kinds, so it cannot say anything else
// than what the server does. It starts no goroutine and reads nothing.
package openapi

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/explain"
	"atoll/internal/server/schema"
)

// Route is one row of the table of routes, as far as callers see it.
type Route struct {
	Method, Path, ID, Doc string
	Public                bool   // everybody may
	Right                 string // what a caller needs, in words
	Def                   *api.Definition

	Query   []Param
	Body    string // media type of the request: "" none
	Schema  string // schema of the body
	Answer  string // media type of the answer
	Result  string // schema of the answer
	Status  int    // when it goes well; 0: 200
	Socket  bool   // a WebSocket
	Example string // of the body
}

// Param is a parameter in the query.
type Param = struct{ Name, Type, Doc string }

const (
	typeLines   = "application/x-ndjson"
	typeProblem = "application/problem+json"
)

type obj = schema.Object

// Document describes the routes. types are the schemas beside the kinds', by name; one
// of them must be Problem.
func Document(version string, routes []Route, types map[string]reflect.Type) ([]byte, error) {
	paths := obj{}
	for i := range routes {
		rt := &routes[i]
		item, ok := paths[rt.Path].(obj)
		if !ok {
			item = obj{}
			paths[rt.Path] = item
		}
		item[strings.ToLower(rt.Method)] = operation(rt)
	}
	schemas, err := schemas(types)
	if err != nil {
		return nil, err
	}
	doc := obj{
		"openapi": "3.1.0",
		"info": obj{"title": "Atoll", "version": version, "license": obj{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "One pool of hosts that tenants share. Objects have a kind, metadata, spec and status; lists take selectors and pages; " +
				"watch streams changes as JSON lines. Errors are problems (RFC 9457) that say what to do next."},
		"servers":  []obj{{"url": "https://127.0.0.1:7443", "description": "TLS"}, {"url": "http://localhost", "description": "unix socket /run/atoll/atoll.sock; the caller is the host account"}},
		"security": []obj{{"bearer": []string{}}, {}},
		"paths":    paths,
		"components": obj{
			"schemas":         schemas,
			"responses":       problemResponses(),
			"securitySchemes": obj{"bearer": obj{"type": "http", "scheme": "bearer", "description": "atoll_NAME_SECRET, made by POST /v1/tokens"}},
		},
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, errs.New(errs.Internal, "write OpenAPI document: %w", err)
	}
	return b, nil
}

func operation(rt *Route) obj {
	op := obj{"operationId": rt.ID, "summary": rt.Doc, "parameters": parameters(rt), "responses": responses(rt)}
	op["x-atoll-right"] = rt.Right
	if rt.Public {
		op["security"] = []obj{{}}
	}
	if rt.Def != nil {
		op["tags"] = []string{rt.Def.Plural}
	} else {
		op["tags"] = []string{"server"}
	}
	if rt.Body != "" {
		media := obj{}
		if rt.Schema != "" {
			media["schema"] = schema.Ref(rt.Schema)
		} else {
			media["schema"] = obj{"type": "string", "format": "binary"}
		}
		if ex := rt.Sample(); ex != nil {
			media["example"] = ex
		}
		op["requestBody"] = obj{"required": true, "content": obj{rt.Body: media}}
	}
	return op
}

// Sample is a body as the route takes it; nil when it takes none.
func (r *Route) Sample() any {
	if r.Example != "" {
		return json.RawMessage(r.Example)
	}
	if r.Method == "PATCH" {
		return obj{"metadata": obj{"labels": obj{"app": "db"}}}
	}
	if r.Def == nil || r.Schema == "" {
		return nil
	}
	meta := obj{"name": "example"}
	switch r.Def.Kind {
	case api.KindTenant:
		meta["name"] = "acme"
	case api.KindEncryption:
		meta["name"] = api.PoolName
	case api.KindImage:
		meta["name"] = api.ImageName(exampleReference)
	}
	if r.Def.Tenanted {
		meta["tenant"] = "acme"
	}
	return obj{"kind": string(r.Def.Kind), "metadata": meta, "spec": exampleSpec(r.Def.Kind)}
}

const exampleReference = "registry.example.com/team/app:1.4"

func exampleSpec(k api.Kind) obj {
	template := obj{"labels": obj{"app": "web"}, "spec": obj{"image": "busybox"}}
	switch k {
	case api.KindDeployment:
		return obj{"replicas": 3, "template": template}
	case api.KindJob:
		return obj{"completions": 4, "parallelism": 2, "template": template}
	case api.KindCronJob:
		return obj{"schedule": "30 2 * * *", "job": obj{"spec": obj{"template": template}}}
	case api.KindTenant:
		return obj{"guarantee": obj{"cpu": "1", "memory": "2Gi"}, "limit": obj{"cpu": "4", "memory": "8Gi"}}
	case api.KindUser:
		return obj{"hostUser": "chen"}
	case api.KindRole:
		return obj{"rules": []obj{{"verbs": []string{"get", "list"}, "kinds": []string{"instance"}}}}
	case api.KindRoleBinding:
		return obj{"role": "developer", "users": []string{"chen"}, "tenant": "acme"}
	case api.KindToken:
		return obj{"user": "ci", "tenant": "acme", "verbs": []string{"get", "list"}}
	case api.KindInstance:
		return obj{"image": "busybox", "command": []string{"sleep", "60"}, "requests": obj{"cpu": "100m"}, "limits": obj{"memory": "64Mi"}}
	case api.KindImage:
		return obj{"reference": exampleReference}
	case api.KindNetwork:
		return obj{"cidr": "10.1.0.0/16"}
	case api.KindPeering:
		return obj{"network": "main", "peer": "lab/main"}
	case api.KindRoute:
		return obj{"network": "main", "destination": "192.168.0.0/16", "via": "vpn"}
	case api.KindAddressPool:
		return obj{"prefixes": []string{"203.0.113.8/29"}, "tenants": []string{"acme"}}
	case api.KindAddress:
		return obj{"pool": "public", "instance": "web"}
	case api.KindDisruptionBudget:
		return obj{"labels": obj{"app": "db"}, "minAvailable": 2}
	case api.KindSecurityGroup:
		return obj{"select": obj{"app": "db"}, "ingress": []obj{{"from": []obj{{"labels": obj{"app": "web"}}}, "ports": []string{"tcp/5432"}}}}
	case api.KindDropRule:
		return obj{"prefix": "203.0.113.0/24", "reason": "scans port 22"}
	case api.KindBGPPeer:
		return obj{"address": "192.0.2.1", "asn": 65001, "localAsn": 64512, "families": []string{"ipv4", "evpn"}, "password": "fabric"}
	case api.KindPriorityClass:
		return obj{"value": 1000}
	case api.KindEncryption:
		return obj{"mode": api.EncryptionWireguard, "rotate": "24h"}
	}
	return obj{}
}

func parameters(rt *Route) []obj {
	out := []obj{}
	for _, part := range []string{"os", "arch", "binary"} {
		if strings.Contains(rt.Path, "{"+part+"}") {
			out = append(out, obj{"name": part, "in": "path", "required": true, "schema": obj{"type": "string"}})
		}
	}
	if strings.Contains(rt.Path, "{name}") {
		doc := "name of the object"
		if rt.Def != nil && rt.Def.Kind == api.KindTenant {
			doc += "; a nested tenant is written acme%2Fresearch"
		}
		out = append(out, obj{"name": "name", "in": "path", "required": true, "description": doc, "schema": obj{"type": "string"}})
	}
	for _, p := range rt.Query {
		out = append(out, obj{"name": p.Name, "in": "query", "description": p.Doc, "schema": obj{"type": p.Type}})
	}
	header := func(name, doc string) {
		out = append(out, obj{"name": name, "in": "header", "description": doc, "schema": obj{"type": "string"}})
	}
	single := rt.Def != nil && strings.Contains(rt.Path, "{name}") && !rt.Socket
	switch {
	case single && rt.Method == "GET":
		header("If-None-Match", "ETag of an earlier answer; 304 when nothing changed")
	case single:
		header("If-Match", "ETag of what the change is based on; 412 when it was changed meanwhile")
	case rt.Method == "POST" && rt.Status == http.StatusCreated:
		header("Idempotency-Key", "the same key with the same body is carried out once and answered alike")
	}
	return out
}

func responses(rt *Route) obj {
	status := rt.Status
	if status == 0 {
		status = http.StatusOK
	}
	if rt.Socket {
		status = http.StatusSwitchingProtocols
	}
	good := obj{"description": "as asked"}
	switch {
	case rt.Socket:
		good["description"] = "a WebSocket; each binary message is one byte channel (0 input, 1 output, 2 errors, 3 size, 4 signal, 5 exit, 6 progress) and its payload"
	case rt.Result != "":
		content := obj{rt.Answer: obj{"schema": schema.Ref(rt.Result)}}
		if slices.ContainsFunc(rt.Query, func(p Param) bool { return p.Name == "watch" }) {
			content[typeLines] = obj{"schema": schema.Ref("WatchLine")}
		}
		good["content"] = content
	case rt.Answer != "":
		good["content"] = obj{rt.Answer: obj{"schema": obj{"type": "string"}}}
	}
	out := obj{strconv.Itoa(status): good, "default": obj{"$ref": "#/components/responses/Problem"}}
	if rt.Socket && rt.Answer != "" {
		out["200"] = obj{"description": "plain text, for a request that is no WebSocket", "content": obj{rt.Answer: obj{"schema": obj{"type": "string"}}}}
	}
	if rt.Method == "DELETE" {
		out["202"] = obj{"description": "marked; it goes when all is cleaned up", "content": obj{rt.Answer: obj{"schema": schema.Ref(rt.Result)}}}
	}
	add := func(kinds ...errs.Kind) {
		for _, k := range kinds {
			out[strconv.Itoa(errs.HTTPStatus(k))] = obj{"$ref": "#/components/responses/" + string(k)}
		}
	}
	if !rt.Public {
		add(errs.Unauthenticated, errs.Denied, errs.Unavailable)
	}
	if strings.Contains(rt.Path, "{name}") {
		add(errs.NotFound)
	}
	if rt.Body != "" || len(rt.Query) > 0 {
		add(errs.Invalid)
	}
	switch rt.Method {
	case "POST":
		add(errs.Exists, errs.Quota, errs.NoCapacity)
	case "PUT", "PATCH", "DELETE":
		add(errs.Conflict, errs.Quota)
	case "GET":
		if strings.Contains(rt.Path, "{name}") && !rt.Socket {
			out["304"] = obj{"description": "nothing changed"}
		}
		if slices.ContainsFunc(rt.Query, func(p Param) bool { return p.Name == "watch" }) {
			add(errs.Compacted)
		}
	}
	return out
}

func problemResponses() obj {
	content := obj{typeProblem: obj{"schema": schema.Ref("Problem")}}
	out := obj{"Problem": obj{"description": "an error", "content": content}}
	for _, k := range errKinds() {
		out[string(k)] = obj{"description": k.Title(), "content": content}
	}
	return out
}

func errKinds() []errs.Kind {
	return []errs.Kind{errs.Invalid, errs.Unauthenticated, errs.Denied, errs.NotFound, errs.Exists, errs.Conflict, errs.Quota,
		errs.NoCapacity, errs.Unsupported, errs.Unavailable, errs.Timeout, errs.Compacted, errs.Internal}
}

func schemas(types map[string]reflect.Type) (obj, error) {
	out := obj{
		"Quantity": obj{"type": "string", "description": "an amount: 500m, 2, 512Mi, 10G", "pattern": `^[0-9.]+(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$`},
		"List":     schema.List(obj{"type": "object", "description": "an object of any kind"}),
		"WatchLine": obj{"type": "object", "required": []string{"type", "revision"}, "properties": obj{
			"type":     obj{"type": "string", "enum": []string{"put", "delete", "ping", "error"}},
			"revision": obj{"type": "integer", "description": "where to go on with rev"},
			"more":     obj{"type": "boolean", "description": "other changes of the same commit follow"},
			"object":   obj{"type": "object", "description": "as it is now, or was before the deletion"},
			"error":    schema.Ref("Problem"),
		}},
	}
	for name, t := range types {
		out[name] = schema.FromGo(t)
	}
	for _, d := range api.Definitions() {
		doc, err := explain.Of(d.Singular())
		if err != nil {
			return nil, err
		}
		out[string(d.Kind)] = schema.Of(*doc)
		out[string(d.Kind)+"List"] = schema.List(schema.Ref(string(d.Kind)))
	}
	return out, nil
}
