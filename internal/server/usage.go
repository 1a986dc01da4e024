package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/server/tally"
	"atoll/internal/tunnel"
)

const (
	usageTimeout = 3 * time.Second // a node that takes longer is left out of the answer
	maxUsageOpen = 64              // nodes asked at once
	maxReport    = 16 << 20        // bytes of one node's report
)

// usage asks all nodes, adds up, and cuts the sum to what the caller may see.
func (c *call) usage() error {
	tenant := c.r.URL.Query().Get("tenant")
	c.ref.Tenant = tenant
	ctx, cancel := context.WithTimeout(c.r.Context(), usageTimeout)
	defer cancel()
	nodes := c.Hub.Nodes()
	sort.Strings(nodes)
	reports := make([]*api.UsageReport, len(nodes))
	sem := make(chan struct{}, maxUsageOpen)
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			sem <- struct{}{}
			defer func() { <-sem }()
			r, err := c.nodeUsage(ctx, n)
			if err != nil {
				c.Log.Warn("node did not report its usage", slog.String("node", n), slog.Any("error", err))
				return
			}
			reports[i] = r
		})
	}
	wg.Wait()
	out := tally.Merge(reports)
	out.At = c.now()
	if err := c.limits(&out); err != nil {
		return err
	}
	c.cut(&out, tenant)
	return c.json(http.StatusOK, out)
}

func (c *call) nodeUsage(ctx context.Context, node string) (*api.UsageReport, error) {
	st, err := c.Hub.Open(ctx, node, tunnel.Header{Verb: tunnel.VerbUsage})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	defer st.Close()
	var data []byte
	for {
		ch, p, err := st.Read()
		if err != nil {
			if ctx.Err() != nil {
				return nil, errs.New(errs.Timeout, "no report within %s", usageTimeout)
			}
			return nil, errs.New(errs.Unavailable, "read report: %w", err)
		}
		switch ch {
		case api.ChanStdout:
			if data = append(data, p...); len(data) > maxReport {
				return nil, errs.New(errs.Invalid, "the report is over %d bytes", maxReport)
			}
			var r api.UsageReport
			if json.Unmarshal(data, &r) == nil { // a long report comes in several frames
				return &r, nil
			}
		case api.ChanExit:
			var x api.StreamExit
			_ = json.Unmarshal(p, &x) // what cannot be read has no message
			return nil, errs.New(errs.Unavailable, "the node says: %s", x.Message)
		}
	}
}

// limits adds what the store knows: every tenant's guarantee and ceiling, also of
// those who run nothing, and what was admitted.
func (c *call) limits(out *api.UsageReport) error {
	ctx := c.r.Context()
	tenants, _, err := c.Store.List(ctx, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return err
	}
	ledgers, _, err := c.Store.List(ctx, api.Selector{Kind: api.KindLedger})
	if err != nil {
		return err
	}
	at := map[string]int{}
	for i, t := range out.Tenants {
		at[t.Tenant] = i
	}
	for _, o := range tenants {
		t, ok := o.(*api.Tenant)
		if !ok {
			continue
		}
		i, known := at[t.Name]
		if !known {
			i = len(out.Tenants)
			at[t.Name] = i
			out.Tenants = append(out.Tenants, api.TenantUsage{Tenant: t.Name})
		}
		out.Tenants[i].Guarantee, out.Tenants[i].Limit = t.Spec.Guarantee, t.Spec.Limit
	}
	for _, o := range ledgers {
		if l, ok := o.(*api.Ledger); ok && l.Tenant != "" {
			if i, known := at[l.Tenant]; known {
				out.Tenants[i].Requested = l.Spec.Requested
			}
		}
	}
	sort.Slice(out.Tenants, func(i, j int) bool { return out.Tenants[i].Tenant < out.Tenants[j].Tenant })
	return nil
}

// cut leaves what the caller may see, and of that what is in tenant.
func (c *call) cut(out *api.UsageReport, tenant string) {
	if !c.Auth.Allowed(c.id, api.VerbList, api.KindNode, "") {
		out.Nodes = []api.NodeUsage{}
	}
	may := func(t string) bool {
		return api.WithinTenant(t, tenant) && c.Auth.Allowed(c.id, api.VerbList, api.KindInstance, t)
	}
	out.Tenants = slices.DeleteFunc(out.Tenants, func(t api.TenantUsage) bool { return t.Tenant == "" || !may(t.Tenant) })
	out.Instances = slices.DeleteFunc(out.Instances, func(i api.InstanceUsage) bool {
		return strings.TrimSpace(i.Ref.Tenant) == "" || !may(i.Ref.Tenant)
	})
}
