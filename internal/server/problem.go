package server

import (
	"encoding/json"
	"errors"
	"net/http"

	"atoll/internal/errs"
)

// Problem is an error as RFC 9457 writes it. The kind is the last part of Type.
type Problem struct {
	Type   string       `json:"type"`
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail"`
	Hint   string       `json:"hint,omitempty"`
	Fields []errs.Field `json:"fields,omitempty"`
}

// ProblemType is the start of every Type.
const ProblemType = "urn:atoll:error:"

func problemOf(err error) Problem {
	kind := errs.KindOf(err)
	p := Problem{Type: ProblemType + string(kind), Title: kind.Title(), Status: errs.HTTPStatus(err), Detail: err.Error(), Hint: errs.HintOf(err)}
	var e *errs.Error
	for errors.As(err, &e) {
		if len(e.Fields) > 0 {
			p.Fields = e.Fields
			break
		}
		if err = e.Unwrap(); err == nil {
			break
		}
	}
	if kind == errs.Internal && e == nil { // where it comes from is for the log only
		p.Detail = "something went wrong inside; the server's log says what"
	}
	return p
}

func writeProblem(w http.ResponseWriter, err error) { writeProblemStatus(w, problemOf(err)) }

func writeProblemStatus(w http.ResponseWriter, p Problem) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Del("ETag")
	h.Del("Location")
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="atoll"`)
	}
	if p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(p.Status)
	b, err := json.Marshal(p)
	if err != nil {
		return
	}
	_, _ = w.Write(append(b, '\n')) // the caller went away: nothing is left to do
}
