package rollout

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"atoll/api"
	"atoll/internal/errs"
	"atoll/internal/release"
	"atoll/internal/stage"
)

// next is the upgrade as it is wanted after a request, or why that cannot be.
func (d *Desk) next(ctx context.Context, old *api.Upgrade, req api.UpgradeRequest, p pool) (*api.Upgrade, error) {
	if req.Action == "prepare" {
		return d.prepare(ctx, old, req, p)
	}
	if old == nil {
		return nil, errs.New(errs.NotFound, "no upgrade is under way").WithHint("begin one: atoll upgrade prepare --file atoll.tar.gz")
	}
	n := api.Clone(old)
	var err error
	switch req.Action {
	case "activate":
		err = activate(n, req)
	case "pause", "resume":
		if old.Over() {
			err = over(old)
		}
		n.Spec.Paused = req.Action == "pause"
	case "finalise":
		err = finalise(n, req, p)
	case "abort":
		err = abort(n, p)
	}
	return n, err
}

func over(u *api.Upgrade) error {
	return errs.New(errs.Conflict, "the upgrade to %s is over: it was %s", u.Spec.Version, u.Status.State).WithHint("begin another: atoll upgrade prepare --file atoll.tar.gz")
}

// prepare checks everything that can be known before a program is changed.
func (d *Desk) prepare(ctx context.Context, old *api.Upgrade, req api.UpgradeRequest, p pool) (*api.Upgrade, error) {
	if old != nil && !old.Over() && old.Spec.Phase != api.UpgradePrepare {
		return nil, errs.New(errs.Conflict, "the upgrade to %s is %s", old.Spec.Version, old.Status.State).
			WithHint("end it first: atoll upgrade finalise, or atoll upgrade abort")
	}
	files, err := d.Dir.Files(req.Version)
	if err != nil {
		return nil, fmt.Errorf("%w on host %s, which answers", err, d.Node)
	}
	told, err := stage.Probe(ctx, d.Dir.Path(req.Version, "atolld"))
	if err != nil {
		return nil, fmt.Errorf("version %s: %w", req.Version, err)
	}
	if told.Version != req.Version {
		return nil, errs.New(errs.Conflict, "what is kept as version %s says that it is %s", req.Version, told.Version).WithHint("send it again")
	}
	if err := fits(p, told, files); err != nil {
		return nil, err
	}
	if err := quiet(p); err != nil {
		return nil, err
	}
	n := &api.Upgrade{Head: api.Head{K: api.KindUpgrade, Meta: api.Meta{Name: api.PoolName}}}
	try := int64(0)
	if old != nil {
		n = api.Clone(old)
		try = old.Spec.Try
		n.Status = api.UpgradeStatus{}
	} else {
		now := d.now()
		n.CreatedAt = &now
	}
	n.Status.State = api.UpgradePreparing
	n.Spec = api.UpgradeSpec{Version: req.Version, Release: told.Release, Files: files, Source: d.Node, Phase: api.UpgradePrepare, Try: try + 1}
	return n, nil
}

// fits reports whether the pool's hosts can go to a version at all.
func fits(p pool, to stage.Told, files []api.UpgradeFile) error {
	if err := api.ReadableAt(to.Release, p.level); err != nil {
		return fmt.Errorf("version %s: %w", to.Version, err)
	}
	same := len(p.nodes) > 0
	for _, n := range p.nodes {
		if r := release.Or(n.Status.Release); !release.Compatible(r, to.Release) {
			return errs.New(errs.Unsupported, "host %s runs release %d, version %s is release %d: they are too far apart to work together meanwhile", n.Name, r, to.Version, to.Release).
				WithHint("go by way of a release at most %d away, or remove the host: atoll node remove %s", release.Reach, n.Name)
		}
		arch := n.Status.Arch
		if arch == "" {
			arch = runtime.GOARCH
		}
		if !slices.ContainsFunc(files, func(f api.UpgradeFile) bool { return f.Arch == arch && f.Binary == "atolld" }) {
			return errs.New(errs.Invalid, "host %s is %s, and version %s has no atolld for that", n.Name, arch, to.Version).
				WithHint("put the programs for %s into the archive, too: GOARCH=%s make build", arch, arch)
		}
		same = same && n.Status.Version == to.Version
	}
	if same {
		return errs.New(errs.Conflict, "all hosts run %s already", to.Version)
	}
	return nil
}

// quiet reports whether nothing is going on that an upgrade would be in the way of.
func quiet(p pool) error {
	for _, m := range p.members {
		switch {
		case m.Spec.State != api.MemberVoter:
			return errs.New(errs.Conflict, "host %s is %s among those that keep the state", m.Name, m.Spec.State).WithHint("wait until all are voters: atoll get members")
		case !m.Spec.Witness && !p.live[m.Name]:
			return errs.New(errs.Conflict, "host %s, which keeps the state, is not there: while another one is restarted, there might be no majority", m.Name).
				WithHint("bring it back, or wait until another has taken its place: atoll get members")
		}
	}
	for _, dr := range p.drains {
		if !dr.Over() {
			return errs.New(errs.Conflict, "host %s is being emptied or restored: %s", dr.Name, dr.Spec.State).WithHint("wait for its end: atoll get drains; or take it back: atoll restore %s", dr.Name)
		}
	}
	return nil
}

func activate(n *api.Upgrade, req api.UpgradeRequest) error {
	switch {
	case n.Over():
		return over(n)
	case n.Spec.Phase == api.UpgradeAbort:
		return errs.New(errs.Conflict, "the upgrade to %s is on its way back", n.Spec.Version).WithHint("when that is over, begin again: atoll upgrade prepare")
	case n.Status.State == api.UpgradePreparing:
		return errs.New(errs.Conflict, "the upgrade to %s is not ready: %s", n.Spec.Version, orSo(n.Status.Message)).WithHint("see how it goes: atoll upgrade; hosts that will not come back can be removed: atoll node remove")
	}
	for _, h := range req.Hosts {
		if n.Status.Host(h) == nil {
			return errs.New(errs.NotFound, "there is no host %s", h).WithHint("atoll upgrade lists them")
		}
	}
	n.Spec.Phase, n.Spec.Paused, n.Spec.Hosts = api.UpgradeActivate, false, req.Hosts
	n.Spec.Try++
	if req.Pause != nil {
		n.Spec.Pause = *req.Pause
	}
	n.Status.State, n.Status.Message = api.UpgradeActivating, ""
	return nil
}

func orSo(s string) string {
	if s == "" {
		return "the hosts have not answered yet"
	}
	return s
}

// finalise is refused while a host runs an older release, unless it is away and was named.
func finalise(n *api.Upgrade, req api.UpgradeRequest, p pool) error {
	switch {
	case n.Over():
		return over(n)
	case n.Spec.Phase != api.UpgradeActivate && n.Spec.Phase != api.UpgradeFinalise:
		return errs.New(errs.Conflict, "nothing to finalise: the upgrade to %s is %s", n.Spec.Version, n.Status.State).WithHint("first: atoll upgrade activate")
	}
	var here, away []string
	for _, h := range p.nodes {
		switch {
		case h.Status.Version == n.Spec.Version && (!p.live[h.Name] || h.Status.Upgrade != nil && h.Status.Upgrade.Active == n.Spec.Version):
		case p.live[h.Name]:
			here = append(here, h.Name)
		case !slices.Contains(req.Absent, h.Name):
			away = append(away, h.Name)
		}
	}
	if len(here) > 0 {
		return errs.New(errs.Conflict, "hosts that are there do not run %s yet: %s", n.Spec.Version, strings.Join(here, ", ")).WithHint("atoll upgrade activate")
	}
	if len(away) > 0 {
		return errs.New(errs.Conflict, "hosts that are away run an older version: %s", strings.Join(away, ", ")).
			WithHint("bring them back first; or leave them behind, so that they upgrade when they return: atoll upgrade finalise --absent %s", strings.Join(away, " --absent "))
	}
	n.Spec.Phase, n.Spec.Absent, n.Spec.Paused = api.UpgradeFinalise, req.Absent, false
	n.Spec.Try++
	return nil
}

func abort(n *api.Upgrade, p pool) error {
	switch {
	case n.Over():
		return over(n)
	case n.Spec.Phase == api.UpgradeFinalise:
		return errs.New(errs.Conflict, "the upgrade to %s is being finalised: there is no way back", n.Spec.Version).WithHint("the state from before is kept on host %s: %s", n.Spec.Source, n.Spec.Backup)
	}
	n.Spec.Phase, n.Spec.Paused, n.Spec.Hosts = api.UpgradeAbort, false, nil
	n.Spec.Try++
	n.Status.State, n.Status.Message = api.UpgradeAborting, ""
	return nil
}
