package server

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
	"atoll/internal/tunnel/wire"
)

const (
	maxTunnels  = 4               // of one node at once: one, and those whose end is not noticed yet
	maxNodeSide = 64              // streams that one node has open to this server
	recheck     = 2 * time.Second // of a node's identity, while its connection stands
)

// tunnel takes the connection of a node: the hub reaches the node over it, and what
// the node opens goes to Deps.NodeStream. A node can register nobody but itself: its
// name is that of its certificate.
func (c *call) tunnel() error {
	node := c.id.Node
	if node == "" {
		return errs.New(errs.Denied, "%s is not a node: only nodes connect here", c.id).WithHint("a node shows the certificate it got when it joined")
	}
	c.ref = api.Ref{Kind: api.KindNode, Name: node}
	release, ok := c.hold("tunnel", c.id, maxTunnels)
	if !ok {
		return errs.New(errs.Unavailable, "node %s has %d connections open already", node, maxTunnels).WithHint("is another host using its certificate?")
	}
	defer release()
	conn, err := wire.Upgrade(c.w, c.r)
	if err != nil {
		return err
	}
	c.w.status = http.StatusSwitchingProtocols
	s, err := wire.NewServer(conn, wire.Config{Clock: c.Clock, Log: c.Log, MaxServe: maxNodeSide})
	if err != nil {
		return err
	}
	gauge := c.stats.tunnels.With()
	gauge.Add(1)
	defer gauge.Add(-1)
	ctx, cancel := context.WithCancelCause(c.r.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		for c.Clock.Sleep(ctx, recheck) == nil {
			if err := c.Auth.Check(c.id); err != nil {
				cancel(err)
				return
			}
		}
	})
	if role, err := c.Auth.RoleOf(c.id); err == nil && role == api.RoleNode { // the others send signs of life only
		defer c.Hub.Register(node, s.Open)()
	}
	c.Log.Info("node connected", slog.String("node", node), slog.String("from", c.source))
	err = s.Run(ctx, func(ctx context.Context, h tunnel.Header, st *tunnel.Stream) error {
		if c.NodeStream == nil {
			return errs.New(errs.Unsupported, "this server takes no streams of kind %q from nodes", clip(h.Verb))
		}
		return c.NodeStream(ctx, node, h, st)
	})
	c.Log.Info("node's connection ended", slog.String("node", node), slog.Any("reason", err))
	return nil
}

// Servers is the answer of GET /v1/servers.
type Servers struct {
	Endpoints []ServerURL `json:"endpoints"`
}

// ServerURL is where a server of the pool answers the API.
type ServerURL struct {
	Name string `json:"name,omitempty"` // of its host; "" when it is not known
	URL  string `json:"url"`
}

// endpoints tells where the API can be had: from the members that vote, or where
// there are none, from this server itself.
func (c *call) endpoints() error {
	members, _, err := store.List[*api.Member](c.r.Context(), c.Store, api.Selector{Kind: api.KindMember})
	if err != nil {
		return err
	}
	out := Servers{Endpoints: []ServerURL{}}
	for _, m := range members {
		if m.Spec.State == api.MemberVoter && !m.Spec.Witness && m.Spec.API != "" {
			out.Endpoints = append(out.Endpoints, ServerURL{Name: m.Name, URL: m.Spec.API})
		}
	}
	slices.SortFunc(out.Endpoints, func(a, b ServerURL) int { return cmp.Compare(a.Name, b.Name) })
	if len(out.Endpoints) == 0 {
		for _, u := range c.cfg.Advertise {
			out.Endpoints = append(out.Endpoints, ServerURL{URL: u})
		}
	}
	return c.json(http.StatusOK, out)
}

func (s *Server) serverRoutes() []*Route {
	return []*Route{
		{Method: "GET", Path: "/v1/servers", ID: "servers", Doc: "Where the servers of the pool answer the API.", Known: true, Answer: typeJSON, Result: "Servers", handle: (*call).endpoints},
		{Method: "GET", Path: wire.Path, ID: "tunnel", Doc: "The way of a node: upgrades the connection to " + wire.Protocol + ". Nodes only, by their certificates.", Known: true,
			Status: http.StatusSwitchingProtocols, Long: true, handle: (*call).tunnel},
	}
}
