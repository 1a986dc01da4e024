//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/* The wall around every instance: docs/adr/0016-tenant-networks.md, points 4 to 9.
 *
 *   atoll_from   ingress of the host's end of a cable: what an instance sends
 *   atoll_to     egress of the same: what it is sent
 *   atoll_host   egress of a network's bridge: what the host's stack sends into the network
 *   atoll_vxlan  ingress of a network's VXLAN device: what other hosts send, with the sender's identity in the mark
 *
 * What the first two decide is written down in words in judge.go, which finds the same verdict in the same maps.
 */
#include "answer.h"

char _license[] SEC("license") = "Dual MIT/GPL";

static __noinline int refuse(struct __sk_buff *skb, __u32 vni, int dir, int reason)
{
	struct note n;

	n.ifindex = skb->ifindex;
	n.vni = vni;
	n.peer = dir ? skb->mark & 0xffff : 0;
	n.rule = 0;
	n.reason = reason;
	n.dir = dir;
	n.dry = 0;
	return dropped(skb, &n);
}

/* arp_ok: an instance speaks for itself, and asks or answers. What comes to it was said by the bridge or by a port like it. */
static __noinline int arp_ok(struct __sk_buff *skb, struct port *pt)
{
	struct arp a;
	struct port own;
	__u32 spa;

	if (bpf_skb_load_bytes(skb, L3, &a, sizeof(a)))
		return SHORT;
	if (a.hw != bpf_htons(1) || a.proto != bpf_htons(ETH_V4) || a.hwlen != 6 || a.protolen != 4)
		return ARP;
	if (a.op != bpf_htons(1) && a.op != bpf_htons(2))
		return ARP;
	__builtin_memcpy(&own.mac_a, a.sha, 4);
	__builtin_memcpy(&own.mac_b, a.sha + 4, 2);
	__builtin_memcpy(&spa, a.spa, 4);
	if (own.mac_a != pt->mac_a || own.mac_b != pt->mac_b)
		return ARP;
	if (spa ? spa != pt->addr4 : a.op != bpf_htons(1))
		return ARP;
	return a.op == bpf_htons(1) ? asks4(pt, &a) : ALLOWED;
}

static __always_inline int is_mapped(const struct ip *a)
{
	return !(a->w[0] | a->w[1]) && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline int own6(struct port *pt, const struct ip *a)
{
	return (pt->flags & HAS6) && same_ip(a, &pt->addr6);
}

/* nd judges neighbour discovery, which is judged by nothing else. */
static __noinline int nd(struct __sk_buff *skb, struct port *pt, const struct pkt *p, const struct key6 *k)
{
	struct {
		__u8 type, code;
		__u16 sum;
		__u32 flags;
		struct ip target;
	} h;
	__u8 hops;

	if (bpf_skb_load_bytes(skb, L3 + 7, &hops, 1))
		return SHORT;
	if (bpf_skb_load_bytes(skb, L3 + 40, &h, 8))
		return SHORT;
	if (hops != 255 || h.code)
		return ND;
	if (p->dir == TO) {
		if (!own6(pt, &k->local) && !link_local(&k->local) && !multicast(&k->local))
			return DESTINATION;
		return h.type == 135 || h.type == 136 || (h.type == 134 && p->mark == ID_HOST) ? ALLOWED : ND;
	}
	if (!own6(pt, &k->local) && !link_local(&k->local) && !(none(&k->local) && h.type != 136))
		return SOURCE;
	if (h.type == 133)
		return ALLOWED;
	if (bpf_skb_load_bytes(skb, L3 + 48, &h.target, 16))
		return SHORT;
	if (h.type == 135)
		return multicast(&h.target) ? ND : asks6(skb, pt, &k->local, &h.target);
	if (h.type == 136 && (own6(pt, &h.target) || link_local(&h.target)))
		return ALLOWED;
	return ND;
}

/* lives: an entry is there, is this port's, and counts. */
static __always_inline int lives(struct port *pt, struct flow *f, struct pkt *q)
{
	if (!f)
		return NO_FLOW;
	q->mark = carried(f->peer); /* who reports an error is not who is spoken to */
	return known(pt, f, q) == KNOWN ? ALLOWED : NO_FLOW;
}

/* inner4 judges an ICMP error by the packet inside, which went the other way. */
static __noinline int inner4(struct __sk_buff *skb, struct port *pt, const struct pkt *p)
{
	struct pkt q = {.ifindex = p->ifindex, .now = p->now, .dir = !p->dir, .begins = 1};
	struct l4 h;
	struct v4 ip;
	struct key4 k;
	__u32 at = p->l4 + 8, size;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return SHORT;
	size = (ip.vihl & 15) * 4;
	if (ip.vihl >> 4 != 4 || size < 20 || (ip.off & bpf_htons(0x1fff)))
		return NO_FLOW;
	if (bpf_skb_load_bytes(skb, at + size, &h, sizeof(h)))
		return SHORT;
	q.proto = ip.proto;
	if (ports_of(&q, &h, 0) || q.icmp_error)
		return NO_FLOW;
	k.ifindex = q.ifindex;
	k.local = q.dir == FROM ? ip.src : ip.dst;
	k.remote = q.dir == FROM ? ip.dst : ip.src;
	k.lport = q.lport;
	k.rport = q.rport;
	k.proto = q.proto | q.theirs;
	return lives(pt, bpf_map_lookup_elem(&flows4, &k), &q);
}

static __noinline int inner6(struct __sk_buff *skb, struct port *pt, const struct pkt *p)
{
	struct pkt q = {.ifindex = p->ifindex, .now = p->now, .dir = !p->dir, .begins = 1};
	struct l4 h;
	struct v6 ip;
	struct key6 k;
	__u32 at = p->l4 + 8;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return SHORT;
	if ((ip.flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return NO_FLOW;
	if (bpf_skb_load_bytes(skb, at + 40, &h, sizeof(h)))
		return SHORT;
	q.proto = ip.next;
	if ((!ported(q.proto) && q.proto != ICMP6) || ports_of(&q, &h, 0) || q.icmp_error)
		return NO_FLOW;
	k.ifindex = q.ifindex;
	k.local = q.dir == FROM ? ip.src : ip.dst;
	k.remote = q.dir == FROM ? ip.dst : ip.src;
	k.lport = q.lport;
	k.rport = q.rport;
	k.proto = q.proto | q.theirs;
	return lives(pt, bpf_map_lookup_elem(&flows6, &k), &q);
}

/* SLOW is the way of a packet that has no entry, or one that must be judged again. What a map
 * gives out may become another flow's at any time, so it is replaced whole, never corrected. */
#define SLOW(FLOWS)                                                            \
	struct verdict v;                                                      \
	struct flow n;                                                         \
	int r;                                                                 \
                                                                               \
	if (state == STALE) {                                                  \
		n = *f;                                                        \
		r = again(pt, p, remote, &n, &v);                              \
		if (r) {                                                       \
			bpf_map_delete_elem(&FLOWS, k);                        \
			return r;                                              \
		}                                                              \
		n.epoch = n.dir & 1 ? pt->epoch[TO] : pt->epoch[FROM];         \
		n.peer = v.peer;                                               \
		n.rule = v.rule;                                               \
	} else {                                                               \
		if (!p->begins)                                                \
			return NO_FLOW;                                        \
		r = fresh(skb, pt, p, remote, &v);                             \
		if (r)                                                         \
			return r;                                              \
		if (v.tell)                                                    \
			told(skb, pt, p, &v);                                  \
		if (p->proto == TCP && (p->tcp & TCP_RST))                     \
			return ALLOWED;                                        \
		begin(&n, pt, p, &v);                                          \
	}                                                                      \
	seen(&n, p, skb->len);                                                 \
	bpf_map_update_elem(&FLOWS, k, &n, BPF_ANY);                           \
	return ALLOWED

static __noinline int slow4(struct __sk_buff *skb, struct port *pt, const struct pkt *p, const struct key4 *k, struct flow *f)
{
	int state = f ? known(pt, f, p) : ABSENT;
	struct ip at, *remote = &at;

	mapped(remote, k->remote);
	SLOW(flows4);
}

static __noinline int slow6(struct __sk_buff *skb, struct port *pt, const struct pkt *p, const struct key6 *k, struct flow *f)
{
	int state = f ? known(pt, f, p) : ABSENT;
	const struct ip *remote = &k->remote;

	SLOW(flows6);
}

/* near reads the header after IP in its usual place, if it lies there. */
static __always_inline int near(struct __sk_buff *skb, struct pkt *p, void *h)
{
	void *end = (void *)(long)skb->data_end;

	if (p->proto == TCP) {
		if (h + 20 > end)
			return far(skb, p);
		return ports_of(p, h, *(__u8 *)(h + 13));
	}
	if (h + 8 > end)
		return far(skb, p);
	return ports_of(p, h, 0);
}

static __always_inline void vary4(struct pkt *p, struct key4 *k)
{
	struct gauge *g;
	__u32 zero = 0, h;

	if (!vary)
		return;
	g = bpf_map_lookup_elem(&gauges, &zero);
	if (!g)
		return;
	p->lport = g->count++;
	h = (__u32)g->count * 2654435761u;
	k->remote = bpf_htonl(bpf_ntohl(k->remote) + (h >> 20 & vary_hosts));
	p->rport += h >> 8 & vary_ports;
	p->asked = p->rport;
}

/* wall4 says ALLOWED, or why not. */
static __always_inline int wall4(struct __sk_buff *skb, struct port *pt, struct pkt *p, const int dir, const int one)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct v4 *ip = data + L3;
	struct l4 *h = data + L3 + 20;
	struct key4 k;
	struct flow *f;
	__u32 off, len;
	int r;

	if ((void *)(ip + 1) > end)
		return SHORT;
	if (ip->vihl != 0x45)
		return ip->vihl > 0x45 && ip->vihl < 0x50 ? OPTIONS : SHORT;
	k.ifindex = p->ifindex;
	k.local = dir == FROM ? ip->src : ip->dst;
	k.remote = dir == FROM ? ip->dst : ip->src;
	p->proto = ip->proto;
	p->l4 = L3 + 20;
	off = bpf_ntohs(ip->off) & 0x3fff;
	len = bpf_ntohs(ip->len);
	if (len < 20 + (off & 0x1fff ? 0 : l4_size(p->proto)) && skb->len <= 0xffff)
		return SHORT;
	if (dir == FROM) {
		/* Who it is, or whether it still is: to everybody, and so, as nothing is flooded, to the host alone. */
		if (k.remote == 0xffffffff && (!k.local || k.local == pt->addr4) && !one && !off && p->proto == UDP && !far(skb, p) &&
		    p->lport == 68 && p->rport == 67)
			return ALLOWED;
		if ((k.local != pt->addr4 || !k.local) && behind4(pt, p->ifindex, k.local))
			skb->cb[0] = 1; /* it speaks for somebody beyond */
		else if (k.local != pt->addr4 || !k.local)
			return SOURCE;
		if (!one || (k.remote & bpf_htonl(0xe0000000)) == bpf_htonl(0xe0000000))
			return DESTINATION;
	} else {
		if (p->mark == ID_HOST && p->proto == UDP && !off && (k.local == pt->addr4 || k.local == 0xffffffff)) {
			if ((void *)(h + 1) <= end && h->a == bpf_htons(67) && h->b == bpf_htons(68))
				return ALLOWED;
		}
		if (!one || ((k.local != pt->addr4 || !k.local) && !behind4(pt, p->ifindex, k.local)))
			return DESTINATION;
		if (!p->mark)
			return NO_IDENTITY;
	}
	if (off) {
		p->fragmented = off & 0x1fff ? LATER : FIRST;
		p->frag_id = ip->id;
		if ((off & 0x1fff) && (off & 0x1fff) * 8 < l4_size(p->proto))
			return FRAGMENT;
	}
	if (p->fragmented != LATER) {
		r = near(skb, p, data + L3 + 20);
		if (r)
			return r;
		if (dir == FROM && p->proto == UDP && (p->lport == 67 || p->rport == 68)) /* clients look at their own port only */
			return DHCP;
		if (p->icmp_error)
			return inner4(skb, pt, p);
		if (dir == FROM)
			vary4(p, &k);
		k.lport = p->lport;
		k.rport = p->rport;
		k.proto = p->proto | p->theirs;
		f = bpf_map_lookup_elem(&flows4, &k);
		if (f && known(pt, f, p) == KNOWN)
			seen(f, p, skb->len);
		else if ((r = slow4(skb, pt, p, &k, f)))
			return r;
	}
	if (p->fragmented) {
		struct frag_key fk;

		fk.ifindex = p->ifindex;
		fk.id = p->frag_id;
		mapped(&fk.src, k.local);
		mapped(&fk.dst, k.remote);
		fk.proto_dir = p->proto << 1 | dir;
		return p->fragmented == LATER ? later(pt, p, &fk) : remember(pt, p, &fk);
	}
	return ALLOWED;
}

static __always_inline int wall6(struct __sk_buff *skb, struct port *pt, struct pkt *p, const int dir, const int one)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct v6 *ip = data + L3;
	struct l4 *h = data + L3 + 40;
	struct key6 k;
	struct flow *f;
	__u32 len;
	int r;

	if ((void *)(ip + 1) > end || (ip->flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return SHORT;
	k.ifindex = p->ifindex;
	k.local = dir == FROM ? ip->src : ip->dst;
	k.remote = dir == FROM ? ip->dst : ip->src;
	p->proto = ip->next;
	p->l4 = L3 + 40;
	len = bpf_ntohs(ip->len);
	if (len < l4_size(p->proto) && skb->len <= 0xffff)
		return SHORT;
	if (p->proto == ICMP6 && (void *)(h + 1) <= end) {
		__u8 type = *(__u8 *)h;

		if (type >= 133 && type <= 137)
			return nd(skb, pt, p, &k);
	}
	if (dir == FROM) {
		if (!own6(pt, &k.local) && behind(pt, p->ifindex, &k.local)) {
			skb->cb[0] = 1;
		} else if (!own6(pt, &k.local)) {
			if (!link_local(&k.local) || k.remote.w[0] != bpf_htonl(0xff020000) || k.remote.w[1] || k.remote.w[2] != 0 ||
			    k.remote.w[3] != bpf_htonl(0x00010002) || one || p->proto != UDP || far(skb, p) || p->lport != 546 || p->rport != 547)
				return SOURCE;
			return ALLOWED;
		}
		if (!one || multicast(&k.remote) || link_local(&k.remote) || is_mapped(&k.remote))
			return DESTINATION;
	} else {
		if (p->mark == ID_HOST && p->proto == UDP && (own6(pt, &k.local) || link_local(&k.local))) {
			if ((void *)(h + 1) <= end && h->a == bpf_htons(547) && h->b == bpf_htons(546))
				return ALLOWED;
		}
		if (!one || (!own6(pt, &k.local) && !behind(pt, p->ifindex, &k.local)))
			return DESTINATION;
		if (is_mapped(&k.remote) || multicast(&k.remote))
			return SOURCE;
		if (!p->mark)
			return NO_IDENTITY;
	}
	if (!ported(p->proto) && p->proto != ICMP6) {
		r = extensions(skb, p);
		if (r)
			return r;
		if (p->fragmented != LATER) {
			r = far(skb, p);
			if (r)
				return r;
		}
	} else {
		r = near(skb, p, data + L3 + 40);
		if (r)
			return r;
	}
	if (p->fragmented != LATER) {
		if (dir == FROM && p->proto == UDP && (p->lport == 547 || p->rport == 546))
			return DHCP;
		if (p->icmp_error)
			return inner6(skb, pt, p);
		k.lport = p->lport;
		k.rport = p->rport;
		k.proto = p->proto | p->theirs;
		f = bpf_map_lookup_elem(&flows6, &k);
		if (f && known(pt, f, p) == KNOWN)
			seen(f, p, skb->len);
		else if ((r = slow6(skb, pt, p, &k, f)))
			return r;
	}
	if (p->fragmented) {
		struct frag_key fk;

		fk.ifindex = p->ifindex;
		fk.id = p->frag_id;
		fk.src = k.local;
		fk.dst = k.remote;
		fk.proto_dir = p->proto << 1 | dir;
		return p->fragmented == LATER ? later(pt, p, &fk) : remember(pt, p, &fk);
	}
	return ALLOWED;
}

static __always_inline int look(struct __sk_buff *skb, struct port *pt, const int dir)
{
	void *data, *end;
	struct eth *e;
	struct pkt p;
	__u32 a;
	__u16 type;
	int one;

	linear(skb, L3 + 28); /* as much as the shortest packet has that is not a fragment's rest */
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	e = data;
	if ((void *)(e + 1) > end)
		return SHORT;
	type = e->type;
	one = !(e->dst_a & 1); /* the lowest bit of the first byte: to more than one */
	if (dir == FROM) {
		a = e->src_a | e->src_b << 16;
		if (a != pt->mac_a || (__u16)(e->src_b >> 16) != pt->mac_b)
			return SOURCE_MAC;
	} else if (one && (e->dst_a != pt->mac_a || e->dst_b != pt->mac_b)) {
		return DESTINATION;
	}
	if (skb->vlan_present || type == bpf_htons(0x8100) || type == bpf_htons(0x88a8))
		return VLAN;
	p.ifindex = skb->ifindex;
	p.now = clock_now();
	p.mark = skb->mark & 0xffff;
	p.unbidden = p.mark == ID_UNBIDDEN;
	if (p.unbidden)
		p.mark = ID_OUTSIDE;
	p.dir = dir;
	p.begins = 1;
	p.fragmented = 0;
	p.icmp_error = 0;
	p.tcp = 0;
	p.lport = 0;
	p.rport = 0;
	p.asked = 0;
	p.frag_id = 0;
	p.theirs = 0;
	if (pt->flags & LIMITED) {
		struct limit *l = bpf_map_lookup_elem(&limits, &p.ifindex);

		if (l && !take(&l->packets, dir, p.now))
			return PACKET_LIMIT;
	}
	if (type == bpf_htons(ETH_V4))
		return wall4(skb, pt, &p, dir, one);
	if (type == bpf_htons(ETH_V6)) {
		linear(skb, L3 + 48);
		return wall6(skb, pt, &p, dir, one);
	}
	if (type == bpf_htons(ETH_ARP))
		return dir == FROM ? arp_ok(skb, pt) : ALLOWED;
	return ETHERTYPE;
}

SEC("tc")
int atoll_from(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *pt = bpf_map_lookup_elem(&ports, &ifindex);
	int r;

	if (!pt)
		return refuse(skb, 0, FROM, NO_PORT);
	skb->cb[0] = 0;
	r = look(skb, pt, FROM);
	if (r == ANSWER)
		return answer(skb, pt);
	if (r)
		return refuse(skb, pt->vni, FROM, r);
	skb->mark = skb->cb[0] ? ID_OUTSIDE : pt->identity;
	return PASS;
}

SEC("tc")
int atoll_to(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *pt = bpf_map_lookup_elem(&ports, &ifindex);
	int r;

	if (!pt)
		return refuse(skb, 0, TO, NO_PORT);
	r = look(skb, pt, TO);
	if (r)
		return refuse(skb, pt->vni, TO, r);
	skb->mark = 0;
	return PASS;
}

SEC("tc")
int atoll_host(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, mark = ID_HOST, *id;
	struct device *d = bpf_map_lookup_elem(&devices, &ifindex);
	struct member_key m;
	__u16 type = 0;
	__u32 src;

	if (skb->mark == ID_PEER || skb->mark == ID_UNBIDDEN) /* says the gate, which knows by which cable it came */
		return PASS;
	skb->mark = 0; /* of a device that nobody has told of, nothing is known */
	if (!d)
		return PASS;
	m.vni = d->vni;
	bpf_skb_load_bytes(skb, 12, &type, 2);
	if (type == bpf_htons(ETH_V4)) {
		if (bpf_skb_load_bytes(skb, L3 + 12, &src, 4))
			return SHOT;
		mapped(&m.addr, src);
		if (src != d->gateway4)
			mark = 0;
	} else if (type == bpf_htons(ETH_V6)) {
		if (bpf_skb_load_bytes(skb, L3 + 8, &m.addr, 16))
			return SHOT;
		/* What is link-local was not routed here: the host itself says it. */
		if (!same_ip(&m.addr, &d->gateway6) && !link_local(&m.addr) && !none(&m.addr))
			mark = is_mapped(&m.addr) ? ID_OUTSIDE : 0;
	}
	if (!mark) {
		id = bpf_map_lookup_elem(&members, &m);
		mark = id ? *id & 0xffff : ID_OUTSIDE;
	}
	skb->mark = mark;
	return PASS;
}

SEC("tc")
int atoll_vxlan(struct __sk_buff *skb)
{
	skb->mark = skb->mark & 0xffff;
	return PASS;
}
