package api

import (
	"net"
	"strings"
	"time"

	"atoll/internal/errs"
)

// KindEndpoint is where an instance is on its networks.
const KindEndpoint Kind = "Endpoint"

// Endpoint says to all hosts where an instance is on the networks of its tenant. It has
// the instance's tenant and name, and one label for each network (NetworkLabel). Placement
// writes it together with the Assignment, and keeps its addresses when the instance moves.
type Endpoint struct {
	Head
	Spec EndpointSpec `json:"spec"`
}

// EndpointSpec is decided completely: hosts choose nothing.
type EndpointSpec struct {
	InstanceUID string      `json:"instanceUid" doc:"the instance it was made for"`
	Node        string      `json:"node,omitempty" doc:"where it runs; empty: nowhere now"`
	Tunnel      string      `json:"tunnel,omitempty" doc:"address of that host to which the others send what is for the instance" example:"192.0.2.7"`
	Interfaces  []Interface `json:"interfaces" doc:"one for each network, in the order of the instance's spec"`
	// Labels are here so that hosts need not know the instances of others.
	Labels map[string]string `json:"labels,omitempty" doc:"the instance's labels, which its identities stand for"`
}

// Interface is one connection of an instance to a network of its tenant.
type Interface struct {
	Network  string `json:"network" doc:"network of the tenant" example:"main"`
	VNI      uint32 `json:"vni" doc:"the network's number between hosts"`
	Name     string `json:"name" doc:"name inside" example:"eth0"`
	MAC      string `json:"mac" doc:"hardware address" example:"0a:58:0a:01:00:05"`
	Address  string `json:"address,omitempty" doc:"IPv4 address with the length of the network's prefix" example:"10.1.0.5/16"`
	Address6 string `json:"address6,omitempty" doc:"IPv6 address with the length of the network's prefix" example:"fd00:1::a01:5/64"`
	Identity uint16 `json:"identity,omitempty" doc:"number of its labels in the network: what rules are about"`
}

// NetworkLabel is the label that endpoints on a network have.
func NetworkLabel(network string) string { return "network/" + network }

// Addresses without the lengths of prefixes, IPv4 first.
func (i *Interface) Addresses() []string {
	var out []string
	for _, a := range []string{i.Address, i.Address6} {
		if a, _, _ = strings.Cut(a, "/"); a != "" {
			out = append(out, a)
		}
	}
	return out
}

// Validate has nothing to check: users cannot write endpoints.
func (e *Endpoint) Validate() []errs.Field { return nil }

func endpointDefinition() *Definition {
	return &Definition{
		Kind: KindEndpoint, Plural: "endpoints", Aliases: []string{"ep"}, Tenanted: true, ReadOnly: true,
		Doc: "Where an instance is on the networks of its tenant: host and addresses.",
		New: func() Object { return &Endpoint{Head: Head{K: KindEndpoint}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "NODE", Value: func(o Object, _ time.Time) string { return dash(o.(*Endpoint).Spec.Node) }},
			{Name: "NETWORKS", Value: func(o Object, _ time.Time) string {
				return endpointColumn(o, func(i Interface) []string { return []string{i.Network} })
			}},
			{Name: "ADDRESSES", Value: func(o Object, _ time.Time) string {
				return endpointColumn(o, func(i Interface) []string { return i.Addresses() })
			}},
			{Name: "AGE", Value: ageColumn},
		},
		Fields: map[string]func(Object) string{"spec.node": func(o Object) string { return o.(*Endpoint).Spec.Node }},
	}
}

func endpointColumn(o Object, of func(Interface) []string) string {
	var all []string
	for _, i := range o.(*Endpoint).Spec.Interfaces {
		all = append(all, of(i)...)
	}
	return dash(strings.Join(all, ","))
}

// HardwareAddr is MAC; false when it is none.
func (i *Interface) HardwareAddr() (mac [6]byte, ok bool) {
	m, err := net.ParseMAC(i.MAC)
	if err != nil || len(m) != len(mac) {
		return mac, false
	}
	return [6]byte(m), true
}
