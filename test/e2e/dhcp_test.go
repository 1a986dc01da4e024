package e2e

import (
	"strings"
	"testing"
)

// udhcpc configures the interface as a client does that knows nothing of the pool.
const udhcpc = `mkdir -p /tmp
printf '#!/bin/sh\n[ "$1" = bound ] || exit 0\nip addr add $ip/$mask dev eth0\nip route add default via $router\necho "$ip $router $dns $hostname $serverid"\n' >/tmp/script
chmod +x /tmp/script
ip addr flush dev eth0 scope global
udhcpc -f -n -q -t 5 -T 1 -i eth0 -s /tmp/script`

// dhcp has an instance forget its address: it gets the same one again from its gateway, and no other from a neighbour
// that serves some.
func (n *networks) dhcp(t *testing.T) {
	for name, command := range map[string]string{"guest": "sleep 100000",
		"rogue": `printf 'start 10.1.0.66\nend 10.1.0.99\ninterface eth0\nlease_file /tmp/leases\npidfile /tmp/pid\n' >/tmp/conf; touch /tmp/leases; exec udhcpd -f /tmp/conf`} {
		n.apply(t, `kind: Instance
metadata: {name: `+name+`, tenant: red}
spec:
  image: busybox
  command: [sh, -c, "mkdir -p /tmp; `+strings.ReplaceAll(command, `\n`, `\\n`)+`"]
  capabilities: {add: [NET_ADMIN, NET_RAW]}
  networks: [{name: main}]
  placement: {node: isle1}
`)
	}
	eventually(t, "guest runs", func() (bool, string) {
		out, err := n.Do("exec", "--tenant", "red", "guest", "--", "true")
		return err == nil, out
	})
	eventually(t, "rogue serves", func() (bool, string) {
		out, err := n.Do("exec", "--tenant", "red", "rogue", "--", "pidof", "udhcpd")
		return err == nil, out
	})
	n.find(t, "red", "guest")
	own := n.addr["red/guest"]
	out := n.do(t, "exec", "--tenant", "red", "guest", "--", "sh", "-c", udhcpc)
	if !strings.Contains(out, own+" 10.1.0.1 10.1.0.1 guest 10.1.0.1\n") {
		t.Errorf("it has %s, and was given: %s", own, out)
	}
	n.reaches(t, "red", "guest", "web")
	n.do(t, "delete", "--tenant", "red", "instance/guest", "instance/rogue")
}
