/*
 * What a TUN device hands over: IP packets, and TCP or UDP super-packets of up to 64 KiB that a
 * network card would cut into packets of the wire ("offload"). The link wants packets of the wire,
 * the kernel is cheapest with super-packets: so they are cut by bookkeeping alone, and neighbours
 * that are due together leave as one again.
 */
#ifndef NETLAB_PACKET_H
#define NETLAB_PACKET_H

#include <linux/virtio_net.h>
#include <stdint.h>

#define PACKET_MAX (65536u + 512u)
#define PACKET_HEADERS_MAX 256u
#define PACKET_PREFIX 10u               /* of the kernel before each packet: struct virtio_net_hdr */

/* Packets lie one behind the other in blocks; a block is used again when all of them have left. */
struct block {
    struct block *next;
    uint32_t packets, used;
    _Alignas(16) uint8_t bytes[];
};

struct packet {
    struct block *block;
    struct virtio_net_hdr prefix;
    uint32_t segments;                  /* that are under way */
    uint32_t length;                    /* without the prefix */
    uint32_t headers;                   /* bytes; 0: a packet of the wire, not cut */
    uint8_t raw[];                      /* prefix (with offload) and packet */
};

struct packets {
    struct block *open, *spare;
    uint32_t skip;                      /* PACKET_PREFIX with offload, else 0 */
};

/* Room for the next packet: read up to packet_room() bytes into raw, then packet_keep. NULL: no
 * memory. */
struct packet *packet_next(struct packets *);
uint32_t packet_room(const struct packets *);

/* So many bytes were read. Returns into how many packets of the wire it is cut, or 0 if it is none. */
uint32_t packet_keep(struct packets *, struct packet *, uint32_t got);

/* The n-th packet of the wire: where its payload is and its size with headers. */
void packet_cut(const struct packet *, uint32_t number, uint32_t *offset, uint32_t *length,
                uint32_t *size);

/* One segment less is under way. */
void packet_drop(struct packets *, struct packet *);

/* Write payload [offset, offset + length) with the headers that it needs. Returns < 0 as writev. */
int packet_write(const struct packets *, const struct packet *, int fd, uint32_t offset,
                 uint32_t length);

#endif
