package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"atoll/api"
	"atoll/internal/auth"
	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/join"
	"atoll/internal/store"
	"atoll/internal/store/etcdstore"
)

const recoverLong = `When a majority of the hosts that keep the pool's state is lost, nothing can be changed
any more. Without flags recover looks at the copy on this host, asks the other members
whether they answer, and says what can be done. atolld must not run meanwhile.
`

// runRecover is for the day on which a majority is gone.
func runRecover(ctx context.Context, args []string) error {
	var lost bool
	var from, authority string
	c, err := load("recover", args, func(fs *flag.FlagSet) {
		fs.BoolVar(&lost, "yes-i-lost-the-others", false, "make the copy on this host the only one: the others are gone for good, or switched off")
		fs.StringVar(&from, "from", "", "start anew from a backup `file` (atoll backup create), on a host that has no copy")
		fs.StringVar(&authority, "authority", "", "with --from: PEM `file` of ca.crt and ca.key, one after the other, from STATE/pki of a host that was a server")
	})
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(os.Stderr, "\n"+recoverLong)
	}
	if err != nil {
		return err
	}
	if lost && from != "" || authority != "" && from == "" {
		return errs.New(errs.Invalid, "--from and --yes-i-lost-the-others exclude each other, and --authority goes with --from").WithHint("atolld recover --help")
	}
	if from != "" {
		return recoverFrom(ctx, c, from, authority)
	}
	s, err := survey(ctx, c)
	if err != nil {
		return err
	}
	fmt.Print(s.text(time.Now()))
	if !lost {
		return nil
	}
	return makeOnly(ctx, c, s)
}

// surveyed is what a host's copy says, and who answers.
type surveyed struct {
	node    string
	role    api.JoinRole
	state   string
	copy    etcdstore.Copy
	answers map[string]bool // by name
	key     bool            // this host has the authority's key
}

func survey(ctx context.Context, c config) (surveyed, error) {
	s := surveyed{node: c.Node, role: api.RoleNode, state: c.State, answers: map[string]bool{}}
	if id, err := join.Load(c.State, joinDeps()); err == nil {
		s.node, s.role = id.Node(), id.Role()
	}
	_, err := os.Stat(filepath.Join(c.State, "pki", "ca.key"))
	s.key = err == nil
	s.copy, err = etcdstore.Inspect(filepath.Join(c.State, "etcd"))
	if errors.Is(err, errs.NotFound) {
		return s, errs.New(errs.NotFound, "this host keeps no copy of the pool's state in %s", c.State).
			WithHint("look on the hosts that did: atoll get members named them. With a backup only: atolld recover --from FILE")
	}
	if err != nil {
		return s, err
	}
	mem, err := readMembership(c.State)
	if err != nil {
		return s, err
	}
	for _, p := range s.copy.Members {
		if p.Name != s.node {
			s.answers[p.Name] = false
		}
	}
	if mem == nil { // it was taken from another host, or made the only one: nobody can be asked
		return s, nil
	}
	conf, err := etcdstore.Handshake(mem.peers(c))
	if err != nil {
		return s, errs.New(errs.Internal, "the certificate of this member: %w", err)
	}
	for _, p := range s.copy.Members {
		if p.Name != s.node {
			s.answers[p.Name] = etcdstore.Answers(ctx, etcdstore.HostPort(p.URL), conf)
		}
	}
	return s, nil
}

// verdict is what a survey comes to.
type verdict string

const (
	verdictSole  verdict = "sole"  // it was the only one all the time
	verdictWait  verdict = "wait"  // with those that answer it is a majority
	verdictLost  verdict = "lost"  // it is not
	verdictVotes verdict = "votes" // it has no vote: it may have missed anything
)

func (s *surveyed) verdict() (v verdict, votes, there int) {
	self := false
	for _, p := range s.copy.Members {
		if p.Learner {
			continue
		}
		votes++
		_, other := s.answers[p.Name]
		if !other || s.answers[p.Name] {
			there++
		}
		self = self || !other
	}
	switch {
	case !self:
		return verdictVotes, votes, there
	case votes == 1:
		return verdictSole, votes, there
	case there > votes/2:
		return verdictWait, votes, there
	}
	return verdictLost, votes, there
}

func (s *surveyed) text(now time.Time) string {
	var b strings.Builder
	c := s.copy
	fmt.Fprintf(&b, "host     %s, a %s; state in %s\n", s.node, s.role, s.state)
	fmt.Fprintf(&b, "copy     revision %d, written %s ago (%s), %s\n", c.Revision, now.Sub(c.Written).Round(time.Second), c.Written.UTC().Format(time.DateTime+" MST"), api.HumanQuantity(api.Disk, c.Bytes))
	if c.Logged > c.Index {
		fmt.Fprintf(&b, "log      up to entry %d, of which %d was applied: the rest may not have been agreed on\n", c.Logged, c.Index)
	} else {
		fmt.Fprintf(&b, "log      up to entry %d, all of it applied\n", c.Index)
	}
	b.WriteString("members  as this copy knows them\n")
	for _, p := range c.Members {
		says := "this host"
		if up, other := s.answers[p.Name]; other && up {
			says = "answers"
		} else if other {
			says = "does not answer"
		}
		if p.Learner {
			says += ", has no vote yet"
		}
		fmt.Fprintf(&b, "         %-20s %-28s %s\n", p.Name, p.URL, says)
	}
	v, votes, there := s.verdict()
	b.WriteString("\n")
	switch v {
	case verdictSole:
		b.WriteString("This copy is the only one there is: nothing needs to be recovered. Start atolld: atolld up\n")
	case verdictWait:
		fmt.Fprintf(&b, "With this host %d of %d members are there, and %d are enough: nothing is lost. Start atolld here: atolld up\n", there, votes, votes/2+1)
	case verdictVotes:
		b.WriteString("This host had no vote in the group that it knows: its copy may be old. Use another host's, or a backup.\n")
	case verdictLost:
		fmt.Fprintf(&b, `Of %d members %d must agree, and with this host %d would be there. First try to bring others back: every one
that starts with its disk counts. If they are gone for good, this copy can be made the only one. Then:

  - What the others acknowledged and this copy never heard of is lost: changes after revision %d. That is little
    when this host was one of the last that were up, and much when it had been cut off before.
  - If several copies are left, use the newest: run atolld recover on each, and take the highest revision.
  - The others must be off. If they run on somewhere, there are two pools, and what must not run twice may.
  - Instances are not touched. Hosts take their leases anew, and what the lost ones ran is started elsewhere.
  - A lost host that comes back later while this one answers puts its old copy away (STATE/etcd.old) and is an
    ordinary host again; the pool grows by itself to three members or five.

  atolld recover --yes-i-lost-the-others      then: atolld up
`, votes, votes/2+1, there, c.Revision)
	}
	return b.String()
}

// makeOnly makes the copy on this host the only one. Each step may be repeated.
func makeOnly(ctx context.Context, c config, s surveyed) error {
	switch v, _, _ := s.verdict(); {
	case v == verdictSole && !s.pending():
		return nil
	case v == verdictWait:
		return errs.New(errs.Conflict, "enough members are there, so nothing may be given up").WithHint("start atolld: atolld up")
	case v == verdictVotes:
		return errs.New(errs.Conflict, "this host had no vote: its copy may have missed anything").WithHint("use another host's copy, or a backup: atolld recover --from FILE")
	case !s.key:
		return errs.New(errs.Unsupported, "this host, a %s, does not have the pool's authority: it cannot be a server of it", s.role).
			WithHint("copy %s to the same place on a host that was a server (it has pki/ca.key), and run this there", filepath.Join(c.State, "etcd"))
	}
	unlock, err := claimDirs(c, api.RoleServer)
	if err != nil {
		return err
	}
	defer unlock()
	now := filepath.Join(c.State, "etcd")
	before := filepath.Join(c.State, "etcd.before-"+time.Now().UTC().Format("20060102-150405"))
	if err := os.Mkdir(before, 0o700); err != nil {
		return errs.New(errs.Unavailable, "keep the copy as it is: %w", err)
	}
	if err := os.CopyFS(before, os.DirFS(now)); err != nil {
		return errs.New(errs.Unavailable, "keep the copy as it is: %w", err)
	}
	log, err := newLogger(c)
	if err != nil {
		return err
	}
	if err := etcdstore.MakeOnly(ctx, etcdstore.Config{DataDir: now, Name: s.node, Log: log}); err != nil {
		return err
	}
	if err := goOnFrom(c.State); err != nil {
		return err
	}
	fmt.Printf("\nThis copy is the only one now; as it was before it is in %s.\nStart atolld: atolld up. Then: atoll get members, atoll get nodes\n", before)
	return nil
}

// pending reports whether an earlier recovery was ended before its last step.
func (s *surveyed) pending() bool {
	_, err := os.Lstat(memberFile(s.state))
	return err == nil
}

// goOnFrom makes this host the one from which the pool goes on, at its next start.
func goOnFrom(state string) error {
	id, err := join.Load(state, joinDeps())
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if id != nil {
		if err := id.Promote(); err != nil {
			return err
		}
	}
	if err := os.Remove(memberFile(state)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Unavailable, "forget the lost members: %w", err)
	}
	return nil
}

// recoverFrom rebuilds the control plane from a backup.
func recoverFrom(ctx context.Context, c config, file, authority string) error {
	unlock, err := claimDirs(c, api.RoleServer)
	if err != nil {
		return err
	}
	defer unlock()
	dir, fresh := filepath.Join(c.State, "etcd"), filepath.Join(c.State, "etcd.new")
	if _, err := os.Lstat(dir); err == nil {
		return errs.New(errs.Conflict, "this host has a copy of the pool's state in %s", dir).
			WithHint("look at it first: atolld recover. If the backup is the better one, move that directory away")
	}
	id, err := join.Load(c.State, joinDeps())
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if err == nil {
		c.Node = id.Node()
	}
	kept, err := bringAuthority(c, authority)
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return errs.New(errs.NotFound, "backup: %w", err)
	}
	defer f.Close()
	m, err := store.ReadManifest(f)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return errs.New(errs.Unavailable, "backup: %w", err)
	}
	if err := os.RemoveAll(fresh); err != nil { // of an attempt that was ended
		return errs.New(errs.Unavailable, "begin: %w", err)
	}
	left, err := loadInto(ctx, c, fresh, f)
	if err != nil {
		return err
	}
	if err := etcdstore.SkipTo(fresh, m.Revision); err != nil {
		return err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return errs.New(errs.Unavailable, "put the new copy into its place: %w", err)
	}
	if err := goOnFrom(c.State); err != nil {
		return err
	}
	fmt.Printf("The pool's state is that of %s (revision %d, %d objects). This host is %s in it.\n", m.CreatedAt.UTC().Format(time.DateTime+" MST"), m.Revision, m.Objects, c.Node)
	if kept {
		fmt.Println("It has the pool's authority: the other hosts find it when it answers where they know a server.")
	} else {
		fmt.Println("The pool has a new authority, as the old one's key was not given: every other host must join again,\nwith: atoll node token --node NAME, and there rm STATE/join.json STATE/pki/*.crt, atolld join. Instances run on.")
	}
	fmt.Println("Start atolld: atolld up. What was changed after the backup is lost; what runs and is in it is taken over where it runs.")
	if len(left) > 0 {
		fmt.Printf("Hosts of the backup: %s. Those that do not come back: atoll node remove NAME --force\n", strings.Join(left, ", "))
	}
	return nil
}

// bringAuthority makes sure that this host has the pool's authority, if it can be had.
func bringAuthority(c config, file string) (kept bool, err error) {
	dir := filepath.Join(c.State, "pki")
	ca := auth.NewCA(dir, clock.Real{}, rand.Reader)
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return false, errs.New(errs.NotFound, "authority: %w", err)
		}
		return true, ca.Adopt(b)
	}
	_, key := os.Lstat(filepath.Join(dir, "ca.key"))
	_, cert := os.Lstat(filepath.Join(dir, "ca.crt"))
	if key != nil && cert == nil {
		return false, errs.New(errs.Conflict, "this host has joined the pool, but does not have the key of its authority").
			WithHint("cat STATE/pki/ca.crt STATE/pki/ca.key of a host that was a server into a file: --authority FILE. If no such host is left: remove %s, and all hosts join again", dir)
	}
	return key == nil, nil
}

// loadInto fills an empty data directory from a backup, and makes this host one of the
// pool in it. The members of the lost group are none of the new one.
func loadInto(ctx context.Context, c config, dir string, r io.Reader) (others []string, err error) {
	log, err := newLogger(c)
	if err != nil {
		return nil, err
	}
	base, err := etcdstore.Open(ctx, etcdstore.Config{DataDir: dir, Name: c.Node, Log: log})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	if _, err := store.Load(ctx, base, r, store.LoadOptions{}); err != nil {
		return nil, err
	}
	members, _, err := base.List(ctx, api.Selector{Kind: api.KindMember})
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if _, err := base.Commit(ctx, store.Remove(api.RefOf(m), store.Any)); err != nil {
			return nil, err
		}
	}
	ids, _, err := store.List[*api.NodeIdentity](ctx, base, api.Selector{Kind: api.KindNodeIdentity})
	if err != nil {
		return nil, err
	}
	key, err := join.KeyHash(c.State, rand.Reader)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if id.Name != c.Node {
			others = append(others, id.Name)
			continue
		}
		next := api.Clone(id)
		next.Spec.KeyHash, next.Spec.Revoked = key, ""
		if _, err := base.Commit(ctx, store.Update(next)); err != nil {
			return nil, err
		}
	}
	return others, nil // a host that the backup does not know is made known at its start
}
