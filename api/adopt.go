package api

import (
	"encoding/json"

	"atoll/internal/errs"
)

// AdoptRequest is the body of POST /v1/join/adopt: a host that runs a pool of its own
// asks to be taken in with what it runs. The join token is in the header Authorization.
type AdoptRequest struct {
	CSR     string            `json:"csr" doc:"certificate request, PEM; only its key counts"`
	Node    string            `json:"node" doc:"name the host wants" example:"isle2"`
	Address string            `json:"address,omitempty" doc:"where it can be reached" example:"10.0.0.2"`
	Version string            `json:"version,omitempty" doc:"version of its atolld"`
	Release int               `json:"release,omitempty" doc:"release of its atolld"`
	Arch    string            `json:"arch,omitempty" doc:"its CPU architecture" example:"amd64"`
	Tenant  string            `json:"tenant" doc:"tenant into which its tenants come" example:"acme"`
	Was     string            `json:"was" doc:"name of the host in its own pool" example:"isle1"`
	Subnet  string            `json:"subnet,omitempty" doc:"addresses of its instances" example:"10.88.0.0/16"`
	DryRun  bool              `json:"dryRun,omitempty" doc:"make the plan and change nothing"`
	Objects []json.RawMessage `json:"objects" doc:"all objects of its own pool"`
}

// AdoptAnswer is what it comes to.
type AdoptAnswer struct {
	Plan AdoptPlan   `json:"plan" doc:"what is called how, and what does not come along"`
	Join *JoinAnswer `json:"join,omitempty" doc:"as after joining; left out when nothing was changed"`
}

// AdoptPlan is what becomes of a pool that comes into another one.
type AdoptPlan struct {
	Node    string            `json:"node" doc:"the host's name from then on"`
	Tenant  string            `json:"tenant" doc:"where its tenants come"`
	Tenants map[string]string `json:"tenants" doc:"tenants: old path, new path"`
	Names   []AdoptName       `json:"names" doc:"everything that comes along"`
	Left    []AdoptLeft       `json:"left,omitempty" doc:"what does not"`
	Clashes []errs.Field      `json:"clashes,omitempty" doc:"what must be changed first; nothing is done while there are any"`
}

// AdoptName is one object that comes along.
type AdoptName struct {
	Kind Kind   `json:"kind" doc:"kind of the object"`
	Old  string `json:"old" doc:"tenant/name in its own pool"`
	New  string `json:"new" doc:"tenant/name from then on"`
}

// AdoptLeft is something that does not.
type AdoptLeft struct {
	Kind Kind   `json:"kind" doc:"kind of the object"`
	Name string `json:"name,omitempty" doc:"which; empty: all of the kind"`
	Why  string `json:"why" doc:"why not, and what to do if it is needed"`
}

// MaxAdoption bounds an AdoptRequest, in bytes: what one commit of the store takes.
const MaxAdoption = 6 << 20
