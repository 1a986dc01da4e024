package quota

import (
	"math"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
)

// sums are amounts that may be negative while they are differences.
type sums map[api.Resource]int64

// usage is what an instance counts for: itself, and its requests unless it is stopped.
func usage(in *api.Instance) sums {
	if in == nil {
		return nil
	}
	out := sums{}
	if !in.Spec.Stopped {
		for r, v := range in.Spec.Requests {
			out[r] = v
		}
	}
	out[api.Instances] = 1
	return out
}

// waiting is the part of the usage that the pool promises no room for.
func waiting(in *api.Instance) sums {
	if in == nil || !in.Spec.Waits() {
		return nil
	}
	out := usage(in)
	delete(out, api.Instances)
	return out
}

// firm is what of an account the pool has promised room for.
func firm(l api.LedgerSpec) api.Resources { return plus(l.Requested, difference(l.Waiting, nil)) }

// largest bounds one request, so that sums of many stay countable.
const largest = math.MaxInt64 / 4

func (s sums) add(o sums, sign int64) error {
	for r, v := range o {
		if v > largest || v < -largest {
			return errs.New(errs.Invalid, "%s: %s is more than can be counted", r, api.FormatQuantity(r, v))
		}
		s[r] += sign * v
		if s[r] > largest || s[r] < -largest {
			return errs.New(errs.Quota, "%s: the sum is more than can be counted", r)
		}
	}
	return nil
}

// change is what an account gains when an instance that counted for was counts for is.
func change(was, is sums) (sums, error) {
	d := sums{}
	if err := d.add(is, 1); err != nil {
		return nil, err
	}
	return d, d.add(was, -1)
}

func (s sums) zero() bool {
	for _, v := range s {
		if v != 0 {
			return false
		}
	}
	return true
}

// plus gives an account after a change. Entries of zero are left out, so that equal
// accounts are equal maps.
func plus(r api.Resources, d sums) api.Resources {
	out := api.Resources{}
	for k, v := range r {
		out[k] = v
	}
	for k, v := range d {
		out[k] = max(out[k]+v, 0)
	}
	for k, v := range out {
		if v == 0 {
			delete(out, k)
		}
	}
	return out
}

// difference is b - a.
func difference(a, b api.Resources) sums {
	out := sums{}
	for r, v := range b {
		out[r] += v
	}
	for r, v := range a {
		out[r] -= v
	}
	return out
}

// shared are the resources of the pool that are held free for who was promised them.
var shared = [...]api.Resource{api.CPU, api.Memory}

// reserve is what a top tenant takes from the pool: its guarantee, or more if it has asked for more.
func reserve(guarantee, requested api.Resources) api.Resources {
	out := api.Resources{}
	for _, r := range shared {
		if v := max(guarantee[r], requested[r]); v > 0 {
			out[r] = v
		}
	}
	return out
}

// counted resources are not a part of any node.
func counted(r api.Resource) bool {
	switch r {
	case api.Instances, api.Volumes, api.Snapshots, api.Backup, api.Addresses:
		return true
	}
	return false
}

func top(tenant string) string {
	t, _, _ := strings.Cut(tenant, "/")
	return t
}

func tenantRef(path string) api.Ref { return api.Ref{Kind: api.KindTenant, Name: path} }

func ledgerRef(tenant string) api.Ref {
	return api.Ref{Kind: api.KindLedger, Tenant: tenant, Name: api.LedgerName}
}
