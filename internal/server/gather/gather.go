// Package gather asks all nodes what they use and makes one report of their answers.
package gather

import (
	"context"
	"encoding/json"
	"log/slog"
	"sort"
	"sync"
	"time"

	"atoll/api"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/store"
	"atoll/internal/tunnel"
)

const (
	patience  = 3 * time.Second // a node that takes longer is left out of the answer
	maxOpen   = 64              // nodes asked at once
	maxReport = 16 << 20        // bytes of one node's report
)

// Usage asks all nodes that are connected to hub what they use, and adds up. One that does
// not answer in time is left out.
func Usage(ctx context.Context, hub *tunnel.Hub, clk clock.Clock, log *slog.Logger) api.UsageReport {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	nodes := hub.Nodes()
	sort.Strings(nodes)
	reports := make([]*api.UsageReport, len(nodes))
	sem := make(chan struct{}, maxOpen)
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			sem <- struct{}{}
			defer func() { <-sem }()
			r, err := ask(ctx, hub, n)
			if err != nil {
				log.Warn("node did not report its usage", slog.String("node", n), slog.Any("error", err))
				return
			}
			reports[i] = r
		})
	}
	wg.Wait()
	out := merge(reports)
	out.At = clk.Now().UTC()
	return out
}

func ask(ctx context.Context, hub *tunnel.Hub, node string) (*api.UsageReport, error) {
	st, err := hub.Open(ctx, node, tunnel.Header{Verb: tunnel.VerbUsage})
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
				return nil, errs.New(errs.Timeout, "no report within %s", patience)
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

// Limits adds what the store knows: every tenant's guarantee and ceiling, also of
// those who run nothing, and what was admitted.
func Limits(ctx context.Context, st store.Store, out *api.UsageReport) error {
	tenants, _, err := st.List(ctx, api.Selector{Kind: api.KindTenant})
	if err != nil {
		return err
	}
	ledgers, _, err := st.List(ctx, api.Selector{Kind: api.KindLedger})
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
