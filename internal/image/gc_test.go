package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"atoll/internal/clock"
	"atoll/internal/errs"
	"atoll/internal/image/imagetest"
	"atoll/internal/image/oci"
)

func importTar(t testing.TB, s *Store, scope, name, content string) Info {
	t.Helper()
	i, err := s.Import(ctx, scope, name, bytes.NewReader(imagetest.Tar(t, imagetest.File("f", content))), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// usable tells whether an image is here in full.
func usable(t testing.TB, s *Store, digest string) bool {
	t.Helper()
	s.mu.Lock()
	delete(s.roots, digest)
	delete(s.parsed, digest)
	s.mu.Unlock()
	img, err := s.image(digest)
	if err != nil {
		return false
	}
	for _, l := range img.Manifest.Layers {
		if !s.present(l.Digest) {
			return false
		}
	}
	for _, c := range img.Chains {
		if _, err := os.Stat(s.layerDir(c) + "/f"); err != nil {
			return false
		}
	}
	return true
}

func TestGCKeepsWhatIsNeeded(t *testing.T) {
	c := clock.NewManual(time.Unix(1e9, 0))
	s := newStore(t, Options{Clock: c, Grace: time.Minute})
	named, held, running, dead := importTar(t, s, "a", "named", "1"), importTar(t, s, "a", "held", "2"), importTar(t, s, "a", "running", "3"), importTar(t, s, "a", "dead", "4")
	release := s.Hold(held.Digest)
	for _, n := range []string{"held", "running", "dead"} {
		if err := s.Remove(ctx, "a", n); err != nil {
			t.Fatal(err)
		}
	}
	inUse := func() map[string]bool { return map[string]bool{running.Digest: true} }
	if freed, removed, err := s.GC(ctx, inUse); err != nil || freed != 0 || len(removed) != 0 {
		t.Fatal("removed within the grace time", removed, err)
	}
	disk := s.Disk()
	c.Advance(2 * time.Minute)
	freed, removed, err := s.GC(ctx, inUse)
	if err != nil || freed == 0 || len(removed) != 4 { // manifest, config, layer, unpacked layer
		t.Fatal(freed, removed, err)
	}
	if s.Disk() >= disk {
		t.Error("the disk did not get emptier")
	}
	for _, i := range []Info{named, held, running} {
		if !usable(t, s, i.Digest) {
			t.Errorf("%s is gone", i.Reference)
		}
	}
	if _, err := s.Unpack(ctx, dead.Digest); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	release()
	release() // harmless
	c.Advance(2 * time.Minute)
	if _, removed, err := s.GC(ctx, inUse); err != nil || len(removed) != 4 || usable(t, s, held.Digest) {
		t.Error(removed, err)
	}
	// What runs but cannot be read stops everything.
	if err := os.Remove(s.blobPath(running.Digest)); err != nil {
		t.Fatal(err)
	}
	s.parsed = map[string]oci.Image{}
	if err := s.Remove(ctx, "a", "named"); err != nil {
		t.Fatal(err)
	}
	c.Advance(2 * time.Minute)
	if _, removed, err := s.GC(ctx, inUse); !errors.Is(err, errs.Internal) || len(removed) != 0 {
		t.Error(removed, err)
	}
}

func TestGCRemovesOldPartialsAndClaims(t *testing.T) {
	c := clock.NewManual(time.Now())
	s := newStore(t, Options{Clock: c})
	old := s.path("partial", "x")
	if err := os.WriteFile(old, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.claim("t", imagetest.SomeDigest); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.GC(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err != nil {
		t.Error("a young download was removed")
	}
	if _, err := os.Stat(s.claimPath("t", imagetest.SomeDigest)); err == nil {
		t.Error("a claim on nothing stayed")
	}
	c.Advance(25 * time.Hour)
	if _, _, err := s.GC(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("an old download stayed")
	}
}

// Whatever is done in whatever order: what is needed is whole after every GC, and
// what was not needed for long is gone.
func TestGCProperty(t *testing.T) {
	imagetest.NeedRoot(t)
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		c := clock.NewManual(time.Unix(1e9, 0))
		dir := fmt.Sprintf("%s/%d", base, n)
		opt := Options{Clock: c, Grace: time.Minute, Platform: "linux/amd64"}
		s, err := Open(dir, opt)
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		defer func() { s.Close() }()
		names, holds, running, last := map[string]string{}, map[string]func(){}, map[string]bool{}, map[string]time.Time{}
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			k := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "image")
			switch rapid.SampledFrom([]string{"import", "remove", "hold", "release", "run", "stop", "wait", "restart"}).Draw(rt, "step") {
			case "import":
				names[k] = importTar(t, s, "t", k, k).Digest
				last[names[k]] = c.Now()
			case "remove":
				if _, ok := names[k]; ok {
					if err := s.Remove(ctx, "t", k); err != nil {
						rt.Fatal(err)
					}
					delete(names, k)
				}
			case "hold":
				if d, ok := names[k]; ok && holds[d] == nil {
					holds[d] = s.Hold(d)
				}
			case "release":
				for d, r := range holds {
					r()
					last[d] = c.Now()
					delete(holds, d)
				}
			case "run":
				if d, ok := names[k]; ok {
					running[d] = true
				}
			case "stop":
				clear(running)
			case "wait":
				c.Advance(2 * time.Minute)
			case "restart":
				s.Close()
				if s, err = Open(dir, opt); err != nil {
					rt.Fatal(err)
				}
				clear(holds)
				clear(last)
			}
			if _, _, err := s.GC(ctx, func() map[string]bool { return running }); err != nil {
				rt.Fatal(err)
			}
			need := map[string]bool{}
			for _, d := range names {
				need[d] = true
			}
			for d := range holds {
				need[d] = true
			}
			for d := range running {
				need[d] = true
			}
			for d := range need {
				if !usable(t, s, d) {
					rt.Fatalf("%s is needed and gone", d)
				}
			}
			blobs, _ := os.ReadDir(s.path("blobs", "sha256"))
			recent := 0
			for d, at := range last {
				if !need[d] && c.Now().Sub(at) <= time.Minute {
					recent++
				}
			}
			if most := 3 * (len(need) + recent); len(blobs) > most {
				rt.Fatalf("%d blobs for %d images needed and %d recent", len(blobs), len(need), recent)
			}
		}
	})
}

func TestGCBesidePullsAndUnpacks(t *testing.T) {
	s, g := newStore(t, Options{Grace: time.Nanosecond}), newRegistry(t)
	var refs []string
	for i := range 4 {
		refs = append(refs, g.push(t, fmt.Sprintf("i%d:1", i), makeImage(t, gzLayer(t, imagetest.File("f", "shared")), gzLayer(t, imagetest.File("f", imagetest.Noise(uint64(i), 200<<10))))))
	}
	c, cancel := context.WithCancel(ctx)
	var wg, collector sync.WaitGroup
	collector.Go(func() {
		for c.Err() == nil {
			if _, _, err := s.GC(ctx, nil); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewSource(int64(i)))
			for range 12 {
				ref, scope := refs[r.Intn(len(refs))], fmt.Sprint("t", i)
				info, err := s.Pull(ctx, scope, ref, PullOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				release := s.Hold(info.Digest)
				root, err := s.Unpack(ctx, info.Digest)
				if err != nil {
					t.Error(err)
					return
				}
				for _, l := range root.Layers {
					if _, err := os.Stat(l + "/f"); err != nil {
						t.Error("unpacked, held, and gone:", err)
					}
				}
				if err := s.Remove(ctx, scope, ref); err != nil {
					t.Error(err)
				}
				if r.Intn(2) == 0 {
					if _, err := os.Stat(root.Layers[1] + "/f"); err != nil {
						t.Error("held, and gone:", err)
					}
				}
				release()
			}
		})
	}
	wg.Wait()
	cancel()
	collector.Wait()
	time.Sleep(time.Millisecond)
	if _, _, err := s.GC(ctx, nil); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"blobs/sha256", "layers", "tmp", "partial"} {
		if l, _ := os.ReadDir(s.path(d)); len(l) != 0 {
			t.Errorf("%s: %d left", d, len(l))
		}
	}
	if len(s.layers) != 0 || len(s.roots) != 0 {
		t.Error("memory remembers what is gone", len(s.layers), len(s.roots))
	}
}

func TestLeftoversAreRemovedAtOpen(t *testing.T) {
	s := newStore(t, Options{})
	i := importTar(t, s, "", "x", "1")
	s.Close()
	for _, p := range []string{"tmp/layer-1/fs/a", "layers/half/fs"} {
		if err := os.MkdirAll(s.path(p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, s.dir, Options{})
	for _, p := range []string{"tmp/layer-1", "layers/half"} {
		if _, err := os.Stat(s.path(p)); err == nil {
			t.Errorf("%s stayed", p)
		}
	}
	if _, err := s.Unpack(ctx, i.Digest); err != nil {
		t.Error(err)
	}
	if strings.Contains(fmt.Sprint(s.List("")), "half") {
		t.Error("a half layer has a name")
	}
}

// What a scope has, and its right to the content, becomes another's, also when the same
// is asked for again.
func TestRescope(t *testing.T) {
	s := newStore(t, Options{})
	a, b := importTar(t, s, "a", "one", "1"), importTar(t, s, "b", "two", "2")
	for range 2 {
		if err := s.Rescope(ctx, map[string]string{"a": "east/a", "none": "east/none"}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Resolve(ctx, "east/a", "one"); err != nil || got.Digest != a.Digest {
		t.Fatalf("%+v %v", got, err)
	}
	if _, err := s.Resolve(ctx, "a", "one"); !errors.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	img, err := s.image(a.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range img.Manifest.Layers {
		if !s.claimed("east/a", l.Digest) {
			t.Error("it may not use what it brought")
		}
	}
	if got, err := s.Resolve(ctx, "b", "two"); err != nil || got.Digest != b.Digest {
		t.Fatalf("%+v %v", got, err)
	}
}
