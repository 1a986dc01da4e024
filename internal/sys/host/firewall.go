package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
)

// filter is what others' packet filters look like, as far as it concerns us.
type filter struct {
	chains  []fwChain
	tables  []string // "family name"
	legacy  []string // tables of the old iptables in the kernel
	docker  bool     // its socket is there
	ufw     bool     // enabled in its configuration
	firewld bool
}

type fwChain struct {
	Table, Name   string
	Family        nftables.TableFamily
	Forward, Drop bool // base chain of the forward hook; policy drop
	Ours          bool // has our accept rules
}

func (p *probe) nftables(context.Context) []Check {
	c, err := nftables.New()
	if err != nil {
		return []Check{bad("nftables", Failure, err.Error(), "modprobe nf_tables")}
	}
	tables, err := c.ListTables()
	switch {
	case errors.Is(err, syscall.EPERM):
		return []Check{bad("nftables", Failure, "may not look: "+err.Error(), "run atolld as root with CAP_NET_ADMIN")}
	case err != nil:
		return []Check{bad("nftables", Failure, "the kernel has no nftables: no addresses are translated and no ports published ("+err.Error()+")", "modprobe nf_tables")}
	}
	return []Check{good("nftables", fmt.Sprintf("works; %d tables are there", len(tables)))}
}

// firewalls finds other software that may stop our packets.
func (p *probe) firewalls(context.Context) []Check {
	f, err := readFilter()
	if err != nil {
		return []Check{bad("firewall", Warning, "other firewalls cannot be seen: "+err.Error(), "run 'atoll doctor' as root")}
	}
	return judgeFirewalls(f, p.Bridge)
}

func readFilter() (filter, error) {
	var f filter
	c, err := nftables.New()
	if err != nil {
		return f, fmt.Errorf("nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return f, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range chains {
		fc := fwChain{Table: ch.Table.Name, Name: ch.Name, Family: ch.Table.Family,
			Forward: ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Table.Family != nftables.TableFamilyBridge,
			Drop:    ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop}
		if ch.Name == "DOCKER-USER" && ch.Table.Name == "filter" && ch.Table.Family == nftables.TableFamilyIPv4 {
			rules, err := c.GetRules(ch.Table, ch)
			if err != nil {
				return f, fmt.Errorf("list rules: %w", err)
			}
			for _, r := range rules {
				fc.Ours = fc.Ours || strings.Contains(string(r.UserData), "atoll")
			}
		}
		f.chains = append(f.chains, fc)
	}
	tables, err := c.ListTables()
	if err != nil {
		return f, fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		f.tables = append(f.tables, t.Name)
	}
	if s, err := readFile("/proc/net/ip_tables_names"); err == nil {
		f.legacy = strings.Fields(s)
	}
	f.docker = exists("/run/docker.sock")
	if s, err := readFile("/etc/ufw/ufw.conf"); err == nil {
		f.ufw = parseOSRelease(s)["ENABLED"] == "yes"
	}
	f.firewld = exists("/run/firewalld") || slices.Contains(f.tables, "firewalld")
	return f, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func judgeFirewalls(f filter, bridge string) []Check {
	var docker, ufw bool
	var user fwChain
	var droppers []string
	for _, c := range f.chains {
		switch {
		case c.Name == "DOCKER-USER":
			docker, user = true, c
		case strings.HasPrefix(c.Name, "ufw-") || strings.HasPrefix(c.Name, "ufw6-"):
			ufw = true
		}
		if c.Forward && c.Drop && c.Table != "atoll" && c.Family != nftables.TableFamilyIPv6 {
			droppers = append(droppers, c.Table+" "+c.Name)
		}
	}
	return []Check{
		judgeDocker(f, docker, user, droppers, bridge),
		judgeUFW(ufw || f.ufw, bridge),
		judgeFirewalld(f.firewld, bridge),
		judgeOthers(droppers, docker, ufw, bridge),
	}
}

func judgeDocker(f filter, docker bool, user fwChain, droppers []string, bridge string) Check {
	switch {
	case docker && len(droppers) > 0 && user.Ours:
		return good("docker", "its FORWARD policy is drop; our accept rules are in DOCKER-USER")
	case docker && len(droppers) > 0:
		return good("docker", "its FORWARD policy is drop; accept rules are put into DOCKER-USER with the first instance")
	case docker:
		return good("docker", "its rules are there and let us pass")
	case slices.Contains(f.legacy, "filter") && f.docker:
		return bad("docker", Warning, "it uses the old iptables, whose rules cannot be seen from here; its FORWARD policy may drop our packets",
			fmt.Sprintf("iptables-legacy -I DOCKER-USER -i %[1]s -j ACCEPT -m comment --comment atoll\niptables-legacy -I DOCKER-USER -o %[1]s -j ACCEPT -m comment --comment atoll", bridge))
	case f.docker:
		return good("docker", "runs without rules of its own")
	}
	return good("docker", "not here")
}

func judgeUFW(active bool, bridge string) Check {
	if !active {
		return good("ufw", "not active")
	}
	return bad("ufw", Warning, "ufw is active: what is for instances passes it by rules that are put at the head of FORWARD, but what is for the host itself it decides about",
		"ufw allow 7443:7444/tcp comment 'Atoll: API, and state between servers'\nufw allow 4798/udp comment 'Atoll: networks between hosts'\nufw allow in on "+bridge+" comment 'Atoll: instances ping the host'")
}

func judgeFirewalld(active bool, bridge string) Check {
	if !active {
		return good("firewalld", "not active")
	}
	return bad("firewalld", Warning, "firewalld is active and rejects what it does not know; our own rules guard the bridge, so it may trust it",
		fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s\nfirewall-cmd --reload", bridge))
}

func judgeOthers(droppers []string, docker, ufw bool, bridge string) Check {
	if len(droppers) == 0 || docker || ufw {
		return good("forward-policy", "no other rules drop what is forwarded")
	}
	return bad("forward-policy", Warning, printable(strings.Join(droppers, ", "), 200)+" drops what is forwarded",
		fmt.Sprintf("nft insert rule ip %[1]s iifname %[2]s accept\nnft insert rule ip %[1]s oifname %[2]s accept", printable(droppers[0], 100), bridge))
}
