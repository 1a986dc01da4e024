/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Who asks for a member's hardware address, by ARP or neighbour discovery, is answered at the port
 * it asks at: nothing is flooded, and nobody else hears the question. What is asked about somebody
 * who is no member goes to the bridge, whose gateway may be meant. */
#pragma once
#include "packet.h"

static __always_inline int link_local(const struct ip *a)
{
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline int none(const struct ip *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

static __always_inline int multicast(const struct ip *a)
{
	return (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* behind: routes say that the address is behind the port. Their prefixes are among the others, under the
 * port's own number instead of a network's, which has fewer bits. */
static __always_inline int behind(struct port *pt, __u32 ifindex, const struct ip *a)
{
	struct prefix_key k;

	if (!(pt->flags & HOP))
		return 0;
	k.bits = 160;
	k.vni = 1u << 31 | ifindex;
	k.addr = *a;
	return bpf_map_lookup_elem(&prefixes, &k) != 0;
}

static __always_inline int behind4(struct port *pt, __u32 ifindex, __u32 addr4)
{
	struct ip a;

	mapped(&a, addr4);
	return addr4 && behind(pt, ifindex, &a);
}

static __always_inline struct station *station_of(struct port *pt, const struct ip *a)
{
	struct member_key m;

	m.vni = pt->vni;
	m.addr = *a;
	return bpf_map_lookup_elem(&stations, &m);
}

/* asks4: an ARP request that is in order. One about itself only tells. */
static __always_inline int asks4(struct port *pt, const struct arp *a)
{
	struct ip target;
	__u32 tpa;

	__builtin_memcpy(&tpa, a->tpa, 4);
	if (tpa == pt->addr4)
		return ALLOWED;
	mapped(&target, tpa);
	return station_of(pt, &target) ? ANSWER : ALLOWED;
}

#define NS_SIZE (L3 + 40 + 32) /* with the sender's hardware address, as everybody asks who is not just born */

/* asks6: a neighbour solicitation that is in order. */
static __always_inline int asks6(struct __sk_buff *skb, struct port *pt, const struct ip *from, const struct ip *target)
{
	__u8 opt[2] = {};

	if (((pt->flags & HAS6) && same_ip(target, &pt->addr6)) || none(from) || skb->len < NS_SIZE)
		return ALLOWED;
	if (bpf_skb_load_bytes(skb, L3 + 40 + 24, opt, 2) || opt[0] != 1 || opt[1] != 1)
		return ALLOWED;
	return station_of(pt, target) ? ANSWER : ALLOWED;
}

static __noinline int answer4(struct __sk_buff *skb, struct port *pt)
{
	struct arp a;
	struct station *st;
	struct ip target;
	__u32 tpa;

	if (bpf_skb_load_bytes(skb, L3, &a, sizeof(a)))
		return SHOT;
	__builtin_memcpy(&tpa, a.tpa, 4);
	mapped(&target, tpa);
	st = station_of(pt, &target);
	if (!st)
		return SHOT;
	__builtin_memcpy(a.tha, a.sha, 6);
	__builtin_memcpy(a.tpa, a.spa, 4);
	__builtin_memcpy(a.sha, st->mac, 6);
	__builtin_memcpy(a.spa, &tpa, 4);
	a.op = bpf_htons(2);
	if (bpf_skb_store_bytes(skb, 0, a.tha, 6, 0) || bpf_skb_store_bytes(skb, 6, a.sha, 6, 0) || bpf_skb_store_bytes(skb, L3, &a, sizeof(a), 0))
		return SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

/* advert is what ICMPv6 sums up: addresses, length and next header, then the message. */
struct advert {
	struct ip src, dst;
	__u32 len, next;
	__u8 type, code;
	__u16 sum;
	__u32 flags;
	struct ip target;
	__u8 opt, optlen;
	__u8 mac[6];
};

static __noinline int answer6(struct __sk_buff *skb, struct port *pt)
{
	struct advert a = {};
	struct station *st;
	__u8 mac[6];
	__u32 head;
	__s64 sum;

	if (bpf_skb_load_bytes(skb, 6, mac, 6) || bpf_skb_load_bytes(skb, L3 + 8, &a.dst, 16) || bpf_skb_load_bytes(skb, L3 + 48, &a.target, 16))
		return SHOT;
	st = station_of(pt, &a.target);
	if (!st)
		return SHOT;
	if (skb->len != NS_SIZE && bpf_skb_change_tail(skb, NS_SIZE, 0)) /* further options of the question */
		return SHOT;
	a.src = a.target;
	a.len = bpf_htonl(32);
	a.next = bpf_htonl(ICMP6);
	a.type = 136;
	a.flags = bpf_htonl(0x60000000); /* solicited, override */
	a.opt = 2;
	a.optlen = 1;
	__builtin_memcpy(a.mac, st->mac, 6);
	sum = bpf_csum_diff(0, 0, (__be32 *)&a, sizeof(a), 0);
	sum = (sum & 0xffff) + ((__u64)sum >> 16 & 0xffff);
	sum = (sum & 0xffff) + ((__u64)sum >> 16);
	a.sum = ~sum;
	head = bpf_htonl(32 << 16 | ICMP6 << 8 | 255); /* payload length, next header, hop limit */
	if (bpf_skb_store_bytes(skb, 0, mac, 6, 0) || bpf_skb_store_bytes(skb, 6, a.mac, 6, 0) || bpf_skb_store_bytes(skb, L3 + 4, &head, 4, 0) ||
	    bpf_skb_store_bytes(skb, L3 + 8, &a, 32, 0) || bpf_skb_store_bytes(skb, L3 + 40, &a.type, 32, 0))
		return SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

static __noinline int answer(struct __sk_buff *skb, struct port *pt)
{
	__u16 type = 0;

	bpf_skb_load_bytes(skb, 12, &type, 2);
	return type == bpf_htons(ETH_ARP) ? answer4(skb, pt) : answer6(skb, pt);
}
