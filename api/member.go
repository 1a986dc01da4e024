package api

import (
	"time"

	"atoll/internal/errs"
)

// KindMember is a host that keeps the pool's state.
const KindMember Kind = "Member"

// Member is a host's part in the control plane: it keeps a copy of the pool's state
// and, unless it is a witness, answers the API. It has the node's name. Only the
// control plane writes it; with an external etcd members only answer the API.
type Member struct {
	Head
	Spec MemberSpec `json:"spec"`
}

// MemberState is where a member is in its life.
type MemberState string

// wanted -> learner -> voter -> leaving, which ends with its removal.
const (
	MemberWanted  MemberState = "wanted"  // chosen; its host has not taken part yet
	MemberLearner MemberState = "learner" // gets the state, has no vote yet
	MemberVoter   MemberState = "voter"
	MemberLeaving MemberState = "leaving" // is being taken out
)

// MemberSpec is what is known of a member.
type MemberSpec struct {
	State   MemberState `json:"state" doc:"where it is in its life" enum:"wanted|learner|voter|leaving"`
	Witness bool        `json:"witness,omitempty" doc:"keeps the state and votes, but answers no API and runs no instances"`
	ID      string      `json:"id,omitempty" doc:"etcd's number of it, in hexadecimal"`
	Peer    string      `json:"peer,omitempty" doc:"where other members reach it" example:"https://10.0.0.1:7444"`
	API     string      `json:"api,omitempty" doc:"where it answers the API" example:"https://10.0.0.1:7443"`
	Zone    string      `json:"zone,omitempty" doc:"failure domain it counts for"`
	Since   time.Time   `json:"since" doc:"when it came into this state"`
	Message string      `json:"message,omitempty" doc:"why it is there, or what it waits for"`
}

// TakePartRequest is the body of POST /v1/members/{name}/part: a host that is wanted
// says where it can be reached. A member asks again for a new certificate.
type TakePartRequest struct {
	Peer string `json:"peer,omitempty" doc:"where other members reach its copy of the state; empty with an external etcd" example:"https://10.0.0.2:7444"`
	CSR  string `json:"csr" doc:"certificate request of the host's key, PEM"`
	API  string `json:"api,omitempty" doc:"where it will answer the API; empty on a witness" example:"https://10.0.0.2:7443"`
	// Fresh begins anew also where the host has a vote: without it, that gets a new certificate.
	Fresh bool `json:"fresh,omitempty" doc:"its copy of the state is gone: it begins anew"`
}

// TakePartAnswer is what a host needs to keep the state with the others.
type TakePartAnswer struct {
	Cluster     map[string]string `json:"cluster" doc:"the members and where they are, by name, this one among them"`
	Certificate string            `json:"certificate" doc:"by which the other members know it, PEM"`
	Authority   string            `json:"authority,omitempty" doc:"the pool's authority with its key, PEM; not for a witness"`
}

// Validate has nothing to check: users cannot write members.
func (m *Member) Validate() []errs.Field { return nil }

func memberDefinition() *Definition {
	spec := func(o Object) *MemberSpec { return &o.(*Member).Spec }
	return &Definition{
		Kind: KindMember, Plural: "members", ReadOnly: true,
		Doc: "A host that keeps the pool's state and answers the API.",
		New: func() Object { return &Member{Head: Head{K: KindMember}} },
		Columns: []Column{
			{Name: "NAME", Value: nameColumn},
			{Name: "STATE", Value: func(o Object, _ time.Time) string {
				if spec(o).Witness {
					return string(spec(o).State) + ",witness"
				}
				return string(spec(o).State)
			}},
			{Name: "API", Value: func(o Object, _ time.Time) string { return dash(spec(o).API) }},
			{Name: "ZONE", Value: func(o Object, _ time.Time) string { return dash(spec(o).Zone) }},
			{Name: "PEER", Wide: true, Value: func(o Object, _ time.Time) string { return dash(spec(o).Peer) }},
			{Name: "MESSAGE", Wide: true, Value: func(o Object, _ time.Time) string { return dash(spec(o).Message) }},
			{Name: "SINCE", Value: func(o Object, now time.Time) string { return Age(&spec(o).Since, now) }},
		},
		Fields: map[string]func(Object) string{},
	}
}
