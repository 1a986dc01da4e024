package cli

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"atoll/api"
)

func TestSpecFlags(t *testing.T) {
	r := newRig(t)
	r.must(t, "tenant", "create", "acme")
	r.must(t, "create", "--name", "x", "--cpu", "500m", "--memory", "1Gi", "--limit", "iops=2000,pids=99", "--memory-limit", "2Gi", "--isolation", "sandbox",
		"-w", "/srv", "-u", "7:8", "--hostname", "h", "-p", "8080:80", "-v", "data:/d:ro", "--tmpfs", "/run:64Mi", "--network", "main", "--ip", "10.0.0.9",
		"--restart", "on-failure", "-l", "app=db", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--read-only", "--entrypoint", "/bin/x", "--pull", "always",
		"--health-tcp", "80", "--health-every", "5s", "--health-failures", "2", "--stop-timeout", "3s", "--stop-signal", "INT", "--cpuset", "0-3,8",
		"--node", "isle1", "--node-label", "disk=ssd", "--priority", "batch", "--spread", "zone", "--avoid", "app=db", "--tolerate", "gpu=only:NoSchedule", "-it",
		"busybox", "sh", "-c", "echo --name y")
	got := r.must(t, "get", "instance/x", "-o", "json")
	var in api.Instance
	if err := json.Unmarshal([]byte(got), &in); err != nil {
		t.Fatal(err)
	}
	three, five := api.Duration(3*time.Second), api.Duration(5*time.Second)
	want := api.InstanceSpec{Image: "busybox", Pull: "always", Command: []string{"sh", "-c", "echo --name y"}, Entry: []string{"/bin/x"},
		Workdir: "/srv", User: "7:8", Hostname: "h", Isolation: "sandbox",
		Requests: api.Resources{api.CPU: 500, api.Memory: 1 << 30}, Limits: api.Resources{api.IOPS: 2000, api.Pids: 99, api.Memory: 2 << 30},
		CPUs: "0-3,8", Restart: "on-failure", Stopped: true, Priority: "batch",
		Placement: &api.Placement{Node: "isle1", NodeLabels: map[string]string{"disk": "ssd"}, Tolerate: []api.Taint{{Key: "gpu", Value: "only", Effect: "NoSchedule"}},
			Spread: []api.SpreadTerm{{Topology: "zone"}}, Avoid: []api.AffinityTerm{{Labels: map[string]string{"app": "db"}}}},
		Networks: []api.Attach{{Name: "main", Address: "10.0.0.9"}}, Ports: []api.Port{{Port: 80, Publish: 8080}},
		Volumes: []api.Mount{{Name: "data", Path: "/d", ReadOnly: true}, {Tmpfs: true, Path: "/run", Size: "64Mi"}},
		Health:  &api.Health{TCP: "80", Every: &five, Failures: 2}, Stdin: true, TTY: true,
		Capabilities: &api.Capabilities{Add: []string{"NET_ADMIN"}, Drop: []string{"ALL"}}, ReadOnlyRoot: true, StopSignal: "INT", StopTimeout: &three}
	if !reflect.DeepEqual(in.Spec, want) {
		t.Errorf("got  %+v\nwant %+v", in.Spec, want)
	}
	if in.Labels["app"] != "db" {
		t.Errorf("labels %v", in.Labels)
	}
}
