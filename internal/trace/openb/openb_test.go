package openb

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"atoll/api"
	"atoll/internal/errs"
)

const (
	nodes = "sn,cpu_milli,memory_mib,gpu,model\na,64000,262144,2,P100\nb,96000,393216,8,G2\n"
	pods  = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n" +
		"p2,6000,12288,1,460,V100M16|V100M32,LS,Running,10,70,10.0\n" +
		"p1,12000,16384,2,1000,,LS,Running,5,,5\n" +
		"p3,8000,8192,0,0,,BE,Running,20,30,20\n"
)

func TestNodes(t *testing.T) {
	got, err := Nodes(strings.NewReader(nodes))
	if err != nil {
		t.Fatal(err)
	}
	want := []Node{{"a", 64000, 262144, 2, "P100"}, {"b", 96000, 393216, 8, "G2"}}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v", got)
	}
}

func TestPods(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(pods)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := Pods(&z)
	if err != nil {
		t.Fatal(err)
	}
	want := []Pod{
		{Name: "p2", CPU: 6000, Memory: 12288, GPUs: 1, Milli: 460, Models: []string{"V100M16", "V100M32"}, From: 10, To: 70},
		{Name: "p1", CPU: 12000, Memory: 16384, GPUs: 2, Milli: 1000, From: 5},
		{Name: "p3", CPU: 8000, Memory: 8192, From: 20, To: 30},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v", got)
	}
}

func TestReadGivesArrivalsInOrder(t *testing.T) {
	tr, err := Read(strings.NewReader(pods))
	if err != nil {
		t.Fatal(err)
	}
	a := tr.Arrivals
	if len(a) != 3 || a[0].At != 5 || a[0].Lasts != 0 || a[1].Lasts != 60 || a[2].At != 20 {
		t.Fatalf("%+v", a)
	}
	if r := a[0].Requests; r[api.GPU] != 2000 || r[api.CPU] != 12000 || r[api.Memory] != 16<<30 {
		t.Fatalf("%v", r)
	}
	if _, gpu := a[2].Requests[api.GPU]; gpu {
		t.Fatalf("%v", a[2].Requests)
	}
}

func TestRefused(t *testing.T) {
	head := "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"
	for _, bad := range []string{"", "name,cpu_milli\n", head + ",1,1,0,0\n", head + "p,-1,1,0,0\n", head + "p,1,1,2,500\n", head + "p,1,1,1,0\n",
		head + "p,1,1,1,1001\n", head + "p,1,1,65,1000\n", head + "p,99999999999999999999,1,0,0\n", head + "p,1\n",
		head + strings.Repeat("x", 5000) + ",1,1,0,0\n"} {
		if _, err := Pods(strings.NewReader(bad)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%.60q: %v", bad, err)
		}
	}
	if _, err := Nodes(strings.NewReader("sn,cpu_milli,memory_mib,gpu,model\n,1,1,1,x\n")); !errors.Is(err, errs.Invalid) {
		t.Errorf("a node without a name: %v", err)
	}
}

// The sequence is checked by the first draws of math/rand for the seed, which Go keeps.
func TestArrivalsAreThoseOfTheExperiment(t *testing.T) {
	var list []Pod
	for i := range 10 {
		list = append(list, Pod{Name: fmt.Sprintf("p%d", 9-i), GPUs: 1, Milli: 1000})
	}
	got := Arrivals(list, 10_000, 1.3, 42)
	if len(got) != 13 {
		t.Fatalf("%d pods, not 13: the demand must end at 1.3 times the capacity", len(got))
	}
	again := Arrivals(list, 10_000, 1.3, 42)
	if !reflect.DeepEqual(got, again) || reflect.DeepEqual(got, Arrivals(list, 10_000, 1.3, 43)) {
		t.Fatal("the seed does not decide")
	}
	seen := map[string]int{}
	for _, p := range got[:10] {
		seen[p.Name]++
	}
	if len(seen) != 10 {
		t.Fatalf("the list itself does not come first: %v", seen)
	}
	if thin := Arrivals(list, 4_000, 1, 42); len(thin) != 4 {
		t.Fatalf("%d pods, not 4: too large a list must be thinned", len(thin))
	}
}

// ATOLL_DATA names the folder with public data sets, where there is one.
func TestThePublishedLists(t *testing.T) {
	dir := os.Getenv("ATOLL_DATA") + "/openb-gpu-2023"
	for list, want := range map[string][2]int64{"default": {10_866, 8_075_080}, "gpushare100": {16_629, 8_075_220}} {
		f, err := os.Open(dir + "/pods/openb_pod_list_" + list + ".csv.gz")
		if err != nil {
			t.Skip("the data set is not here: ATOLL_DATA names its folder")
		}
		defer f.Close()
		pods, err := Pods(f)
		if err != nil {
			t.Fatal(err)
		}
		seq := Arrivals(pods, 6_212_000, 1.3, 42)
		sum := int64(0)
		for i := range seq {
			sum += seq[i].Demand()
		}
		if int64(len(seq)) != want[0] || sum != want[1] {
			t.Errorf("%s: %d pods of %d milli; published are %v", list, len(seq), sum, want)
		}
	}
}

func FuzzPods(f *testing.F) {
	f.Add([]byte(pods))
	f.Add([]byte(nodes))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Pods(bytes.NewReader(b))
		if err != nil {
			return
		}
		for i := range got {
			p := &got[i]
			if p.Name == "" || p.CPU < 0 || p.Memory < 0 || p.GPUs > 0 && p.Milli < 1 || p.GPUs > 1 && p.Milli != 1000 {
				t.Fatalf("%+v", p)
			}
		}
		if tr, err := Read(bytes.NewReader(b)); err == nil && tr.Check() != nil {
			t.Fatal("what was read breaks the rules of traces")
		}
	})
}

func FuzzNodes(f *testing.F) {
	f.Add([]byte(nodes))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Nodes(bytes.NewReader(b))
		for _, n := range got {
			if err == nil && (n.Name == "" || n.CPU < 0 || n.GPUs < 0 || n.GPUs > maxGPUs) {
				t.Fatalf("%+v", n)
			}
		}
	})
}
