package image

import (
	"bufio"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"atoll/internal/image/imagetest"
)

// TestKilledChild is the process that TestKillAtAnyTime kills.
func TestKilledChild(t *testing.T) {
	dir, refs := os.Getenv("ATOLL_TEST_IMAGE_DIR"), os.Getenv("ATOLL_TEST_IMAGE_REFS")
	if dir == "" {
		t.Skip("only as a child")
	}
	opt := newStoreOptions()
	opt.Grace = time.Nanosecond
	s, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	for round := 0; ; round++ {
		for _, ref := range strings.Split(refs, ",") {
			if _, err := s.Pull(ctx, "t", ref, PullOptions{}); err != nil {
				t.Fatal(err)
			}
			if round%2 == 1 {
				if err := s.Remove(ctx, "t", ref); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, _, err := s.GC(ctx, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKillAtAnyTime(t *testing.T) {
	imagetest.NeedRoot(t)
	g := newRegistry(t)
	var refs []string
	want := map[string][][]string{} // trees by digest
	model := newStore(t, Options{})
	for i := range 3 {
		var many []imagetest.Entry
		for j := range 40 {
			many = append(many, imagetest.File(fmt.Sprintf("d%d/f%d", j%5, j), imagetest.Noise(uint64(i*100+j), 4<<10)))
		}
		ref := g.push(t, fmt.Sprintf("k%d:1", i), makeImage(t, gzLayer(t, many...), gzLayer(t, imagetest.File("big", imagetest.Noise(uint64(i), 300<<10)), imagetest.File("d1/.wh.f1", ""))))
		refs = append(refs, ref)
		info := pull(t, model, "", ref)
		root, err := model.Unpack(ctx, info.Digest)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range root.Layers {
			want[info.Digest] = append(want[info.Digest], imagetest.Tree(t, l))
		}
	}
	dir := t.TempDir() + "/images"
	r := rand.New(rand.NewSource(1))
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for range rounds {
		killChild(t, dir, strings.Join(refs, ","), time.Duration(r.Intn(250))*time.Millisecond)
		s, err := Open(dir, newStoreOptions())
		if err != nil {
			t.Fatal(err)
		}
		if bad, err := s.Verify(ctx); err != nil || len(bad) != 0 {
			t.Fatalf("after a kill: %+v %v", bad, err)
		}
		for _, i := range s.List("t") {
			root, err := s.Unpack(ctx, i.Digest)
			if err != nil {
				t.Fatal(err)
			}
			for n, l := range root.Layers {
				if got := imagetest.Tree(t, l); !reflect.DeepEqual(got, want[i.Digest][n]) {
					t.Fatalf("%s layer %d is not whole: %v", i.Reference, n, got)
				}
			}
		}
		if l, _ := os.ReadDir(s.path("tmp")); len(l) != 0 {
			t.Errorf("%d leftovers", len(l))
		}
		s.Close()
	}
}

// killChild lets a process pull, unpack and collect for a while, and ends it by kill -9.
func killChild(t *testing.T, dir, refs string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
	cmd.Env = append(os.Environ(), "ATOLL_TEST_IMAGE_DIR="+dir, "ATOLL_TEST_IMAGE_REFS="+refs)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if sc.Text() == "ready" {
			time.Sleep(after)
			return
		}
		t.Log(sc.Text())
	}
	t.Fatal("the child did not start")
}
