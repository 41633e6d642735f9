/* What the files of this folder share and nobody else sees. */
#ifndef NOVACRON_LADDER_INSIDE_H
#define NOVACRON_LADDER_INSIDE_H

#include "novacron_ladder.h"

#include <string.h>

#define NLD_NO_SLOT UINT32_MAX

static inline uint64_t nld_load(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline void nld_keep(uint8_t *p, uint64_t v)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    memcpy(p, &v, sizeof v);
}

uint64_t nld_hash(const uint8_t *p, size_t size, uint64_t seed);
/* All of it, or the number of the system's error. */
int nld_read(int fd, uint8_t *to, size_t size, uint64_t at);
int nld_write(int fd, const uint8_t *from, size_t size, uint64_t at);

struct nld_store {
    int fd, error, by_content;
    uint32_t page_size, capacity, count, room;
    uint64_t count_at, addresses_at, pages_at, seed;
    uint64_t *addresses; /* of each slot */
    uint32_t *index;     /* address -> slot + 1, open addressing */
    uint32_t index_mask;
    uint64_t *hashes;  /* of each slot's content, 0 if not known; NULL unless by_content */
    uint32_t *buckets; /* hash -> slot + 1, four to a bucket; forgets where a bucket is full */
    uint32_t bucket_mask;
    uint32_t saved; /* slots whose address the file has */
    const uint8_t *map; /* the contents; of slots below `count` only is there anything */
    size_t map_size;
    /* Pages on their way to the file: consecutive slots from consecutive memory; and how many pages
     * follow them there that the file has already. */
    uint32_t run_slot, run_count, run_tail;
    const uint8_t *run_data;
};

uint32_t nld_find(const nld_store *s, uint64_t address);
/* The slot to keep this address's page in: its own, a new one, or NLD_NO_SLOT if the store is full
 * or (with a negative answer in *failed) memory is short. */
uint32_t nld_slot_for(nld_store *s, uint64_t address, int *failed);
uint32_t nld_find_content(const nld_store *s, uint64_t hash);
void nld_note_content(nld_store *s, uint32_t slot, uint64_t hash);

/* Keep a page in a slot. `data` must stay as it is until nld_settle. */
int nld_put(nld_store *s, uint32_t slot, const uint8_t *data);
/* A slot holds this page already: a run may go on over it. */
void nld_pass(nld_store *s, uint32_t slot, const uint8_t *data);
/* Whether a page would lengthen the run. */
int nld_goes_on(const nld_store *s, uint32_t slot, const uint8_t *data);
/* Everything is in the file. */
int nld_settle(nld_store *s);

/* What a slot holds. */
static inline const uint8_t *nld_content(const nld_store *s, uint32_t slot)
{
    if (slot - s->run_slot < s->run_count)
        return s->run_data + (size_t)(slot - s->run_slot) * s->page_size;
    return s->map + (size_t)slot * s->page_size;
}

#endif
