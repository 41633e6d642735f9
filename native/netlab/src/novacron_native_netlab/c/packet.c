#include "packet.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4       /* kernel headers before 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

#define BLOCK_BYTES (1u << 20)
#define PROTOCOL_TCP 6u
#define PROTOCOL_UDP 17u
#define TCP_FIN_PSH 0x09u
#define TCP_CWR 0x80u

_Static_assert(sizeof(struct virtio_net_hdr) == PACKET_PREFIX, "the kernel's prefix");

/* ------------------------------------------------------------------ memory */

uint32_t packet_room(const struct packets *packets) { return PACKET_MAX + packets->skip; }

struct packet *packet_next(struct packets *packets)
{
    struct block *block = packets->open;

    if (block && BLOCK_BYTES - block->used < sizeof(struct packet) + packet_room(packets)) {
        /* Full. Those of its packets that are under way keep it. */
        if (!block->packets) {
            block->next = packets->spare;
            packets->spare = block;
        }
        block = packets->open = NULL;
    }
    if (!block) {
        block = packets->spare;
        if (block)
            packets->spare = block->next;
        else if (!(block = malloc(sizeof *block + BLOCK_BYTES)))
            return NULL;
        block->packets = block->used = 0;
        packets->open = block;
    }
    struct packet *packet = (struct packet *)(void *)(block->bytes + block->used);
    packet->block = block;
    return packet;
}

void packet_drop(struct packets *packets, struct packet *packet)
{
    struct block *block = packet->block;

    if (--packet->segments || --block->packets)
        return;
    if (block == packets->open) {
        block->used = 0;
    } else {
        block->next = packets->spare;
        packets->spare = block;
    }
}

/* ------------------------------------------------------------------ cutting */

/* Length of the headers of a super-packet that we know how to cut, else 0. */
static uint32_t headers_of(const struct packet *packet, const uint8_t *data)
{
    const struct virtio_net_hdr *prefix = &packet->prefix;
    uint32_t transport = prefix->csum_start, headers;
    unsigned version = data[0] >> 4;

    if (!(prefix->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) || !prefix->gso_size ||
        transport < (version == 4 ? 20u : 40u) || transport + 20u > packet->length ||
        prefix->csum_offset > 16u)
        return 0;
    switch (prefix->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
    case VIRTIO_NET_HDR_GSO_TCPV6:
        headers = transport + (data[transport + 12] >> 4) * 4u;
        break;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        headers = transport + 8;
        break;
    default:
        return 0;
    }
    return headers < packet->length && headers <= PACKET_HEADERS_MAX ? headers : 0;
}

uint32_t packet_keep(struct packets *packets, struct packet *packet, uint32_t got)
{
    uint32_t count = 1;

    if (got <= packets->skip + 20)
        return 0;
    memset(&packet->prefix, 0, sizeof packet->prefix);
    memcpy(&packet->prefix, packet->raw, packets->skip);
    packet->length = got - packets->skip;
    packet->headers = headers_of(packet, packet->raw + packets->skip);
    if (packet->headers) {
        uint32_t payload = packet->length - packet->headers, each = packet->prefix.gso_size;

        count = (payload + each - 1) / each;
    }
    packet->segments = count;
    packet->block->packets++;
    packet->block->used += (uint32_t)(sizeof *packet + got + 15) & ~15u;
    return count;
}

void packet_cut(const struct packet *packet, uint32_t number, uint32_t *offset, uint32_t *length,
                uint32_t *size)
{
    uint32_t each = packet->headers ? packet->prefix.gso_size : packet->length;
    uint32_t payload = packet->length - packet->headers;

    *offset = number * each;
    *length = payload - *offset < each ? payload - *offset : each;
    *size = packet->headers + *length;
}

/* ------------------------------------------------------------------ joining */

static void put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static uint32_t get16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }

static uint32_t folded(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

/* The internet checksum (RFC 1071) of an even number of bytes, not inverted. */
static uint32_t sum16(const uint8_t *p, uint32_t length)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < length; i += 2)
        sum += get16(p + i);
    return folded(sum);
}

/* What segmentation offload does to the headers (tcp_gso_segment, udp4_gso in Linux). The kernel
 * expects the pseudo header's sum in the place of the checksum and completes it. */
static void adapt_headers(const struct packet *packet, uint8_t *headers, uint32_t offset,
                          uint32_t length)
{
    uint32_t transport = packet->prefix.csum_start, size = packet->headers + length;
    uint32_t transport_size = size - transport, sum;
    int udp = (packet->prefix.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) == VIRTIO_NET_HDR_GSO_UDP_L4;

    if (headers[0] >> 4 == 4) {
        put16(headers + 2, size);
        put16(headers + 4, get16(headers + 4) + offset / packet->prefix.gso_size);
        put16(headers + 10, 0);
        put16(headers + 10, ~sum16(headers, (headers[0] & 15u) * 4));
        sum = sum16(headers + 12, 8);
    } else {
        put16(headers + 4, size - 40);
        sum = sum16(headers + 8, 32);
    }
    if (udp) {
        put16(headers + transport + 4, transport_size);
    } else {
        uint8_t *tcp = headers + transport;
        uint32_t sequence = (get16(tcp + 4) << 16 | get16(tcp + 6)) + offset;

        put16(tcp + 4, sequence >> 16);
        put16(tcp + 6, sequence);
        if (offset + length < packet->length - packet->headers)
            tcp[13] &= (uint8_t)~TCP_FIN_PSH;   /* of the last packet alone */
        if (offset)
            tcp[13] &= (uint8_t)~TCP_CWR;       /* of the first one alone */
    }
    sum += (udp ? PROTOCOL_UDP : PROTOCOL_TCP) + transport_size;
    put16(headers + transport + packet->prefix.csum_offset, folded(sum));
}

int packet_write(const struct packets *packets, const struct packet *packet, int fd,
                 uint32_t offset, uint32_t length)
{
    uint8_t headers[PACKET_HEADERS_MAX];
    struct virtio_net_hdr prefix = packet->prefix;
    uint32_t skip = packets->skip;
    /* iovecs point to what is only read: the kernel's type has no const. */
    uint8_t *data = (uint8_t *)(uintptr_t)packet->raw + skip;

    if (!packet->headers) {
        struct iovec whole = { data - skip, skip + packet->length };

        return (int)writev(fd, &whole, 1);
    }
    memcpy(headers, data, packet->headers);
    adapt_headers(packet, headers, offset, length);
    prefix.hdr_len = (uint16_t)packet->headers;
    if (length <= prefix.gso_size) {
        prefix.gso_type = VIRTIO_NET_HDR_GSO_NONE;
        prefix.gso_size = 0;
    }
    struct iovec parts[] = {
        { &prefix, skip }, { headers, packet->headers }, { data + packet->headers + offset, length },
    };
    return (int)writev(fd, parts, 3);
}
